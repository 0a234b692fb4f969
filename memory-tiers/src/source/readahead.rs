//! Packed images that are not in memory are fetched from the disk before the guest asks for them.

use std::collections::BTreeMap;
use std::fs::File;

use varve_snapshot::{ImageId, ManifestReader, PAGE_SIZE, RegionMap, chain};

use crate::plan::image::{ImageInfo, Tier};
use crate::plan::layouts::used;
use crate::ram::threads;
use crate::source::images::file_of;
use crate::source::page_cache;
use crate::source::resolver::ImageResolver;

/// Has the disk begin with the images that hold nothing but what will be used, while the plan is made
/// and carried out: piece by piece, in the order in which it will be used. A thread does that: to ask
/// for ten megabytes takes milliseconds. Images that are in memory need none.
pub(crate) fn fetch_packed(
    snapshot: &ManifestReader,
    layout: &RegionMap,
    images: &[ImageInfo],
    resolver: &dyn ImageResolver,
) {
    let files = absent(snapshot, layout, images, resolver);
    if files.is_empty() {
        return;
    }
    let layout = layout.clone();
    let run = move || {
        let pieces = pieces(&layout);
        page_cache::fetch(
            pieces.iter().filter_map(|(image, piece)| Some((files.get(image)?, *piece))),
        );
    };
    if let Err(e) = threads::spawn("fetch", run) {
        // Then pages are fetched as they are needed.
        log::debug!("nothing is fetched ahead: {}", chain(&e));
    }
}

/// The packed images on a disk of this host that are mostly not in memory.
fn absent(
    snapshot: &ManifestReader,
    layout: &RegionMap,
    images: &[ImageInfo],
    resolver: &dyn ImageResolver,
) -> BTreeMap<ImageId, File> {
    let mut used_pages: BTreeMap<ImageId, Vec<u64>> = BTreeMap::new();
    for (_, stored) in used(layout) {
        used_pages.entry(stored.image).or_default().push(stored.page);
    }
    let absent = |(id, pages): (ImageId, Vec<u64>)| {
        let image = images.get(usize::from(id.0))?;
        let here = image.tier == Tier::Local && image.mappable && !image.guest_layout;
        let file = here.then(|| file_of(snapshot, id, resolver))??;
        let absent = page_cache::in_memory(&file, &pages).is_ok_and(|there| !there);
        absent.then_some((id, file))
    };
    used_pages.into_iter().filter_map(absent).collect()
}

/// The pieces of images that hold such pages, in the order of their first use.
fn pieces(layout: &RegionMap) -> Vec<(ImageId, u64)> {
    let mut first_use: BTreeMap<(ImageId, u64), u32> = BTreeMap::new();
    for (region, stored) in used(layout) {
        let from = stored.page * PAGE_SIZE;
        let to = from + region.pages.len();
        for piece in from / page_cache::PIECE..to.div_ceil(page_cache::PIECE) {
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
    use rustix::fs::{Advice, fadvise, fstatfs};
    use varve_snapshot::{
        Access, HostIdentity, LocalFiles, Mechanism, PageAccess, PageClass, PageRange, Region,
        StateFile, Stored, TierInput, TierOptions, Trace, layout, tier,
    };

    use super::*;
    use crate::source::images::infos;

    #[test]
    fn only_what_is_not_in_memory_is_fetched() {
        // On a disk, if there is one.
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let (state, memory) = (dir.path().join("state"), dir.path().join("memory"));
        let pages = 64;
        std::fs::write(&memory, vec![7; (pages * PAGE_SIZE) as usize]).unwrap();
        let file = StateFile {
            vmm_version: "0.1.0".into(),
            memory_file: Some("memory".into()),
            config: b"{}".to_vec(),
            host: HostIdentity::default(),
            memory: vec![PageRange::new(0, pages * PAGE_SIZE).unwrap()],
            dirty: None,
            id: None,
            bases: Vec::new(),
            sums: None,
            blobs: vec![],
        };
        file.write(&LocalFiles, &state).unwrap();
        let read = (0..pages).map(|gfn| PageAccess {
            gfn,
            order: gfn as u32,
            access: Access::READ,
            invocation: 0,
            runs: 1,
            runs_written: 0,
        });
        let trace = Trace::new(Mechanism::UffdWp, 1, vec!["call".into()], read.collect()).unwrap();
        let (out, traces) = (dir.path().join("tiered"), &[trace]);
        let input = TierInput { state: &state, memory: &memory, traces, out: &out };
        tier(&LocalFiles, &input, &TierOptions::default()).unwrap();

        let snapshot = ManifestReader::open(&out).unwrap();
        let layout = snapshot.layout(layout::TIERED).unwrap();
        let images = infos(&snapshot, &());
        let found = || absent(&snapshot, &layout, &images, &());
        // What was just written is in memory.
        assert!(found().is_empty());
        let (_, stored) = used(&layout).next().unwrap();
        let file = snapshot.image_file(stored.image).unwrap();
        if fstatfs(&file).unwrap().f_type == libc::TMPFS_MAGIC {
            return varve_skip::skip!("disk", "/var/tmp is memory");
        }
        file.sync_all().unwrap();
        fadvise(&file, 0, None, Advice::DontNeed).unwrap();
        assert_eq!(found().into_keys().collect::<Vec<_>>(), [stored.image]);
    }

    #[test]
    fn pieces_come_in_the_order_of_their_first_use() {
        let per_piece = page_cache::PIECE / PAGE_SIZE;
        let memory = [PageRange::new(0, 64 * page_cache::PIECE).unwrap()];
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
