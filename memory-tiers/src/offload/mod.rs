//! Evicts idle pages of a running guest to a backing store, and brings them back.

pub(crate) mod control;
pub(crate) mod evict;
#[cfg(test)]
pub(crate) mod tests;
pub(crate) mod writeback;
