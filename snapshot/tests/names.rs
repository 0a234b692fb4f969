//! A manifest names files in its own folder, and no others of the host.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};

use common::{Guest, trace_of};
use varve_snapshot::{
    ImageId, LocalFiles, Manifest, ManifestReader, TierInput, TierOptions, layout, tier, verify,
};

fn guest() -> Guest {
    Guest::new(5, &[0, 9, 9, 9, 0, 9, 9, 9, 0, 9])
}

#[test]
fn files_outside_of_the_folder_are_refused() {
    let root = tempfile::tempdir().unwrap();
    let (dir, secret) = (root.path().join("snapshot"), root.path().join("secret"));
    fs::create_dir(&dir).unwrap();
    let (state, memory) = guest().save(&dir);
    let input = TierInput { state: &state, memory: &memory, traces: &[], out: &dir };
    tier(&LocalFiles, &input, &TierOptions::default()).unwrap();
    fs::copy(&memory, &secret).unwrap();
    symlink(&secret, dir.join("link")).unwrap();
    let path = dir.join("manifest");
    let sound = Manifest::read(&path).unwrap();
    for name in [secret.to_str().unwrap(), "../secret", "link", "..", "/dev/zero"] {
        let mut manifest = sound.clone();
        manifest.images[0].entry.file = name.into();
        manifest.write(&LocalFiles, &path).unwrap();
        let reader = ManifestReader::open(&path).unwrap();
        for error in [
            reader.image(ImageId(0)).unwrap_err(),
            reader.image_file(ImageId(0)).unwrap_err(),
            reader.image_path(&reader.images()[0]).unwrap_err(),
        ] {
            let said = error.to_string();
            assert!(said.contains("folder"), "{name}: {said}");
        }
        assert!(!verify(&dir).unwrap().problems.is_empty());
        let mut manifest = sound.clone();
        manifest.state.as_mut().unwrap().file = name.into();
        manifest.write(&LocalFiles, &path).unwrap();
        let said = ManifestReader::open(&path).unwrap().read_state().unwrap_err().to_string();
        assert!(said.contains("folder"), "{name}: {said}");
    }
}

/// What goes with a manifest is what was made with it.
#[test]
fn no_other_file_goes_with_a_manifest() {
    let dir = tempfile::tempdir().unwrap();
    let (state, memory) = guest().save(dir.path());
    let traces = [trace_of(&guest(), &[(1, 2, 1)])];
    let input = TierInput { state: &state, memory: &memory, traces: &traces, out: dir.path() };
    tier(&LocalFiles, &input, &TierOptions::default()).unwrap();
    fs::write(dir.path().join("precious"), "x").unwrap();
    let path = dir.path().join("manifest");
    let mut manifest = Manifest::read(&path).unwrap();
    let ro = manifest.images.iter_mut().find(|i| i.entry.name == "ro").unwrap();
    ro.entry.file = "precious".into();
    manifest.write(&LocalFiles, &path).unwrap();
    let input = TierInput { traces: &[], ..input };
    tier(&LocalFiles, &input, &TierOptions::default()).unwrap();
    assert!(dir.path().join("precious").exists());
}

/// What comes from another folder gets a name in this one, without a copy.
#[test]
fn a_tiered_snapshot_elsewhere_has_all_its_files() {
    let root = tempfile::tempdir().unwrap();
    let (flat, out) = (root.path().join("flat"), root.path().join("out"));
    fs::create_dir(&flat).unwrap();
    let (state, memory) = guest().save(&flat);
    let traces = [trace_of(&guest(), &[(1, 2, 1), (5, 2, 2)])];
    let input = TierInput { state: &state, memory: &memory, traces: &traces, out: &out };
    let store = root.path().join("store");
    for _ in 0..2 {
        let options = TierOptions { store: Some(store.clone()), ..TierOptions::default() };
        tier(&LocalFiles, &input, &options).unwrap();
    }
    let manifest = ManifestReader::open(&out).unwrap();
    for image in manifest.images() {
        assert!(!image.file.contains('/'), "{}", image.file);
    }
    let named = manifest.image_path(manifest.named("memory").unwrap()).unwrap();
    assert_eq!(fs::metadata(named).unwrap().ino(), fs::metadata(&memory).unwrap().ino());
    // It needs nothing of the other folders any more.
    fs::remove_dir_all(&flat).unwrap();
    fs::remove_dir_all(store).unwrap();
    assert_eq!(verify(&out).unwrap().problems, Vec::<String>::new());
    for name in [layout::FLAT, layout::TIERED] {
        assert!(guest().read_back(&manifest, name) == guest().bytes);
    }
}
