//! Tiering never changes what a guest will see: every layout gives back every page.
#![allow(clippy::unwrap_used)]

mod common;

use std::os::unix::fs::MetadataExt;

use common::{Guest, guests, trace_of, traces};
use proptest::prelude::*;
use varve_snapshot::{
    ClassifyOptions, Compression, HotIf, LocalFiles, ManifestReader, PageClass, Region, TierInput,
    TierOptions, TierReport, layout, tier, verify,
};

const LAYOUTS: [&str; 5] =
    [layout::FLAT, layout::REAP, layout::FAASNAP, layout::TIERED, layout::TEMPLATE];

fn options() -> impl Strategy<Value = TierOptions> {
    let hot = prop_oneof![Just(HotIf::Any), Just(HotIf::All), Just(HotIf::Runs(2))];
    let packed = || prop_oneof![Just(Compression::None), Just(Compression::Lz4)];
    let classify = (hot, 0u32..40, 0u32..6).prop_map(|(hot_if, bridge_pages, min_extent_pages)| {
        ClassifyOptions { hot_if, bridge_pages, min_extent_pages }
    });
    (classify, 0u32..5, packed(), packed()).prop_map(|(classify, chunk, cold, rw)| TierOptions {
        classify,
        chunk_pages: 1 << chunk,
        cold,
        rw,
        ..TierOptions::default()
    })
}

fn tier_at(
    guest: &Guest,
    runs: &[Vec<(u64, u64, u8)>],
    options: &TierOptions,
    dir: &std::path::Path,
) -> TierReport {
    let (state, memory) = guest.save(dir);
    let traces: Vec<_> = runs.iter().map(|r| trace_of(guest, r)).collect();
    let input = TierInput { state: &state, memory: &memory, traces: &traces, out: &dir.join("t") };
    tier(&LocalFiles, &input, options).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn every_layout_gives_back_every_page(
        guest in guests(),
        runs in proptest::collection::vec(traces(), 2..4),
        options in options(),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let report = tier_at(&guest, &runs, &options, dir.path());
        let manifest = ManifestReader::open(&dir.path().join("t")).unwrap();
        prop_assert_eq!(manifest.memory(), guest.memory.as_slice());
        for name in LAYOUTS {
            prop_assert!(guest.read_back(&manifest, name) == guest.bytes, "layout {} differs", name);
        }
        for name in [layout::TIERED, layout::TEMPLATE] {
            let hot = manifest.hot_regions(name).unwrap().unwrap();
            prop_assert_eq!(&hot, &manifest.layout(name).unwrap().hot());
            prop_assert!(hot.regions().iter().all(Region::is_hot));
        }
        prop_assert_eq!(report.classes.iter().map(|c| c.pages).sum::<u64>(), guest.pages());
        let checked = verify(&dir.path().join("t")).unwrap();
        prop_assert_eq!(checked.problems, Vec::<String>::new());
        let stored = guest.bytes.chunks(common::PAGE).filter(|p| p.iter().any(|&b| b != 0)).count();
        prop_assert!(checked.chunks > 0 && checked.pages_compared >= 4 * stored as u64);
        prop_assert!(common::leftovers(&dir.path().join("t")).is_empty());
    }

    /// The classes are those that the definition gives, page by page.
    #[test]
    fn classes_follow_the_definition(guest in guests(), runs in traces()) {
        let dir = tempfile::tempdir().unwrap();
        let classify =
            ClassifyOptions { hot_if: HotIf::Any, bridge_pages: 0, min_extent_pages: 0 };
        let options = TierOptions { classify, ..TierOptions::default() };
        tier_at(&guest, std::slice::from_ref(&runs), &options, dir.path());
        let manifest = ManifestReader::open(&dir.path().join("t")).unwrap();
        let map = manifest.layout(layout::TIERED).unwrap();
        let trace = trace_of(&guest, &runs);
        for flat in 0..guest.pages() {
            let gfn = guest.gfn(flat);
            let zero = guest.bytes[flat as usize * common::PAGE..][..common::PAGE] == [0; 4096];
            let (wanted, stored) = match (trace.find(gfn), zero) {
                (Some(p), _) if p.runs_written > 0 => (PageClass::ReadWrite, !zero),
                (_, true) => (PageClass::Zero, false),
                (Some(_), false) => (PageClass::ReadOnly, true),
                (None, false) => (PageClass::Cold, true),
            };
            let found = map.find(gfn * 4096);
            prop_assert_eq!(found.map_or(PageClass::Zero, |r| r.class), wanted, "page {}", flat);
            prop_assert_eq!(found.is_some_and(|r| r.stored.is_some()), stored);
        }
    }
}

/// 1 zero page, then ro, cold, ro, rw, cold, ro.
fn gaps() -> (Guest, Vec<(u64, u64, u8)>) {
    let guest = Guest::new(1, &[0, 9, 9, 9, 9, 9, 9]);
    (guest, vec![(1, 1, 1), (3, 1, 1), (4, 1, 2), (6, 1, 1)])
}

#[test]
fn gaps_are_bridged_where_content_stays_right() {
    let (guest, runs) = gaps();
    let dir = tempfile::tempdir().unwrap();
    let classify = ClassifyOptions { bridge_pages: 2, ..ClassifyOptions::default() };
    let options = TierOptions { classify, ..TierOptions::default() };
    let report = tier_at(&guest, &[runs], &options, dir.path());
    let manifest = ManifestReader::open(&dir.path().join("t")).unwrap();
    let map = manifest.layout(layout::TIERED).unwrap();
    let shown: Vec<_> = map
        .regions()
        .iter()
        .map(|r| (r.pages.pages(), r.class, r.stored.map(|s| s.page), r.rank))
        .collect();
    // One stretch of the image covers it all, with a hole where the written page is laid over.
    use PageClass::*;
    assert_eq!(
        shown,
        [(3, ReadOnly, Some(0), 0), (1, ReadWrite, Some(0), 2), (2, ReadOnly, Some(4), 3)]
    );
    let ro = report.images.iter().find(|i| i.image == "ro").unwrap();
    assert_eq!((ro.pages, ro.stored_bytes), (6, 5 * 4096));
    // Where all is one mapping anyway there is nothing to bridge.
    let template = manifest.layout(layout::TEMPLATE).unwrap();
    let shown: Vec<_> = template
        .regions()
        .iter()
        .map(|r| (r.pages.pages(), r.class, r.stored.map(|s| s.page), r.is_hot()))
        .collect();
    assert_eq!(
        shown,
        [
            (1, ReadOnly, Some(1), true),
            (1, Cold, Some(2), false),
            (1, ReadOnly, Some(3), true),
            (1, ReadWrite, Some(4), true),
            (1, Cold, Some(5), false),
            (1, ReadOnly, Some(6), true)
        ]
    );
}

#[test]
fn short_extents_are_copied() {
    let (guest, runs) = gaps();
    let dir = tempfile::tempdir().unwrap();
    let classify = ClassifyOptions { hot_if: HotIf::All, bridge_pages: 0, min_extent_pages: 2 };
    let options = TierOptions { classify, ..TierOptions::default() };
    let report = tier_at(&guest, &[runs], &options, dir.path());
    let pages = |class: &str| report.classes.iter().find(|c| c.class == class).unwrap().pages;
    assert_eq!((pages("ro"), pages("rw"), pages("cold"), pages("zero")), (0, 4, 2, 1));
}

/// A long read-only extent stands at the same place within 2 MiB as in the guest.
#[test]
fn long_extents_can_be_mapped_with_huge_pages() {
    let mut kinds = vec![9; 1300];
    kinds.insert(0, 0);
    let guest = Guest::new(1299, &kinds);
    let dir = tempfile::tempdir().unwrap();
    tier_at(&guest, &[vec![(1, 3, 1), (20, 1100, 1)]], &TierOptions::default(), dir.path());
    let manifest = ManifestReader::open(&dir.path().join("t")).unwrap();
    let map = manifest.layout(layout::TIERED).unwrap();
    let long = map.regions().iter().find(|r| r.pages.pages() == 1100).unwrap();
    assert_eq!(long.stored.unwrap().page % 512, 20);
    assert_eq!(guest.read_back(&manifest, layout::TIERED), guest.bytes);
}

/// What two functions have in common stands once, in one file, for both to map.
#[test]
fn functions_share_a_store() {
    let first = Guest::new(30, &[vec![9; 60], vec![0; 5]].concat());
    // The same kernel, say, and ten pages of its own before the last of them.
    let mut second = first.clone();
    second.bytes[40 * common::PAGE..50 * common::PAGE].fill(7);
    let dir = tempfile::tempdir().unwrap();
    let store = Some(dir.path().join("store"));
    let options = TierOptions { store, ..TierOptions::default() };
    let mut added = Vec::new();
    for (name, guest) in [("first", &first), ("second", &second), ("third", &second)] {
        let own = dir.path().join(name);
        std::fs::create_dir(&own).unwrap();
        let report = tier_at(guest, &[vec![(0, 60, 1)]], &options, &own);
        let ro = report.images.iter().find(|i| i.image == "ro").unwrap();
        added.push(ro.stored_bytes / 4096);
        let manifest = ManifestReader::open(&own.join("t")).unwrap();
        let entry = manifest.images().iter().find(|i| i.name == "ro").unwrap();
        assert!(entry.shared);
        let inode = |path: &std::path::Path| std::fs::metadata(path).unwrap().ino();
        let image = entry.path(manifest.folder());
        assert_eq!(inode(&image), inode(&dir.path().join("store/pages.img")));
    }
    assert_eq!(added, [60, 10, 0]);
    for (name, guest) in [("first", &first), ("second", &second), ("third", &second)] {
        let manifest = ManifestReader::open(&dir.path().join(name).join("t")).unwrap();
        assert_eq!(guest.read_back(&manifest, layout::TIERED), guest.bytes);
        assert_eq!(
            verify(&dir.path().join(name).join("t")).unwrap().problems,
            Vec::<String>::new()
        );
    }
}

/// Tiering again in the same folder replaces the images, and nothing else stays behind.
#[test]
fn tiering_again_replaces() {
    let (guest, runs) = gaps();
    let dir = tempfile::tempdir().unwrap();
    let (state, memory) = guest.save(dir.path());
    let mut names = Vec::new();
    for traces in [vec![trace_of(&guest, &runs)], vec![]] {
        let input = TierInput { state: &state, memory: &memory, traces: &traces, out: dir.path() };
        let report = tier(&LocalFiles, &input, &TierOptions::default()).unwrap();
        let manifest = ManifestReader::open(dir.path()).unwrap();
        assert_eq!(guest.read_back(&manifest, layout::TIERED), guest.bytes);
        assert_eq!(verify(dir.path()).unwrap().problems, Vec::<String>::new());
        names.push(report.images.iter().map(|i| i.file.clone()).collect::<Vec<_>>());
    }
    for old in names[0].iter().filter(|n| !names[1].contains(n)) {
        assert!(!dir.path().join(old).exists(), "{old} stayed");
    }
    let files = std::fs::read_dir(dir.path()).unwrap().count();
    // state, memory, manifest, and the second's five images, of which the empty ones are alike in
    // content but not in name.
    assert_eq!(files, 3 + 5);
}

#[test]
fn options_that_cannot_be_met_are_refused() {
    let (guest, runs) = gaps();
    let dir = tempfile::tempdir().unwrap();
    let (state, memory) = guest.save(dir.path());
    let traces = [trace_of(&guest, &runs)];
    let out = dir.path().join("t");
    let input = TierInput { state: &state, memory: &memory, traces: &traces, out: &out };
    for hot_if in [HotIf::Runs(2), HotIf::Runs(0), HotIf::Of(1, 2)] {
        let classify = ClassifyOptions { hot_if, ..ClassifyOptions::default() };
        let options = TierOptions { classify, ..TierOptions::default() };
        let error = tier(&LocalFiles, &input, &options).unwrap_err().to_string();
        assert!(error.starts_with("option hot-if"), "{error}");
    }
    let options = TierOptions { chunk_pages: 3, ..TierOptions::default() };
    assert!(tier(&LocalFiles, &input, &options).is_err());
    std::fs::File::options().write(true).open(&memory).unwrap().set_len(4096).unwrap();
    let error = tier(&LocalFiles, &input, &TierOptions::default()).unwrap_err().to_string();
    assert!(error.contains("4096 bytes") && error.contains("28672"), "{error}");
    assert!(!out.exists());
    assert_eq!("2-of-3".parse(), Ok(HotIf::Of(2, 3)));
    assert!("2-of".parse::<HotIf>().is_err());
}
