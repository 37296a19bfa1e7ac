//! A disk image presented as a file through FUSE: the adapter (no logic), the session around it, and the mountpoint.
//!
//! Must never see: keys, vaults, headers, the cache. It serves whatever implements [`Image`](crate::disk::Image).

mod adapter;
mod attach;
mod look;
pub mod mountpoint;
mod served;
mod session;

pub use look::Layout;
pub use session::{MountConfig, Session};
