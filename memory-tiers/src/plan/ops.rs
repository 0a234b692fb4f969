//! The plan of a restore: every operation, decided before the first mapping is made. It is pure: it
//! can be printed, counted and simulated. `exec` carries it out.

use std::sync::OnceLock;
use std::time::Duration;

use varve_snapshot::{ImageId, PageClass, PageRange, Region, RegionMap, Stored};

use crate::plan::bridge::guest_index;
use crate::plan::image::ImageInfo;
use crate::plan::overlay::{Overlay, Shown};
use crate::plan::placement::{Mechanism, Placement};
use crate::plan::planner;
use crate::plan::policy::Policy;
use crate::plan::stored::stored_at;
use crate::plan::strategy::Strategy;
use crate::ram::kind::{HugePages, PrefaultMode};
use crate::ram::ranges::RangeSet;

/// What a plan is made from.
#[derive(Clone, Copy, Debug)]
pub struct PlanInput<'a> {
    /// Guest memory.
    pub memory: &'a [PageRange],
    /// What each page is for, and where its content is.
    pub layout: &'a RegionMap,
    /// The image in guest layout that holds all pages that `layout` does not name, cold or zero, and
    /// lies beneath the others. None: these pages are zero.
    pub base_image: Option<ImageId>,
    /// The images that the layout names, by their number.
    pub images: &'a [ImageInfo],
    /// What is wanted.
    pub policy: &'a Policy,
}

/// Why there is no plan.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// A region that is nowhere.
    #[error("region {0:?} is not inside guest memory")]
    Outside(PageRange),
    /// An image that is not there.
    #[error("region {0:?} is stored in image {1}, but there is no such image")]
    NoImage(PageRange, u16),
    /// An image that is too short.
    #[error("region {pages:?} is stored at page {page} of image {image}, which has {has} pages")]
    Short {
        /// The region.
        pages: PageRange,
        /// First page in the image.
        page: u64,
        /// The image.
        image: String,
        /// Pages in it.
        has: u64,
    },
    /// An image that cannot lie beneath the others, or a method that does not lay it there.
    #[error("image {0} cannot be the base mapping for strategy {1}")]
    Beneath(u16, Strategy),
    /// A method that maps 4 KiB pages or waits for their faults.
    #[error(
        "strategy {0} cannot use the pool of 2 MiB pages: choose eager or tiered, or transparent \
         huge pages"
    )]
    HugePages(Strategy),
    /// The plan would restore something else; a defect.
    #[error("the plan shows {shown:?} at guest page {page:#x}: this is a defect of the planner")]
    Wrong {
        /// Guest physical address.
        page: u64,
        /// What would be there.
        shown: Option<Shown>,
    },
}

/// What an operation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// Lays a private mapping of the image.
    Map,
    /// Lays fresh zero memory over a mapping that shows zero pages of a file there.
    Clear,
    /// Lays fresh zero memory, made of a huge page where there is one, over whatever is there.
    Block,
    /// Copies the image's pages into such a block, where all is present.
    Fill,
    /// Copies the image's pages in.
    Copy,
    /// Copies them, or zeros, into memory that is watched.
    Install,
    /// Has missing pages asked for.
    Watch,
}

/// One operation of a plan, carried out before the guest runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Op {
    /// What is done.
    pub action: Action,
    /// The layer that it belongs to; they are laid bottom-up.
    pub layer: PageClass,
    /// The extent.
    pub pages: PageRange,
    /// Where its content begins; `None`: zero, or, of [`Action::Watch`], what the layout says.
    pub from: Option<Stored>,
}

/// Pages that are made ready ahead of their use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// The pages.
    pub pages: PageRange,
    /// Mechanism; `None`: they are ready, and only stage-2 is filled.
    pub how: Option<PrefaultMode>,
    /// Their class.
    pub class: PageClass,
    /// When recorded invocations first touched one of them.
    pub rank: u32,
}

/// All that a restore does.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The method; never `auto`.
    pub strategy: Strategy,
    /// What is laid, in order.
    pub ops: Vec<Op>,
    /// What is populated after that and before the guest runs, in order.
    pub before: Vec<Step>,
    /// What is populated beside the guest, once it is known.
    pub(crate) beside: OnceLock<Vec<Step>>,
    pub(crate) memory: Vec<PageRange>,
    pub(crate) layout: RegionMap,
    pub(crate) base_image: Option<ImageId>,
    pub(crate) placements: Vec<Placement>,
    pub(crate) images: Vec<ImageInfo>,
    pub(crate) policy: Policy,
    /// What it took to read what is to be known, and to decide.
    pub(crate) took: Duration,
}

impl Plan {
    /// Decides how to restore.
    pub fn new(input: &PlanInput<'_>) -> Result<Plan, PlanError> {
        check(input)?;
        if input.policy.strategy != Strategy::Auto {
            return Ok(planner::plan(input));
        }
        let candidates: &[Strategy] = match input.policy.huge_pages {
            HugePages::Pool => &[Strategy::Tiered],
            _ => &[Strategy::Template, Strategy::Tiered, Strategy::Lazy, Strategy::Eager],
        };
        let plans = candidates.iter().map(|&strategy| {
            let policy = Policy { strategy, ..input.policy.clone() };
            planner::plan(&PlanInput { policy: &policy, ..*input })
        });
        let best = plans.min_by(|a, b| a.cost().total().total_cmp(&b.cost().total()));
        Ok(best.unwrap_or_else(|| planner::plan(input)))
    }

    /// What is populated beside the guest, in order. If nothing is waited for, it is put in order when it
    /// is asked for first, which may be beside the guest, too.
    pub fn beside(&self) -> &[Step] {
        self.beside.get_or_init(|| planner::steps(self))
    }

    /// Whether there is anything to populate beside the guest; nothing is put in order for that.
    pub(crate) fn has_beside(&self) -> bool {
        let any = || {
            let mut placed = self.layout.regions().iter().zip(&self.placements);
            placed.any(|(region, placement)| planner::is_step(self, region, placement))
        };
        self.beside.get().map_or_else(any, |steps| !steps.is_empty())
    }

    /// Guest memory.
    pub fn memory(&self) -> &[PageRange] {
        &self.memory
    }

    /// The images that the plan was made for, by their number.
    pub fn images(&self) -> &[ImageInfo] {
        &self.images
    }

    /// The image that holds the page at guest physical address `address`, if its content is stored.
    pub fn image_at(&self, address: u64) -> Option<&ImageInfo> {
        self.images.get(usize::from(self.stored_at(address)?.image.0))
    }

    /// Where the content of the page at `address` is; `None`: it is zero.
    pub(crate) fn stored_at(&self, address: u64) -> Option<Stored> {
        match (self.layout.find(address), self.base_image) {
            (None, Some(image)) => {
                guest_index(&self.memory, address).map(|page| Stored { image, page })
            }
            _ => stored_at(&self.layout, address),
        }
    }

    /// What shows at the page at guest physical address `address` once the plan is carried out.
    pub fn shown(&self, address: u64) -> Option<Shown> {
        self.overlay(true).at(address)
    }

    /// Simulates the plan and compares each page with the layout.
    pub fn verify(&self) -> Result<(), PlanError> {
        let overlay = self.overlay(true);
        for range in &self.memory {
            for page in (range.start()..range.end()).step_by(4096) {
                let shown = overlay.at(page);
                if !shown.is_some_and(|s| self.is_right(page, s)) {
                    return Err(PlanError::Wrong { page, shown });
                }
            }
        }
        Ok(())
    }

    fn is_right(&self, page: u64, shown: Shown) -> bool {
        match (shown, self.stored_at(page)) {
            (Shown::Fault, _) => true,
            (Shown::Zero, stored) => stored.is_none(),
            (Shown::Image(shown), Some(stored)) => shown == stored,
            (Shown::Image(shown), None) => {
                let image = self.images.get(usize::from(shown.image.0));
                image.is_some_and(|i| i.guest_layout)
                    && guest_index(&self.memory, page) == Some(shown.page)
            }
        }
    }

    /// Pages that are used in place, in the images that they are mapped from, until they are written.
    pub fn in_place(&self) -> Vec<PageRange> {
        self.mapped().ranges()
    }

    /// Pages that are mapped and made private ahead of their use.
    pub fn made_private(&self) -> Vec<PageRange> {
        let mut pages = RangeSet::default();
        let steps = self.before.iter().chain(self.beside());
        let written = steps.filter(|step| step.how == Some(PrefaultMode::Write));
        written.for_each(|step| pages.insert(step.pages));
        pages.ranges()
    }

    /// The images that this process reads or maps, some several times. Those whose pages are only
    /// asked for are the pager's to read, if there is one.
    pub(crate) fn used_images(&self) -> impl Iterator<Item = ImageId> + '_ {
        let regions = self.layout.regions().iter().zip(&self.placements);
        let own = |p: &Placement| p.how != Mechanism::Fault || self.policy.pager.is_none();
        let named = regions.filter(move |(_, p)| own(p)).filter_map(|(r, _)| Some(r.stored?.image));
        named.chain(self.base_image)
    }

    /// Whether pages are put in place one by one, now or as they are asked for.
    pub(crate) fn installs(&self) -> bool {
        self.ops.iter().any(|op| matches!(op.action, Action::Watch | Action::Install))
    }

    pub(crate) fn mapped(&self) -> RangeSet {
        let mut mapped = RangeSet::default();
        for op in &self.ops {
            match op.action {
                Action::Map => mapped.insert(op.pages),
                Action::Copy | Action::Clear | Action::Block => mapped.remove(op.pages),
                _ => {}
            }
        }
        mapped
    }

    /// Mappings that guest memory will consist of.
    pub fn mappings(&self) -> usize {
        self.overlay(false).mappings()
    }

    /// The overlay, with copies shown where they are made, or the mappings alone.
    fn overlay(&self, copies: bool) -> Overlay {
        let mut overlay = Overlay::new(&self.memory);
        for op in &self.ops {
            let shown = match (op.action, op.from) {
                (Action::Watch, _) => Shown::Fault,
                (Action::Map, Some(from)) => Shown::Image(from),
                (Action::Clear | Action::Block, _) => Shown::Zero,
                (_, Some(from)) if copies => Shown::Image(from),
                (Action::Install, None) if copies => Shown::Zero,
                _ => continue,
            };
            overlay.lay(op.pages, shown);
        }
        overlay
    }
}

/// Both together, if the second follows the first in one range of guest memory.
pub(crate) fn joined(first: PageRange, next: PageRange, memory: &[PageRange]) -> Option<PageRange> {
    let follows = first.end() == next.start();
    let both = PageRange::new(first.start(), next.end().checked_sub(first.start())?).ok()?;
    (follows && memory.iter().any(|range| range.contains(&both))).then_some(both)
}

/// Refuses a layout that names what is not there.
pub(crate) fn check(input: &PlanInput<'_>) -> Result<(), PlanError> {
    let images = input.images;
    for region in input.layout.regions() {
        let pages = region.pages;
        if !input.memory.iter().any(|m| m.contains(&pages)) {
            return Err(PlanError::Outside(pages));
        }
        let Some(stored) = region.stored else { continue };
        let image = images.get(usize::from(stored.image.0));
        let image = image.ok_or(PlanError::NoImage(pages, stored.image.0))?;
        if stored.page.checked_add(pages.pages()).is_none_or(|end| end > image.pages) {
            let (page, has, image) = (stored.page, image.pages, image.name.clone());
            return Err(PlanError::Short { pages, page, image, has });
        }
    }
    let strategy = input.policy.strategy;
    if let Some(base_image) = input.base_image {
        let image = images.get(usize::from(base_image.0)).filter(|i| i.guest_layout && i.mappable);
        let maps = strategy.traits().base_image;
        let asks = input.policy.asks_for_cold() || input.policy.huge_pages != HugePages::Off;
        // Pages can only be asked for where nothing is mapped.
        let mappable =
            |r: &Region| r.stored.is_none_or(|s| images[usize::from(s.image.0)].mappable);
        let fits = maps && !asks && input.layout.regions().iter().all(mappable);
        let image = image.filter(|_| fits).ok_or(PlanError::Beneath(base_image.0, strategy))?;
        let mut page = 0;
        for &pages in input.memory {
            if page + pages.pages() > image.pages {
                let (has, image) = (image.pages, image.name.clone());
                return Err(PlanError::Short { pages, page, image, has });
            }
            page += pages.pages();
        }
    }
    let pool = input.policy.huge_pages == HugePages::Pool;
    let fits = strategy.traits().hugetlb;
    if pool && !fits { Err(PlanError::HugePages(strategy)) } else { Ok(()) }
}
