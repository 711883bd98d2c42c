//! Adapters on disk.
