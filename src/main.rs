//! The `wrapdisk` command.

fn main() {}
