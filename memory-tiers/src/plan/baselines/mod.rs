//! Restore methods of other systems, as their papers describe them: the baselines of comparisons.

pub(super) mod eager;
pub(super) mod faasnap;
pub(super) mod lazy;
pub(super) mod reap;
