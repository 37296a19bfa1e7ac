//! What happens around a mount when its key is taken away: guests, hooks, people.
//!
//! Must never see: FUSE, plaintext.

mod child;
pub mod hooks;
pub mod qmp;
pub mod tell;
