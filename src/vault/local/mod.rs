//! The embedded vault: one SQLite file, private keys sealed under a root key. (stub: completed by its owner)
