//! Threads that make pages ready in the order in which the guest will need them, ahead of it.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::Instant;

use varve_snapshot::{PAGE_SIZE, PageRange};

use crate::error::TierError;
use crate::plan::ops::{Step, joined};
use crate::plan::stored::stored_at;
use crate::ram::error::RamError;
use crate::ram::kind::PrefaultMode;
use crate::ram::threads::spawn;
use crate::restore::execute::Shared;
use crate::restore::workers::Workers;
use crate::source::page_cache::{self, PIECE};
use crate::source::page_source::lost;

/// Pages that are populated by one call, so that threads share long runs and a cancelled restore
/// ends soon.
const BATCH: u64 = 512;

/// Has the disk begin with what [`before`] populates.
pub(crate) fn ask(shared: &Arc<Shared>) {
    fetch(shared, &shared.plan.before);
}

/// Populates the pages that the guest waits for; [`ask`] had the disk begin with them.
pub(crate) fn before(shared: &Arc<Shared>, workers: &Workers) -> Result<(), TierError> {
    if shared.plan.before.is_empty() {
        return Ok(());
    }
    let work = Work::new(shared, false);
    workers.share(move || {
        work.run(true);
        Ok(())
    })
}

/// Starts the threads that populate beside the guest. They put in order what there is to do, ask the disk
/// for it, and populate once `shared.begin` is set.
pub(crate) fn beside(shared: &Arc<Shared>) -> Result<Vec<JoinHandle<()>>, TierError> {
    if !shared.plan.has_beside() {
        return Ok(Vec::new());
    }
    let work = Work::new(shared, true);
    let start = |nth| {
        let work = work.clone();
        Ok(spawn("populate", move || work.run(nth == 0))?)
    };
    (0..shared.plan.policy.threads.max(1)).map(start).collect()
}

/// One half of the plan's steps, taken by several threads.
struct Work {
    shared: Arc<Shared>,
    beside: bool,
    /// The steps, as they are taken; put in order by the thread that comes first.
    pieces: OnceLock<Vec<Step>>,
    next: AtomicUsize,
    /// Stage-2 is filled for as long as that works.
    stage2_works: AtomicBool,
}

impl Work {
    fn new(shared: &Arc<Shared>, beside: bool) -> Arc<Work> {
        let (shared, next) = (shared.clone(), AtomicUsize::new(0));
        let stage2_works = AtomicBool::new(shared.plan.policy.stage2 && shared.stage2.is_some());
        Arc::new(Work { shared, beside, pieces: OnceLock::new(), next, stage2_works })
    }

    fn pieces(&self) -> &[Step] {
        self.pieces.get_or_init(|| {
            let plan = &self.shared.plan;
            let steps = if self.beside { plan.beside() } else { &plan.before };
            steps.iter().flat_map(|step| cut(step, BATCH)).collect()
        })
    }

    fn run(&self, first: bool) {
        let (shared, pieces) = (&*self.shared, self.pieces());
        if self.beside {
            if first {
                fetch(shared, pieces);
            }
            shared.begin.wait();
        }
        let started = Instant::now();
        while let Some(step) = pieces.get(self.next.fetch_add(1, Relaxed)) {
            if shared.cancelled.load(Relaxed) {
                break;
            }
            take(shared, step, &self.stage2_works);
        }
        if self.beside {
            shared.stats.beside_time.add_time(started);
        }
    }
}

/// So many steps are looked at to tell whether what all need is in memory.
const SAMPLES: usize = 16;

/// Has the disk begin with all runs of images in guest layout at once, if they are not in memory: one
/// after another, each would be waited for. A few tell for all. Packed images are fetched as a whole.
fn fetch(shared: &Shared, steps: &[Step]) {
    let spread = |step: &&Step| {
        let file = matches!(step.how, Some(PrefaultMode::Read | PrefaultMode::Write));
        let image = || shared.plan.image_at(step.pages.start());
        file && image().is_some_and(|image| image.guest_layout)
    };
    let absent = |step: &Step| {
        let stored = shared.plan.stored_at(step.pages.start());
        let source =
            stored.and_then(|stored| Some((shared.source(stored.image).ok()?, stored.page)));
        let Some((source, first)) = source else { return false };
        let Some((file, 0)) = source.file() else { return false };
        let pages: Vec<u64> = (first..first + step.pages.pages()).collect();
        page_cache::all_in_memory(file, &pages).is_ok_and(|there| !there)
    };
    if !steps.iter().step_by(steps.len() / SAMPLES + 1).filter(spread).any(absent) {
        return;
    }
    let files = steps.iter().filter(spread).copied().collect();
    for pages in requests(files, shared.plan.memory()) {
        // Who cannot fetch ahead fetches on demand.
        let _ = shared.ram.populate(pages, PrefaultMode::Cache);
        if shared.cancelled.load(Relaxed) {
            return;
        }
    }
}

/// What a disk is asked for, in order: neighbours at once, whatever else they differ in, as a request
/// costs more than a page; and no more at a time than the kernel takes of one.
fn requests(mut steps: Vec<Step>, memory: &[PageRange]) -> Vec<PageRange> {
    steps.sort_unstable_by_key(|step| step.pages.start());
    steps.dedup_by(|next, last| {
        let joined = joined(last.pages, next.pages, memory);
        last.rank = last.rank.min(joined.map_or(u32::MAX, |_| next.rank));
        last.pages = joined.unwrap_or(last.pages);
        joined.is_some()
    });
    steps.sort_by_key(|step| step.rank);
    steps.iter().flat_map(|step| cut(step, PIECE / PAGE_SIZE)).map(|step| step.pages).collect()
}

/// Parts of at most `pages` pages.
fn cut(step: &Step, pages: u64) -> impl Iterator<Item = Step> + use<> {
    let (step, most) = (*step, pages * PAGE_SIZE);
    let starts = (step.pages.start()..step.pages.end()).step_by(most as usize);
    starts.filter_map(move |start| {
        let len = most.min(step.pages.end() - start);
        Some(Step { pages: PageRange::new(start, len).ok()?, ..step })
    })
}

/// Makes one run ready.
fn take(shared: &Shared, step: &Step, stage2_works: &AtomicBool) {
    // To map pages in stage-2 for reading brings them in as well.
    let brings = step.how == Some(PrefaultMode::Read) && fill(shared, step, stage2_works);
    if let Some(how) = step.how {
        let done = if brings { Ok(()) } else { shared.ram.populate(step.pages, how) };
        match done {
            Ok(()) => shared.stats.ahead(how, step.pages.pages()),
            Err(error) => {
                shared.stats.ahead_failed.add(step.pages.pages());
                failed(shared, step, error);
                return;
            }
        }
    }
    // Pages that are only in the page cache are not mapped yet, and stage-2 would map them for
    // reading, which a later write pays for.
    if !matches!(step.how, Some(PrefaultMode::Read | PrefaultMode::Cache)) {
        fill(shared, step, stage2_works);
    }
}

/// Maps a run in stage-2; whether that was done.
fn fill(shared: &Shared, step: &Step, works: &AtomicBool) -> bool {
    let Some(stage2) = shared.stage2.as_ref().filter(|_| works.load(Relaxed)) else { return false };
    match stage2.prefault(step.pages) {
        Ok(()) => shared.stats.stage2.add(step.pages.pages()),
        Err(error) => {
            shared.stats.stage2_failed.add(step.pages.pages());
            if works.swap(false, Relaxed) {
                log::warn!("stage-2 is not filled ahead: {:?}: {error}", step.pages);
            }
            return false;
        }
    }
    true
}

/// Short of memory the guest goes on without; a page that the file does not give is lost for the
/// guest, too.
fn failed(shared: &Shared, step: &Step, error: RamError) {
    let RamError::Call { source: cause, .. } = error else {
        (shared.on_fatal)(error.into());
        return;
    };
    if cause.raw_os_error() == Some(libc::ENOMEM) {
        log::warn!("no memory to populate {:?} ahead", step.pages);
        return;
    }
    let stored = stored_at(&shared.plan.layout, step.pages.start());
    let source = stored.and_then(|s| shared.source(s.image).ok());
    (shared.on_fatal)(match source {
        Some(source) => lost(step.pages, source, cause.into()),
        None => RamError::Call { what: "populate", range: step.pages, source: cause }.into(),
    });
}

#[cfg(test)]
mod tests {
    use varve_snapshot::PageClass;

    use super::*;

    #[test]
    fn neighbours_are_one_request_unless_it_is_too_long() {
        let range =
            |first: u64, pages: u64| PageRange::new(first * PAGE_SIZE, pages * PAGE_SIZE).unwrap();
        let memory = [range(0, 100), range(100, 1000)];
        let step = |first, pages, how, rank| Step {
            pages: range(first, pages),
            how: Some(how),
            class: PageClass::ReadOnly,
            rank,
        };
        let steps = vec![
            step(98, 2, PrefaultMode::Read, 5),
            step(12, 3, PrefaultMode::Write, 1),
            step(10, 2, PrefaultMode::Read, 7),
            // Another range of memory may be elsewhere.
            step(100, 1, PrefaultMode::Read, 4),
            step(200, 70, PrefaultMode::Write, 6),
            step(20, 1, PrefaultMode::Read, 3),
        ];
        let expected = [range(10, 5), range(20, 1), range(100, 1), range(98, 2)]
            .into_iter()
            .chain([range(200, 32), range(232, 32), range(264, 6)]);
        assert_eq!(requests(steps, &memory), expected.collect::<Vec<_>>());
    }
}
