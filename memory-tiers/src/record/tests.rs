//! Recordings on plain memory: what threads did is what the trace says, and nothing is lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;

use varve_snapshot::{Access, Mechanism, RegionMap, Trace};
use vm_memory::{Bytes, GuestAddress};

use crate::plan::tests::{layout, memory, range};
use crate::testing::*;
use crate::*;

const BOTH: fn() -> Access = || Access::READ.with(Access::WRITTEN);

/// A recording over a layout with pages of every class and three kinds of images.
fn record(
    is_monitor: impl Fn(u32) -> bool + Send + Sync + 'static,
) -> (Arc<GuestRam>, Recorder, RegionMap) {
    let (layout, images) = layout(&[(7, 3, 0), (3, 0, 0), (5, 5, 9), (4, 10, 3), (2, 14, 4)]);
    let sources = files(&layout, &images, &memory());
    let sources = sources.into_iter().map(|s| Some(Arc::new(s) as Arc<dyn PageSource>)).collect();
    let ram = Arc::new(GuestRam::new(&memory(), false).unwrap());
    let hooks =
        RecorderHooks { on_fatal: Box::new(|e| panic!("{e}")), is_monitor: Box::new(is_monitor) };
    let recorder = Recorder::start(ram.clone(), layout.clone(), sources, hooks).unwrap();
    (ram, recorder, layout)
}

fn order(trace: &Trace) -> Vec<u64> {
    let mut pages = trace.pages().to_vec();
    pages.sort_by_key(|p| p.order);
    pages.iter().map(|p| p.gfn).collect()
}

#[test]
fn order_reads_and_writes_are_seen() {
    if !has_uffd() {
        return;
    }
    let monitor = Arc::new(AtomicU32::new(0));
    let context = monitor.clone();
    let (ram, recorder, layout) = record(move |thread| thread == context.load(Ordering::Relaxed));
    for page in [5, 200, 3, 9] {
        assert_eq!(read_page(&ram, page << 12), expected(&layout, page << 12));
    }
    write_page(&ram, 3 << 12, &[1]);
    write_page(&ram, 7 << 12, &[2]);
    monitor.store(rustix::thread::gettid().as_raw_nonzero().get() as u32, Ordering::Relaxed);
    assert_eq!(read_page(&ram, 11 << 12), expected(&layout, 11 << 12));
    let trace = recorder.seal().unwrap();
    for page in page_numbers(&memory()) {
        let mut want = expected(&layout, page);
        match page >> 12 {
            3 => want[0] = 1,
            7 => want[0] = 2,
            _ => {}
        }
        assert_eq!(read_page(&ram, page), want, "{page:#x}");
        write_page(&ram, page, &[9]);
    }
    assert_eq!(recorder.seal().unwrap(), trace, "what is read after the seal is not recorded");
    assert_eq!((trace.mechanism, trace.runs), (Mechanism::UffdWp, 1));
    assert_eq!(trace.labels, ["resume"]);
    assert_eq!(order(&trace), [5, 200, 3, 9, 7, 11]);
    let access = |gfn| trace.find(gfn).map(|p| p.access);
    assert_eq!(access(5), Some(Access::READ));
    assert_eq!(access(9), Some(Access::READ), "a page of zeros");
    assert_eq!(access(3), Some(BOTH()));
    assert_eq!(access(7), Some(Access::WRITTEN));
    assert_eq!(access(11), Some(Access::READ.with(Access::MONITOR)));
    assert_eq!(access(12), None);
}

#[test]
fn each_invocation_is_seen_anew() {
    if !has_uffd() {
        return;
    }
    let (ram, recorder, layout) = record(|_| false);
    read_page(&ram, 1 << 12);
    recorder.mark("a").unwrap();
    read_page(&ram, 1 << 12);
    write_page(&ram, 2 << 12, &[1]);
    write_page(&ram, 4 << 12, &[1]);
    recorder.mark("b").unwrap();
    assert_eq!(read_page(&ram, 2 << 12)[..2], [1, content(2 << 12, 0)[1]]);
    recorder.mark("c").unwrap();
    write_page(&ram, 2 << 12, &[3]);
    read_page(&ram, 5 << 12);
    let trace = recorder.seal().unwrap();
    assert_eq!((trace.runs, trace.labels.len()), (3, 4));
    let page = |gfn| trace.find(gfn).map(|p| (p.runs, p.runs_written, p.invocation)).unwrap();
    assert_eq!(page(1), (1, 0, 0), "resume and the first invocation are one run");
    assert_eq!(page(2), (3, 2, 1));
    assert_eq!(page(4), (1, 1, 1));
    assert_eq!(page(5), (1, 0, 3));
    for (gfn, byte) in [(2u64, 3), (4, 1), (5, expected(&layout, 5 << 12)[0])] {
        assert_eq!(read_page(&ram, gfn << 12)[0], byte, "page {gfn}");
    }
}

#[test]
fn no_write_is_lost_while_marks_are_made() {
    if !has_uffd() {
        return;
    }
    let (ram, recorder, layout) = record(|_| false);
    let done = AtomicBool::new(false);
    let counts = thread::scope(|scope| {
        // Each adds to words of its own on pages that all share.
        let workers: Vec<_> = (0..3u64)
            .map(|worker| {
                let (ram, done) = (&ram, &done);
                scope.spawn(move || {
                    let mut rounds = 0u64;
                    while !done.load(Ordering::Relaxed) {
                        for page in (0..90).step_by(3) {
                            let at = GuestAddress((page << 12) + 8 * worker);
                            let before: u64 = ram.memory().read_obj(at).unwrap();
                            ram.memory().write_obj(before.wrapping_add(1), at).unwrap();
                        }
                        rounds += 1;
                    }
                    rounds
                })
            })
            .collect();
        for mark in 0..60 {
            recorder.mark(&mark.to_string()).unwrap();
            thread::sleep(std::time::Duration::from_millis(2));
        }
        done.store(true, Ordering::Relaxed);
        workers.into_iter().map(|w| w.join().unwrap()).collect::<Vec<_>>()
    });
    for page in (0..90u64).step_by(3) {
        let words = expected(&layout, page << 12);
        for (worker, rounds) in counts.iter().enumerate() {
            let start = u64::from_le_bytes(words[8 * worker..][..8].try_into().unwrap());
            let at = GuestAddress((page << 12) + 8 * worker as u64);
            let end: u64 = ram.memory().read_obj(at).unwrap();
            assert_eq!(end.wrapping_sub(start), *rounds, "page {page}, worker {worker}");
        }
    }
    let trace = recorder.seal().unwrap();
    assert_eq!(trace.pages().len(), 30);
    assert!(trace.pages().iter().all(|p| p.access == BOTH() && p.runs_written > 10));
}

#[test]
fn what_is_given_back_is_zero_and_what_is_written_then_is_kept() {
    if !has_uffd() {
        return;
    }
    let (ram, recorder, _) = record(|_| false);
    recorder.mark("a").unwrap();
    for page in 0..6 {
        write_page(&ram, page << 12, &content(page << 12, 1));
    }
    ram.discard(range(0, 2)).unwrap();
    write_page(&ram, 1 << 12, &[7]);
    recorder.mark("b").unwrap();
    ram.discard(range(3, 1)).unwrap();
    ram.discard(range(10, 1)).unwrap();
    recorder.mark("c").unwrap();
    let mut one = vec![0; 4096];
    one[0] = 7;
    assert_eq!(read_page(&ram, 0), [0; 4096]);
    assert_eq!(read_page(&ram, 1 << 12), one);
    assert_eq!(read_page(&ram, 2 << 12), content(2 << 12, 1));
    assert_eq!(read_page(&ram, 3 << 12), [0; 4096]);
    assert_eq!(read_page(&ram, 10 << 12), [0; 4096]);
    assert_eq!(recorder.seen(), (7, 6));
}

/// The exact way against the cheap ones: the same accesses to the same memory.
#[test]
fn page_tables_tell_the_same_writes_and_the_page_cache_no_fewer_pages() {
    if !has_uffd() {
        return;
    }
    let (layout, images) = layout(&[(9, 11, 0), (3, 0, 0), (5, 9, 9), (4, 10, 3)]);
    let touch = |ram: &GuestRam| {
        for page in [2u64, 60, 3, 9, 10, 200] {
            read_page(ram, page << 12);
        }
        for page in [3u64, 7, 61, 200] {
            write_page(ram, page << 12, &[1]);
        }
    };
    let written = |trace: &Trace| -> Vec<u64> {
        let pages = trace.pages().iter().filter(|p| p.access.has(Access::WRITTEN));
        pages.map(|p| p.gfn).collect()
    };
    let ram = Arc::new(GuestRam::new(&memory(), false).unwrap());
    let sources = files(&layout, &images, &memory());
    let sources = sources.into_iter().map(|s| Some(Arc::new(s) as Arc<dyn PageSource>)).collect();
    let hooks =
        RecorderHooks { on_fatal: Box::new(|e| panic!("{e}")), is_monitor: Box::new(|_| false) };
    let recorder = Recorder::start(ram.clone(), layout.clone(), sources, hooks).unwrap();
    touch(&ram);
    let exact = recorder.seal().unwrap();
    assert_eq!(written(&exact), [3, 7, 61, 200]);

    for by in [ScanBy::Pagemap, ScanBy::Mincore] {
        let sources = files(&layout, &images, &memory());
        for source in &sources {
            // Only what is touched from here on is to be in the page cache.
            source.file.sync_all().unwrap();
            rustix::fs::fadvise(&source.file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        }
        let policy = Policy::new(Strategy::Lazy);
        let (ram, _restore) = restore(&memory(), &layout, sources, &policy, hooks_of_tests());
        let cached = |r: &RamRegion| {
            let seen = ram.call("look at", r.pages, |r, o, len| r.in_core(o, len)).unwrap();
            // Fresh anonymous memory is not in core, so this is the files.
            seen.contains(&true)
        };
        if by == ScanBy::Mincore && ram.regions().iter().any(cached) {
            varve_skip::skip!("disk", "the file system keeps its files in memory");
            continue;
        }
        let scanner = Scanner::start(ram.clone(), by, std::time::Duration::from_millis(1)).unwrap();
        scanner.mark("a").unwrap();
        touch(&ram);
        let cheap = scanner.seal().unwrap();
        if by == ScanBy::Pagemap {
            assert_eq!(written(&cheap), written(&exact));
        } else {
            assert!(written(&cheap).is_empty());
        }
        let missed = exact.pages().iter().filter(|p| cheap.find(p.gfn).is_none()).count();
        assert_eq!(missed, 0, "{by:?}");
        println!("{by:?} saw {} pages, {} were touched", cheap.pages().len(), exact.pages().len());
    }
}

fn hooks_of_tests() -> Hooks {
    hooks().0
}
