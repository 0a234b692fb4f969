//! Restores on plain memory: threads stand for vCPUs and really touch it.

use std::sync::atomic::AtomicI64;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use proptest::prelude::{ProptestConfig, any, prop_assert, prop_assert_eq, proptest};
use varve_snapshot::{ImageId, PAGE_SIZE, PageClass, PageRange, Region, RegionMap, Stored};
use vm_memory::{GuestAddress, GuestMemoryBackend};

use crate::plan::tests::{layout, memory, policies, range, runs};
use crate::testing::*;
use crate::*;

/// Whether the test writes to a page.
fn writes(page: u64) -> bool {
    (page / PAGE_SIZE).is_multiple_of(3)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    /// Any layout, trace and policy: what is read while population runs and writers write is what
    /// was stored or written, and what was given back is zero.
    #[test]
    fn memory_holds_what_was_saved(
        runs in runs(),
        policy in policies(),
        threads in 1usize..3,
        gone in proptest::collection::vec((0u64..96, 1u64..12, any::<bool>()), 0..8),
    ) {
        let (layout, images) = layout(&runs);
        let memory = memory();
        let policy = Policy { threads, fault_threads: threads, ..policy };
        let plan = Plan::new(&PlanInput {
            memory: &memory, layout: &layout, base_image: None, images: &images, policy: &policy,
        }).unwrap();
        if plan.ops.iter().any(|o| o.action == Action::Watch) && !has_uffd() {
            return Ok(());
        }
        let (hooks, fatal) = hooks();
        let sources = files(&layout, &images, &memory);
        let (ram, restore) = restore(&memory, &layout, sources, &policy, hooks);
        prop_assert!(ram.mappings().unwrap() <= policy.max_mappings + 2, "{}", restore.plan());
        restore.populate_beside().unwrap();
        thread::scope(|scope| {
            scope.spawn(|| for page in page_numbers(&memory).filter(|&p| writes(p)) {
                write_page(&ram, page, &content(page, 1));
            });
            scope.spawn(|| for page in page_numbers(&memory).filter(|&p| !writes(p)) {
                assert_eq!(read_page(&ram, page), expected(&layout, page), "{page:#x}");
            });
        });
        let mut empty = std::collections::BTreeSet::new();
        for (first, pages, high) in gone {
            let first = if high { 160 + first % 50 } else { first };
            let end = if high { 224 } else { 96 };
            let pages = range(first, pages.min(end - first));
            ram.discard(pages).unwrap();
            empty.extend(page_numbers(&[pages]));
        }
        restore.wait_populated();
        for page in page_numbers(&memory) {
            let want = if empty.contains(&page) {
                vec![0; PAGE_SIZE as usize]
            } else if writes(page) {
                content(page, 1)
            } else {
                expected(&layout, page)
            };
            prop_assert_eq!(read_page(&ram, page), want, "page {:#x} of\n{}", page, restore.plan());
        }
        prop_assert!(fatal.try_recv().is_err());
    }
}

/// Whether a touch of a page brings in no more than that page: `rr` in its mapping's flags (proc_pid_smaps(5)).
fn is_read_alone(ram: &GuestRam, page: u64) -> bool {
    let host = ram.memory().get_host_address(GuestAddress(page)).unwrap() as u64;
    let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let mut inside = false;
    for line in smaps.lines() {
        let (first, rest) = line.split_once(' ').unwrap();
        if let Some((start, end)) = first.split_once('-') {
            let number = |text| u64::from_str_radix(text, 16).unwrap();
            inside = (number(start)..number(end)).contains(&host);
        } else if inside && first == "VmFlags:" {
            return rest.split_whitespace().any(|flag| flag == "rr");
        }
    }
    panic!("nothing is mapped at {page:#x}")
}

/// Mappings that come over the cold ones are not advised with them, and nothing is touched before it is
/// advised: only where neither can be it waits for the guest to run.
#[test]
fn cold_pages_are_read_alone_and_hot_ones_are_not() {
    let far = source::page_cache::reads_far(&tempfile::tempfile().unwrap());
    if !far {
        varve_skip::skip!("read-ahead", "the disk does not read far around a page");
    }
    // Hot in an image of its own, or, as `template` has it, in the one that cold pages are in.
    let (own, whole) = (1, 8 + 1);
    for (strategy, wait, hot, at_once) in [
        (Strategy::Tiered, PrefaultBarrier::Nothing, own, true),
        (Strategy::Tiered, PrefaultBarrier::All, own, true),
        (Strategy::Template, PrefaultBarrier::Nothing, whole, false),
        (Strategy::Template, PrefaultBarrier::All, whole, true),
        (Strategy::Lazy, PrefaultBarrier::Nothing, whole, false),
    ] {
        let (layout, images) = layout(&[(4, hot, 5), (4, 8 + 3, 0)]);
        let policy = Policy { wait, ..Policy::new(strategy) };
        let sources = files(&layout, &images, &memory());
        let (ram, restore) = restore(&memory(), &layout, sources, &policy, hooks().0);
        assert_eq!(is_read_alone(&ram, 4 * PAGE_SIZE), far && at_once, "{policy:?}");
        restore.populate_beside().unwrap();
        restore.wait_populated();
        let knows = strategy != Strategy::Lazy;
        assert_eq!(is_read_alone(&ram, 4 * PAGE_SIZE), far && knows, "{policy:?}");
        let same = is_read_alone(&ram, 0) == is_read_alone(&ram, 4 * PAGE_SIZE);
        assert_eq!(same, !far || hot == whole, "{policy:?}");
    }
}

/// One image in guest layout and one compact, with each class in turn.
fn classes(order: [PageClass; 4], pages: u64) -> (RegionMap, Vec<ImageInfo>) {
    let regions = order.iter().enumerate().map(|(i, &class)| {
        let first = i as u64 * pages;
        let stored =
            (class != PageClass::Zero).then_some(Stored { image: ImageId(0), page: first });
        let rank = if class == PageClass::Cold { varve_snapshot::NEVER } else { i as u32 };
        Region { pages: range(first, pages), class, stored, rank }
    });
    let layout = RegionMap::new(regions.collect(), &memory()).unwrap();
    let image = ImageInfo {
        name: "image".into(),
        tier: Tier::Remote,
        pages: 4 * pages,
        mappable: true,
        guest_layout: false,
        chunk_pages: 8,
    };
    (layout, vec![image])
}

const ORDER: [PageClass; 4] =
    [PageClass::ReadOnly, PageClass::ReadWrite, PageClass::Cold, PageClass::Zero];

#[test]
fn a_read_write_class_that_was_waited_for_takes_no_fault() {
    let (layout, images) = classes(ORDER, 16);
    for wait in [PrefaultBarrier::Written, PrefaultBarrier::Nothing] {
        let policy = Policy { wait, ..Policy::new(Strategy::Tiered) };
        let sources = files(&layout, &images, &memory());
        let (ram, restore) = restore(&memory(), &layout, sources, &policy, hooks().0);
        if wait == PrefaultBarrier::Nothing {
            restore.populate_beside().unwrap();
            restore.wait_populated();
        }
        let before = restore.census().unwrap();
        assert_eq!((before.rw.pages, before.rw.private, before.rw.mapped), (16, 16, 16));
        page_numbers(&[range(16, 16)]).for_each(|page| write_page(&ram, page, &content(page, 1)));
        assert_eq!(restore.census().unwrap().rw, before.rw, "no new private page: no fault");
        assert_eq!(before.ro.mapped_private, 0);
        write_page(&ram, 3 * PAGE_SIZE, &[1]);
        write_page(&ram, 5 * PAGE_SIZE, &[1]);
        assert_eq!(restore.census().unwrap().ro.mapped_private, 2, "mispredicted writes");
        let counters = restore.counters();
        assert_eq!((counters.pages.mapped, counters.pages.ahead_write), (48, 16));
    }
}

#[test]
fn faults_are_counted_by_class_and_chunks_come_whole() {
    if !has_uffd() {
        return;
    }
    let (layout, images) = classes(ORDER, 16);
    let policy = Policy::new(Strategy::Reap);
    let sources = files(&layout, &images, &memory());
    let (ram, restore) = restore(&memory(), &layout, sources, &policy, hooks().0);
    assert_eq!(restore.counters().pages.installed, 32);
    for page in [32, 33, 39, 45] {
        assert_eq!(read_page(&ram, page << 12), content(page << 12, 0));
    }
    assert_eq!(read_page(&ram, 50 << 12), [0; 4096]);
    write_page(&ram, 51 << 12, &[1]);
    // Neighbours come after the page that is waited for.
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while restore.counters().pages.fetched < 16 && std::time::Instant::now() < deadline {
        thread::yield_now();
    }
    let counters = restore.counters();
    assert_eq!(counters.faults["cold"], ByAccess { read: 2, write: 0 }, "two chunks");
    assert_eq!(counters.faults["zero"], ByAccess { read: 1, write: 1 });
    assert_eq!((counters.faults["ro"], counters.faults["rw"]), Default::default());
    assert_eq!((counters.pages.fetched, counters.pages.fetched_along), (16, 14));
    assert_eq!(counters.pages.zeroed, 2);
    // 32 pages of the working set and two chunks of 8.
    assert_eq!(counters.sources[0].bytes_read, 48 << 12);
    assert!(counters.times.slowest_fault > 0.0);
    // Taken note of when the thread that waited goes on already.
    let answered: u64 = counters.fault_latency.iter().map(|bucket| bucket.count).sum();
    let faults: u64 = counters.faults.values().map(|by| by.read + by.write).sum();
    assert!((1..=faults).contains(&answered), "{answered} of {faults}");
    serde_json::to_string(&counters).unwrap();
}

#[test]
fn wrong_traces_change_counters_and_never_content() {
    let (truth, images) = classes(ORDER, 16);
    let flip = |class: PageClass, rank: u32| {
        let regions = truth.regions().iter().map(|r| match r.stored {
            Some(_) => Region { class, rank, ..*r },
            None => *r,
        });
        RegionMap::new(regions.collect(), &memory()).unwrap()
    };
    let wrong = [
        flip(PageClass::Cold, varve_snapshot::NEVER),
        flip(PageClass::ReadOnly, 0),
        flip(PageClass::ReadWrite, 7),
    ];
    for strategy in Strategy::ALL {
        if strategy == Strategy::Reap && !has_uffd() {
            continue;
        }
        let policy = Policy { wait: PrefaultBarrier::All, ..Policy::new(strategy) };
        let ready = wrong.each_ref().map(|layout| {
            let sources = files(layout, &images, &memory());
            let (ram, restore) = restore(&memory(), layout, sources, &policy, hooks().0);
            let pages = restore.counters().pages;
            for page in page_numbers(&memory()) {
                assert_eq!(read_page(&ram, page), expected(&truth, page), "{strategy} {page:#x}");
            }
            pages.installed
                + pages.ahead_read
                + pages.ahead_write
                + pages.ahead_cached
                + pages.copied
        });
        match strategy {
            Strategy::Lazy => assert_eq!(ready, [0, 0, 0]),
            Strategy::Eager => assert_eq!(ready, [48, 48, 48]),
            Strategy::Auto => {}
            _ => assert_eq!(ready, [0, 48, 48], "{strategy}"),
        }
    }
}

#[test]
fn a_page_that_cannot_be_had_is_fatal_and_never_read() {
    if !has_uffd() {
        return;
    }
    let (layout, images) = classes(ORDER, 16);
    let policy = Policy { cold: ColdPages::Paged, ..Policy::new(Strategy::Tiered) };
    let mut sources = files(&layout, &images, &memory());
    sources[0].countdown = AtomicI64::new(1);
    let (hooks, fatal) = hooks();
    let (ram, restore) = restore(&memory(), &layout, sources, &policy, hooks);
    assert_eq!(read_page(&ram, 33 << 12), content(33 << 12, 0));
    let (tell, told) = channel();
    let reader = ram.clone();
    thread::spawn(move || tell.send(read_page(&reader, 40 << 12)));
    let error = fatal.recv_timeout(Duration::from_secs(10)).unwrap();
    assert_eq!(
        error.to_string(),
        "cannot read guest pages 0x28000..0x29000 from remote image image"
    );
    let source = std::error::Error::source(&error).unwrap();
    assert_eq!(source.to_string(), "the countdown has ended");
    assert!(told.recv_timeout(Duration::from_millis(100)).is_err(), "nothing was read");
    // Also when the restore ends: the reader's own reference keeps the memory watched.
    drop(restore);
    drop(ram);
    assert!(told.recv_timeout(Duration::from_millis(100)).is_err(), "nothing was read");
}

#[test]
fn a_source_that_does_not_answer_is_fatal() {
    if !has_uffd() {
        return;
    }
    let (layout, images) = classes(ORDER, 16);
    let deadline = Duration::from_millis(50);
    let policy = Policy { cold: ColdPages::Paged, deadline, ..Policy::new(Strategy::Tiered) };
    let mut sources = files(&layout, &images, &memory());
    let (tell, context) = channel();
    let (answer, wait) = channel();
    sources[0].gate = Some((Mutex::new(tell), Mutex::new(wait)));
    let (hooks, fatal) = hooks();
    let (ram, restore) = restore(&memory(), &layout, sources, &policy, hooks);
    let reader = thread::spawn(move || read_page(&ram, 40 << 12));
    assert_eq!(context.recv().unwrap(), 40);
    let error = fatal.recv_timeout(Duration::from_secs(10)).unwrap();
    assert!(matches!(error, TierError::Deadline { .. }), "{error}");
    assert!(fatal.recv_timeout(deadline * 2).is_err(), "once is enough");
    answer.send(()).unwrap();
    assert_eq!(reader.join().unwrap(), content(40 << 12, 0));
    drop(restore);
}

#[test]
fn what_is_given_back_while_it_is_fetched_is_zero() {
    if !has_uffd() {
        return;
    }
    let (layout, images) = classes(ORDER, 16);
    let policy = Policy { cold: ColdPages::Paged, ..Policy::new(Strategy::Tiered) };
    let mut sources = files(&layout, &images, &memory());
    let (tell, context) = channel();
    let (answer, wait) = channel();
    sources[0].gate = Some((Mutex::new(tell), Mutex::new(wait)));
    let (ram, restore) = restore(&memory(), &layout, sources, &policy, hooks().0);
    let reader = ram.clone();
    let reader = thread::spawn(move || read_page(&reader, 40 << 12));
    assert_eq!(context.recv().unwrap(), 40);
    ram.discard(range(40, 2)).unwrap();
    answer.send(()).unwrap();
    assert_eq!(reader.join().unwrap(), [0; 4096]);
    assert_eq!(read_page(&ram, 41 << 12), [0; 4096]);
    assert_eq!(read_page(&ram, 42 << 12), content(42 << 12, 0), "its neighbour came along");
    assert_eq!(restore.counters().faults["cold"].read, 3, "40 twice, 41");
}

#[test]
fn giving_back_scattered_pages_does_not_splinter_an_overlay() {
    let (layout, images) = classes(ORDER, 16);
    let policy = Policy { max_mappings: 24, ..Policy::new(Strategy::Lazy) };
    let sources = files(&layout, &images, &memory());
    let (ram, restore) = restore(&memory(), &layout, sources, &policy, hooks().0);
    let before = ram.mappings().unwrap();
    for page in (0..48).step_by(2) {
        ram.discard(range(page, 1)).unwrap();
    }
    assert!(ram.mappings().unwrap() <= before + 4, "{} from {before}", ram.mappings().unwrap());
    for page in 0..48u64 {
        let want = if page % 2 == 0 { vec![0; 4096] } else { content(page << 12, 0) };
        assert_eq!(read_page(&ram, page << 12), want);
    }
    // All of it: one mapping of zero memory, which its neighbours join.
    ram.discard(range(0, 48)).unwrap();
    assert!(ram.mappings().unwrap() <= before);
    assert!(restore.census().unwrap().ro.present == 0);
}

#[test]
fn stage2_is_filled_for_what_is_ready_and_nothing_else() {
    struct Seen(Arc<Mutex<Vec<PageRange>>>);
    impl Stage2 for Seen {
        fn prefault(&self, pages: PageRange) -> std::io::Result<()> {
            self.0.lock().unwrap().push(pages);
            Ok(())
        }
    }
    let (layout, images) = classes(ORDER, 16);
    let both = [range(16, 16), range(0, 16)];
    for (strategy, wait, want, waited) in [
        (Strategy::Tiered, PrefaultBarrier::Nothing, &both[..], 0),
        (Strategy::Tiered, PrefaultBarrier::Written, &both, 1),
        (Strategy::Tiered, PrefaultBarrier::All, &both, 2),
        (Strategy::Faasnap, PrefaultBarrier::Nothing, &[], 0),
        (Strategy::Lazy, PrefaultBarrier::Nothing, &[], 0),
    ] {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (hooks, _fatal) = hooks();
        let hooks = Hooks { stage2: Some(Box::new(Seen(seen.clone()))), ..hooks };
        let policy = Policy { wait, ..Policy::new(strategy) };
        let sources = files(&layout, &images, &memory());
        let (_ram, restore) = restore(&memory(), &layout, sources, &policy, hooks);
        // Threads that are ready wait to be let loose.
        restore.prepare_beside().unwrap();
        thread::sleep(Duration::from_millis(10));
        assert_eq!(*seen.lock().unwrap(), want[..waited], "{strategy}, {wait:?}");
        restore.populate_beside().unwrap();
        restore.wait_populated();
        assert_eq!(*seen.lock().unwrap(), want, "{strategy}");
        assert_eq!(restore.counters().pages.stage2, 16 * want.len() as u64);
    }
}

#[test]
fn a_restore_that_never_began_ends() {
    let (layout, images) = classes(ORDER, 16);
    let (hooks, fatal) = hooks();
    let policy = Policy { threads: 2, ..Policy::new(Strategy::Tiered) };
    let sources = files(&layout, &images, &memory());
    let (_ram, restore) = restore(&memory(), &layout, sources, &policy, hooks);
    restore.prepare_beside().unwrap();
    let counts = restore.watch_counters();
    drop(restore);
    assert!(counts().is_none(), "a thread still has it");
    assert!(fatal.try_recv().is_err());
}

/// Read pages are brought in by filling stage-2: where that fails, they still have to come.
#[test]
fn where_stage2_cannot_be_filled_pages_are_ready_all_the_same() {
    struct Fails;
    impl Stage2 for Fails {
        fn prefault(&self, _pages: PageRange) -> std::io::Result<()> {
            Err(std::io::ErrorKind::Unsupported.into())
        }
    }
    let (layout, images) = classes(ORDER, 16);
    for wait in [PrefaultBarrier::Nothing, PrefaultBarrier::All] {
        let (hooks, _fatal) = hooks();
        let hooks = Hooks { stage2: Some(Box::new(Fails)), ..hooks };
        let policy = Policy { wait, ..Policy::new(Strategy::Tiered) };
        let sources = files(&layout, &images, &memory());
        let (_ram, restore) = restore(&memory(), &layout, sources, &policy, hooks);
        restore.populate_beside().unwrap();
        restore.wait_populated();
        let (census, pages) = (restore.census().unwrap(), restore.counters().pages);
        assert_eq!((census.ro.present, census.rw.private), (16, 16), "{wait:?}");
        assert_eq!((pages.ahead_read, pages.ahead_write, pages.stage2), (16, 16, 0), "{wait:?}");
    }
}

#[test]
fn memory_from_the_pool_of_huge_pages_is_filled() {
    let (layout, images) = layout(&[(7, 3, 0), (3, 0, 0), (5, 5, 9), (4, 10, 3), (2, 14, 4)]);
    for strategy in [Strategy::Eager, Strategy::Tiered, Strategy::Auto] {
        let policy = Policy { huge_pages: HugePages::Pool, ..Policy::new(strategy) };
        match GuestRam::with_pages(&memory(), false, HugePages::Pool) {
            Err(e @ RamError::HugePages { .. }) => return varve_skip::skip!("hugetlb", e),
            made => drop(made.unwrap()),
        }
        let sources = files(&layout, &images, &memory());
        let (ram, restore) = restore(&memory(), &layout, sources, &policy, hooks().0);
        restore.populate_beside().unwrap();
        for page in page_numbers(&memory()) {
            assert_eq!(read_page(&ram, page), expected(&layout, page), "{strategy} {page:#x}");
        }
        assert_eq!(restore.counters().pages.mapped, 0);
    }
}

#[test]
fn what_is_restored_is_not_dirty() {
    let (layout, images) = classes(ORDER, 16);
    for strategy in [Strategy::Eager, Strategy::Tiered, Strategy::Template] {
        let policy = Policy { wait: PrefaultBarrier::All, ..Policy::new(strategy) };
        let sources = files(&layout, &images, &memory());
        let (ram, _restore) = restore(&memory(), &layout, sources, &policy, hooks().0);
        let clean: [&[u64]; 2] = [&[0; 2], &[0]];
        assert_eq!(take_dirty(&ram, &clean).unwrap(), []);
        write_page(&ram, 17 << 12, &[1]);
        assert_eq!(take_dirty(&ram, &clean).unwrap(), [range(17, 1)], "{strategy}");
    }
}
