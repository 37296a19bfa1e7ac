//! The LUKS2 container. (stub: completed by its owner)
