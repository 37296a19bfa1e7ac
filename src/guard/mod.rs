//! The key guard of a mount: asks the vault again and again whether the key may still be used, takes it away when not, and
//! brings it back; and what happens around the mount then: guests, hooks, people.
//!
//! Must never see: FUSE, headers, sets, plaintext. It asks the vault through what its mount gives it.

pub mod catalog;
mod child;
mod event;
pub mod guests;
pub mod hooks;
pub mod processes;
pub mod qmp;
mod respond;
mod status;
pub mod tell;

pub use event::{Cause, EventKind, GuardEvent, LogOnly, Responder, Why};
pub use respond::{Place, Responses};
pub use status::GuardStatus;
