//! Small guests for tests: memory, a flat snapshot of it on disk, traces.
#![allow(dead_code, clippy::unwrap_used)]

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use varve_snapshot::{
    Access, HostIdentity, LayoutContent, LocalFiles, ManifestReader, Mechanism, PAGE_SIZE,
    PageAccess, PageRange, StateBlob, StateFile, Trace,
};

pub const PAGE: usize = PAGE_SIZE as usize;

/// Guest memory in two ranges, as around the 32-bit gap, content in flat order.
#[derive(Clone, Debug)]
pub struct Guest {
    pub memory: Vec<PageRange>,
    pub bytes: Vec<u8>,
}

pub fn range(first_gfn: u64, pages: u64) -> PageRange {
    PageRange::new(first_gfn * PAGE_SIZE, pages * PAGE_SIZE).unwrap()
}

impl Guest {
    /// `kinds`: per flat page 0 for zero, anything else for content that depends on it and, for
    /// kinds from 8 up, on the page too.
    pub fn new(low: u64, kinds: &[u8]) -> Guest {
        let pages = kinds.len() as u64;
        let low = low.clamp(1, pages - 1);
        let memory = vec![range(0, low), range(1 << 20, pages - low)];
        let mut bytes = vec![0; kinds.len() * PAGE];
        for (at, (page, &kind)) in bytes.chunks_mut(PAGE).zip(kinds).enumerate() {
            let seed = if kind < 8 { u64::from(kind) } else { u64::from(kind) << 32 | at as u64 };
            let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            for word in page.chunks_mut(8) {
                x ^= x << 13;
                x ^= x >> 7;
                x ^= x << 17;
                word.copy_from_slice(&x.to_le_bytes());
            }
            // Barely not zero.
            if kind == 1 {
                page.fill(0);
                page[PAGE - 1] = 1;
            }
        }
        Guest { memory, bytes }
    }

    pub fn pages(&self) -> u64 {
        (self.bytes.len() / PAGE) as u64
    }

    /// Frame number of a flat page.
    pub fn gfn(&self, flat: u64) -> u64 {
        let low = self.memory[0].pages();
        if flat < low { flat } else { (1 << 20) + flat - low }
    }

    /// Writes a flat snapshot into `dir`; zero pages become holes. Paths of state and memory.
    pub fn save(&self, dir: &Path) -> (PathBuf, PathBuf) {
        let (state, memory) = (dir.join("state"), dir.join("memory"));
        let file = File::create(&memory).unwrap();
        file.set_len(self.bytes.len() as u64).unwrap();
        for (at, page) in self.bytes.chunks(PAGE).enumerate() {
            if page.iter().any(|&b| b != 0) {
                file.write_all_at(page, (at * PAGE) as u64).unwrap();
            }
        }
        self.state().write(&LocalFiles, &state).unwrap();
        (state, memory)
    }

    pub fn state(&self) -> StateFile {
        StateFile {
            vmm_version: "0.1.0".into(),
            memory_file: Some("memory".into()),
            config: br#"{"machine-config":{"vcpu_count":1}}"#.to_vec(),
            host: HostIdentity {
                arch: "x86_64".into(),
                cpu_vendor: "AuthenticAMD".into(),
                features: vec![1, 2, 3],
            },
            memory: self.memory.clone(),
            dirty: None,
            id: None,
            bases: Vec::new(),
            sums: None,
            blobs: vec![
                StateBlob { name: "vcpu0".into(), version: 1, bytes: vec![7; 40] },
                StateBlob { name: "serial".into(), version: 2, bytes: vec![] },
            ],
        }
    }

    /// All of guest memory as a layout has it, in flat order.
    pub fn read_back(&self, manifest: &ManifestReader, layout: &str) -> Vec<u8> {
        self.read(&LayoutContent::open(manifest, layout).unwrap())
    }

    /// All of memory as some regions say it is.
    pub fn read(&self, content: &LayoutContent) -> Vec<u8> {
        let mut all = vec![0xaa; self.bytes.len()];
        let mut rest = all.as_mut_slice();
        for pages in &self.memory {
            let (now, later) = rest.split_at_mut(pages.len() as usize);
            content.read(*pages, now).unwrap();
            rest = later;
        }
        all
    }
}

/// A guest of up to some hundred pages, in runs of equal kinds, sometimes longer than 2 MiB.
pub fn guests() -> impl Strategy<Value = Guest> {
    let run = prop_oneof![
        8 => (0u8..12, 1usize..20),
        1 => (Just(0u8), 20usize..100),
        1 => (Just(9u8), 200usize..700),
    ];
    (proptest::collection::vec(run, 1..30), 1u64..200).prop_map(|(runs, low)| {
        let mut kinds: Vec<u8> =
            runs.into_iter().flat_map(|(kind, n)| std::iter::repeat_n(kind, n)).collect();
        kinds.push(3);
        kinds.push(0);
        Guest::new(low, &kinds)
    })
}

/// A trace of one run over `pages` pages of `guest`: runs of accesses, some of them outside.
pub fn traces() -> impl Strategy<Value = Vec<(u64, u64, u8)>> {
    proptest::collection::vec((0u64..1200, 1u64..40, 1u8..4), 0..25)
}

/// The trace that `runs` (first flat page, pages, flags) stand for.
pub fn trace_of(guest: &Guest, runs: &[(u64, u64, u8)]) -> Trace {
    let mut seen: Vec<PageAccess> = Vec::new();
    for &(first, count, flags) in runs {
        for flat in first..first + count {
            let access = match flags {
                1 => Access::READ,
                2 => Access::WRITTEN,
                _ => Access::READ.with(Access::WRITTEN),
            };
            let gfn = guest.gfn(flat);
            if seen.iter().all(|p| p.gfn != gfn) {
                let runs_written = access.has(Access::WRITTEN).into();
                let order = seen.len() as u32;
                seen.push(PageAccess { gfn, order, access, invocation: 0, runs: 1, runs_written });
            }
        }
    }
    Trace::new(Mechanism::UffdWp, 1, vec!["resume".into()], seen).unwrap()
}

/// Names of unfinished files in a directory.
pub fn leftovers(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    names.filter(|n| n.starts_with(varve_snapshot::TEMP_PREFIX)).collect()
}
