//! Offloading: pages of a running machine that nobody touches go to a store, and come back when they
//! are touched.
//!
//! What is idle is found out, not guessed: all pages are taken out and set aside, and those that nobody
//! has asked back after a while are sent. Only when all of them are at the store, and it has said so
//! once more, what was set aside is let go; until then a failure costs nothing but time. A page that is
//! touched is in guest memory again before who touched it goes on, whatever is under way: what is sent
//! meanwhile is its copy, which is not used then.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use varve_snapshot::{PageRange, chain};

use crate::error::TierError;
use crate::fault::answer::FaultContext;
use crate::fault::backing_store::BackingStore;
use crate::fault::threads::FaultThreads;
use crate::fault::watched::Watched;
use crate::offload::evict::{self, Taken, WINDOW};
use crate::offload::writeback::{Message, Status, Work};
use crate::ram::guest_ram::GuestRam;
use crate::ram::kind::HugePages;
use crate::ram::sys::uffd::Watch;
use crate::ram::threads::spawn;
use crate::restore::execute::{Hooks, Restore};

/// Threads that answer for pages that are out, where no restore's do.
const FAULT_THREADS: usize = 2;

/// Why pages are not offloaded.
#[derive(Debug, thiserror::Error)]
pub enum OffloadError {
    /// Pages of 2 MiB cannot be taken out in part.
    #[error(
        "guest memory of 2 MiB pool pages (hugetlb) cannot be offloaded; use transparent huge pages"
    )]
    HugePages,
    /// The pager, or another handler of page faults, brings its pages.
    #[error(
        "guest memory is served by another process (page fault handler), which alone can evict \
         its pages"
    )]
    Handled,
    /// One thing at a time.
    #[error(
        "offloading is under way ({0:?}): wait until GET /memory says idle, or recall the pages"
    )]
    Busy(Phase),
    /// Pages are with another store.
    #[error("pages are offloaded to other nodes: recall them first")]
    OtherStore,
    /// Guest memory itself.
    #[error(transparent)]
    Memory(#[from] TierError),
}

/// What is under way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Nothing. Pages may be out.
    #[default]
    Idle,
    /// Pages are taken out and set aside.
    Taking,
    /// Pages are set aside; those that are touched come back.
    Waiting,
    /// Pages go to the store.
    Sending,
    /// Pages come back.
    Recalling,
}

/// What was done, in pages.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct OffloadReport {
    /// What is under way.
    pub phase: Phase,
    /// At the store now.
    pub out: u64,
    /// Set aside now.
    pub set_aside: u64,
    /// Taken out since the machine began.
    pub taken: u64,
    /// Of those that were looked at: zero, and let go.
    pub zero: u64,
    /// Pages of files, given back to the page cache.
    pub clean: u64,
    /// Private copies of pages of files that the last offload left where they are.
    pub left: u64,
    /// Sent to the store.
    pub sent: u64,
    /// Touched before they were sent.
    pub touched: u64,
    /// Accesses that waited for a page from the store.
    pub faults: u64,
    /// Pages that came back from there because they, or their neighbours, were touched.
    pub fetched: u64,
    /// Pages that came back because they were recalled, or not taken by the store.
    pub recalled: u64,
    /// Pages that the guest gave back while they were out.
    pub discarded: u64,
    /// Pages that the store did not take.
    pub refused: u64,
    /// Why the last offload or recall did not end well.
    pub error: Option<String>,
}

/// Offloading of one machine's memory. Like a restore it answers faults until it is dropped, which must
/// be after the vCPUs and devices are gone.
pub struct Offload {
    work: Arc<Work>,
    taking: Mutex<Option<Taking>>,
    tell: Sender<Message>,
    thread: Option<JoinHandle<()>>,
    // Unless a restore's answer.
    _faults: Option<FaultThreads>,
}

/// Taking pages out, window by window.
struct Taking {
    windows: Vec<PageRange>,
    /// Pages that may still be taken.
    limit: u64,
    idle: Duration,
}

impl Offload {
    /// Makes pages of `ram` ready to be taken out; `restore` is the one that it came by, whose populating
    /// ends. `hooks` are used if that answers no faults.
    pub fn new(
        ram: Arc<GuestRam>,
        restore: Option<&Restore>,
        hooks: Hooks,
    ) -> Result<Offload, OffloadError> {
        if ram.huge_pages() == HugePages::Pool {
            return Err(OffloadError::HugePages);
        }
        if Watched::of(&ram).is_some_and(|watched| watched.is_handled()) {
            return Err(OffloadError::Handled);
        }
        if let Some(restore) = restore {
            restore.cancel();
            restore.wait_populated();
        }
        let (watched, faults) = match Watched::of(&ram) {
            Some(watched) if restore.is_some_and(Restore::answers) => (watched, None),
            _ => {
                let watched = Arc::new(Watched::open(Watch::Missing).map_err(TierError::from)?);
                ram.watch(watched.clone()).map_err(TierError::from)?;
                let context =
                    FaultContext::of_nothing(&ram, watched.clone(), hooks.on_fatal.into())?;
                let faults = FaultThreads::start(context, FAULT_THREADS)?;
                (watched, Some(faults))
            }
        };
        let (tell, told) = channel();
        // It is the memory's first: there is one offload for it, as one restore.
        let freed = tell.clone();
        // A closed channel means that the machine ends, and its batches with it.
        let _ = watched.evicted.on_freed.set(Box::new(move || drop(freed.send(Message::Freed))));
        let work = Arc::new(Work::new(ram, watched));
        let of_thread = work.clone();
        let thread = spawn("offload", move || of_thread.run(&told)).map_err(TierError::from)?;
        let taking = Mutex::default();
        Ok(Offload { work, taking, tell, thread: Some(thread), _faults: faults })
    }

    /// Begins to take out at most `limit` pages, of which those that are not touched for `idle` will go
    /// to `store`. [`Offload::take_some`] is to be called until nothing is left to be taken.
    pub fn begin(
        &self,
        store: Arc<dyn BackingStore>,
        idle: Duration,
        limit: u64,
    ) -> Result<(), OffloadError> {
        let work = &self.work;
        let mut status = work.status();
        if status.phase != Phase::Idle {
            return Err(OffloadError::Busy(status.phase));
        }
        let same = work.watched.evicted.store().is_some_and(|now| Arc::ptr_eq(&now, &store));
        if !same && work.watched.evicted.counts() != (0, 0) {
            return Err(OffloadError::OtherStore);
        }
        evict::watch(&work.ram, &work.watched).map_err(TierError::from)?;
        work.watched.evicted.set_depot(store);
        work.cancelled.store(false, Relaxed);
        let windows = work.ram.regions().iter().flat_map(|r| windows(r.pages)).rev().collect();
        *self.taking() = Some(Taking { windows, limit, idle });
        *status = Status { phase: Phase::Taking, refused: status.refused, ..Status::default() };
        Ok(())
    }

    /// Whether there is something to be taken.
    pub fn is_taking(&self) -> bool {
        self.taking().is_some()
    }

    /// Takes pages out of the next part of guest memory. The machine must stand still: no vCPU runs,
    /// and no device is served.
    pub fn take_some(&self) -> Result<(), OffloadError> {
        let mut slot = self.taking();
        let Some(taking) = slot.as_mut() else { return Ok(()) };
        let window = taking.windows.pop();
        let work = &self.work;
        let taken = match window {
            Some(window) => evict::take(&work.ram, &work.watched, window, taking.limit),
            None => Ok(Taken::default()),
        };
        let mut status = work.status();
        match taken {
            Ok(Taken { out, clean, left }) => {
                taking.limit -= out;
                status.clean += clean;
                status.left += left;
                if taking.windows.is_empty() || taking.limit == 0 {
                    status.phase = Phase::Waiting;
                    self.tell(Message::Send(Instant::now() + taking.idle));
                    *slot = None;
                }
                Ok(())
            }
            Err(error) => {
                *slot = None;
                status.error = Some(chain(&error));
                self.tell(Message::Recall);
                Err(error.into())
            }
        }
    }

    /// Has all pages come back; what is under way ends.
    pub fn recall(&self) {
        *self.taking() = None;
        self.work.cancelled.store(true, Relaxed);
        let mut status = self.work.status();
        if status.phase != Phase::Recalling {
            status.phase = Phase::Recalling;
            self.tell(Message::Recall);
        }
    }

    /// Pages and what became of them.
    pub fn report(&self) -> OffloadReport {
        let Work { watched, .. } = &*self.work;
        let stats = &watched.evicted.stats;
        let status = self.work.status();
        let (set_aside, out) = watched.evicted.counts();
        OffloadReport {
            phase: status.phase,
            out,
            set_aside,
            taken: stats.taken.get(),
            zero: stats.zero.get(),
            clean: status.clean,
            left: status.left,
            sent: stats.sent.get(),
            touched: stats.touched.get(),
            faults: stats.faults.get(),
            fetched: stats.fetched.get(),
            recalled: stats.recalled.get(),
            discarded: stats.discarded.get(),
            refused: status.refused,
            error: status.error.clone(),
        }
    }

    fn taking(&self) -> MutexGuard<'_, Option<Taking>> {
        self.taking.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, message: Message) {
        // The thread ends only with this.
        let _ = self.tell.send(message);
    }
}

impl Drop for Offload {
    fn drop(&mut self) {
        self.work.ending.store(true, Relaxed);
        self.work.cancelled.store(true, Relaxed);
        self.tell(Message::End);
        // One that waits for a node is left to itself: it holds what it uses.
        if let Some(thread) = self.thread.take().filter(|_| !self.work.asking.load(Relaxed)) {
            let _ = thread.join();
        }
    }
}

/// The windows of a region, in order.
fn windows(region: PageRange) -> impl DoubleEndedIterator<Item = PageRange> {
    let starts = 0..region.len().div_ceil(WINDOW);
    starts.filter_map(move |nth| {
        let start = region.start() + nth * WINDOW;
        PageRange::new(start, WINDOW.min(region.end() - start)).ok()
    })
}
