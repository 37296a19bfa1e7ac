//! wrapdisk: a disk image that is plaintext only inside a mount, whose data key is wrapped by a key that you keep
//! in a vault and can take away at any time.

pub mod cache;
pub mod cli;
pub mod control;
pub mod dirs;
pub mod disk;
pub mod envelope;
pub mod error;
pub mod fuse;
pub mod keyring;
pub mod luks2;
pub mod range_lock;
pub mod secret;
pub mod set;
pub mod store;
pub mod sync;
pub mod units;
pub mod vault;
pub mod volume;
pub mod xts;
