//! The restore strategies: one table of what each is and does. A new strategy is a variant here and its
//! [`Traits`].

use std::fmt;
use std::str::FromStr;

use varve_snapshot::Region;

use super::baselines::{eager, faasnap, lazy, reap};
use super::classes;
use super::image::ImageInfo;
use super::placement::{Mechanism, Placement};
use super::policy::Policy;

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
    /// Files are mapped region by region, and pages of the working set are read into the page cache
    /// beside the guest (FaaSnap).
    Faasnap,
    /// Each class of pages comes from its tier.
    Tiered,
    /// One image in guest layout is mapped as a whole, and populated beside the guest.
    Template,
    /// The strategy with the lowest predicted cost.
    Auto,
}

/// What a strategy is and does.
pub(crate) struct Traits {
    /// Its name on the command line and in reports.
    pub name: &'static str,
    /// Another system's method, which stays as it was described: it knows no classes of pages, and gets
    /// no help that the paper does not have.
    pub baseline: bool,
    /// The layout of a tiered snapshot that it restores from.
    pub layout: &'static str,
    /// Works on a flat snapshot.
    pub flat: bool,
    /// Treats pages by their class: written ones are made private ahead, cold ones left alone.
    pub classes: bool,
    /// Maps packed images, which hold pages of one class each.
    pub packed: bool,
    /// May map the raw memory file as a whole beneath all other mappings.
    pub base_image: bool,
    /// Maps all classes from one image, so that mappings may cross classes.
    pub one_layer: bool,
    /// Watches all of guest memory by userfaultfd.
    pub watches_all: bool,
    /// Works with the pool of 2 MiB pages (hugetlb), into which all stored pages are copied.
    pub hugetlb: bool,
    /// Places a region whose content is in the image, or zero.
    pub place: fn(&Region, Option<&ImageInfo>, &Policy) -> Placement,
}

impl Traits {
    /// No trait; for struct updates.
    pub const NONE: Traits = Traits {
        name: "",
        baseline: false,
        layout: "",
        flat: false,
        classes: false,
        packed: false,
        base_image: false,
        one_layer: false,
        watches_all: false,
        hugetlb: false,
        place: |_, _, _| Placement::only(Mechanism::Fault),
    };
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

    /// Its row of the table.
    pub(crate) fn traits(self) -> &'static Traits {
        match self {
            Strategy::Lazy => &lazy::TRAITS,
            Strategy::Eager => &eager::TRAITS,
            Strategy::Reap => &reap::TRAITS,
            Strategy::Faasnap => &faasnap::TRAITS,
            Strategy::Tiered => &classes::TIERED,
            Strategy::Template => &classes::TEMPLATE,
            Strategy::Auto => &classes::AUTO,
        }
    }

    /// Its name on the command line and in reports.
    pub fn name(self) -> &'static str {
        self.traits().name
    }

    /// Whether it is another system's method, for comparison.
    pub fn is_baseline(self) -> bool {
        self.traits().baseline
    }

    /// Whether it restores flat snapshots, of whose pages nothing is known.
    pub fn restores_flat(self) -> bool {
        self.traits().flat
    }
}

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A name that is no strategy's.
#[derive(Debug, thiserror::Error)]
#[error("unknown restore strategy {0:?}; use auto, template, tiered, lazy, eager, reap or faasnap")]
pub struct UnknownStrategy(String);

impl FromStr for Strategy {
    type Err = UnknownStrategy;

    fn from_str(name: &str) -> Result<Strategy, UnknownStrategy> {
        let found = Strategy::ALL.into_iter().find(|s| s.name() == name);
        found.ok_or_else(|| UnknownStrategy(name.into()))
    }
}
