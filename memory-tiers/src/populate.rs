//! Threads that make pages ready in the order in which the guest will need them, ahead of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::Instant;

use varve_snapshot::{PAGE_SIZE, PageRange};

use crate::error::{RamError, TierError};
use crate::exec::Shared;
use crate::plan::{self, Step};
use crate::source::lost;
use crate::sys::mmap::Ahead;
use crate::threads::spawn;

/// Pages that are populated by one call, so that threads share long runs and a cancelled restore
/// ends soon.
const BATCH: u64 = 512;

/// Starts the threads for one half of the plan's steps.
pub(crate) fn start(shared: &Arc<Shared>, beside: bool) -> Result<Vec<JoinHandle<()>>, TierError> {
    let plan = &shared.plan;
    let steps = if beside { plan.beside() } else { &plan.before };
    let steps: Arc<[Step]> = steps.iter().flat_map(cut).collect();
    if steps.is_empty() {
        return Ok(Vec::new());
    }
    let (next, stage2_works) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(true)));
    (0..plan.policy.threads.max(1))
        .map(|nth| {
            let first = nth == 0;
            let (shared, steps) = (shared.clone(), steps.clone());
            let (next, stage2_works) = (next.clone(), stage2_works.clone());
            let run = move || {
                let started = Instant::now();
                if first {
                    fetch(&shared, &steps);
                }
                while let Some(step) = steps.get(next.fetch_add(1, Relaxed)) {
                    if shared.cancelled.load(Relaxed) {
                        break;
                    }
                    take(&shared, step, beside.then_some(&*stage2_works));
                }
                if beside {
                    shared.tally.beside_time.add_time(started);
                }
            };
            spawn("populate", run)
        })
        .collect()
}

/// Has the disk begin with all runs of images in guest layout at once, if they are not in memory: one
/// after another, each would be waited for. A few tell for all. Packed images are fetched as a whole.
fn fetch(shared: &Shared, steps: &[Step]) {
    let files = steps.iter().filter(|s| matches!(s.how, Some(Ahead::Read | Ahead::Write)));
    let spread = |step: &&Step| {
        let image = shared.plan.image_at(step.pages.start());
        image.is_some_and(|image| image.guest_layout)
    };
    let mut files: Vec<&Step> = files.filter(spread).collect();
    files.sort_by_key(|step| step.rank);
    let absent = |step: &&Step| {
        let found = shared.ram.call("look at", step.pages, |r, o, len| r.in_core(o, len));
        found.is_ok_and(|pages| pages.contains(&false))
    };
    if !files.iter().step_by(files.len() / 4 + 1).any(absent) {
        return;
    }
    for step in files {
        // Who cannot fetch ahead fetches on demand.
        let _ = shared.ram.populate(step.pages, Ahead::Cache);
        if shared.cancelled.load(Relaxed) {
            return;
        }
    }
}

fn cut(step: &Step) -> impl Iterator<Item = Step> + use<> {
    let step = *step;
    let ends = (step.pages.start()..step.pages.end()).step_by((BATCH * PAGE_SIZE) as usize);
    ends.filter_map(move |start| {
        let len = (BATCH * PAGE_SIZE).min(step.pages.end() - start);
        Some(Step { pages: PageRange::new(start, len).ok()?, ..step })
    })
}

/// Makes one run ready.
fn take(shared: &Shared, step: &Step, stage2: Option<&AtomicBool>) {
    if let Some(how) = step.how {
        match shared.ram.populate(step.pages, how) {
            Ok(()) => shared.tally.ahead(how, step.pages.pages()),
            Err(error) => {
                shared.tally.ahead_failed.add(step.pages.pages());
                failed(shared, step, error);
                return;
            }
        }
    }
    // Pages that are only in the page cache are not mapped yet, and stage-2 would map them for
    // reading, which a later write pays for.
    let (Some(stage2), Some(works)) = (&shared.stage2, stage2) else { return };
    if step.how == Some(Ahead::Cache) || !shared.plan.policy.stage2 || !works.load(Relaxed) {
        return;
    }
    match stage2.prefault(step.pages) {
        Ok(()) => shared.tally.stage2.add(step.pages.pages()),
        Err(error) => {
            shared.tally.stage2_failed.add(step.pages.pages());
            if works.swap(false, Relaxed) {
                log::warn!("stage-2 is not filled ahead: {:?}: {error}", step.pages);
            }
        }
    }
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
    let stored = plan::stored_at(&shared.plan.layout, step.pages.start());
    let source = stored.and_then(|s| shared.source(s.image).ok());
    (shared.on_fatal)(match source {
        Some(source) => lost(step.pages, source, cause.into()),
        None => RamError::Call { what: "populate", range: step.pages, source: cause }.into(),
    });
}
