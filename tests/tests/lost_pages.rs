//! Pages that are lost while a guest runs on them: the machine ends, and says which page, image and tier.

#![allow(clippy::unwrap_used, reason = "tests")]
// UNSAFETY: a file is mapped, so that the kernel can be asked to call one of its pages broken.
#![allow(unsafe_code)]

use std::fs::{self, OpenOptions};
use std::path::Path;
use std::ptr::null_mut;
use std::thread;
use std::time::{Duration, Instant};

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, munmap};
use serde_json::Value;
use varve_agent::client::{Client, connect_vsock};
use varve_agent::pattern::word;
use varve_agent::protocol::{Action, Memory, MemoryReply, Request};
use varve_skip::skipped;
use varve_tests::disk::{Disk, FailingDisk};
use varve_tests::snapshots::tier;
use varve_tests::{Restoring, Vm};

/// How long a machine may take to notice.
const PATIENCE: Duration = Duration::from_secs(120);
/// What the guest's region is filled with.
const SEED: u64 = 1;
/// A word in the middle of the region.
const REGION_WORD: u64 = 512 * 1024;

const FILES: [&str; 4] = ["memory", "ro", "rw", "cold"];

fn folder() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("varve-snapshot").tempdir().unwrap()
}

/// Cuts off what guests may have mapped.
fn truncate(dir: &Path, to: u64) {
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if FILES.iter().any(|start| name.starts_with(start)) {
            let file = OpenOptions::new().write(true).open(entry.path()).unwrap();
            file.set_len(to.min(file.metadata().unwrap().len())).unwrap();
        }
    }
}

/// Has the guest touch its region. Until the machine ends, the agent may or may not answer.
fn touch(vm: &Vm) {
    let Ok(stream) = connect_vsock(&vm.uds(), varve_agent::CONTROL_PORT) else { return };
    stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    let (name, action) = ("m".into(), Action::Verify);
    let verify = Memory { name, action, mib: None, seed: 0, threads: None };
    let reply = Client::new(stream).call::<MemoryReply>(&Request::Memory(verify));
    println!("{reply:?}");
}

/// Waits for the end of a machine that has lost pages; its last words.
fn ends(mut vm: Vm, way: &str) -> String {
    let start = Instant::now();
    while vm.runs() {
        assert!(start.elapsed() < PATIENCE, "{way}: it runs without its pages");
        touch(&vm);
        thread::sleep(Duration::from_millis(10));
    }
    let end = vm.wait();
    println!("{way}: {}", end.stderr);
    assert_eq!(end.code, Some(5), "{way}: {end:?}");
    assert!(end.stderr.starts_with("varve: guest memory is lost: "), "{end:?}");
    assert_eq!(end.stderr.matches("guest page").count(), 1, "{end:?}");
    end.stderr
}

/// A snapshot in `to` of a guest that has filled its region and touches it no more.
fn filled(to: &Path) {
    let mut vm = Vm::builder().option("--memory", "96M").controlled().start();
    vm.memory("m", Action::Allocate, 8, 0);
    vm.memory_by(1, "m", Action::Fill, SEED);
    vm.snapshot("", to);
}

/// A guest that has not touched its region yet, so that all of that is in the image alone.
fn restored(from: &Path) -> Vm {
    let mut vm = Restoring::from(from).options("--strategy lazy --tune prefault=false").start();
    vm.wait_for_api();
    vm.agent();
    vm
}

#[test]
fn a_disk_that_fails_ends_the_machine() {
    let dir = folder();
    filled(&dir.path().join("flat"));
    let disk = match FailingDisk::holding(&dir.path().join("flat"), 192) {
        Ok(disk) => disk,
        Err(why) => return skipped("disk", "a disk that fails", &why.to_string()),
    };
    let vm = restored(disk.path());
    disk.fail();
    let said = ends(vm, "EIO");
    assert!(said.contains("local image memory"), "{said}");
}

/// The offset in its memory file of a page of the guest's region. The region need not begin with a page.
fn page_of_region(memory: &Path) -> u64 {
    let word = word(SEED, REGION_WORD).to_le_bytes();
    let bytes = fs::read(memory).unwrap();
    bytes.chunks(8).position(|found| found == word).unwrap() as u64 * 8 / 4096 * 4096
}

/// Tells the kernel that the memory behind a page of a file is broken.
fn poison(file: &Path, offset: u64) -> Result<(), rustix::io::Errno> {
    let file = OpenOptions::new().read(true).write(true).open(file).unwrap();
    let (access, len) = (ProtFlags::READ, 4096);
    // SAFETY: a new mapping, at an address that the kernel chooses, which nobody else knows of.
    let page = unsafe { mmap(null_mut(), len, access, MapFlags::SHARED, &file, offset) }.unwrap();
    // SAFETY: the page is mapped, and brought in before it is called broken.
    let first = unsafe { page.cast::<u8>().read_volatile() };
    // SAFETY: the page is this function's own and is not looked at any more.
    let poisoned = unsafe { madvise(page, len, Advice::LinuxHwPoison) };
    println!("a page that begins with {first:#x}: {poisoned:?}");
    // SAFETY: as above.
    unsafe { munmap(page, len) }.unwrap();
    poisoned
}

#[test]
fn memory_of_the_host_that_fails_ends_the_machine() {
    // A file system that has a disk reads the page again.
    let disk = match Disk::small(192) {
        Ok(disk) => disk,
        Err(why) => return skipped("memory", "a page of tmpfs that is poisoned", &why.to_string()),
    };
    let flat = disk.path().join("flat");
    filled(&flat);
    let vm = restored(&flat);
    let memory = flat.join("memory");
    if let Err(why) = poison(&memory, page_of_region(&memory)) {
        return skipped("memory", "a page that is poisoned", &why.to_string());
    }
    let said = ends(vm, "poison");
    assert!(said.contains("local image memory"), "{said}");
    assert!(said.contains("memory failed") || said.contains("hardware error"), "{said}");
}

#[test]
fn a_truncated_image_ends_the_machine() {
    let dir = folder();
    let (flat, trace) = (dir.path().join("flat"), dir.path().join("trace"));
    let mut vm = Vm::builder().option("--memory", "96M").controlled().start();
    vm.memory("m", Action::Allocate, 8, 0);
    vm.memory_by(1, "m", Action::Fill, 1);
    vm.snapshot("", &flat);
    drop(vm);
    let mut vm = Restoring::recording(&flat, &trace).options("--json").start();
    vm.agent();
    vm.end_with_report();
    tier(&flat, &[&trace], "");

    for (way, to) in [
        ("--strategy lazy", 0),
        ("--strategy lazy", 16 << 20),
        ("--strategy lazy --paused", 16 << 20),
        ("--strategy lazy --tune prefault=false", 0),
        ("--strategy faasnap", 0),
        ("--strategy tiered --tune prefault=false", 0),
        ("--strategy template", 0),
    ] {
        let copy = folder();
        for entry in fs::read_dir(&flat).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
        }
        let mut vm = Restoring::from(copy.path()).options(way).start();
        vm.wait_for_api();
        let paused = way.contains("paused");
        // It answers once memory is restored.
        let _ = vm.control("GET", "/memory", &Value::Null);
        if !paused {
            vm.agent();
        }
        // Here the guest itself meets the page first, or nobody does before the lengths are looked at.
        let busy = way == "--strategy lazy --tune prefault=false";
        if busy {
            vm.sh("(while :; do :; done) >/dev/null 2>&1 </dev/null &");
        }
        truncate(copy.path(), to);
        let start = Instant::now();
        while vm.runs() {
            assert!(start.elapsed() < PATIENCE, "{way}: it runs without its pages");
            if !paused && !busy {
                touch(&vm);
            }
            thread::sleep(Duration::from_millis(10));
        }
        let end = vm.wait();
        println!("{way}, {to}: {}", end.stderr);
        assert_eq!(end.code, Some(5), "{way}: {end:?}");
        assert!(end.stderr.starts_with("varve: guest memory is lost: "), "{end:?}");
        assert_eq!(end.stderr.matches("guest page").count(), 1, "{end:?}");
        assert!(end.stderr.contains("local image "), "{end:?}");
        assert!(FILES.iter().any(|name| end.stderr.contains(name)), "{end:?}");
    }
}
