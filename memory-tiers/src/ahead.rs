//! Packed images that are not in memory are fetched from the disk before the guest asks for them.

use std::collections::BTreeMap;
use std::fs::File;

use varve_snapshot::{
    ImageId, ManifestReader, PAGE_SIZE, PageClass, Region, RegionMap, Stored, chain,
};

use crate::disk;
use crate::open::Elsewhere;
use crate::source::{ImageInfo, Tier};
use crate::threads;

/// Has the disk begin with the images that hold nothing but what will be used, while the plan is made
/// and carried out: piece by piece, in the order in which it will be used. A thread does that: to ask
/// for ten megabytes takes milliseconds. Images that are in memory need none.
pub(crate) fn fetch_packed(
    snapshot: &ManifestReader,
    layout: &RegionMap,
    images: &[ImageInfo],
    elsewhere: &dyn Elsewhere,
) {
    let mut used_pages: BTreeMap<ImageId, Vec<u64>> = BTreeMap::new();
    for (_, stored) in used(layout) {
        used_pages.entry(stored.image).or_default().push(stored.page);
    }
    let absent = |(id, pages): (ImageId, Vec<u64>)| {
        let image = images.get(usize::from(id.0))?;
        let here = image.tier == Tier::Local && image.mappable && !image.guest_layout;
        let entry = snapshot.entry(id).ok().filter(|_| here)?;
        let other = elsewhere.file(entry).and_then(Result::ok);
        let file = other.or_else(|| snapshot.image_file(id).ok())?;
        let absent = disk::in_memory(&file, &pages).is_ok_and(|there| !there);
        absent.then_some((id, file))
    };
    let files: BTreeMap<ImageId, File> = used_pages.into_iter().filter_map(absent).collect();
    if files.is_empty() {
        return;
    }
    let layout = layout.clone();
    let run = move || {
        let pieces = pieces(&layout);
        disk::fetch(pieces.iter().filter_map(|(image, piece)| Some((files.get(image)?, *piece))));
    };
    if let Err(e) = threads::spawn("fetch", run) {
        // Then pages are fetched as they are needed.
        log::debug!("nothing is fetched ahead: {}", chain(&e));
    }
}

/// What will be used, and where it is stored.
pub(crate) fn used(layout: &RegionMap) -> impl Iterator<Item = (&Region, Stored)> {
    let hot = |r: &&Region| matches!(r.class, PageClass::ReadOnly | PageClass::ReadWrite);
    layout.regions().iter().filter(hot).filter_map(|region| Some((region, region.stored?)))
}

/// The pieces of images that hold such pages, in the order of their first use.
fn pieces(layout: &RegionMap) -> Vec<(ImageId, u64)> {
    let mut first_use: BTreeMap<(ImageId, u64), u32> = BTreeMap::new();
    for (region, stored) in used(layout) {
        let from = stored.page * PAGE_SIZE;
        let to = from + region.pages.len();
        for piece in from / disk::PIECE..to.div_ceil(disk::PIECE) {
            let rank = first_use.entry((stored.image, piece)).or_insert(u32::MAX);
            *rank = region.rank.min(*rank);
        }
    }
    let mut pieces: Vec<_> = first_use.into_iter().map(|(piece, rank)| (rank, piece)).collect();
    pieces.sort();
    pieces.into_iter().map(|(_, piece)| piece).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use varve_snapshot::PageRange;

    #[test]
    fn pieces_come_in_the_order_of_their_first_use() {
        let per_piece = disk::PIECE / PAGE_SIZE;
        let memory = [PageRange::new(0, 64 * disk::PIECE).unwrap()];
        let region = |first: u64, pages: u64, image, page, rank| Region {
            pages: PageRange::new(first * PAGE_SIZE, pages * PAGE_SIZE).unwrap(),
            class: if rank == varve_snapshot::NEVER {
                PageClass::Cold
            } else {
                PageClass::ReadOnly
            },
            stored: Some(Stored { image: ImageId(image), page }),
            rank,
        };
        let regions = vec![
            region(0, 1, 1, 0, 9),
            region(1, 2, 1, 1, 4),
            region(9, 2, 2, per_piece - 1, 5),
            region(20, 1, 3, 7, varve_snapshot::NEVER),
            region(30, 1, 2, per_piece, 2),
        ];
        let layout = RegionMap::new(regions, &memory).unwrap();
        let expected = [(2, 1), (1, 0), (2, 0)].map(|(image, piece)| (ImageId(image), piece));
        assert_eq!(pieces(&layout), expected);
    }
}
