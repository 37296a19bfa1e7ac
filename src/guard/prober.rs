//! What the guard needs from its mount to ask the vault; `control` implements it over the sets and the header.

use std::fmt;
use std::time::Duration;

use super::machine::Answer;
use crate::xts::XtsCipher;

/// Which key is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The set's name.
    pub set: String,
    /// The key version in the header that the guard follows.
    pub kid: String,
    /// It is in the embedded vault: the first no is final.
    pub local: bool,
}

/// What came of a probe.
#[derive(Debug)]
pub struct Outcome {
    /// For the machine.
    pub answer: Answer,
    /// For people; empty when all is well.
    pub reason: String,
    /// Of a good answer, when it was asked for.
    pub cipher: Option<Box<XtsCipher>>,
}

/// Asks the vault in the set's name. Called by the guard's thread only; may block up to the deadline, and a little longer.
pub trait Prober: Send + Sync + fmt::Debug {
    /// Which key is asked for now.
    fn target(&self) -> Target;

    /// Unwraps the disk's key and compares it with the one in use. With `resume` there is none in use: the key must pass every
    /// check of a mount, and its cipher is returned.
    fn probe(&self, deadline: Duration, resume: bool) -> Outcome;

    /// A number that changes with the keys, grants and identities of the embedded vault; `None` when it cannot be read, or
    /// the key is elsewhere. Cheap.
    fn generation(&self) -> Option<u64>;

    /// Seconds until the key version expires, where it does and the vault tells.
    fn expires(&self, deadline: Duration) -> Option<i64>;
}
