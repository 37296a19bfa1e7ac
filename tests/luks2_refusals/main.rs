//! Is every hostile header of ON-DISK section 8 refused, in words that name the field, what was found and what is
//! allowed, as damaged (exit 5) or unsupported (exit 1)? And is nothing refused that must be accepted?
//!
//! Each table takes a good header and changes one thing; the headers are built by other code than the product's.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "../luks2_support/mod.rs"]
mod luks2_support;

mod accepted;
mod binary;
mod json;
mod keyslots;
mod objects;
mod program;
mod tokens;
