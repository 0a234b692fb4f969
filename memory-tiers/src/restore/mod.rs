//! Carries a plan out on guest memory, and counts what it did.

pub(crate) mod census;
pub(crate) mod copy;
pub(crate) mod counters;
pub(crate) mod execute;
#[cfg(test)]
pub(crate) mod huge_blocks_tests;
pub(crate) mod mapped;
pub(crate) mod open;
pub(crate) mod populate;
#[cfg(test)]
pub(crate) mod tests;
pub(crate) mod workers;
