//! Small snapshots, and what is in a folder.

use std::fs;
use std::path::{Path, PathBuf};

use varve_snapshot::{
    Access, FlatWriter, HostIdentity, LayoutContent, LocalFiles, ManifestReader, Mechanism,
    PAGE_SIZE, PageAccess, PageRange, SnapshotId, StateBlob, StateFile, Trace, layout, memory_in,
    verify,
};

const PAGES: u64 = 24;

/// All of memory; page 3 is zero, and one in four.
pub fn memory(seed: u8) -> Vec<u8> {
    let page = |n: u64| vec![if n % 4 == 3 { 0 } else { seed + n as u8 }; PAGE_SIZE as usize];
    (0..PAGES).flat_map(page).collect()
}

pub fn range(first: u64, pages: u64) -> PageRange {
    PageRange::new(first * PAGE_SIZE, pages * PAGE_SIZE).unwrap()
}

pub fn state(id: u8) -> StateFile {
    StateFile {
        vmm_version: "0.1.0".into(),
        config: br#"{"machine-config":{"vcpu_count":1}}"#.to_vec(),
        host: HostIdentity {
            arch: "x86_64".into(),
            cpu_vendor: "AuthenticAMD".into(),
            features: vec![1],
        },
        memory: vec![range(0, PAGES)],
        id: Some(SnapshotId([id; 16])),
        blobs: vec![StateBlob { name: "vcpu0".into(), version: 1, bytes: vec![7; 40] }],
        ..StateFile::default()
    }
}

/// A flat snapshot in `dir`.
pub fn save(dir: &Path, bytes: &[u8], state: StateFile) {
    let mut writer = FlatWriter::in_dir(&LocalFiles, dir, bytes.len() as u64).unwrap();
    for (page, at) in bytes.chunks(PAGE_SIZE as usize).zip(0..) {
        if page.iter().any(|&byte| byte != 0) {
            writer.memory().unwrap().write_at(page, at * PAGE_SIZE).unwrap();
        }
    }
    writer.finish(state).unwrap();
}

/// A trace in which `first` and the page after it are read, and the third is written.
pub fn trace(first: u64) -> Trace {
    let access = |n: u64| if n == 2 { Access::WRITTEN } else { Access::READ };
    let page = |n: u64| PageAccess {
        gfn: first + n,
        order: n as u32,
        access: access(n),
        invocation: 0,
        runs: 1,
        runs_written: u32::from(n == 2),
    };
    Trace::new(Mechanism::UffdWp, 1, vec!["resume".into()], (0..3).map(page).collect()).unwrap()
}

/// Memory of the flat snapshot in `dir`, as a restore finds it.
pub fn flat(dir: &Path) -> (StateFile, Vec<u8>) {
    let state = StateFile::read(&dir.join("state")).unwrap();
    let bytes = fs::read(memory_in(dir, &state).unwrap()).unwrap();
    (state, bytes)
}

/// Memory by a layout of the tiered snapshot in `dir`.
pub fn tiered(dir: &Path) -> Vec<u8> {
    let mut bytes = vec![0xaa; (PAGES * PAGE_SIZE) as usize];
    let manifest = ManifestReader::open(dir).unwrap();
    let content = LayoutContent::open(&manifest, layout::TIERED).unwrap();
    content.read(range(0, PAGES), &mut bytes).unwrap();
    bytes
}

/// Nothing is wrong with what is in `dir`.
pub fn sound(dir: &Path) {
    assert_eq!(verify(dir).unwrap().problems, Vec::<String>::new());
}

/// Names of all files and folders below `dir`.
pub fn names(dir: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let entry = entry.unwrap();
            all.push(entry.path().strip_prefix(dir).unwrap().to_owned());
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
            }
        }
    }
    all.sort();
    all
}
