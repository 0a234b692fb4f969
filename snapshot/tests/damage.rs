//! Damaged, truncated and foreign metadata is refused with a message, never with a panic; damaged
//! images are found and named.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::os::unix::fs::FileExt;

use common::{Guest, trace_of};
use proptest::prelude::*;
use varve_snapshot::{
    ChunkFault, Compression, FormatError, ImageId, LocalFiles, Manifest, ManifestReader, PageStore,
    SnapshotError, StateFile, TierInput, TierOptions, Trace, layout, tier, verify,
};

fn guest() -> (Guest, Trace) {
    let guest = Guest::new(5, &[0, 9, 9, 9, 0, 9, 9, 9, 0, 9]);
    let trace = trace_of(&guest, &[(1, 1, 1), (3, 3, 2), (7, 1, 1), (8, 1, 2)]);
    (guest, trace)
}

fn tiered(dir: &std::path::Path, cold: Compression) {
    let (guest, trace) = guest();
    let (state, memory) = guest.save(dir);
    let input = TierInput { state: &state, memory: &memory, traces: &[trace], out: dir };
    let options = TierOptions { cold, chunk_pages: 2, ..TierOptions::default() };
    tier(&LocalFiles, &input, &options).unwrap();
}

/// Every layout says the same: if one does not, that is found, and the page is named.
#[test]
fn layouts_that_disagree_are_found() {
    let dir = tempfile::tempdir().unwrap();
    tiered(dir.path(), Compression::None);
    let path = dir.path().join("manifest");
    let mut manifest = Manifest::read(&path).unwrap();
    let (_, map) = manifest.layouts.iter_mut().find(|l| l.0 == layout::TEMPLATE).unwrap();
    let mut regions = map.regions().to_vec();
    // Page 1 is said to be where page 2 is.
    regions[0].stored.as_mut().unwrap().page += 1;
    *map = varve_snapshot::RegionMap::new(regions, &manifest.memory).unwrap();
    manifest.write(&LocalFiles, &path).unwrap();
    let problems = verify(dir.path()).unwrap().problems;
    assert_eq!(problems, ["page 0x1000 differs between the layouts \"flat\" and \"template\""]);
}

#[test]
fn a_damaged_store_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (guest, trace) = guest();
    let (state, memory) = guest.save(dir.path());
    let input = TierInput { state: &state, memory: &memory, traces: &[trace], out: dir.path() };
    let store = dir.path().join("store");
    let options = TierOptions { store: Some(store.clone()), ..TierOptions::default() };
    tier(&LocalFiles, &input, &options).unwrap();
    let index = store.join("index");
    let bytes = fs::read(&index).unwrap();
    for at in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x10;
        fs::write(&index, damaged).unwrap();
        assert!(PageStore::open(&LocalFiles, &store).is_err(), "byte {at}");
        fs::write(&index, &bytes[..at]).unwrap();
        assert!(PageStore::open(&LocalFiles, &store).is_err(), "cut to {at}");
    }
    fs::write(&index, &bytes).unwrap();
    drop(PageStore::open(&LocalFiles, &store).unwrap());
    let image = fs::File::options().write(true).open(store.join("pages.img")).unwrap();
    image.write_all_at(b"?", 0).unwrap();
    let problems = verify(dir.path()).unwrap().problems;
    assert!(problems[0].contains("\"ro\"") && problems[0].contains("chunk 0"), "{problems:?}");
    image.set_len(4096).unwrap();
    assert!(matches!(PageStore::open(&LocalFiles, &store), Err(SnapshotError::ImageSize { .. })));
}

#[test]
fn memory_beyond_reason_is_refused() {
    let mut state = guest().0.state();
    state.memory = vec![common::range(0, (1 << 28) + 1)];
    assert!(state.to_bytes().unwrap_err().to_string().contains("more than 1 TiB"));
    state.memory.clear();
    assert!(state.to_bytes().unwrap_err().to_string().contains("empty"));
}

/// Reads bytes as a file of some kind, and says what is wrong with them.
type Parse = fn(&[u8]) -> Result<(), FormatError>;

fn samples() -> Vec<(&'static str, Vec<u8>, Parse)> {
    static MADE: std::sync::LazyLock<Vec<(&'static str, Vec<u8>, Parse)>> =
        std::sync::LazyLock::new(make_samples);
    MADE.clone()
}

fn make_samples() -> Vec<(&'static str, Vec<u8>, Parse)> {
    let dir = tempfile::tempdir().unwrap();
    tiered(dir.path(), Compression::Lz4);
    vec![
        ("state", fs::read(dir.path().join("state")).unwrap(), |b| {
            StateFile::from_bytes(b).map(|_| ())
        }),
        ("manifest", fs::read(dir.path().join("manifest")).unwrap(), |b| {
            Manifest::from_bytes(b).map(|_| ())
        }),
        ("trace", guest().1.to_bytes(), |b| Trace::from_bytes(b).map(|_| ())),
    ]
}

#[test]
fn every_flipped_bit_is_refused() {
    for (name, bytes, parse) in samples() {
        parse(&bytes).unwrap();
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut damaged = bytes.clone();
                damaged[at] ^= 1 << bit;
                // All but the minor version, which readers do not judge by: its checksum does.
                assert!(parse(&damaged).is_err(), "{name}: bit {bit} of byte {at}");
            }
        }
    }
}

#[test]
fn every_truncation_is_refused() {
    for (name, bytes, parse) in samples() {
        for len in 0..bytes.len() {
            let error = parse(&bytes[..len]).unwrap_err();
            let expected = match len {
                0..8 => matches!(error, FormatError::Magic { .. }),
                _ => matches!(error, FormatError::Length { .. }),
            };
            assert!(expected, "{name} cut to {len} bytes: {error}");
        }
        let longer = [bytes.as_slice(), b"\0"].concat();
        assert!(matches!(parse(&longer), Err(FormatError::Length { .. })), "{name}");
    }
}

/// Mutations behind sound checksums: decoding and validating get to see them.
fn reseal(mut bytes: Vec<u8>) -> Vec<u8> {
    let u32_at = |b: &[u8], at: usize| u32::from_le_bytes(b[at..at + 4].try_into().unwrap());
    let u64_at = |b: &[u8], at: usize| u64::from_le_bytes(b[at..at + 8].try_into().unwrap());
    let sections = u32_at(&bytes, 12) as usize;
    for entry in (0..sections).map(|i| 32 + 32 * i) {
        if entry + 32 > bytes.len() {
            return bytes;
        }
        let (offset, len) = (u64_at(&bytes, entry + 8), u64_at(&bytes, entry + 16));
        let end = offset.saturating_add(len) as usize;
        if let Some(body) = bytes.get(offset as usize..end) {
            let crc = crc32c::crc32c(body);
            bytes[entry + 24..entry + 28].copy_from_slice(&crc.to_le_bytes());
        }
    }
    bytes[24..28].fill(0);
    let table = (32 + 32 * sections).min(bytes.len());
    let crc = crc32c::crc32c(&bytes[..table]);
    bytes[24..28].copy_from_slice(&crc.to_le_bytes());
    bytes
}

#[test]
fn resealing_changes_nothing_that_is_sound() {
    for (name, bytes, _) in samples() {
        assert!(reseal(bytes.clone()) == bytes, "{name}");
    }
}

#[test]
fn every_resealed_byte_is_read_without_panic() {
    let mut refused = 0;
    for (_, bytes, parse) in samples() {
        for at in 0..bytes.len() {
            for value in [0, 1, 0x7f, 0x80, 0xff, bytes[at].wrapping_add(1)] {
                let mut damaged = bytes.clone();
                damaged[at] = value;
                refused += usize::from(parse(&reseal(damaged)).is_err());
            }
        }
    }
    assert!(refused > 1000, "only {refused}: validation does not look");
}

proptest! {
    #[test]
    fn random_damage_is_read_without_panic(
        which in 0usize..3,
        edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
        cut in any::<prop::sample::Index>(),
    ) {
        let (_, bytes, parse) = samples().swap_remove(which);
        let mut damaged = bytes.clone();
        for (at, value) in edits {
            let at = at.index(damaged.len());
            damaged[at] = value;
        }
        let _ = parse(&reseal(damaged.clone()));
        if damaged != bytes {
            prop_assert!(parse(&damaged).is_err());
        }
        let _ = parse(&damaged[..cut.index(damaged.len())]);
    }

    #[test]
    fn noise_is_refused(noise in proptest::collection::vec(any::<u8>(), 0..400)) {
        for (_, bytes, parse) in samples() {
            prop_assert!(parse(&noise).is_err());
            let mut headed = bytes[..12].to_vec();
            headed.extend(&noise);
            prop_assert!(parse(&headed).is_err());
        }
    }
}

#[test]
fn versions_and_unknown_sections_follow_the_rules() {
    for (name, bytes, parse) in samples() {
        let with = |at: usize, value: u8| {
            let mut changed = bytes.clone();
            changed[at] = value;
            parse(&reseal(changed))
        };
        let newer = with(8, 2).unwrap_err();
        assert!(matches!(newer, FormatError::Newer { major: 2, .. }), "{name}: {newer}");
        assert_eq!(with(8, 0), Err(FormatError::NoVersion));
        assert_eq!(with(10, 9), Ok(()), "{name}: a later minor version is read");

        // One more section, at the end: its table entry moves all others.
        let extended = |flags: u8| {
            let sections = bytes[12] as usize;
            let (head, bodies) = bytes.split_at(32 + 32 * sections);
            let mut all = head.to_vec();
            for entry in all[32..].chunks_mut(32) {
                let offset = u64::from_le_bytes(entry[8..16].try_into().unwrap()) + 32;
                entry[8..16].copy_from_slice(&offset.to_le_bytes());
            }
            let mut entry = [0; 32];
            entry[0] = 200;
            entry[4] = flags;
            entry[8..16].copy_from_slice(&(bytes.len() as u64 + 32).to_le_bytes());
            entry[16] = 5;
            all.extend(entry);
            all.extend(bodies);
            all.extend(b"later");
            all[12] += 1;
            let len = all.len() as u64;
            all[16..24].copy_from_slice(&len.to_le_bytes());
            parse(&reseal(all))
        };
        assert_eq!(extended(0), Ok(()), "{name}: an unknown section is skipped");
        let section = "200.0".to_owned();
        assert_eq!(extended(1), Err(FormatError::UnknownRequired { section }), "{name}");
    }
}

#[test]
fn hot_regions_that_are_others_are_found() {
    let (_, bytes, parse) = samples().swap_remove(1);
    let table = bytes[32..].chunks(32).take(bytes[12].into());
    let hot: Vec<usize> = table
        .filter(|entry| entry[..2] == [8, 0])
        .map(|entry| u64::from_le_bytes(entry[8..16].try_into().unwrap()) as usize)
        .collect();
    assert_eq!(hot.len(), 2, "those of tiered and template");
    for at in hot {
        let mut changed = bytes.clone();
        // The rank of the first region, which is behind their number.
        changed[at + 8 + 20] ^= 1;
        let error = parse(&reseal(changed)).unwrap_err();
        assert!(matches!(error, FormatError::HotRegions { .. }), "{error}");
    }
}

#[test]
fn names_stand_once() {
    let mut state = guest().0.state();
    state.blobs.push(state.blobs[0].clone());
    let error = state.to_bytes().unwrap_err().to_string();
    assert!(error.contains("blobs") && error.contains("vcpu0"), "{error}");
}

#[test]
fn damaged_images_are_named() {
    for compression in [Compression::None, Compression::Lz4] {
        let dir = tempfile::tempdir().unwrap();
        tiered(dir.path(), compression);
        let manifest = ManifestReader::open(dir.path()).unwrap();
        let at = manifest.images().iter().position(|i| i.name == "cold").unwrap();
        let entry = &manifest.images()[at];
        let path = entry.path(manifest.folder());
        let file = fs::File::options().read(true).write(true).open(&path).unwrap();
        let mut last = [0];
        file.read_exact_at(&mut last, entry.bytes - 1).unwrap();
        file.write_all_at(&[!last[0]], entry.bytes - 1).unwrap();

        let image = manifest.image(ImageId(at as u16)).unwrap();
        let mut page = vec![0; 4096];
        image.read_pages(0, &mut page).unwrap();
        let error = image.read_pages(entry.pages - 1, &mut page).unwrap_err();
        assert!(
            matches!(
                &error,
                SnapshotError::Chunk { image, chunk: 1, page: 2, cause: ChunkFault::Checksum { .. }, .. }
                    if image == "cold"
            ),
            "{error}"
        );
        let problems = verify(dir.path()).unwrap().problems;
        assert_eq!(problems, [error.to_string()]);
        assert!(matches!(
            image.read_pages(entry.pages, &mut page),
            Err(SnapshotError::OutsideImage { .. })
        ));

        file.set_len(entry.bytes - 1).unwrap();
        let error = manifest.image(ImageId(at as u16)).unwrap_err();
        assert!(matches!(error, SnapshotError::ImageSize { .. }), "{error}");
        fs::remove_file(&path).unwrap();
        let problems = verify(dir.path()).unwrap().problems;
        assert!(problems[0].contains("cold-") && problems[0].contains("No such file"));
        // A strategy that does not need it goes on.
        manifest.layout(layout::TEMPLATE).unwrap();
    }
}

/// Adds the polynomial of CRC-32C to the first bytes: their checksum stays the same.
fn add_polynomial(bytes: &mut [u8]) {
    let terms = std::iter::once(1).chain((0..32).rev().map(|n| 0x1edc_6f41u32 >> n & 1));
    for (term, at) in terms.zip(0..) {
        bytes[at / 8] ^= (term as u8) << (at % 8);
    }
}

#[test]
fn bytes_that_keep_the_checksum_are_found_by_their_digest() {
    for compression in [Compression::None, Compression::Lz4] {
        let dir = tempfile::tempdir().unwrap();
        tiered(dir.path(), compression);
        let manifest = ManifestReader::open(dir.path()).unwrap();
        let at = manifest.images().iter().position(|i| i.name == "cold").unwrap();
        let (id, entry) = (ImageId(at as u16), &manifest.images()[at]);
        assert!(manifest.proves(entry));
        let path = entry.path(manifest.folder());
        let mut bytes = fs::read(&path).unwrap();
        let before = crc32c::crc32c(&bytes);
        add_polynomial(&mut bytes);
        assert_eq!(crc32c::crc32c(&bytes), before);
        fs::write(&path, bytes).unwrap();

        let error = manifest.proven_image(id).unwrap().read_chunk(0).unwrap_err();
        assert!(
            matches!(
                &error,
                SnapshotError::Chunk { image, chunk: 0, cause: ChunkFault::Digest { .. }, .. }
                    if image == "cold"
            ),
            "{error}"
        );
        assert_eq!(verify(dir.path()).unwrap().problems, [varve_snapshot::chain(&error)]);
    }
}

#[test]
fn other_files_are_checked_against_the_manifest() {
    let dir = tempfile::tempdir().unwrap();
    tiered(dir.path(), Compression::None);
    let memory = dir.path().join("memory");
    let file = fs::File::options().write(true).open(&memory).unwrap();
    file.write_all_at(b"!", 2 * 4096).unwrap();
    let problems = verify(dir.path()).unwrap().problems;
    assert_eq!(problems.len(), 1);
    assert!(problems[0].contains("\"memory\"") && problems[0].contains("chunk 1"), "{problems:?}");

    let mut state = guest().0.state();
    state.blobs.pop();
    state.write(&LocalFiles, &dir.path().join("state")).unwrap();
    let problems = verify(dir.path()).unwrap().problems;
    assert!(problems.iter().any(|p| p.contains("state") && p.contains("content differs")));

    assert!(matches!(verify(&dir.path().join("none")), Err(SnapshotError::NoSnapshot { .. })));
    let unknown = ManifestReader::open(dir.path()).unwrap().layout("fast").unwrap_err().to_string();
    assert!(unknown.contains("flat, reap, faasnap, tiered, template"), "{unknown}");
}
