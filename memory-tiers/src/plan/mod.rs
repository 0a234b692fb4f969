//! Decides how memory is restored, before the first mapping is made. A plan can be printed, counted and
//! simulated; nothing here touches guest memory.

mod baselines;
pub(crate) mod bridge;
mod classes;
pub(crate) mod huge_blocks;
pub(crate) mod image;
pub(crate) mod layouts;
pub(crate) mod mispredict;
pub(crate) mod ops;
pub(crate) mod overlay;
pub(crate) mod placement;
pub(crate) mod planner;
pub(crate) mod policy;
pub(crate) mod stored;
pub(crate) mod strategy;
pub(crate) mod summary;
#[cfg(test)]
pub(crate) mod tests;
