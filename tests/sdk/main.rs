//! Do programs that nobody here wrote find Azure Key Vault behind `wrapdisk vault serve`: the official SDKs for Python,
//! JavaScript and Rust, and the Azure command line?
//!
//! Each runs unmodified against a server of its own, once with a managed identity and once with client secrets, and says
//! step by step what it did; docs/CONFORMANCE.md is made from that.
#![cfg(all(feature = "azure", feature = "serve"))]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod az;
mod js;
mod python;
mod rust;
mod rust_steps;
#[path = "../serve_support/mod.rs"]
mod serve_support;
mod steps;
#[path = "../support/mod.rs"]
mod support;
mod table;
mod vault;
