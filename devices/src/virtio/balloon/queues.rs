//! Which queue of a balloon has which number.

use super::features::{FREE_PAGE_HINT, PAGE_REPORTING, STATS};

/// What a queue is for (virtio 1.2, 5.5.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Inflate,
    Deflate,
    Stats,
    Hint,
    Report,
}

/// The queues of a balloon with `features`, in the order of their numbers.
///
/// The specification gives each queue a fixed number, but Linux counts only queues that it uses:
/// those of features that were not negotiated leave no gap, and the later ones move down.
pub(super) fn roles(features: u64) -> Vec<Role> {
    let optional =
        [(STATS, Role::Stats), (FREE_PAGE_HINT, Role::Hint), (PAGE_REPORTING, Role::Report)];
    let negotiated = optional.into_iter().filter(|(bit, _)| features & bit != 0);
    [Role::Inflate, Role::Deflate].into_iter().chain(negotiated.map(|(_, role)| role)).collect()
}
