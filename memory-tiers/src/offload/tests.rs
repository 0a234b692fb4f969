//! Offloading on plain memory: what is in it never changes, whatever goes out, comes back or fails.

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, Instant};

use proptest::prelude::{
    Just, ProptestConfig, Strategy, prop_assert, prop_assert_eq, prop_oneof, proptest,
};
use varve_snapshot::PAGE_SIZE;

use crate::plan::tests::range;
use crate::testing::*;
use crate::{
    BackingStore, GuestRam, HugePages, Offload, OffloadError, OffloadReport, Phase, Policy,
    Recorder, RecorderHooks, SourceError, Sources, TierError, take_dirty,
};

/// Keeps batches in memory, until it is told to fail.
#[derive(Default)]
struct TestDepot {
    batches: Mutex<HashMap<u64, Vec<u8>>>,
    next: AtomicU64,
    /// Puts that succeed, less 1 << 40.
    puts: AtomicI64,
    lost: std::sync::atomic::AtomicBool,
    silent: std::sync::atomic::AtomicBool,
    unconfirmed: std::sync::atomic::AtomicBool,
}

impl TestDepot {
    fn new() -> Arc<TestDepot> {
        TestDepot::taking(i64::MAX)
    }

    fn taking(puts: i64) -> Arc<TestDepot> {
        Arc::new(TestDepot { puts: AtomicI64::new(puts), ..TestDepot::default() })
    }

    fn len(&self) -> usize {
        self.batches.lock().unwrap().len()
    }
}

impl BackingStore for TestDepot {
    fn put(&self, pages: &[u8]) -> Result<u64, SourceError> {
        if self.puts.fetch_sub(1, Relaxed) <= 0 {
            return Err("node n: it is full".into());
        }
        let number = self.next.fetch_add(1, Relaxed);
        self.batches.lock().unwrap().insert(number, pages.to_vec());
        Ok(number)
    }

    fn confirm(&self) -> Result<(), SourceError> {
        if self.unconfirmed.load(Relaxed) { Err("node n: it is gone".into()) } else { Ok(()) }
    }

    fn read(&self, batch: u64, first: u64, buffer: &mut [u8]) -> Result<(), SourceError> {
        while self.silent.load(Relaxed) {
            std::thread::sleep(Duration::from_millis(1));
        }
        if self.lost.load(Relaxed) {
            return Err("node n: it is gone".into());
        }
        let batches = self.batches.lock().unwrap();
        let batch = batches.get(&batch).ok_or("it was freed")?;
        buffer.copy_from_slice(&batch[(first * PAGE_SIZE) as usize..][..buffer.len()]);
        Ok(())
    }

    fn free(&self, batches: &[u64]) {
        let mut kept = self.batches.lock().unwrap();
        batches.iter().for_each(|number| assert!(kept.remove(number).is_some(), "freed twice"));
    }
}

const NOW: Duration = Duration::ZERO;
const NEVER: Duration = Duration::from_secs(3600);

/// Memory of a machine that booted, each page of it holding its content.
fn booted(pages: u64) -> (Arc<GuestRam>, Offload, Receiver<TierError>) {
    let ram = Arc::new(GuestRam::new(&[range(0, pages)], true).unwrap());
    for page in 0..pages {
        write_page(&ram, page << 12, &content(page << 12, 0));
    }
    let (hooks, told) = hooks();
    let offload = Offload::new(ram.clone(), None, hooks).unwrap();
    (ram, offload, told)
}

fn until(offload: &Offload, phase: Phase) -> OffloadReport {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let report = offload.report();
        if report.phase == phase {
            return report;
        }
        assert!(Instant::now() < deadline, "{report:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Takes out and sends all that can be.
fn send(offload: &Offload, store: &Arc<TestDepot>) -> OffloadReport {
    begin(offload, store, NOW, u64::MAX);
    until(offload, Phase::Idle)
}

fn begin(offload: &Offload, store: &Arc<TestDepot>, idle: Duration, limit: u64) {
    offload.begin(store.clone(), idle, limit).unwrap();
    while offload.is_taking() {
        offload.take_some().unwrap();
    }
}

/// Waits until the store has so many batches.
fn until_parcels(store: &TestDepot, count: usize) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while store.len() != count {
        assert!(Instant::now() < deadline, "{} batches", store.len());
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn resident(ram: &GuestRam) -> usize {
    let all = ram.regions()[0].pages;
    let pages = ram.call("look at", all, |r, o, len| r.in_core(o, len)).unwrap();
    pages.into_iter().filter(|&present| present).count()
}

#[test]
fn pages_go_out_and_come_back_when_they_are_touched() {
    if !has_uffd() {
        return;
    }
    let (ram, offload, _told) = booted(1000);
    write_page(&ram, 7 << 12, &[0; 4096]);
    take_dirty(&ram, &[&[0; 16]]).unwrap();
    let store = TestDepot::new();
    let report = send(&offload, &store);
    assert_eq!((report.out, report.sent, report.zero, report.error), (999, 999, 1, None));
    assert_eq!((resident(&ram), store.len()), (0, 16));
    // Neighbours in the batch come along; what was out is not dirty.
    assert_eq!(read_page(&ram, 64 << 12), content(64 << 12, 0));
    let report = offload.report();
    assert_eq!((report.out, report.faults, report.fetched), (983, 1, 16));
    write_page(&ram, 500 << 12, &content(1, 2));
    assert_eq!(take_dirty(&ram, &[&[0; 16]]).unwrap(), [range(500, 1)]);
    // Out once more, what is new too.
    let report = send(&offload, &store);
    assert_eq!((report.out, report.error), (999, None));
    for page in 0..1000 {
        let expected = match page {
            7 => vec![0; 4096],
            500 => content(1, 2),
            page => content(page << 12, 0),
        };
        assert_eq!(read_page(&ram, page << 12), expected, "{page}");
    }
    assert_eq!(offload.report().out, 0);
    until_parcels(&store, 0);
    // A page that was never there.
    let (ram, offload, _told) = booted(1);
    send(&offload, &store);
    assert_eq!(read_page(&ram, 0), content(0, 0));
}

#[test]
fn what_is_touched_meanwhile_stays_and_recalling_ends_it() {
    if !has_uffd() {
        return;
    }
    let (ram, offload, _told) = booted(100);
    let store = TestDepot::new();
    begin(&offload, &store, NEVER, 60);
    assert_eq!((offload.report().set_aside, resident(&ram)), (60, 40));
    let other = offload.begin(store.clone(), NOW, 1).unwrap_err();
    assert!(matches!(other, OffloadError::Busy(Phase::Waiting)), "{other}");
    write_page(&ram, 3 << 12, &content(9, 9));
    assert_eq!(read_page(&ram, 4 << 12), content(4 << 12, 0));
    offload.recall();
    let report = until(&offload, Phase::Idle);
    assert_eq!((report.touched, report.recalled, report.sent), (2, 58, 0));
    assert_eq!((resident(&ram), store.len()), (100, 0));

    let sent = send(&offload, &store).out;
    assert_eq!((sent, store.len()), (100, 2));
    let resolver = offload.begin(TestDepot::new(), NOW, 1).unwrap_err();
    assert!(matches!(resolver, OffloadError::OtherStore), "{resolver}");
    offload.recall();
    let report = until(&offload, Phase::Idle);
    assert_eq!((report.out, report.recalled, report.faults), (0, 158, 0));
    assert_eq!((resident(&ram), store.len()), (100, 0));
    assert_eq!(read_page(&ram, 3 << 12), content(9, 9));
    assert!(
        crate::fault::watched::Watched::of(&ram)
            .unwrap()
            .lazily_registered
            .read()
            .unwrap()
            .ranges()
            .is_empty()
    );
    assert_eq!(send(&offload, &TestDepot::new()).out, 100, "and out again, resolver");
}

#[test]
fn what_is_given_back_is_zero_and_freed() {
    if !has_uffd() {
        return;
    }
    let (ram, offload, _told) = booted(256);
    let store = TestDepot::new();
    send(&offload, &store);
    ram.discard(range(0, 64)).unwrap();
    until_parcels(&store, 3);
    ram.discard(range(64, 1)).unwrap();
    assert_eq!(offload.report().discarded, 65);
    assert_eq!(read_page(&ram, 64 << 12), [0; 4096]);
    assert_eq!(read_page(&ram, 65 << 12), content(65 << 12, 0));
    // Set aside, too.
    begin(&offload, &store, NEVER, u64::MAX);
    ram.discard(range(65, 1)).unwrap();
    assert_eq!(read_page(&ram, 65 << 12), [0; 4096]);
    offload.recall();
    until(&offload, Phase::Idle);
    assert_eq!(read_page(&ram, 66 << 12), content(66 << 12, 0));
}

#[test]
fn a_depot_that_fails_leaves_all_pages() {
    if !has_uffd() {
        return;
    }
    for puts in [0, 1, 7, 16] {
        let (ram, offload, _told) = booted(1000);
        let store = TestDepot::taking(puts);
        store.unconfirmed.store(puts == 16, Relaxed);
        let report = send(&offload, &store);
        assert_eq!((report.out, report.refused), (0, 1000));
        assert!(report.error.unwrap().contains("node n: it is"));
        assert_eq!((resident(&ram), store.len()), (1000, 0));
        store.lost.store(true, Relaxed);
        for page in 0..1000 {
            assert_eq!(read_page(&ram, page << 12), content(page << 12, 0));
        }
        let report = send(&offload, &TestDepot::new());
        assert_eq!((report.out, report.error), (1000, None), "another one takes them");
    }
}

#[test]
fn a_page_that_is_lost_is_told_and_never_zero() {
    if !has_uffd() {
        return;
    }
    let (ram, offload, told) = booted(10);
    let store = TestDepot::new();
    send(&offload, &store);
    store.lost.store(true, Relaxed);
    offload.recall();
    let report = until(&offload, Phase::Idle);
    assert!(report.error.unwrap().contains("it is gone"), "a recall is not worth an end");
    assert_eq!(report.out, 10);
    let reader = ram.clone();
    let reader = std::thread::spawn(move || read_page(&reader, 2 << 12));
    let error = told.recv_timeout(Duration::from_secs(60)).unwrap();
    assert!(matches!(error, TierError::Evicted { pages, .. } if pages == range(2, 1)), "{error}");
    assert!(!reader.is_finished(), "it waits for ever");
    // Until the pages are there again; the test has to end.
    store.lost.store(false, Relaxed);
    assert_eq!(read_page(&ram, 3 << 12), content(3 << 12, 0));
    assert_eq!(reader.join().unwrap(), content(2 << 12, 0));
}

#[test]
fn a_depot_that_is_silent_is_told() {
    if !has_uffd() {
        return;
    }
    let memory = crate::plan::tests::memory();
    let (layout, images) = crate::plan::tests::layout(&[(300, 10, 5)]);
    let deadline = Duration::from_millis(50);
    let policy = Policy { deadline, ..Policy::new(crate::Strategy::Reap) };
    let sources = files(&layout, &images, &memory);
    let (hooks_of_restore, told) = hooks();
    let (ram, restore) = restore(&memory, &layout, sources, &policy, hooks_of_restore);
    page_numbers(&memory).for_each(|page| drop(read_page(&ram, page)));
    let offload = Offload::new(ram.clone(), Some(&restore), hooks().0).unwrap();
    let store = TestDepot::new();
    assert_eq!(send(&offload, &store).out, 160);
    store.silent.store(true, Relaxed);
    let reader = ram.clone();
    let reader = std::thread::spawn(move || read_page(&reader, 9 << 12));
    let error = told.recv_timeout(Duration::from_secs(60)).unwrap();
    assert!(matches!(error, TierError::Evicted { pages, .. } if pages == range(9, 1)), "{error}");
    store.silent.store(false, Relaxed);
    assert_eq!(reader.join().unwrap(), expected(&layout, 9 << 12));
}

/// What a machine and its owner do, one after another.
#[derive(Clone, Copy, Debug)]
enum Deed {
    Write(u64, u64),
    Read(u64),
    GiveBack(u64, u64),
    /// Offloads at most so many pages, to a store that takes so many batches.
    Offload(u64, i64),
    Recall,
}

fn deeds() -> impl Strategy<Value = Vec<Deed>> {
    let page = || prop_oneof![0u64..96, 160u64..224];
    let deed = prop_oneof![
        4 => (page(), 1u64..9).prop_map(|(page, salt)| Deed::Write(page, salt)),
        3 => page().prop_map(Deed::Read),
        2 => (page(), 1u64..12).prop_map(|(page, pages)| Deed::GiveBack(page, pages)),
        3 => (prop_oneof![Just(1000), 1u64..80], prop_oneof![3 => Just(99), 1 => 0i64..3])
            .prop_map(|(limit, puts)| Deed::Offload(limit, puts)),
        1 => Just(Deed::Recall),
    ];
    proptest::collection::vec(deed, 1..24)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    /// Any layout and policy that memory came back by, and any order of deeds: memory holds what was
    /// saved or written, and what was given back is zero.
    #[test]
    fn memory_holds_what_it_held(
        runs in crate::plan::tests::runs(),
        policy in crate::plan::tests::policies(),
        deeds in deeds(),
    ) {
        if policy.huge_pages == HugePages::Pool || !has_uffd() {
            return Ok(());
        }
        let (layout, images) = crate::plan::tests::layout(&runs);
        let memory = crate::plan::tests::memory();
        let (hooks_of_restore, lost) = hooks();
        let sources = files(&layout, &images, &memory);
        let (ram, restore) = restore(&memory, &layout, sources, &policy, hooks_of_restore);
        restore.populate_beside().unwrap();
        let (hooks, lost_later) = hooks();
        let offload = Offload::new(ram.clone(), Some(&restore), hooks).unwrap();
        let store = TestDepot::new();
        let mut model: HashMap<u64, Vec<u8>> =
            page_numbers(&memory).map(|page| (page, expected(&layout, page))).collect();
        for deed in deeds {
            match deed {
                Deed::Write(page, salt) => {
                    write_page(&ram, page << 12, &content(page << 12, salt));
                    model.insert(page << 12, content(page << 12, salt));
                }
                Deed::Read(page) => {
                    prop_assert_eq!(&read_page(&ram, page << 12), &model[&(page << 12)]);
                }
                Deed::GiveBack(page, pages) => {
                    let end = if page < 96 { 96 } else { 224 };
                    let gone = range(page, pages.min(end - page));
                    ram.discard(gone).unwrap();
                    model.extend(page_numbers(&[gone]).map(|page| (page, vec![0; 4096])));
                }
                Deed::Offload(limit, puts) => {
                    store.puts.store(puts, Relaxed);
                    begin(&offload, &store, NOW, limit);
                    let report = until(&offload, Phase::Idle);
                    prop_assert!(report.error.is_none() || puts < 3, "{:?}", report);
                }
                Deed::Recall => {
                    offload.recall();
                    prop_assert_eq!(until(&offload, Phase::Idle).out, 0);
                }
            }
        }
        for (page, held) in &model {
            prop_assert_eq!(&read_page(&ram, *page), held, "page {:#x}", page);
        }
        prop_assert_eq!(offload.report().out, 0);
        prop_assert!(lost.try_recv().is_err() && lost_later.try_recv().is_err());
        until_parcels(&store, 0);
    }
}

#[test]
fn no_write_is_lost_whatever_goes_on_beside() {
    if !has_uffd() {
        return;
    }
    let (ram, offload, told) = booted(600);
    // Held for writing where a machine would stand still.
    let running = RwLock::new(());
    let done = std::sync::atomic::AtomicBool::new(false);
    let store = TestDepot::new();
    std::thread::scope(|scope| {
        for worker in 0..3u64 {
            let (ram, running, done) = (&ram, &running, &done);
            // Each has pages of its own, which lie between those of others.
            scope.spawn(move || {
                let mine: Vec<u64> = (0..600).filter(|page| page % 3 == worker).collect();
                let mut held: Vec<u64> = mine.iter().map(|_| 0).collect();
                let mut turn = worker;
                while !done.load(Relaxed) {
                    for (&page, salt) in mine.iter().zip(&mut held) {
                        turn = turn.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                        if turn >> 60 > 4 {
                            continue;
                        }
                        let _running = running.read().unwrap();
                        let next = turn >> 32 & 0xff;
                        if next < 8 {
                            ram.discard(range(page, 1)).unwrap();
                            *salt = u64::MAX;
                            continue;
                        }
                        let now = read_page(ram, page << 12);
                        let right = match *salt {
                            u64::MAX => now == [0; 4096],
                            salt => now == content(page << 12, salt),
                        };
                        assert!(right, "page {page} of worker {worker}");
                        write_page(ram, page << 12, &content(page << 12, next));
                        *salt = next;
                    }
                }
            });
        }
        let rounds = 40;
        for round in 0..rounds {
            store.puts.store(if round % 5 == 4 { round } else { i64::MAX }, Relaxed);
            let idle = Duration::from_millis((round % 3) as u64);
            offload.begin(store.clone(), idle, u64::MAX).unwrap();
            while offload.is_taking() {
                let _still = running.write().unwrap();
                offload.take_some().unwrap();
            }
            if round % 4 == 3 {
                offload.recall();
            }
            until(&offload, Phase::Idle);
            if round % 7 == 6 {
                offload.recall();
                until(&offload, Phase::Idle);
            }
        }
        done.store(true, Relaxed);
    });
    let report = offload.report();
    assert!(report.sent > 0 && report.touched > 0 && report.discarded > 0, "{report:?}");
    assert!(told.try_recv().is_err());
    offload.recall();
    until(&offload, Phase::Idle);
    until_parcels(&store, 0);
}

#[test]
fn private_copies_over_a_file_go_out_and_its_own_pages_to_the_cache() {
    if !has_uffd() {
        return;
    }
    let memory = crate::plan::tests::memory();
    let (layout, images) = crate::plan::tests::layout(&[(300, 10, 5)]);
    let policy = Policy::new(crate::Strategy::Lazy);
    let sources = files(&layout, &images, &memory);
    let (ram, restore) = restore(&memory, &layout, sources, &policy, hooks().0);
    page_numbers(&memory).for_each(|page| drop(read_page(&ram, page)));
    for page in 20..50 {
        write_page(&ram, page << 12, &content(page << 12, 5));
    }
    let offload = Offload::new(ram.clone(), Some(&restore), hooks().0).unwrap();
    let store = TestDepot::new();
    let report = send(&offload, &store);
    assert_eq!((report.out, report.clean, report.left), (30, 130, 0));
    let mapped = restore.census().unwrap();
    assert_eq!((mapped.ro.present, mapped.rw.present, mapped.cold.present), (0, 0, 0));
    for page in page_numbers(&memory) {
        let written = (20 << 12..50 << 12).contains(&page);
        let held = if written { content(page, 5) } else { expected(&layout, page) };
        assert_eq!(read_page(&ram, page), held);
    }
    // Without room for mappings they stay.
    for page in (60..90).step_by(2) {
        write_page(&ram, page << 12, &content(page << 12, 6));
    }
    ram.set_room(5);
    let taken = report.taken;
    let report = send(&offload, &store);
    // A fault that was answered along with another one's may be read only now, and brings pages back:
    // they do not count as out.
    assert_eq!((report.taken - taken, report.left), (32, 13), "{report:?}");
    for page in (60..90).step_by(2) {
        assert_eq!(read_page(&ram, page << 12), content(page << 12, 6));
    }
}

#[test]
fn memory_that_others_answer_for_is_left_alone() {
    if !has_uffd() {
        return;
    }
    let ram = Arc::new(GuestRam::new(&[range(0, 8)], false).unwrap());
    let (layout, _) = crate::plan::tests::layout(&[(1, 0, 0)]);
    let hooks_of_recorder =
        RecorderHooks { on_fatal: Box::new(|_| {}), is_monitor: Box::new(|_| false) };
    let _recorder =
        Recorder::start(ram.clone(), layout, Sources::new(), hooks_of_recorder).unwrap();
    assert!(Offload::new(ram, None, hooks().0).is_err());
}
