//! What a plan does with a region of guest memory.

use varve_snapshot::Region;

use super::image::ImageInfo;
use super::policy::Policy;
use crate::ram::kind::{Ahead, HugePages};

/// What brings a region's pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum How {
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
    pub how: How,
    /// What is done to its pages ahead of their use.
    pub ahead: Option<Ahead>,
}

impl Placement {
    /// Nothing is done ahead.
    pub fn only(how: How) -> Placement {
        Placement { how, ahead: None }
    }

    /// For images that cannot be mapped: a copy of pages that recorded invocations touched needs no
    /// userfaultfd, and so no privilege.
    pub fn copied_if_hot(region: &Region) -> Placement {
        Placement::only(if region.is_hot() { How::Copy } else { How::Fault })
    }
}

/// What the strategy of `policy` does with `region`, whose content is in `image`.
pub(crate) fn place(region: &Region, image: Option<&ImageInfo>, policy: &Policy) -> Placement {
    match (policy.huge_pages, image) {
        // Nothing can be mapped over 2 MiB pages, nor populated in part.
        (HugePages::Pool, None) => Placement::only(How::Base),
        (HugePages::Pool, Some(_)) => Placement::only(How::Copy),
        (HugePages::Off | HugePages::Transparent, _) => {
            (policy.strategy.traits().place)(region, image, policy)
        }
    }
}
