//! Making a plan: regions are placed as the strategy says, put together to few mappings, cut down to
//! the budget, and what is done ahead is put in order.

use std::collections::BTreeSet;
use std::sync::OnceLock;
use std::time::Duration;

use varve_snapshot::{PageClass, PageRange, Region, RegionMap, Stored};

use crate::plan::bridge::{Bridging, Extent, height};
use crate::plan::huge_blocks;
use crate::plan::ops::{Action, Op, Plan, PlanInput, Step, joined};
use crate::plan::overlay::{Overlay, Shown};
use crate::plan::placement::{Mechanism, Placement, place};
use crate::plan::policy::PrefaultBarrier;
use crate::plan::strategy::Traits;
use crate::ram::kind::{HugePages, PrefaultMode};
use crate::ram::ranges::RangeSet;

/// The plan by a method that is not `auto`, of a layout that was checked.
pub(crate) fn plan(input: &PlanInput<'_>) -> Plan {
    let placements = place_all(input);
    let blocks = huge_blocks::blocks(input, &placements);
    // Each adds two mappings at most, and saves time only.
    if !blocks.is_empty()
        && 4 * blocks.len() < input.policy.max_mappings
        && let Some(layout) = huge_blocks::cut(input, &blocks)
    {
        let input = PlanInput { layout: &layout, ..*input };
        let mut placements = place_all(&input);
        huge_blocks::place(&layout, &mut placements, &blocks);
        return lay_out(&input, placements, &blocks);
    }
    lay_out(input, placements, &[])
}

fn place_all(input: &PlanInput<'_>) -> Vec<Placement> {
    let image = |r: &Region| r.stored.and_then(|s| input.images.get(usize::from(s.image.0)));
    let regions = input.layout.regions().iter();
    regions.map(|r| place(r, image(r), input.policy)).collect()
}

/// The plan for regions that are placed.
fn lay_out(input: &PlanInput<'_>, mut placements: Vec<Placement>, blocks: &[PageRange]) -> Plan {
    let PlanInput { memory, layout, base_image, images, policy } = *input;
    let lowest = lowest(input);
    let mut maps = maps(input, &placements);
    let mut clear = clear_where_cheaper(input, &maps, &placements);
    let mut bridge = policy.bridge;
    loop {
        let watches = watches(input, &placements, bridge);
        let all: Vec<&Extent> = lowest.iter().chain(&maps).collect();
        let mut plan = Plan {
            strategy: policy.strategy,
            ops: operations(input, &placements, &all, &watches, &clear, blocks),
            before: Vec::new(),
            beside: OnceLock::new(),
            memory: memory.to_vec(),
            layout: RegionMap::default(),
            base_image,
            placements: Vec::new(),
            images: images.to_vec(),
            policy: policy.clone(),
            took: Duration::ZERO,
        };
        // Each operation adds two mappings at most; counting them takes longer than the rest.
        let bound = memory.len() + 2 * (all.len() + watches.len() + clear.len() + blocks.len());
        if bound > policy.max_mappings && !clear.is_empty() {
            // They save time only.
            clear.clear();
            continue;
        }
        let excess = match bound <= policy.max_mappings {
            true => 0,
            false => plan.mappings().saturating_sub(policy.max_mappings),
        };
        let wide = bridge >= input.memory.iter().map(|m| m.pages()).sum();
        if excess == 0 || (maps.is_empty() && (wide || watches.len() <= memory.len())) {
            plan.layout = layout.clone();
            plan.placements = placements;
            schedule(&mut plan);
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

/// Mappings of the image that lies beneath, one for each range of memory.
fn lowest(input: &PlanInput<'_>) -> Vec<Extent> {
    let Some(image) = input.base_image else { return Vec::new() };
    let mut page = 0;
    let extent = |&pages: &PageRange| {
        let from = Stored { image, page };
        page += pages.pages();
        Extent { pages, from, layer: PageClass::Cold, members: Vec::new() }
    };
    input.memory.iter().map(extent).collect()
}

/// The mappings of all layers above.
fn maps(input: &PlanInput<'_>, placements: &[Placement]) -> Vec<Extent> {
    let &Traits { one_layer, classes, .. } = input.policy.strategy.traits();
    // Huge pages have room in fresh memory only, which zero pages then have to be.
    let huge = input.policy.huge_pages != HugePages::Off;
    let limit = if one_layer || classes && !huge { u64::MAX } else { input.policy.bridge };
    let extents = |layer| Bridging { input, placements, one_layer, limit }.extents(layer);
    if one_layer {
        return extents(PageClass::Cold);
    }
    PageClass::BOTTOM_UP.into_iter().flat_map(extents).collect()
}

fn copy(placements: &mut [Placement], region: usize) {
    if let Some(placement) = placements.get_mut(region) {
        *placement = Placement { how: Mechanism::Copy, ahead: None };
    }
}

/// Zero pages that will be written and that a mapping shows as holes of its file: for long runs a
/// fresh mapping is cheaper than to copy pages out of holes. The guest waits for the mapping, and for
/// the copies only if it is told to.
fn clear_where_cheaper(
    input: &PlanInput<'_>,
    maps: &[Extent],
    placements: &[Placement],
) -> Vec<usize> {
    let (regions, policy) = (input.layout.regions(), input.policy);
    let costs = &policy.costs;
    let saved =
        (costs.populate_write - costs.populate_fresh) * policy.waited(PrefaultBarrier::Written);
    if !policy.strategy.traits().classes {
        return Vec::new();
    }
    // Others show no holes: they are packed.
    let lowest: Vec<_> = maps.iter().filter(|m| m.layer == PageClass::Cold).collect();
    let shown = |region: &Region| {
        let at = lowest.partition_point(|m| m.pages.end() <= region.pages.start());
        input.base_image.is_some()
            || lowest.get(at).is_some_and(|m| m.pages.contains(&region.pages))
    };
    let regions = regions.iter().zip(placements).enumerate();
    let clear = regions.filter(|(_, (region, placement))| {
        let allocated =
            placement.how == Mechanism::Base && placement.ahead == Some(PrefaultMode::Write);
        allocated && region.pages.pages() as f64 * saved > costs.map && shown(region)
    });
    clear.map(|(index, _)| index).collect()
}

/// What is watched: more than must be, where that saves mappings.
fn watches(input: &PlanInput<'_>, placements: &[Placement], bridge: u64) -> Vec<PageRange> {
    if input.policy.strategy.traits().watches_all {
        return input.memory.to_vec();
    }
    let mut watches: Vec<PageRange> = Vec::new();
    for (region, placement) in input.layout.regions().iter().zip(placements) {
        if placement.how != Mechanism::Fault {
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
    input: &PlanInput<'_>,
    placements: &[Placement],
    maps: &[&Extent],
    watches: &[PageRange],
    clear: &[usize],
    blocks: &[PageRange],
) -> Vec<Op> {
    let (memory, regions) = (input.memory, input.layout.regions());
    let watch = |&pages| Op { action: Action::Watch, layer: PageClass::Zero, pages, from: None };
    let mut ops: Vec<Op> = watches.iter().map(watch).collect();
    let mut watched = RangeSet::default();
    watches.iter().for_each(|&w| watched.insert(w));
    let mut laid = may_repeat(maps).then(|| Overlay::new(memory));
    let mut bottom_up = maps.to_vec();
    bottom_up.sort_by_key(|map| (height(map.layer), map.pages.start()));
    for map in bottom_up {
        // A mapping that was bridged may show it already.
        if let Some(laid) = &mut laid {
            if laid.shows(map.pages, Shown::Image(map.from)) {
                continue;
            }
            laid.lay(map.pages, Shown::Image(map.from));
        }
        watched.remove(map.pages);
        let (pages, layer) = (map.pages, map.layer);
        ops.push(Op { action: Action::Map, layer, pages, from: Some(map.from) });
    }
    for region in clear.iter().filter_map(|&index| regions.get(index)) {
        let (pages, layer) = (region.pages, region.class);
        ops.push(Op { action: Action::Clear, layer, pages, from: None });
    }
    // Above all mappings, in the layer of what they are for; what is stored in them is, too.
    let written = PageClass::ReadWrite;
    let block = |&pages| Op { action: Action::Block, layer: written, pages, from: None };
    ops.extend(blocks.iter().map(block));
    for (region, placement) in regions.iter().zip(placements) {
        if placement.how == Mechanism::Block {
            let op = |from| Op { action: Action::Fill, layer: written, pages: region.pages, from };
            ops.extend(region.stored.map(|from| op(Some(from))));
            continue;
        }
        // Zero pages that are allocated ahead can not be populated where they would be asked for.
        let zero = placement.how == Mechanism::Base && placement.ahead.is_some();
        if placement.how != Mechanism::Copy && !zero {
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

/// Whether a mapping may show already what one above it would: only one that was bridged, of an image
/// that both layers use.
fn may_repeat(maps: &[&Extent]) -> bool {
    let bridged = maps.iter().filter(|map| map.members.len() > 1);
    let below: BTreeSet<_> = bridged.map(|map| (map.from.image, height(map.layer))).collect();
    let seen = |map: &&Extent| {
        below.iter().any(|&(image, at)| image == map.from.image && at < height(map.layer))
    };
    maps.iter().any(seen)
}

/// Decides what is done ahead before the guest runs; what is left is for [`Plan::beside`].
fn schedule(plan: &mut Plan) {
    let mut watched = RangeSet::default();
    for op in &plan.ops {
        match op.action {
            Action::Watch => watched.insert(op.pages),
            Action::Map => watched.remove(op.pages),
            _ => {}
        }
    }
    for (region, placement) in plan.layout.regions().iter().zip(&mut plan.placements) {
        // What is installed is there.
        let installed =
            placement.how == Mechanism::Base && !watched.within(region.pages).is_empty();
        if installed && placement.ahead.take().is_some() {
            placement.how = Mechanism::Copy;
        }
    }
    let wait = plan.policy.wait;
    if wait == PrefaultBarrier::Nothing {
        return;
    }
    let mut pages = 0;
    let first = |step: &Step| {
        pages += step.pages.pages();
        pages <= wait.most()
            && (step.how == Some(PrefaultMode::Write) || wait != PrefaultBarrier::Written)
    };
    let (before, beside): (Vec<Step>, Vec<Step>) = steps(plan).into_iter().partition(first);
    (plan.before, plan.beside) = (before, beside.into());
}

/// Whether something is done ahead for a region: it is populated, or copied and then mapped in stage-2.
pub(crate) fn is_step(plan: &Plan, region: &Region, placement: &Placement) -> bool {
    let copied = placement.how == Mechanism::Copy && region.is_hot() && plan.policy.stage2;
    placement.ahead.is_some() || copied
}

/// What is done ahead, in the order in which it will be needed.
pub(crate) fn steps(plan: &Plan) -> Vec<Step> {
    // Made without growing or scratch space: memory that is new to the process is what costs most here.
    let mut steps = Vec::with_capacity(plan.placements.len());
    for (region, placement) in plan.layout.regions().iter().zip(&plan.placements) {
        let (class, rank) = (region.class, region.rank);
        if is_step(plan, region, placement) {
            steps.push(Step { pages: region.pages, how: placement.ahead, class, rank });
        }
    }
    let blocks = plan.ops.iter().filter(|op| op.action == Action::Block);
    for block in blocks.filter(|_| plan.policy.stage2) {
        let inside =
            plan.layout.regions().partition_point(|r| r.pages.end() <= block.pages.start());
        let inside = plan.layout.regions().iter().skip(inside);
        let ranks = inside.take_while(|r| r.pages.start() < block.pages.end()).map(|r| r.rank);
        let (rank, class) = (ranks.min().unwrap_or_default(), block.layer);
        steps.push(Step { pages: block.pages, how: None, class, rank });
    }
    // As one number, which is compared in half the time.
    let place = |s: &Step| u128::from(turn(s)) << 64 | u128::from(s.pages.start());
    steps.sort_unstable_by_key(place);
    steps.dedup_by(|next, last| {
        let alike = (last.how, last.class) == (next.how, next.class);
        let joined = joined(last.pages, next.pages, &plan.memory).filter(|_| alike);
        last.pages = joined.unwrap_or(last.pages);
        joined.is_some()
    });
    steps
}

/// What will be written comes first. Whoever reads a page of a file, the guest or a step of the plan,
/// has the kernel map its neighbours for reading; a neighbour that is made private after that costs
/// three times as much, as all processors have to forget the old mapping.
fn turn(step: &Step) -> u64 {
    u64::from(step.class != PageClass::ReadWrite) << 32 | u64::from(step.rank)
}
