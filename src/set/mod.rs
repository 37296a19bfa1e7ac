//! Disk encryption sets and the registry of containers, in `sets.db`. (stub: completed by its owner)
