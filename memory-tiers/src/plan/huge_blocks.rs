//! Huge blocks: 2 MiB of guest memory of which most will be written. A single huge page is made there,
//! with one fault of the host and one entry in stage-2 instead of 512, and what is stored is copied in.
//!
//! It is done where the guest waits for all of it anyway: beside a guest, what is stored could not be
//! copied in safely.

use varve_snapshot::{NEVER, PAGE_SIZE, PageClass, PageRange, Region, RegionMap, Stored};

use crate::plan::bridge::guest_index;
use crate::plan::ops::PlanInput;
use crate::plan::placement::{Mechanism, Placement};
use crate::plan::policy::PrefaultBarrier;
use crate::ram::host::transparent_huge_pages;
use crate::ram::kind::{HUGE_PAGE, HugePages};

/// How huge blocks become huge pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum HugeBlocks {
    /// No block does.
    #[default]
    Off,
    /// The kernel makes huge pages by itself, where one is free.
    Always,
    /// The kernel is asked for each by madvise(2), and may compact memory for it, which takes time.
    Madvise,
}

impl HugeBlocks {
    /// What suits this host, for those who wait for `wait`: transparent huge pages are made always, by
    /// madvise, or never (Documentation/admin-guide/mm/transhuge.rst). Where it cannot be told, as in a jail,
    /// they are asked for.
    pub fn suited(wait: PrefaultBarrier) -> HugeBlocks {
        if wait < PrefaultBarrier::First {
            return HugeBlocks::Off;
        }
        HugeBlocks::of(&transparent_huge_pages())
    }

    fn of(enabled: &str) -> HugeBlocks {
        match enabled {
            text if text.contains("[never]") => HugeBlocks::Off,
            text if text.contains("[always]") => HugeBlocks::Always,
            _ => HugeBlocks::Madvise,
        }
    }
}

const BLOCK: u64 = HUGE_PAGE as u64;

/// Pages of a block that have to be written by recorded calls: two thirds. The others become private for
/// nothing, and to copy them takes time. With half of them a restore would take a twentieth less, but eight machines of a
/// function might have more than twice as much memory that is not written as one has.
const LEAST: u64 = BLOCK / PAGE_SIZE * 2 / 3;

/// The huge blocks of a layout, by address.
pub(crate) fn blocks(input: &PlanInput<'_>, placements: &[Placement]) -> Vec<PageRange> {
    let PlanInput { memory, layout, policy, .. } = *input;
    let knows = policy.strategy.traits().classes;
    let waited = policy.huge_blocks != HugeBlocks::Off && policy.wait >= PrefaultBarrier::First;
    let may = waited && policy.huge_pages == HugePages::Off;
    // Where pages are asked for nothing else can be laid.
    if !(knows && may) || placements.iter().any(|p| p.how == Mechanism::Fault) {
        return Vec::new();
    }
    let mut blocks = Vec::new();
    let mut regions = layout.regions().iter().zip(placements).peekable();
    let whole = memory.iter().flat_map(|range| {
        let starts = range.start().next_multiple_of(BLOCK)..range.end();
        starts.step_by(HUGE_PAGE).filter_map(|start| PageRange::new(start, BLOCK).ok())
    });
    for block in whole.filter(|block| memory.iter().any(|m| m.contains(block))) {
        while regions.next_if(|(r, _)| r.pages.end() <= block.start()).is_some() {}
        let inside = regions.clone().take_while(|(r, _)| r.pages.start() < block.end());
        let (mut written, mut mapped) = (0, true);
        for (region, placement) in inside {
            if region.class == PageClass::ReadWrite {
                written += part(region, block.start(), block.end()).map_or(0, |p| p.pages.pages());
            }
            mapped &= region.stored.is_none() || placement.how == Mechanism::Map;
        }
        if mapped && written >= LEAST {
            blocks.push(block);
        }
    }
    blocks
}

/// The layout with regions cut at the borders of `blocks`, in which what no region names is named where
/// an image beneath holds it.
pub(crate) fn cut(input: &PlanInput<'_>, blocks: &[PageRange]) -> Option<RegionMap> {
    let PlanInput { memory, layout, base_image, .. } = *input;
    let unnamed = |start: u64, end: u64| {
        let (pages, image) = (PageRange::new(start, end - start).ok()?, base_image?);
        let stored = Some(Stored { image, page: guest_index(memory, start)? });
        Some(Region { pages, class: PageClass::Cold, stored, rank: NEVER })
    };
    let mut regions = Vec::with_capacity(layout.regions().len() + 4 * blocks.len());
    let mut rest = layout.regions().iter().copied().peekable();
    for block in blocks {
        let mut at = block.start();
        while let Some(region) = rest.peek_mut().filter(|r| r.pages.start() < block.end()) {
            if let Some(inside) = part(region, block.start(), block.end()) {
                regions.extend(part(region, 0, block.start()));
                regions.extend(unnamed(at, inside.pages.start()));
                regions.push(inside);
                at = inside.pages.end();
            } else {
                regions.push(*region);
            }
            match part(region, block.end(), u64::MAX) {
                Some(after) => *region = after,
                None => drop(rest.next()),
            }
        }
        regions.extend(unnamed(at, block.end()));
    }
    regions.extend(rest);
    RegionMap::new(regions, memory).ok()
}

/// Has what is in `blocks` be part of them.
pub(crate) fn place(layout: &RegionMap, placements: &mut [Placement], blocks: &[PageRange]) {
    for (region, placement) in layout.regions().iter().zip(placements) {
        let at = blocks.partition_point(|block| block.end() <= region.pages.start());
        if blocks.get(at).is_some_and(|block| block.contains(&region.pages)) {
            *placement = Placement { how: Mechanism::Block, ahead: None };
        }
    }
}

/// The part of a region that is in `from..to`.
fn part(region: &Region, from: u64, to: u64) -> Option<Region> {
    let start = region.pages.start().max(from);
    let end = region.pages.end().min(to);
    let pages = PageRange::new(start, end.checked_sub(start)?).ok()?;
    let skip = (start - region.pages.start()) / PAGE_SIZE;
    let stored = region.stored.map(|s| Stored { page: s.page + skip, ..s });
    Some(Region { pages, stored, ..*region })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn huge_pages_are_made_as_the_host_says() {
        for (enabled, found) in [
            ("always madvise [never]\n", HugeBlocks::Off),
            ("[always] madvise never\n", HugeBlocks::Always),
            ("always [madvise] never\n", HugeBlocks::Madvise),
            ("", HugeBlocks::Madvise),
        ] {
            assert_eq!(HugeBlocks::of(enabled), found, "{enabled}");
        }
        assert_eq!(HugeBlocks::suited(PrefaultBarrier::Written), HugeBlocks::Off);
    }
}
