//! What a plan does with a region of guest memory.

use varve_snapshot::Region;

use super::image::ImageInfo;
use super::policy::Policy;
use crate::ram::kind::{HugePages, PrefaultMode};

/// What brings a region's pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mechanism {
    /// Fresh memory: the pages are zero.
    Base,
    /// A private mapping of the image.
    Map,
    /// A copy before the guest runs.
    Copy,
    /// A huge page of fresh memory, into which stored pages are copied.
    Block,
    /// A fault.
    Fault,
}

/// What happens to a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Placement {
    pub how: Mechanism,
    /// What is done to its pages ahead of their use.
    pub ahead: Option<PrefaultMode>,
}

impl Placement {
    /// Nothing is done ahead.
    pub fn only(how: Mechanism) -> Placement {
        Placement { how, ahead: None }
    }

    /// For images that cannot be mapped: a copy of pages that recorded invocations touched needs no
    /// userfaultfd, and so no privilege.
    pub fn copied_if_hot(region: &Region) -> Placement {
        Placement::only(if region.is_hot() { Mechanism::Copy } else { Mechanism::Fault })
    }
}

/// What the strategy of `policy` does with `region`, whose content is in `image`.
pub(crate) fn place(region: &Region, image: Option<&ImageInfo>, policy: &Policy) -> Placement {
    match (policy.huge_pages, image) {
        // Nothing can be mapped over 2 MiB pages, nor populated in part.
        (HugePages::Pool, None) => Placement::only(Mechanism::Base),
        (HugePages::Pool, Some(_)) => Placement::only(Mechanism::Copy),
        (HugePages::Off | HugePages::Transparent, _) => {
            (policy.strategy.traits().place)(region, image, policy)
        }
    }
}
