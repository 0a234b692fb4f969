//! Fewer mappings: extents of a layer whose distance is the same in guest memory and in the image
//! become one, where what the mapping shows in between is right anyway (FaaSnap, fig. 4).

use varve_snapshot::{PAGE_SIZE, PageClass, PageRange, Region, Stored};

use crate::plan::ops::PlanInput;
use crate::plan::placement::{Mechanism, Placement};

/// A run that one operation covers.
#[derive(Clone, Debug)]
pub(crate) struct Extent {
    pub pages: PageRange,
    pub from: Stored,
    pub layer: PageClass,
    /// Indices of the regions that it is laid for.
    pub members: Vec<usize>,
}

/// All that decides whether a gap may be bridged.
pub(crate) struct Bridging<'a> {
    pub input: &'a PlanInput<'a>,
    pub placements: &'a [Placement],
    /// Everything is of the lowest layer: an image holds more than one class.
    pub one_layer: bool,
    /// Longest run of zero pages that a mapping may show, in pages.
    pub limit: u64,
}

/// Height of a class's layer.
pub(crate) fn height(class: PageClass) -> usize {
    PageClass::BOTTOM_UP.iter().position(|&c| c == class).unwrap_or(0)
}

impl Bridging<'_> {
    /// The mappings of one layer, by address, that show what does not show beneath them.
    pub fn extents(&self, layer: PageClass) -> Vec<Extent> {
        let mut extents: Vec<Extent> = Vec::new();
        let regions = self.input.layout.regions();
        for (index, (region, placement)) in regions.iter().zip(self.placements).enumerate() {
            let mapped = placement.how == Mechanism::Map;
            let here = self.one_layer || region.class == layer;
            let (true, Some(from)) = (mapped && here, region.stored) else {
                continue;
            };
            if self.input.base_image == Some(from.image) && self.is_in_place(region, from) {
                continue;
            }
            match extents.last_mut() {
                Some(last) if self.joins(last, region, from, index) => {
                    last.members.push(index);
                    last.pages = join(last.pages, region.pages);
                }
                _ => {
                    extents.push(Extent { pages: region.pages, from, layer, members: vec![index] })
                }
            }
        }
        extents
    }

    /// Whether an image in guest layout has the region where guest memory has it.
    fn is_in_place(&self, region: &Region, from: Stored) -> bool {
        guest_index(self.input.memory, region.pages.start()) == Some(from.page)
    }

    /// Whether one mapping may reach from `last` to `region`.
    fn joins(&self, last: &Extent, region: &Region, from: Stored, index: usize) -> bool {
        let PlanInput { memory, layout, base_image, images, .. } = *self.input;
        if position(last.from, last.pages.start()) != position(from, region.pages.start())
            || last.from.image != from.image
            || !memory.iter().any(|m| m.contains(&join(last.pages, region.pages)))
        {
            return false;
        }
        let first = last.members.last().map_or(index, |m| m + 1);
        // What no region names is zero, unless there is something beneath.
        let mut unnamed = region.pages.start() - last.pages.end();
        let mut zeros = 0;
        let regions = &layout.regions()[first..index];
        for (between, how) in regions.iter().zip(&self.placements[first..index]) {
            unnamed -= between.pages.len();
            if let Some(stored) = between.stored {
                // Not by a copy: to make room for it, the kernel would first bring in the page that
                // the mapping shows there.
                let above = height(between.class) > height(last.layer) && !self.one_layer;
                let covered = above && how.how == Mechanism::Map || how.how == Mechanism::Block;
                let same = stored.image == from.image
                    && position(stored, between.pages.start())
                        == position(from, region.pages.start());
                if !(covered || same && how.how == Mechanism::Map) {
                    return false;
                }
            } else if how.how == Mechanism::Fault {
                return false;
            } else {
                zeros += between.pages.len();
            }
        }
        if unnamed > 0 && base_image.is_some() {
            return false;
        }
        let shows_zeros = || {
            let image = images.get(usize::from(from.image.0));
            image.is_some_and(|i| i.guest_layout) && self.is_in_place(region, from)
        };
        zeros + unnamed == 0 || (zeros + unnamed) / PAGE_SIZE <= self.limit && shows_zeros()
    }
}

/// Distance between an image's pages and the guest pages that they stand for.
fn position(from: Stored, start: u64) -> u64 {
    from.page.wrapping_sub(start / PAGE_SIZE)
}

fn join(a: PageRange, b: PageRange) -> PageRange {
    let (start, end) = (a.start().min(b.start()), a.end().max(b.end()));
    PageRange::new(start, end - start).unwrap_or(a)
}

/// The number of the page at `address`, counted through all of `memory`.
pub(crate) fn guest_index(memory: &[PageRange], address: u64) -> Option<u64> {
    let mut before = 0;
    for range in memory {
        if (range.start()..range.end()).contains(&address) {
            return Some(before + (address - range.start()) / PAGE_SIZE);
        }
        before += range.pages();
    }
    None
}
