//! A store that fails on purpose. (stub: completed by its owner)

/// What happens at the chosen operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The operation fails with EIO and nothing is written.
    Eio,
}
/// When to fail.
#[derive(Debug, Default)]
pub struct FaultPlan {}
/// The decorator.
#[derive(Debug)]
pub struct FaultyStore<S> {
    /// the store below
    pub inner: S,
}
