//! The plan of a restore: every operation, decided before the first mapping is made. It is pure: it
//! can be printed, counted and simulated. `exec` carries it out.

use varve_snapshot::{PageClass, PageRange, Region, RegionMap, Stored};

use crate::bridge::{Bridging, Extent, guest_index, height};
use crate::guest_ram::HugePages;
use crate::overlay::{Overlay, Shown};
use crate::policy::{Policy, Wait};
use crate::ranges::RangeSet;
use crate::source::ImageInfo;
use crate::strategy::{How, Placement, Strategy, is_hot, place};
use crate::sys::mmap::Ahead;

/// What a plan is made from.
#[derive(Clone, Copy, Debug)]
pub struct PlanInput<'a> {
    /// Guest memory.
    pub memory: &'a [PageRange],
    /// What each page is for, and where its content is.
    pub layout: &'a RegionMap,
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
    /// How; `None`: they are ready, and only stage-2 is filled.
    pub how: Option<Ahead>,
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
    /// What is populated beside the guest, in order.
    pub beside: Vec<Step>,
    pub(crate) memory: Vec<PageRange>,
    pub(crate) layout: RegionMap,
    pub(crate) placements: Vec<Placement>,
    pub(crate) images: Vec<ImageInfo>,
    pub(crate) policy: Policy,
}

impl Plan {
    /// Decides how to restore.
    pub fn new(input: &PlanInput<'_>) -> Result<Plan, PlanError> {
        check(input)?;
        if input.policy.strategy != Strategy::Auto {
            return Ok(plan(input));
        }
        let candidates: &[Strategy] = match input.policy.huge_pages {
            HugePages::Pool => &[Strategy::Tiered],
            _ => &[Strategy::Template, Strategy::Tiered, Strategy::Lazy, Strategy::Eager],
        };
        let plans = candidates.iter().map(|&strategy| {
            let policy = Policy { strategy, ..input.policy.clone() };
            plan(&PlanInput { policy: &policy, ..*input })
        });
        let best = plans.min_by(|a, b| a.cost().total().total_cmp(&b.cost().total()));
        Ok(best.unwrap_or_else(|| plan(input)))
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
        match (shown, stored_at(&self.layout, page)) {
            (Shown::Asked, _) => true,
            (Shown::Zero, stored) => stored.is_none(),
            (Shown::Image(shown), Some(stored)) => shown == stored,
            (Shown::Image(shown), None) => {
                let image = self.images.get(usize::from(shown.image.0));
                image.is_some_and(|i| i.guest_layout)
                    && guest_index(&self.memory, page) == Some(shown.page)
            }
        }
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
                (Action::Watch, _) => Shown::Asked,
                (Action::Map, Some(from)) => Shown::Image(from),
                (_, Some(from)) if copies => Shown::Image(from),
                (Action::Install, None) if copies => Shown::Zero,
                _ => continue,
            };
            overlay.lay(op.pages, shown);
        }
        overlay
    }
}

/// Where the content of the page at `address` is; `None`: it is zero.
pub(crate) fn stored_at(layout: &RegionMap, address: u64) -> Option<Stored> {
    let region = layout.find(address)?;
    let stored = region.stored?;
    Some(Stored { page: stored.page + (address - region.pages.start()) / 4096, ..stored })
}

/// Refuses a layout that names what is not there.
fn check(input: &PlanInput<'_>) -> Result<(), PlanError> {
    for region in input.layout.regions() {
        let pages = region.pages;
        if !input.memory.iter().any(|m| m.contains(&pages)) {
            return Err(PlanError::Outside(pages));
        }
        let Some(stored) = region.stored else { continue };
        let image = input.images.get(usize::from(stored.image.0));
        let image = image.ok_or(PlanError::NoImage(pages, stored.image.0))?;
        if stored.page.checked_add(pages.pages()).is_none_or(|end| end > image.pages) {
            let (page, has, image) = (stored.page, image.pages, image.name.clone());
            return Err(PlanError::Short { pages, page, image, has });
        }
    }
    let pool = input.policy.huge_pages == HugePages::Pool;
    let fits = matches!(input.policy.strategy, Strategy::Eager | Strategy::Tiered | Strategy::Auto);
    if pool && !fits { Err(PlanError::HugePages(input.policy.strategy)) } else { Ok(()) }
}

fn plan(input: &PlanInput<'_>) -> Plan {
    let PlanInput { memory, layout, images, policy } = *input;
    let regions = layout.regions();
    let image = |r: &Region| r.stored.and_then(|s| images.get(usize::from(s.image.0)));
    let mut placements: Vec<Placement> =
        regions.iter().map(|r| place(r, image(r), policy)).collect();
    let mut maps = maps(input, &placements);
    copy_where_cheaper(&mut maps, &mut placements, policy);
    let mut bridge = policy.bridge;
    loop {
        let watches = watches(input, &placements, bridge);
        let mut plan = Plan {
            strategy: policy.strategy,
            ops: operations(regions, &placements, &maps, &watches),
            before: Vec::new(),
            beside: Vec::new(),
            memory: memory.to_vec(),
            layout: RegionMap::default(),
            placements: Vec::new(),
            images: images.to_vec(),
            policy: policy.clone(),
        };
        let excess = plan.mappings().saturating_sub(policy.max_mappings);
        let wide = bridge >= input.memory.iter().map(|m| m.pages()).sum();
        if excess == 0 || (maps.is_empty() && (wide || watches.len() <= memory.len())) {
            plan.layout = layout.clone();
            schedule(&mut plan, &mut placements);
            plan.placements = placements;
            return plan;
        }
        if maps.is_empty() || (watches.len() > maps.len() && !wide) {
            bridge = bridge.saturating_mul(8).max(8);
            continue;
        }
        // The shortest are the cheapest to copy.
        maps.sort_by_key(|m| std::cmp::Reverse(m.pages.len()));
        let copied = maps.split_off(maps.len().saturating_sub(excess / 2 + 1));
        copied.iter().flat_map(|m| &m.members).for_each(|&m| copy(&mut placements, m));
    }
}

/// The mappings of all layers.
fn maps(input: &PlanInput<'_>, placements: &[Placement]) -> Vec<Extent> {
    let limit = match input.policy.strategy {
        Strategy::Lazy | Strategy::Template => u64::MAX,
        _ => input.policy.bridge,
    };
    let bridging = Bridging {
        memory: input.memory,
        regions: input.layout.regions(),
        placements,
        images: input.images,
        limit,
    };
    PageClass::BOTTOM_UP.into_iter().flat_map(|layer| bridging.extents(layer)).collect()
}

fn copy(placements: &mut [Placement], region: usize) {
    if let Some(placement) = placements.get_mut(region) {
        *placement = Placement { how: How::Copy, ahead: None };
    }
}

/// Short extents are cheaper to copy than to map.
fn copy_where_cheaper(maps: &mut Vec<Extent>, placements: &mut [Placement], policy: &Policy) {
    let costs = &policy.costs;
    maps.retain(|map| {
        let may = map.members.iter().all(|&m| placements[m].how == How::MapOrCopy);
        let pages = map.pages.pages() as f64;
        let mapped =
            costs.map + pages * (costs.populate_read * costs.beside_share + costs.remote_use);
        let copied = costs.read_call * map.members.len() as f64 + costs.copy_page * pages;
        if may && copied < mapped {
            map.members.iter().for_each(|&m| copy(placements, m));
        }
        !(may && copied < mapped)
    });
}

/// What is watched: more than must be, where that saves mappings.
fn watches(input: &PlanInput<'_>, placements: &[Placement], bridge: u64) -> Vec<PageRange> {
    if input.policy.strategy == Strategy::Reap {
        return input.memory.to_vec();
    }
    let mut watches: Vec<PageRange> = Vec::new();
    for (region, placement) in input.layout.regions().iter().zip(placements) {
        if placement.how != How::Fault {
            continue;
        }
        let pages = region.pages;
        let joined = watches.last().and_then(|last| {
            let gap = (pages.start() - last.end()) / 4096;
            let joined = PageRange::new(last.start(), pages.end() - last.start()).ok()?;
            (gap <= bridge && input.memory.iter().any(|m| m.contains(&joined))).then_some(joined)
        });
        match (joined, watches.last_mut()) {
            (Some(joined), Some(last)) => *last = joined,
            _ => watches.push(pages),
        }
    }
    watches
}

/// The operations, bottom-up.
fn operations(
    regions: &[Region],
    placements: &[Placement],
    maps: &[Extent],
    watches: &[PageRange],
) -> Vec<Op> {
    let watch = |&pages| Op { action: Action::Watch, layer: PageClass::Zero, pages, from: None };
    let mut ops: Vec<Op> = watches.iter().map(watch).collect();
    let mut watched = RangeSet::default();
    watches.iter().for_each(|&w| watched.insert(w));
    for map in maps {
        watched.remove(map.pages);
        let (pages, layer) = (map.pages, map.layer);
        ops.push(Op { action: Action::Map, layer, pages, from: Some(map.from) });
    }
    for (region, placement) in regions.iter().zip(placements) {
        // Zero pages that are allocated ahead can not be populated where they would be asked for.
        let zero = placement.how == How::Base && placement.ahead.is_some();
        if placement.how != How::Copy && !zero {
            continue;
        }
        let (layer, from) = (region.class, region.stored);
        let part = |action, pages: PageRange| {
            let skip = (pages.start() - region.pages.start()) / 4096;
            let from = from.map(|f| Stored { page: f.page + skip, ..f });
            Op { action, layer, pages, from }
        };
        ops.extend(watched.within(region.pages).into_iter().map(|p| part(Action::Install, p)));
        if from.is_some() {
            ops.extend(watched.outside(region.pages).into_iter().map(|p| part(Action::Copy, p)));
        }
    }
    // Stable: within a layer mappings come before copies, which write into them.
    ops.sort_by_key(|op| (height(op.layer), op.action != Action::Map, op.pages.start()));
    ops
}

/// Puts what is done ahead in the order in which it will be needed.
fn schedule(plan: &mut Plan, placements: &mut [Placement]) {
    let mut watched = RangeSet::default();
    for op in &plan.ops {
        match op.action {
            Action::Watch => watched.insert(op.pages),
            Action::Map => watched.remove(op.pages),
            _ => {}
        }
    }
    let mut steps = Vec::new();
    for (region, placement) in plan.layout.regions().iter().zip(placements) {
        let (class, rank) = (region.class, region.rank);
        // What is installed is there.
        let installed = placement.how == How::Base && !watched.within(region.pages).is_empty();
        if installed && placement.ahead.take().is_some() {
            placement.how = How::Copy;
        }
        let copied = placement.how == How::Copy && is_hot(region) && plan.policy.stage2;
        if placement.ahead.is_some() || copied {
            let how = placement.ahead;
            steps.push(Step { pages: region.pages, how, class, rank });
        }
    }
    steps.sort_by_key(|s| (s.rank, s.class != PageClass::ReadWrite));
    steps.dedup_by(|next, last| {
        let joins = last.pages.end() == next.pages.start()
            && (last.how, last.class) == (next.how, next.class)
            && plan.memory.iter().any(|m| m.contains(&last.pages) && m.contains(&next.pages));
        let joined = PageRange::new(last.pages.start(), last.pages.len() + next.pages.len());
        match joined {
            Ok(joined) if joins => last.pages = joined,
            _ => return false,
        }
        true
    });
    let first = |step: &Step| match (step.how, plan.policy.wait) {
        (None, _) | (_, Wait::Nothing) => false,
        (Some(how), Wait::Written) => how == Ahead::Write,
        (Some(_), Wait::All) => true,
    };
    (plan.before, plan.beside) = steps.into_iter().partition(first);
    if plan.policy.stage2 {
        // What is ready early still wants stage-2, in its turn.
        let ready = plan.before.iter().map(|s| Step { how: None, ..*s });
        plan.beside.extend(ready);
        plan.beside.sort_by_key(|s| (s.rank, s.class != PageClass::ReadWrite));
    }
}
