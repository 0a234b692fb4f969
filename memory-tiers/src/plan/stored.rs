//! Where the content of guest pages is stored.

use varve_snapshot::{PAGE_SIZE, PageRange, RegionMap, Stored};

/// Where the content of the page at `address` is, if the layout names it and it is not zero.
pub(crate) fn stored_at(layout: &RegionMap, address: u64) -> Option<Stored> {
    let region = layout.find(address)?;
    let stored = region.stored?;
    Some(Stored { page: stored.page + (address - region.pages.start()) / PAGE_SIZE, ..stored })
}

/// Where the pages of each image belong, by image and page in it.
pub(crate) fn by_image(layout: &RegionMap) -> Vec<(Stored, PageRange)> {
    let regions = layout.regions().iter();
    let mut order: Vec<_> = regions.filter_map(|r| Some((r.stored?, r.pages))).collect();
    order.sort_unstable_by_key(|(stored, _)| (stored.image, stored.page));
    order
}
