//! A pager and machines in one process: memory of its own is handed over as if it were another's.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Instant;

use super::*;
use crate::testing::*;
use crate::{ExternalHandler, GuestRam, HugePages, ImageInfo, Tier};
use varve_snapshot::{ImageId, PAGE_SIZE, PageClass, PageRange, Region, RegionMap, Stored};

/// Two ranges; the image holds pages 0 to 31 of the first and all of the second.
pub fn memory() -> Vec<PageRange> {
    [(0, 64 * PAGE_SIZE), (1 << 32, 16 * PAGE_SIZE)]
        .map(|(at, n)| PageRange::new(at, n).unwrap())
        .into()
}

/// Chunks of 8 pages of an image that is far.
fn served(source: TestSource, cache: &Arc<ChunkCache>) -> Served {
    let region = |start, pages, page| Region {
        pages: PageRange::new(start, pages * PAGE_SIZE).unwrap(),
        class: PageClass::Cold,
        stored: Some(Stored { image: ImageId(0), page }),
        rank: varve_snapshot::NEVER,
    };
    let layout =
        RegionMap::new(vec![region(0, 32, 0), region(1 << 32, 16, 32)], &memory()).unwrap();
    let info = source.info.clone();
    let source = cache::Cached::new(Arc::new(source), cache.clone());
    Served::new("test".into(), &memory(), layout, vec![info], vec![Some(Arc::new(source))]).unwrap()
}

pub fn source() -> TestSource {
    use std::os::unix::fs::FileExt;
    let info = ImageInfo {
        name: "cold".into(),
        tier: Tier::Remote,
        pages: 48,
        mappable: false,
        guest_layout: false,
        chunk_pages: 8,
    };
    let file = tempfile::tempfile().unwrap();
    for page in 0..48u64 {
        let guest = if page < 32 { page << 12 } else { (1 << 32) + ((page - 32) << 12) };
        file.write_all_at(&content(guest, 0), page << 12).unwrap();
    }
    TestSource { info, file, countdown: i64::MAX.into(), gate: None }
}

pub struct Serving {
    pager: Pager,
    cache: Arc<ChunkCache>,
    dir: tempfile::TempDir,
}

impl Serving {
    pub fn new(source: TestSource) -> Serving {
        let cache = Arc::new(ChunkCache::new(1 << 20));
        Serving::by(cache.clone(), served(source, &cache), 2)
    }

    fn by(cache: Arc<ChunkCache>, served: Served, threads: usize) -> Serving {
        let dir = tempfile::tempdir().unwrap();
        let settings = Settings { threads, machines: 8, deadline: Duration::from_secs(10) };
        let mut pager = Pager::new(settings, cache.clone()).unwrap();
        pager.serve(UnixListener::bind(dir.path().join("s")).unwrap(), served).unwrap();
        Serving { pager, cache, dir }
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("s")
    }

    /// What the snapshot has counted, once that is so many pages fetched, or no more are to come:
    /// neighbours are counted after who asked for the first of them has gone on.
    fn counted(&self, fetched: u64) -> SnapshotCounters {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let of = self.pager.counters().snapshots.remove(0);
            if of.fetched >= fetched || Instant::now() > deadline {
                return of;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// A machine, and what it is told when it is lost.
    pub fn machine(
        &self,
        pages: HugePages,
    ) -> (Arc<GuestRam>, ExternalHandler, Receiver<TierError>) {
        machine(&self.socket(), &memory(), pages).unwrap()
    }

    fn until(&self, reached: impl Fn(&PagerCounters) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !reached(&self.pager.counters()) {
            assert!(Instant::now() < deadline, "{:?}", self.pager.counters());
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

pub type Machine = (Arc<GuestRam>, ExternalHandler, Receiver<TierError>);

pub fn machine(
    socket: &Path,
    memory: &[PageRange],
    pages: HugePages,
) -> Result<Machine, TierError> {
    let ram = Arc::new(GuestRam::with_pages(memory, false, pages)?);
    let (tell, told): (Sender<TierError>, _) = channel();
    let on_fatal = Box::new(move |error| drop(tell.send(error)));
    let handler = ExternalHandler::start(&ram, socket, on_fatal)?;
    Ok((ram, handler, told))
}

/// What a page of guest memory is to hold.
pub fn stored(page: u64) -> Vec<u8> {
    match page {
        0..0x2_0000 | 0x1_0000_0000.. => content(page, 0),
        _ => vec![0; 4096],
    }
}

#[test]
fn machines_share_what_was_fetched() {
    if !has_uffd() {
        return;
    }
    let serving = Serving::new(source());
    let machines = [(); 3].map(|()| serving.machine(HugePages::Off));
    std::thread::scope(|scope| {
        for (ram, ..) in &machines {
            scope.spawn(|| {
                for page in page_numbers(&memory()) {
                    assert!(read_page(ram, page) == stored(page), "{page:#x}");
                }
                write_page(ram, 40 << 12, &content(0, 5));
                assert_eq!(read_page(ram, 40 << 12), content(0, 5));
            });
        }
    });
    let of = serving.counted(3 * 48);
    let counters = serving.pager.counters();
    assert_eq!(counters.cache.fetched, 6, "48 pages by 8, once for all: {counters:?}");
    assert_eq!(counters.cache.bytes, 48 << 12);
    assert_eq!((of.fetched, of.zeroed), (3 * 48, 3 * 32), "{counters:?}");
    assert_eq!(counters.machines.now, 3);
    assert!(machines.iter().all(|m| m.2.try_recv().is_err()));
}

/// Only what the strategy asks for is handed over; the rest is laid here, from an image that the pager
/// is never asked for.
#[test]
fn a_restore_lays_what_is_hot_and_hands_over_the_rest() {
    if !has_uffd() {
        return;
    }
    use crate::{Hooks, Plan, PlanInput, Policy, Restore, Strategy};
    let memory = memory();
    let region = |first: u64, class, rank| Region {
        pages: PageRange::new(first << 12, 8 << 12).unwrap(),
        class,
        stored: Some(Stored { image: ImageId(0), page: first }),
        rank,
    };
    let cold = |first| region(first, PageClass::Cold, varve_snapshot::NEVER);
    let regions = vec![
        region(0, PageClass::ReadOnly, 0),
        cold(8),
        region(16, PageClass::ReadWrite, 1),
        cold(24),
        Region {
            pages: memory[1],
            stored: Some(Stored { image: ImageId(0), page: 32 }),
            ..cold(0)
        },
    ];
    let layout = RegionMap::new(regions, &memory).unwrap();
    let local = || TestSource {
        info: ImageInfo { tier: Tier::Local, mappable: true, ..source().info },
        ..source()
    };
    for (strategy, fetched) in [
        (Strategy::Tiered, 32),
        (Strategy::Template, 32),
        (Strategy::Reap, 32),
        (Strategy::Lazy, 48),
        (Strategy::Eager, 0),
    ] {
        let serving = Serving::new(source());
        let policy = Policy { pager: Some(serving.socket()), ..Policy::new(strategy) };
        let images = [local().info];
        let input = PlanInput {
            memory: &memory,
            layout: &layout,
            base_image: None,
            images: &images,
            policy: &policy,
        };
        let plan = Plan::new(&input).unwrap();
        plan.verify().unwrap();
        let used = plan.used_images().next().is_some();
        assert_eq!(used, strategy != Strategy::Lazy);
        let ram = Arc::new(GuestRam::new(&memory, false).unwrap());
        let (hooks, told) = hooks();
        let hooks = Hooks { stage2: None, ..hooks };
        let sources = vec![used.then(|| Arc::new(local()) as Arc<dyn crate::PageSource>)];
        let restore = Restore::start(ram.clone(), plan, sources, hooks).unwrap();
        restore.populate_beside().unwrap();
        ram.discard(PageRange::new(25 << 12, 2 << 12).unwrap()).unwrap();
        ram.discard(PageRange::new(3 << 12, 1 << 12).unwrap()).unwrap();
        for page in page_numbers(&memory) {
            let want = match page >> 12 {
                3 | 25 | 26 => vec![0; 4096],
                _ => stored(page),
            };
            assert!(read_page(&ram, page) == want, "{strategy}: {page:#x}");
        }
        let given_back = if strategy == Strategy::Lazy { 3 } else { 2 };
        let expected = u64::max(fetched, given_back) - given_back;
        let of = serving.counted(expected);
        assert_eq!(of.fetched, expected, "{strategy}: {of:?}");
        assert!(told.try_recv().is_err());
    }
}

#[test]
fn pages_that_are_given_back_are_zero_whatever_is_under_way() {
    if !has_uffd() {
        return;
    }
    for threads in [1, 3] {
        let mut source = source();
        let (tell, context) = channel();
        let (answer, wait) = channel();
        source.gate = Some((Mutex::new(tell), Mutex::new(wait)));
        let cache = Arc::new(ChunkCache::new(1 << 20));
        let serving = Serving::by(cache.clone(), served(source, &cache), threads);
        let (ram, _handler, _told) = serving.machine(HugePages::Off);
        let reader = ram.clone();
        let reader = std::thread::spawn(move || read_page(&reader, 8 << 12));
        assert_eq!(context.recv().unwrap(), 8);
        // Fetched, and not in place: with one thread nobody reads of it before it is.
        let pages = PageRange::new(8 << 12, 2 << 12).unwrap();
        let discarding = ram.clone();
        let discarding = std::thread::spawn(move || discarding.discard(pages).unwrap());
        if threads > 1 {
            discarding.join().unwrap();
            answer.send(()).unwrap();
        } else {
            std::thread::sleep(Duration::from_millis(50));
            answer.send(()).unwrap();
            discarding.join().unwrap();
        }
        assert_eq!(reader.join().unwrap(), [0; 4096], "{threads}");
        assert_eq!(read_page(&ram, 9 << 12), [0; 4096]);
        assert_eq!(read_page(&ram, 10 << 12), content(10 << 12, 0), "its neighbour came along");
        // Written and given back again.
        write_page(&ram, 9 << 12, &content(1, 1));
        ram.discard(pages).unwrap();
        assert_eq!(read_page(&ram, 9 << 12), [0; 4096]);
    }
}

#[test]
fn a_page_that_is_slow_delays_no_other() {
    if !has_uffd() {
        return;
    }
    let mut source = source();
    let (tell, context) = channel();
    let (answer, wait) = channel();
    source.gate = Some((Mutex::new(tell), Mutex::new(wait)));
    let serving = Serving::new(source);
    let (ram, ..) = &serving.machine(HugePages::Off);
    answer.send(()).unwrap();
    assert_eq!(read_page(ram, 0), content(0, 0));
    assert_eq!(context.recv().unwrap(), 0);
    std::thread::scope(|scope| {
        // Two threads, of which one may wait: the second page waits in a queue.
        let slow: Vec<_> =
            [8u64, 16].into_iter().map(|p| scope.spawn(move || read_page(ram, p << 12))).collect();
        let first = context.recv().unwrap();
        assert!([8, 16].contains(&first));
        // Zero pages, and what is in the cache, come meanwhile.
        assert_eq!(read_page(ram, 50 << 12), [0; 4096]);
        let (other, _handler, _told) = serving.machine(HugePages::Off);
        assert_eq!(read_page(&other, 3 << 12), content(3 << 12, 0));
        answer.send(()).unwrap();
        assert_eq!(context.recv().unwrap(), 24 - first);
        answer.send(()).unwrap();
        for (slow, page) in slow.into_iter().zip([8u64, 16]) {
            assert_eq!(slow.join().unwrap(), content(page << 12, 0));
        }
    });
    assert_eq!(serving.cache.counters().fetched, 3);
}

#[test]
fn a_machine_whose_page_cannot_be_had_is_told_why_and_others_go_on() {
    if !has_uffd() {
        return;
    }
    let source = source();
    source.countdown.store(1, Relaxed);
    let serving = Serving::new(source);
    let (ram, _handler, told) = serving.machine(HugePages::Off);
    let (other, _other_handler, other_told) = serving.machine(HugePages::Off);
    assert_eq!(read_page(&ram, 0), content(0, 0));
    let reader = ram.clone();
    let _waits_for_ever = std::thread::spawn(move || read_page(&reader, 31 << 12));
    let error = told.recv_timeout(Duration::from_secs(10)).unwrap().to_string();
    assert!(error.contains("failed: cannot read guest pages 0x1f000..0x20000"), "{error}");
    assert!(error.contains("remote image cold: the countdown has ended"), "{error}");
    assert_eq!(read_page(&other, 1 << 12), content(1 << 12, 0));
    assert!(other_told.try_recv().is_err());
}

#[test]
fn large_pages_come_whole() {
    if !has_uffd() {
        return;
    }
    let memory = [PageRange::new(0, 4 << 20).unwrap()];
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(4 << 20).unwrap();
    use std::os::unix::fs::FileExt;
    file.as_file().write_all_at(&content(7 << 12, 0), 7 << 12).unwrap();
    let served = Served::flat("file", file.path(), &memory).unwrap();
    let serving = Serving::by(Arc::new(ChunkCache::new(0)), served, 2);
    let (ram, ..) = match machine(&serving.socket(), &memory, HugePages::Pool) {
        Err(TierError::Ram(e @ RamError::HugePages { .. })) => {
            return varve_skip::skip!("hugetlb", e);
        }
        made => made.unwrap(),
    };
    assert_eq!(read_page(&ram, 7 << 12), content(7 << 12, 0));
    assert_eq!(read_page(&ram, 9 << 12), [0; 4096]);
    assert_eq!(serving.pager.counters().snapshots[0].fetched, 512);
    ram.discard(PageRange::new(0, 2 << 20).unwrap()).unwrap();
    assert_eq!(read_page(&ram, 7 << 12), [0; 4096]);
    assert_eq!(serving.pager.counters().snapshots[0].faults["zero"].read, 2);
}

#[test]
fn strangers_and_liars_are_refused() {
    use std::io::{Read, Write};
    let serving = Serving::new(source());
    for text in ["hello", "[]", "[{}]", ""] {
        let mut stream = UnixStream::connect(serving.socket()).unwrap();
        stream.write_all(text.as_bytes()).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut said = String::new();
        stream.read_to_string(&mut said).unwrap();
        assert!(said.contains("refused"), "{text}: {said}");
    }
    serving.until(|c| c.machines.refused == 4 && c.machines.now == 0);
    let memory = [PageRange::new(0, 128 << 12).unwrap()];
    // More memory than the snapshot has: who hands it over learns that nobody will answer.
    if has_uffd() {
        let (_ram, _handler, told) = machine(&serving.socket(), &memory, HugePages::Off).unwrap();
        let error = told.recv_timeout(Duration::from_secs(10)).unwrap().to_string();
        assert!(error.contains("refused: mapping 0: offset 0x0, size 0x80000"), "{error}");
        serving.until(|c| c.machines.refused == 5);
    }
}
