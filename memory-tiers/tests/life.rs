//! The life of a function on plain memory: a thread that touches pages stands for the guest. It is
//! saved, recorded, tiered, restored by every strategy, called with inputs that were not recorded, and
//! saved again; at each step all of memory is compared.
#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::io::{Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tempfile::TempDir;
use varve_memory_tiers::*;
use varve_snapshot::{
    Access, Compression, HostIdentity, ImageEntry, LocalFiles, MANIFEST_FILE, ManifestReader,
    Mechanism, PAGE_SIZE, PageAccess, PageRange, StateFile, TierInput, TierOptions, Trace, tier,
};
use vm_memory::{Bytes, GuestAddress};

/// Pages of the two ranges of guest memory, and the first page of each.
const LOW: u64 = 1500;
const HIGH: u64 = 500;
const HIGH_START: u64 = 1 << 20;

fn memory() -> Vec<PageRange> {
    [(0, LOW), (HIGH_START, HIGH)]
        .map(|(first, pages)| PageRange::new(first << 12, pages << 12).unwrap())
        .to_vec()
}

/// A small generator: the same numbers for the same seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        self.0 >> 33
    }
}

/// Guest memory as bytes, in the order of the raw memory file.
type Model = Vec<u8>;

fn address(flat: u64) -> u64 {
    if flat < LOW { flat << 12 } else { (HIGH_START + flat - LOW) << 12 }
}

/// Three quarters are zero; the rest are runs of pages that hold their number.
fn boot() -> Model {
    let mut model = vec![0; ((LOW + HIGH) << 12) as usize];
    let mut random = Random(7);
    let mut at = 0;
    while at < LOW + HIGH {
        at += random.next() % 90;
        for page in at..(at + random.next() % 30).min(LOW + HIGH) {
            let word = (page + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
            let bytes = word.to_le_bytes().repeat(512);
            model[(page << 12) as usize..][..4096].copy_from_slice(&bytes);
        }
        at += 30;
    }
    model
}

/// The function: mostly the same pages for each input, some of its own; it reads some and writes
/// others, and its answer depends on all it read.
fn call(seed: u64, mut read: impl FnMut(u64) -> u64, mut write: impl FnMut(u64, u64)) -> u64 {
    let mut answer = seed;
    let (mut common, mut own) = (Random(1), Random(1000 + seed));
    for step in 0..200u64 {
        let random = if step % 20 == 0 { &mut own } else { &mut common };
        let page = random.next() % (LOW + HIGH);
        let at = address(page) + random.next() % 512 * 8;
        answer = answer.rotate_left(5) ^ read(at);
        if page.is_multiple_of(3) {
            write(at, answer);
        }
    }
    answer
}

fn call_model(model: &mut Model, seed: u64) -> u64 {
    let offset = |at: u64| {
        let page = at >> 12;
        let flat = if page < LOW { page } else { page - HIGH_START + LOW };
        ((flat << 12) + (at & 0xfff)) as usize
    };
    let model = std::cell::RefCell::new(model);
    let read = |at| u64::from_le_bytes(model.borrow()[offset(at)..][..8].try_into().unwrap());
    let write =
        |at, v: u64| model.borrow_mut()[offset(at)..][..8].copy_from_slice(&v.to_le_bytes());
    call(seed, read, write)
}

fn call_guest(ram: &GuestRam, seed: u64) -> u64 {
    let read = |at| ram.memory().read_obj(GuestAddress(at)).unwrap();
    call(seed, read, |at, v: u64| ram.memory().write_obj(v, GuestAddress(at)).unwrap())
}

fn bytes(ram: &GuestRam) -> Model {
    let mut all = Vec::new();
    for range in memory() {
        let mut part = vec![0; range.len() as usize];
        ram.memory().read_slice(&mut part, GuestAddress(range.start())).unwrap();
        all.extend(part);
    }
    all
}

fn same(a: &Model, b: &Model, what: &str) {
    let differs = a.chunks(4096).zip(b.chunks(4096)).position(|(a, b)| a != b);
    assert_eq!((a.len(), differs), (b.len(), None), "{what}");
}

fn save(ram: &GuestRam, dir: &Path) -> PathBuf {
    let path = dir.join("memory");
    let mut file = File::create(&path).unwrap();
    let pages = ram.size() / PAGE_SIZE;
    write_memory(ram, &mut file, &mut varve_snapshot::Summing::new(pages, true)).unwrap();
    path
}

fn hooks() -> Hooks {
    Hooks {
        stage2: None,
        on_fatal: Box::new(|e| panic!("{e}: {:?}", std::error::Error::source(&e))),
    }
}

struct Function {
    dir: TempDir,
    memory: PathBuf,
    state: PathBuf,
    booted: Model,
}

fn function() -> Function {
    function_in(TempDir::new().unwrap())
}

fn function_in(dir: TempDir) -> Function {
    let booted = boot();
    let ram = GuestRam::new(&memory(), false).unwrap();
    let mut rest = &booted[..];
    for range in memory() {
        let (part, later) = rest.split_at(range.len() as usize);
        ram.memory().write_slice(part, GuestAddress(range.start())).unwrap();
        rest = later;
    }
    let path = save(&ram, dir.path());
    let state = StateFile {
        vmm_version: "0.1.0".into(),
        memory_file: Some("memory".into()),
        config: b"{}".to_vec(),
        host: HostIdentity::default(),
        memory: memory(),
        dirty: None,
        id: None,
        bases: Vec::new(),
        sums: None,
        blobs: vec![],
    };
    let state_path = dir.path().join("state");
    state.write(&LocalFiles, &state_path).unwrap();
    Function { memory: path, state: state_path, booted, dir }
}

fn record(function: &Function) -> Option<Trace> {
    let (layout, sources) = flat(&function.memory, &memory()).unwrap();
    let ram = Arc::new(GuestRam::new(&memory(), false).unwrap());
    let hooks =
        RecorderHooks { on_fatal: Box::new(|e| panic!("{e}")), is_monitor: Box::new(|_| false) };
    let recorder = match Recorder::start(ram.clone(), layout, sources, hooks) {
        Err(TierError::Uffd(e)) => {
            varve_skip::skip!("uffd", e);
            return None;
        }
        started => started.unwrap(),
    };
    let mut model = function.booted.clone();
    for seed in 1..4 {
        recorder.mark(&format!("seed {seed}")).unwrap();
        assert_eq!(call_guest(&ram, seed), call_model(&mut model, seed));
    }
    let trace = recorder.seal().unwrap();
    same(&bytes(&ram), &model, "what a recording leaves");
    assert_eq!(trace.runs, 3);
    Some(trace)
}

/// A trace that has nothing to do with the function.
fn wrong(written: bool, frames: impl Iterator<Item = u64>) -> Trace {
    let access = if written { Access::WRITTEN } else { Access::READ };
    let pages = (0..).zip(frames).map(|(order, gfn)| PageAccess {
        gfn,
        order,
        access,
        invocation: 0,
        runs: 1,
        runs_written: written.into(),
    });
    Trace::new(Mechanism::UffdWp, 1, vec!["wrong".into()], pages.collect()).unwrap()
}

fn tiered(function: &Function, traces: &[Trace], compression: Compression, to: &str) -> PathBuf {
    let out = function.dir.path().join(to);
    let input = TierInput { state: &function.state, memory: &function.memory, traces, out: &out };
    let options =
        TierOptions { cold: compression, rw: compression, chunk_pages: 16, ..Default::default() };
    tier(&LocalFiles, &input, &options).unwrap();
    out
}

fn policies() -> Vec<Policy> {
    let mut policies = Vec::new();
    for strategy in Strategy::ALL {
        for wait in [PrefaultBarrier::Nothing, PrefaultBarrier::Written, PrefaultBarrier::All] {
            let threads = if wait == PrefaultBarrier::Nothing { 2 } else { 1 };
            policies.push(Policy { wait, threads, ..Policy::new(strategy) });
        }
    }
    for strategy in [Strategy::Tiered, Strategy::Template] {
        for wait in [PrefaultBarrier::Nothing, PrefaultBarrier::Written, PrefaultBarrier::All] {
            let cold = ColdPages::Paged;
            policies.push(Policy { wait, cold, fault_threads: 2, ..Policy::new(strategy) });
        }
    }
    let plain = Policy::new(Strategy::Tiered);
    for read_only in [ReadOnlyPages::Mapped, ReadOnlyPages::Copied] {
        policies.push(Policy { read_only, ..plain.clone() });
    }
    policies.push(Policy { max_mappings: 40, ..plain.clone() });
    policies.push(Policy { huge_pages: HugePages::Transparent, ..plain });
    policies
}

/// Restores, calls twice while population runs, compares all of memory, saves, and restores that.
fn check(function: &Function, snapshot: &Path, policy: &Policy) -> Option<(Counters, Census)> {
    let manifest = ManifestReader::open(snapshot).unwrap();
    let (plan, sources) = open(&manifest, policy, &()).unwrap();
    plan.verify().unwrap();
    let what = format!("{policy:?}");
    let ram = Arc::new(GuestRam::with_pages(&memory(), true, policy.huge_pages).unwrap());
    let restore = match Restore::start(ram.clone(), plan, sources, hooks()) {
        Err(TierError::Uffd(e)) => {
            varve_skip::skip!("uffd", e);
            return None;
        }
        started => started.unwrap(),
    };
    restore.populate_beside().unwrap();
    let mut model = function.booted.clone();
    assert_eq!(call_guest(&ram, 77), call_model(&mut model, 77), "{what}");
    restore.wait_populated();
    let result = (restore.counters(), restore.census().unwrap());
    assert!(result.0.mappings.unwrap() <= policy.max_mappings.max(200), "{what}");
    assert_eq!(call_guest(&ram, 78), call_model(&mut model, 78), "{what}");
    same(&bytes(&ram), &model, &what);

    let again = TempDir::new().unwrap();
    let path = save(&ram, again.path());
    drop(restore);
    let (plan, sources) = open_flat(&path, &memory(), &Policy::new(Strategy::Lazy)).unwrap();
    let ram = Arc::new(GuestRam::new(&memory(), false).unwrap());
    let _restore = Restore::start(ram.clone(), plan, sources, hooks()).unwrap();
    same(&bytes(&ram), &model, &format!("a restore of a restore, {what}"));
    assert_eq!(call_guest(&ram, 79), call_model(&mut model, 79), "{what}");
    Some(result)
}

#[test]
fn every_strategy_restores_the_function() {
    let function = function();
    let Some(trace) = record(&function) else { return };
    for (compression, to) in [(Compression::None, "plain"), (Compression::Lz4, "small")] {
        let snapshot = tiered(&function, std::slice::from_ref(&trace), compression, to);
        for policy in policies() {
            let Some((counters, census)) = check(&function, &snapshot, &policy) else { continue };
            let faults: u64 = counters.faults.values().map(|f| f.read + f.write).sum();
            println!(
                "{to:<5} {:<8} {:?}/{:?}: {faults} faults, {} maps, ro {}/{} private, cold {} there",
                counters.strategy,
                policy.wait,
                policy.cold,
                counters.mappings.unwrap(),
                census.ro.mapped_private,
                census.ro.pages,
                census.cold.present,
            );
            if policy.strategy == Strategy::Tiered && policy.wait != PrefaultBarrier::Nothing {
                assert_eq!(census.rw.private, census.rw.pages, "all written pages were ready");
            }
        }
    }
}

/// What is in memory is mapped in one piece; what is not is read from packed images.
#[test]
fn auto_looks_whether_the_memory_file_is_in_memory() {
    let function = function_in(TempDir::new_in("/var/tmp").unwrap());
    let trace = wrong(true, 0..LOW);
    let snapshot = tiered(&function, &[trace], Compression::None, "tiered");
    let chosen = || {
        let manifest = ManifestReader::open(&snapshot).unwrap();
        let (plan, _) = open(&manifest, &Policy::new(Strategy::Auto), &()).unwrap();
        plan.strategy
    };
    // Nor is what is not in memory waited for, unless it is asked for by name.
    let waited = |strategy, wait| {
        let manifest = ManifestReader::open(&snapshot).unwrap();
        let (plan, _) = open(&manifest, &Policy { wait, ..Policy::new(strategy) }, &()).unwrap();
        !plan.before.is_empty()
    };
    // What was just written is.
    assert_eq!(chosen(), Strategy::Template);
    assert!(
        waited(Strategy::Template, PrefaultBarrier::First)
            && waited(Strategy::Auto, PrefaultBarrier::First)
    );
    let file = File::open(&function.memory).unwrap();
    file.sync_all().unwrap();
    if rustix::fs::fstatfs(&file).unwrap().f_type == libc::TMPFS_MAGIC {
        return varve_skip::skip!("disk", "/var/tmp is memory");
    }
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    assert_eq!(chosen(), Strategy::Tiered);
    assert!(
        !waited(Strategy::Template, PrefaultBarrier::First)
            && waited(Strategy::Template, PrefaultBarrier::All)
    );
    // `auto` reads packed images, which come from end to end.
    assert!(
        waited(Strategy::Auto, PrefaultBarrier::First)
            && waited(Strategy::Tiered, PrefaultBarrier::First)
    );
    let manifest = ManifestReader::open(&snapshot).unwrap();
    let published = Published(&["memory", "ro"]);
    let (plan, _) = open(&manifest, &Policy::new(Strategy::Auto), &published).unwrap();
    assert_eq!(plan.strategy, Strategy::Template, "no disk is asked");
}

/// Images that stand in memory that hosts share.
struct Published(&'static [&'static str]);

impl ImageResolver for Published {
    fn info(&self, entry: &ImageEntry, local: &ImageInfo) -> Option<ImageInfo> {
        let there = self.0.contains(&entry.name.as_str());
        there.then(|| ImageInfo { tier: Tier::Cxl, ..local.clone() })
    }
}

/// A layout that cannot be read does not matter to those that need no more of it than what is hot.
#[test]
fn only_hot_regions_are_read_where_the_memory_file_lies_beneath() {
    let function = function();
    let snapshot = tiered(&function, &[wrong(true, 0..LOW / 2)], Compression::None, "beneath");
    let path = snapshot.join(MANIFEST_FILE);
    let mut bytes = std::fs::read(&path).unwrap();
    let table: Vec<Vec<u8>> =
        bytes[32..].chunks(32).take(bytes[12].into()).map(<[u8]>::to_vec).collect();
    for section in table.iter().filter(|section| section[0] == 7) {
        let at = u64::from_le_bytes(section[8..16].try_into().unwrap()) as usize;
        bytes[at] ^= 1;
    }
    std::fs::write(&path, bytes).unwrap();
    for strategy in [Strategy::Lazy, Strategy::Template, Strategy::Tiered, Strategy::Auto] {
        for wait in [PrefaultBarrier::Nothing, PrefaultBarrier::All] {
            check(&function, &snapshot, &Policy { wait, ..Policy::new(strategy) });
        }
    }
    let plain = Policy::new(Strategy::Tiered);
    for policy in [
        Policy::new(Strategy::Eager),
        Policy { cold: ColdPages::Paged, ..plain.clone() },
        Policy { huge_pages: HugePages::Transparent, ..plain },
    ] {
        let manifest = ManifestReader::open(&snapshot).unwrap();
        assert!(open(&manifest, &policy, &()).is_err(), "{policy:?} needs all of it");
    }
}

#[test]
fn wrong_traces_cost_time_only() {
    let function = function();
    let mut random = Random(99);
    let all = || memory().into_iter().flat_map(|r| r.start() >> 12..r.end() >> 12);
    let some: Vec<u64> = all().filter(|_| random.next().is_multiple_of(10)).collect();
    let traces = [
        ("empty", Trace::empty(Mechanism::UffdWp)),
        ("read", wrong(false, all())),
        ("written", wrong(true, all())),
        ("random", wrong(true, some.into_iter())),
    ];
    for (name, trace) in traces {
        let snapshot = tiered(&function, &[trace], Compression::None, name);
        for strategy in Strategy::ALL {
            check(&function, &snapshot, &Policy::new(strategy));
        }
    }
}

#[test]
fn a_damaged_image_stops_the_machine_when_the_page_is_fetched() {
    let function = function();
    let trace = Trace::empty(Mechanism::UffdWp);
    let snapshot = tiered(&function, &[trace], Compression::None, "damaged");
    let (told, fatal) = std::sync::mpsc::channel();
    let told = std::sync::Mutex::new(told);
    let on_fatal = Box::new(move |e: TierError| told.lock().unwrap().send(e).unwrap());
    let manifest = ManifestReader::open(&snapshot).unwrap();
    let policy = Policy { cold: ColdPages::Paged, ..Policy::new(Strategy::Tiered) };
    let (plan, sources) = open(&manifest, &policy, &()).unwrap();
    let region = manifest.layout("tiered").unwrap().regions()[3];
    let stored = region.stored.unwrap();
    let image = manifest.image(stored.image).unwrap();
    let mut file = File::options().write(true).open(image.path()).unwrap();
    file.seek(std::io::SeekFrom::Start(stored.page * PAGE_SIZE + 100)).unwrap();
    file.write_all(&[0]).unwrap();
    let ram = Arc::new(GuestRam::new(&memory(), false).unwrap());
    let restore = Restore::start(ram.clone(), plan, sources, Hooks { stage2: None, on_fatal });
    let restore = match restore {
        Err(TierError::Uffd(e)) => return varve_skip::skip!("uffd", e),
        started => started.unwrap(),
    };
    let (tell, read) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let word: u64 = ram.memory().read_obj(GuestAddress(region.pages.start())).unwrap();
        tell.send(word)
    });
    let error = fatal.recv_timeout(std::time::Duration::from_secs(10)).unwrap();
    assert!(error.to_string().contains("cold"), "{error}");
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.contains("chunk"), "{cause}");
    assert!(read.recv_timeout(std::time::Duration::from_millis(100)).is_err(), "nothing was read");
    drop(restore);
}
