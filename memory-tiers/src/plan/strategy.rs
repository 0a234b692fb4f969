//! The methods of restoring: for a region, which mechanism brings it, and what is done ahead. How
//! regions are put together to few operations is `plan`'s business.

use std::fmt;
use std::str::FromStr;

use varve_snapshot::{PageClass, Region};

use crate::plan::image::ImageInfo;
use crate::plan::policy::{Policy, ReadOnlyPages, Wait};
use crate::ram::kind::{Ahead, HugePages};

/// A method of restoring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Strategy {
    /// Everything is mapped, every page faults (Firecracker).
    Lazy,
    /// Everything is read before the guest runs.
    Eager,
    /// The working set is installed before the guest runs, the rest comes on faults (REAP).
    Reap,
    /// Files are mapped region by region, and what will be used is read into the page cache beside
    /// the guest (FaaSnap).
    Faasnap,
    /// Each class from its tier.
    Tiered,
    /// One image in guest layout is mapped as a whole, and populated beside the guest.
    Template,
    /// Whichever the costs favour.
    Auto,
}

impl Strategy {
    /// All of them.
    pub const ALL: [Strategy; 7] = [
        Strategy::Lazy,
        Strategy::Eager,
        Strategy::Reap,
        Strategy::Faasnap,
        Strategy::Tiered,
        Strategy::Template,
        Strategy::Auto,
    ];

    /// Its name on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Strategy::Lazy => "lazy",
            Strategy::Eager => "eager",
            Strategy::Reap => "reap",
            Strategy::Faasnap => "faasnap",
            Strategy::Tiered => "tiered",
            Strategy::Template => "template",
            Strategy::Auto => "auto",
        }
    }
}

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A name that is no strategy's.
#[derive(Debug, thiserror::Error)]
#[error(
    "there is no restore strategy {0:?}: lazy, eager, reap, faasnap, tiered, template and auto are"
)]
pub struct UnknownStrategy(String);

impl FromStr for Strategy {
    type Err = UnknownStrategy;

    fn from_str(name: &str) -> Result<Strategy, UnknownStrategy> {
        let found = Strategy::ALL.into_iter().find(|s| s.name() == name);
        found.ok_or_else(|| UnknownStrategy(name.into()))
    }
}

/// What brings a region's pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum How {
    /// The base layer: they are zero.
    Base,
    /// A private mapping of the image.
    Map,
    /// A copy before the guest runs.
    Copy,
    /// A huge page of fresh memory, into which it is copied, if it is stored.
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

/// What `policy`'s strategy (not `auto`) does with `region`, whose content is in `image`.
pub(crate) fn place(region: &Region, image: Option<&ImageInfo>, policy: &Policy) -> Placement {
    let (how, ahead) = match image {
        None => zero(region, policy),
        Some(_) if policy.huge_pages == HugePages::Pool => (How::Copy, None),
        Some(image) if !image.mappable => unmapped(region, policy),
        Some(image) => mappable(region, image, policy),
    };
    Placement { how, ahead }
}

/// Zero pages that will be written are allocated ahead, by the methods that know of them.
fn zero(region: &Region, policy: &Policy) -> (How, Option<Ahead>) {
    let written = region.class == PageClass::ReadWrite;
    if policy.huge_pages == HugePages::Pool {
        return (How::Base, None);
    }
    match policy.strategy {
        Strategy::Reap if region.is_hot() && written => (How::Copy, None),
        Strategy::Reap => (How::Fault, None),
        Strategy::Tiered | Strategy::Template if written => (How::Base, Some(Ahead::Write)),
        _ => (How::Base, None),
    }
}

/// An image that only reads: what was touched is copied, so that it needs no privilege. `lazy` knows
/// of nothing ahead.
fn unmapped(region: &Region, policy: &Policy) -> (How, Option<Ahead>) {
    match policy.strategy {
        Strategy::Eager => (How::Copy, None),
        Strategy::Lazy => (How::Fault, None),
        _ if region.is_hot() => (How::Copy, None),
        _ => (How::Fault, None),
    }
}

fn mappable(region: &Region, image: &ImageInfo, policy: &Policy) -> (How, Option<Ahead>) {
    let hot = region.is_hot();
    match policy.strategy {
        Strategy::Lazy if policy.pager.is_some() => (How::Fault, None),
        Strategy::Lazy | Strategy::Auto => (How::Map, None),
        Strategy::Eager => (How::Copy, None),
        Strategy::Reap if hot => (How::Copy, None),
        Strategy::Reap => (How::Fault, None),
        Strategy::Faasnap => (How::Map, hot.then_some(Ahead::Cache)),
        Strategy::Tiered | Strategy::Template => match region.class {
            PageClass::ReadWrite => (How::Map, Some(Ahead::Write)),
            PageClass::ReadOnly => (How::Map, Some(read_only(image, policy))),
            _ if hot && policy.strategy == Strategy::Template => (How::Map, Some(Ahead::Read)),
            _ if policy.asks_for_cold() => (How::Fault, None),
            _ => (How::Map, None),
        },
    }
}

/// Pages that are only read are used where they are, or made private ahead: a copy in local memory.
fn read_only(image: &ImageInfo, policy: &Policy) -> Ahead {
    let costs = &policy.costs;
    let share = policy.waited(Wait::First);
    let copied = match policy.read_only {
        ReadOnlyPages::Mapped => false,
        ReadOnlyPages::Copied => true,
        ReadOnlyPages::Auto => {
            let in_place = costs.populate_read * share + costs.in_place(image);
            costs.populate_write * share < in_place
        }
    };
    if copied { Ahead::Write } else { Ahead::Read }
}
