//! The LUKS2 container: binary header, strict JSON model, digest, keyslots, tokens, two-copy commit (ON-DISK). What is
//! ours is one token type, `wrapdisk-vault`; everything else is what cryptsetup reads and writes.
//!
//! Must never see: vaults, sets, plaintext data. No I/O beyond a [`BackingStore`](crate::store::BackingStore); the caller
//! holds its lock.
//!
//! Invariants:
//! 1. A header is hostile input: every number is bounded before it is used, nothing is allocated before its length is.
//! 2. What is written passes the same reader; unknown members that cannot change the meaning are kept.
//! 3. At every crash point of a commit the container opens with the old or with the new header.
//! 4. A chosen copy whose JSON is refused is not replaced by the other one: that would be a downgrade.

mod binary;
mod copies;
mod fields;
mod fuzz;
mod hash;
mod header;
mod json;
mod model;
mod refuse;
mod token;

pub mod backup;
pub mod keyslot;

pub use copies::Committed;
pub use header::{Header, NewHeader};
pub use model::Segment;
pub use token::{Holes, Kind, VaultToken};

#[doc(hidden)]
pub use fuzz::fuzz_load;
