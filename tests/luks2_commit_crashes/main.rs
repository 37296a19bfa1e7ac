//! Does a container open with the old or with the new header at every crash point of every change to it (ON-DISK sections
//! 7 and 11), and is each failure told as what it is?
//!
//! A crash point is every prefix of the writes, with every subset of what was not yet synced lost, and every write torn
//! at every byte where something in it begins or ends.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "../luks2_support/mod.rs"]
mod luks2_support;

mod backups;
mod commit;
mod failures;
mod keyslots;
mod machine;
