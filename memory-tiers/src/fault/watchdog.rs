//! The clock of the threads that answer faults: a source that does not answer in time is told.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use varve_snapshot::{PageRange, Stored};

use crate::error::TierError;
use crate::fault::answer::FaultContext;
use crate::source::page_source::source_of;

/// What a thread is waiting for, seen by the one that watches deadlines: pages that are stored there, or
/// that were offloaded.
pub(crate) type Pending = Mutex<Option<(Instant, PageRange, Option<Stored>)>>;

/// Locks; what a thread that panicked left behind is a plain value.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ends the machine when a source does not answer in time.
pub(crate) fn watch_deadlines(context: &FaultContext, pending: &[Arc<Pending>], stop: &OwnedFd) {
    let deadline = context.deadline;
    let tick = (deadline / 4).clamp(Duration::from_millis(1), Duration::from_secs(1));
    let mut reported: Vec<Option<Instant>> = vec![None; pending.len()];
    while !stopped(stop, tick) {
        for (slot, reported) in pending.iter().zip(&mut reported) {
            let Some((since, pages, from)) = *lock(slot) else { continue };
            if since.elapsed() < deadline || *reported == Some(since) {
                continue;
            }
            *reported = Some(since);
            let Some(from) = from else {
                let source = format!("no copy came within {} ms", deadline.as_millis()).into();
                (context.on_fatal)(TierError::Evicted { pages, source });
                continue;
            };
            let Ok(source) = source_of(&context.sources, from.image) else { continue };
            let (image, tier) = (source.info().name.clone(), source.info().tier);
            (context.on_fatal)(TierError::Deadline { pages, image, tier, deadline });
        }
    }
}

/// Waits for `time` or until the threads are to end.
fn stopped(stop: &OwnedFd, time: Duration) -> bool {
    let time = Timespec::try_from(time).ok();
    let mut fds = [PollFd::new(stop, PollFlags::IN)];
    matches!(poll(&mut fds, time.as_ref()), Ok(1..))
}
