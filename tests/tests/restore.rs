//! Whatever the strategy and whatever was recorded: a restored machine has the memory that was saved.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::Value;
use varve_agent::protocol::Action;
use varve_snapshot::{
    Access, LocalFiles, MEMORY_FILE, Mechanism, PAGE_SIZE, PageAccess, STATE_FILE, StateFile, Trace,
};
use varve_tests::snapshots::{snapshot, tier};
use varve_tests::{Restoring, Vm};

/// Ways to restore a tiered snapshot, each with a mechanism, or a time for it, of its own.
const WAYS: [&str; 12] = [
    "--strategy lazy",
    "--strategy eager",
    "--strategy reap",
    "--strategy faasnap",
    "--strategy tiered",
    "--strategy tiered --cold paged",
    "--strategy tiered --wait all --tune threads=3",
    "--strategy template",
    "--strategy template --wait first --tune threads=2",
    "--strategy template --cold paged",
    "--strategy tiered --tune read_only=mapped --tune prefault=false",
    "--strategy tiered --tune read_only=copied --wait written",
];
/// Those that the guest works on by itself; the others differ from them in what is ahead of the guest.
const WORKED_ON: usize = 10;

/// Regions of the guest's memory, by what the recorded run does to them, and their MiB.
const REGIONS: [(&str, u64); 3] = [("read", 2), ("written", 2), ("cold", 2)];
const FRESH_MIB: u64 = 1;

fn folder() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("varve-snapshot").tempdir().unwrap()
}

/// A snapshot of a machine whose regions are filled.
fn filled(dir: &Path, cpus: usize, memory: &str) {
    let vcpus = cpus.to_string();
    let builder = Vm::builder().option("--memory", memory).option("--vcpus", vcpus).controlled();
    let mut vm = builder.start();
    for (seed, (name, mib)) in (1..).zip(REGIONS) {
        vm.memory(name, Action::Allocate, mib, 0);
        vm.memory_by(cpus, name, Action::Fill, seed);
    }
    vm.memory("fresh", Action::Allocate, FRESH_MIB, 0);
    vm.snapshot("", dir);
}

/// Restores and records what an invocation may do.
fn record(dir: &Path, trace: &Path) -> Value {
    let recording = Restoring::recording(dir, trace).options("--json");
    let mut vm = recording.start();
    invoke(&mut vm);
    vm.end_with_report()
}

fn invoke(vm: &mut Vm) {
    vm.memory_by(2, "read", Action::Verify, 0);
    vm.memory_by(2, "written", Action::Rewrite, 9);
    vm.memory_by(1, "fresh", Action::Rewrite, 9);
}

/// Restores, looks at all that was filled and writes over it, by several threads at once while
/// memory is being populated; and again in a restore of a snapshot of that.
fn nothing_is_wrong(dir: &Path, cpus: usize, way: &str) {
    let start = Instant::now();
    let mut vm = Restoring::from(dir).options(way).start();
    let names = REGIONS.map(|(name, _)| name).into_iter().chain(["fresh"]);
    for name in names.clone() {
        vm.memory_by(cpus, name, Action::Rewrite, 77);
    }
    for name in names.clone() {
        vm.memory_by(cpus, name, Action::Verify, 0);
    }
    let used = vm.control("GET", "/memory", &Value::Null)["strategy"].clone();
    let wanted = way.split(' ').nth(1).unwrap();
    assert!(used == wanted || wanted == "auto" && used.is_string(), "{used} for {way}");
    let again = folder();
    vm.snapshot("", again.path());
    // The machine goes on after its snapshot.
    vm.memory_by(cpus, "cold", Action::Rewrite, 78);
    drop(vm);
    let mut vm = Restoring::from(again.path()).options("--strategy lazy").start();
    for name in names {
        vm.memory_by(cpus, name, Action::Verify, 0);
    }
    println!("{way}: right, after {:.1?}", start.elapsed());
}

#[test]
fn every_way_is_right_with_one_vcpu() {
    let dir = folder();
    let flat = tiered(dir.path(), 1);
    WAYS[..WORKED_ON].iter().for_each(|way| nothing_is_wrong(&flat, 1, way));
    saved_again_it_is_the_same(&flat);
}

#[test]
fn every_way_is_right_with_four_vcpus() {
    let dir = folder();
    let flat = tiered(dir.path(), 4);
    [WAYS[2], WAYS[4], WAYS[8]].iter().for_each(|way| nothing_is_wrong(&flat, 4, way));
}

/// A snapshot with a recording and tiers, after a look at it as it was without.
fn tiered(dir: &Path, cpus: usize) -> PathBuf {
    let (flat, trace) = (dir.join("snapshot"), dir.join("trace"));
    filled(&flat, cpus, "96M");
    nothing_is_wrong(&flat, cpus, "--strategy auto");
    record(&flat, &trace);
    tier(&flat, &[&trace], "");
    assert!(snapshot(["verify".as_ref(), flat.as_os_str()]).contains("no problem found"));
    flat
}

/// Compressed images, and a store that several snapshots share.
#[test]
fn compressed_and_shared_images_are_right() {
    let dir = folder();
    let at = |name: &str| dir.path().join(name);
    filled(&at("snapshot"), 2, "96M");
    record(&at("snapshot"), &at("trace"));
    for (out, more, way) in [
        ("cold", "--compress cold", "--strategy template"),
        ("all", "--compress all --bridge 0", "--strategy tiered"),
    ] {
        let more = format!("{more} --out {} --store {}", at(out).display(), at("store").display());
        tier(&at("snapshot"), &[&at("trace")], &more);
        assert!(snapshot(["verify".as_ref(), at(out).as_os_str()]).contains("no problem found"));
        nothing_is_wrong(&at(out), 2, way);
    }
}

/// Traces that say nothing true: they cost time, and change nothing else.
#[test]
fn wrong_traces_change_no_content() {
    let dir = folder();
    let at = |name: &str| dir.path().join(name);
    filled(&at("snapshot"), 2, "96M");
    filled(&at("other"), 1, "128M");
    record(&at("other"), &at("of-another-machine"));
    let frames = 96 * 256;
    let mut random = 1u64;
    let of = |name: &str, choose: &mut dyn FnMut(u64) -> Option<bool>| {
        let page = |(order, gfn): (u32, u64)| {
            let written = choose(gfn)?;
            let access = if written { Access::READ.with(Access::WRITTEN) } else { Access::READ };
            let runs_written = written.into();
            Some(PageAccess { gfn, order, access, invocation: 0, runs: 1, runs_written })
        };
        let pages = (0..).zip(0..frames).filter_map(page).collect();
        let trace = Trace::new(Mechanism::UffdWp, 1, vec![name.into()], pages).unwrap();
        trace.write(&LocalFiles, &at(name)).unwrap();
    };
    of("nothing", &mut |_| None);
    of("everything", &mut |_| Some(true));
    of("random", &mut |_| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        [None, Some(false), Some(true), None][(random >> 40) as usize % 4]
    });
    for name in ["nothing", "everything", "random", "of-another-machine"] {
        println!("{name}");
        let out = at(&format!("tiered-{name}"));
        tier(&at("snapshot"), &[&at(name)], &format!("--out {}", out.display()));
        let way = if name == "random" { WAYS[2] } else { WAYS[4] };
        nothing_is_wrong(&out, 1, way);
        drop(fs::remove_dir_all(&out));
    }
}

/// A machine that has not run yet is saved again at once: its memory is the memory it came from, but
/// for what restoring itself changes.
fn saved_again_it_is_the_same(flat: &Path) {
    let original = frames(flat);
    for way in WAYS {
        let mut vm = Restoring::from(flat).options(way).options("--paused").start();
        vm.wait_for_api();
        let again = folder();
        vm.snapshot("--keep-paused", again.path());
        let changed: Vec<u64> = frames(again.path())
            .iter()
            .filter(|&(frame, content)| original[frame] != *content)
            .map(|(&frame, _)| frame)
            .collect();
        println!("{way}: {changed:x?}");
        // The generation id; and where the guest's vsock is told of the reset: a ring and a buffer.
        assert_eq!(changed.len(), 3, "{way}: {changed:x?}");
        assert_eq!(changed[0], 0xe1, "{way}: {changed:x?}");
    }
}

/// Checksums of a flat snapshot's pages, by guest frame number.
fn frames(dir: &Path) -> BTreeMap<u64, u32> {
    let state = StateFile::read(&dir.join(STATE_FILE)).unwrap();
    let file = dir.join(state.memory_file.as_deref().unwrap_or(MEMORY_FILE));
    let file = fs::File::open(file).unwrap();
    let ranges = state.memory.iter();
    let frames = ranges.flat_map(|r| r.start() / PAGE_SIZE..r.end() / PAGE_SIZE);
    let mut page = [0; PAGE_SIZE as usize];
    let mut at = 0;
    frames
        .map(|frame| {
            file.read_exact_at(&mut page, at).unwrap();
            at += PAGE_SIZE;
            (frame, crc32fast::hash(&page))
        })
        .collect()
}
