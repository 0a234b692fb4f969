//! Inspection, drawing, diffs with a page list, and the golden files that pin the format.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use common::{Guest, range, trace_of};
use varve_snapshot::{
    ClassifyOptions, Compression, FlatFile, ImageId, LocalFiles, Manifest, ManifestReader,
    SnapshotError, SnapshotId, StateFile, Summing, TierInput, TierOptions, Trace, draw_svg,
    draw_text, inspect, layout, merge_diff, tier,
};

fn guest() -> Guest {
    Guest::new(5, &[0, 2, 1, 3, 0, 4, 5, 6, 0, 7])
}

fn trace() -> Trace {
    trace_of(&guest(), &[(6, 1, 1), (1, 1, 1), (3, 2, 2), (7, 1, 3)])
}

fn tiered(dir: &Path) {
    let (state, memory) = guest().save(dir);
    let input = TierInput { state: &state, memory: &memory, traces: &[trace()], out: dir };
    let classify = ClassifyOptions { bridge_pages: 4, ..ClassifyOptions::default() };
    let options = TierOptions {
        classify,
        cold: Compression::Lz4,
        chunk_pages: 2,
        vmm_version: "0.1.0".into(),
        ..TierOptions::default()
    };
    tier(&LocalFiles, &input, &options).unwrap();
}

/// A state file with all that a later version than 1.0 added.
fn diff_state() -> StateFile {
    let mut sums = Summing::new(10, false);
    sums.add(1, &[5; 2 * 4096]);
    StateFile {
        dirty: Some(vec![range(1, 2)]),
        id: Some(SnapshotId([7; 16])),
        bases: vec![SnapshotId([5; 16]), SnapshotId([6; 16])],
        sums: Some(sums.finish()),
        ..guest().state()
    }
}

/// Files of version 1.2. They must be read for ever; and as long as the version is 1.2, they
/// are written like that, byte by byte. `VARVE_BLESS=1` writes them anew: with a new version, when pages are
/// packed in another order, or when the LZ4 crate has come to compress otherwise.
#[test]
fn golden_files_are_read_and_written() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let dir = tempfile::tempdir().unwrap();
    tiered(dir.path());
    trace().write(&LocalFiles, &dir.path().join("trace")).unwrap();
    diff_state().write(&LocalFiles, &dir.path().join("state-of-diff")).unwrap();
    let mut names: Vec<String> = fs::read_dir(dir.path())
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .filter(|n| !n.starts_with("memory"))
        .collect();
    names.sort();
    if std::env::var_os("VARVE_BLESS").is_some() {
        for name in &names {
            fs::copy(dir.path().join(name), golden.join(name)).unwrap();
        }
    }
    for name in &names {
        let stored = fs::read(golden.join(name)).expect("a golden file");
        assert!(stored == fs::read(dir.path().join(name)).unwrap(), "{name} is written otherwise");
    }
    assert_eq!(StateFile::read(&golden.join("state")).unwrap(), guest().state());
    assert_eq!(StateFile::read(&golden.join("state-of-diff")).unwrap(), diff_state());
    assert_eq!(Trace::read(&golden.join("trace")).unwrap(), trace());
    let manifest = Manifest::read(&golden.join("manifest")).unwrap();
    assert_eq!(manifest, Manifest::read(&dir.path().join("manifest")).unwrap());
    let reader = ManifestReader::open(&golden).unwrap();
    let names: Vec<_> = manifest.layouts.iter().map(|l| l.0.as_str()).collect();
    assert_eq!(names, reader.layouts());
    for (name, map) in &manifest.layouts {
        assert_eq!(&reader.layout(name).unwrap(), map);
        let listed = matches!(name.as_str(), layout::TIERED | layout::TEMPLATE);
        assert_eq!(reader.hot_regions(name).unwrap(), listed.then(|| map.hot()));
    }
    assert!(reader.images().iter().all(|image| reader.proves(image)));
    // The images alone, without the raw memory, hold all of it.
    assert_eq!(guest().read_back(&reader, layout::TIERED), guest().bytes);
}

/// Files that version 1.0 wrote, which listed no hot regions apart, and version 1.1, whose images have no
/// digests: they are read, and prove nothing of what others send.
#[test]
fn files_of_earlier_versions_are_read() {
    for (version, listed) in [("1.0", false), ("1.1", true)] {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden-{version}"));
        let state = StateFile::read(&golden.join("state")).unwrap();
        assert_eq!(state, guest().state());
        assert_eq!(state.identity(), guest().state().identity());
        assert_eq!(Trace::read(&golden.join("trace")).unwrap(), trace());
        let reader = ManifestReader::open(&golden).unwrap();
        assert_eq!(reader.hot_regions(layout::TIERED).unwrap().is_some(), listed);
        assert!(reader.images().iter().all(|image| !reader.proves(image)));
        assert!(reader.image_table(ImageId(0)).unwrap().digests.is_none());
        assert_eq!(guest().read_back(&reader, layout::TIERED), guest().bytes);
    }
}

#[test]
fn an_inspection_says_what_is_there() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(inspect(dir.path()), Err(SnapshotError::NoSnapshot { .. })));
    guest().save(dir.path());
    let flat = inspect(dir.path()).unwrap();
    assert_eq!((flat.memory_bytes, flat.tiers.is_none()), (10 * 4096, true));
    tiered(dir.path());
    let all = inspect(dir.path()).unwrap();
    let state = all.state.as_ref().unwrap();
    assert_eq!(state.blobs[0], ("vcpu0".into(), 1, 40));
    let tiers = all.tiers.as_ref().unwrap();
    let tiered = tiers.layouts.iter().find(|l| l.name == layout::TIERED).unwrap();
    let figures: Vec<_> =
        tiered.classes.iter().map(|c| (c.class.as_str(), c.pages, c.extents)).collect();
    // Flat pages: 0 zero, 1 ro, 2 cold, 3 rw, 4 rw-zero | 5 cold, 6 ro, 7 rw, 8 zero, 9 cold.
    // The memory ranges end a bridge.
    assert_eq!(
        figures,
        [("zero", 2, 2), ("ro", 2, 2), ("rw", 2, 2), ("rw-zero", 1, 1), ("cold", 3, 3)]
    );
    let json = serde_json::to_value(&all).unwrap();
    assert_eq!(json["tiers"]["recorded"]["mechanism"], "uffd-wp");
    assert_eq!(json["tiers"]["images"][0]["compression"], "none");
}

#[test]
fn maps_show_every_class_and_address() {
    let dir = tempfile::tempdir().unwrap();
    tiered(dir.path());
    let reader = ManifestReader::open(dir.path()).unwrap();
    let map = reader.layout(layout::TIERED).unwrap();
    let text = draw_text(reader.memory(), &map, 8, 2, false);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], "           0 ·▒░██░▒█");
    assert_eq!(lines[1], "   100003000 ·░");
    assert!(lines[2].contains("one character: 4 KiB"));
    // Coarser: of several classes the one that matters most.
    let text = draw_text(reader.memory(), &map, 8, 1, false);
    assert!(text.starts_with("           0 ▒██▒█░\n"), "{text}");
    assert!(draw_text(reader.memory(), &map, 8, 1, true).contains("\x1b[33m█"));
    let svg = draw_svg(reader.memory(), &map, 8, 2);
    assert_eq!(svg.matches("<rect").count(), svg.matches("<title>").count() + 4);
    assert!(svg.contains("rw from 0x3000") && svg.ends_with("</svg>\n"));
}

#[test]
fn holes_tell_a_flat_file_apart() {
    let dir = tempfile::tempdir().unwrap();
    let (_, memory) = guest().save(dir.path());
    let file = FlatFile::open(&memory, &guest().memory).unwrap();
    let map = file.map(&guest().memory).unwrap();
    for region in map.regions() {
        let first = region.stored.unwrap().page;
        assert_eq!(guest().gfn(first) * 4096, region.pages.start());
    }
    // Whatever is not zero is listed (a file system may list more).
    for flat in [1, 2, 3, 5, 6, 7, 9] {
        assert!(map.find(guest().gfn(flat) * 4096).is_some(), "page {flat}");
    }
}

#[test]
fn a_diff_with_a_list_takes_these_pages_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (_, memory) = guest().save(dir.path());
    let diff = dir.path().join("diff");
    let file = File::create(&diff).unwrap();
    // More data than was written, as a file system with huge pages would say; page 9 is zero now.
    file.write_all_at(&vec![8; 10 * 4096], 0).unwrap();
    file.write_all_at(&[0; 4096], 9 * 4096).unwrap();
    let dirty = Some(vec![range(1, 2), range((1 << 20) + 4, 1)]);
    let state = StateFile { dirty, ..guest().state() };
    let state = StateFile::from_bytes(&state.to_bytes().unwrap()).unwrap();
    let out = dir.path().join("out");
    let report = merge_diff(&LocalFiles, &memory, &diff, Some(&state), &out).unwrap();
    assert_eq!((report.pages, report.from_diff), (10, 3));
    let mut merged = guest().bytes;
    merged[4096..3 * 4096].fill(8);
    merged[9 * 4096..].fill(0);
    assert!(fs::read(&out).unwrap() == merged);
    assert!(fs::read(&memory).unwrap() == guest().bytes);

    let outside = StateFile { dirty: Some(vec![range(5, 1)]), ..guest().state() };
    assert!(outside.to_bytes().unwrap_err().to_string().contains("not inside guest memory"));
    file.set_len(9 * 4096).unwrap();
    let error = merge_diff(&LocalFiles, &memory, &diff, None, &out).unwrap_err();
    assert!(matches!(error, SnapshotError::MemorySize { .. }));
}
