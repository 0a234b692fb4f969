//! Which layout of a tiered snapshot a method restores, and how much of it has to be read for that.

use varve_snapshot::{
    COLD_IMAGE, ImageId, ManifestReader, PAGE_SIZE, PageClass, Region, RegionMap, SnapshotError,
    Stored, layout,
};

use crate::plan::image::ImageInfo;
use crate::plan::policy::Policy;
use crate::plan::strategy::Strategy;
use crate::ram::kind::HugePages;

/// The layout that a method restores this snapshot from. One in which all is in the raw memory file,
/// too, but whose pages are known, tells more to the methods that use but that file.
pub(crate) fn layout_for(snapshot: &ManifestReader, strategy: Strategy) -> &'static str {
    match strategy.traits().layout {
        layout::FLAT if has(snapshot, layout::TEMPLATE) => layout::TEMPLATE,
        own => own,
    }
}

pub(crate) fn has(snapshot: &ManifestReader, name: &str) -> bool {
    snapshot.layouts().iter().any(|l| l == name)
}

/// What is restored by layout `name`, and the image beneath it: where that is the raw memory file, no
/// more is read than what is hot.
pub(crate) fn regions(
    snapshot: &ManifestReader,
    strategy: Strategy,
    name: &str,
    policy: &Policy,
    images: &[ImageInfo],
) -> Result<(RegionMap, Option<ImageId>), SnapshotError> {
    if let Some(image) = base_image(strategy, policy, images)
        && let Some(hot) = snapshot.hot_regions(name)?
        && used(&hot).all(|(_, at)| images.get(usize::from(at.image.0)).is_some_and(|i| i.mappable))
    {
        let cold = |region: &Region| region.class == PageClass::Cold;
        return Ok((hot.only(|r| !strategy.traits().packed || !cold(r)), Some(image)));
    }
    let layout = snapshot.layout(name)?;
    let mapped = strategy.traits().packed && !policy.asks_for_cold();
    if mapped && has(snapshot, layout::TEMPLATE) {
        let whole = snapshot.layout(layout::TEMPLATE)?;
        return Ok((cold_in_guest_layout(layout, &whole, images), None));
    }
    Ok((layout, None))
}

/// The raw memory file, if one mapping of it can lie beneath everything else: nothing is asked for or
/// copied, and no fresh huge pages are to hold what is zero.
fn base_image(strategy: Strategy, policy: &Policy, images: &[ImageInfo]) -> Option<ImageId> {
    let cold = images.iter().find(|i| i.name == COLD_IMAGE && strategy.traits().packed);
    let at = images.iter().position(|image| {
        image.guest_layout && image.mappable && cold.is_none_or(|cold| cold.mappable)
    })?;
    let only = strategy.traits().base_image
        && !policy.asks_for_cold()
        && policy.huge_pages == HugePages::Off;
    u16::try_from(at).ok().filter(|_| only).map(ImageId)
}

/// The layout `tiered` with cold pages in the raw memory file, whose order is that of guest memory,
/// where both it and their own image can be mapped: extents with others between them, which are laid
/// over it, become one mapping.
fn cold_in_guest_layout(tiered: RegionMap, whole: &RegionMap, images: &[ImageInfo]) -> RegionMap {
    let info = |region: &Region| images.get(usize::from(region.stored?.image.0));
    let mut others = whole.regions().iter().peekable();
    tiered.restored(|region| {
        let own = info(region).filter(|_| region.class == PageClass::Cold)?;
        while others.next_if(|o| o.pages.end() <= region.pages.start()).is_some() {}
        let other = others.peek().filter(|o| o.pages.contains(&region.pages))?;
        let near = info(other)?;
        if !(own.mappable && near.mappable && near.guest_layout) {
            return None;
        }
        let skip = (region.pages.start() - other.pages.start()) / PAGE_SIZE;
        other.stored.map(|s| Stored { page: s.page + skip, ..s })
    })
}

/// What will be used, and where it is stored.
pub(crate) fn used(layout: &RegionMap) -> impl Iterator<Item = (&Region, Stored)> {
    let hot = |r: &&Region| matches!(r.class, PageClass::ReadOnly | PageClass::ReadWrite);
    layout.regions().iter().filter(hot).filter_map(|region| Some((region, region.stored?)))
}
