//! Fewer mappings: extents of a layer whose distance is the same in guest memory and in the image
//! become one, where what the mapping shows in between is right anyway (FaaSnap, fig. 4).

use varve_snapshot::{PAGE_SIZE, PageClass, PageRange, Region, Stored};

use crate::source::ImageInfo;
use crate::strategy::{How, Placement};

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
    pub memory: &'a [PageRange],
    pub regions: &'a [Region],
    pub placements: &'a [Placement],
    pub images: &'a [ImageInfo],
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
    /// The mappings of one layer, by address.
    pub fn extents(&self, layer: PageClass) -> Vec<Extent> {
        let mut extents: Vec<Extent> = Vec::new();
        for (index, (region, placement)) in self.regions.iter().zip(self.placements).enumerate() {
            let mapped = matches!(placement.how, How::Map | How::MapOrCopy);
            let here = self.one_layer || region.class == layer;
            let (true, Some(from)) = (mapped && here, region.stored) else {
                continue;
            };
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

    /// Whether one mapping may reach from `last` to `region`.
    fn joins(&self, last: &Extent, region: &Region, from: Stored, index: usize) -> bool {
        let at = last.pages.end();
        if position(last.from, last.pages.start()) != position(from, region.pages.start())
            || last.from.image != from.image
            || !self.memory.iter().any(|m| m.contains(&join(last.pages, region.pages)))
        {
            return false;
        }
        let image = self.images.get(usize::from(from.image.0));
        let shows_zeros = image.is_some_and(|i| i.guest_layout)
            && guest_index(self.memory, region.pages.start()) == Some(from.page);
        let first = last.members.last().map_or(index, |m| m + 1);
        let mut zeros = region.pages.start() - at;
        for (between, how) in self.regions[first..index].iter().zip(&self.placements[first..index])
        {
            if let Some(stored) = between.stored {
                // Not by a copy: to make room for it, the kernel would first bring in the page that
                // the mapping shows there.
                let above = height(between.class) > height(last.layer) && !self.one_layer;
                let covered = above && matches!(how.how, How::Map | How::MapOrCopy);
                let same = stored.image == from.image
                    && position(stored, between.pages.start())
                        == position(from, region.pages.start());
                if !(covered || same && matches!(how.how, How::Map | How::MapOrCopy)) {
                    return false;
                }
                zeros -= between.pages.len();
            } else if how.how == How::Fault {
                return false;
            }
        }
        zeros == 0 || shows_zeros && zeros / PAGE_SIZE <= self.limit
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
