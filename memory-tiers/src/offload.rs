//! Offloading: pages of a running machine that nobody touches go to a depot, and come back when they
//! are touched.
//!
//! What is idle is found out, not guessed: all pages are taken out and set aside, and those that nobody
//! has asked back after a while are sent. Only when all of them are at the depot, and it has said so
//! once more, what was set aside is let go; until then a failure costs nothing but time. A page that is
//! touched is in guest memory again before who touched it goes on, whatever is under way: what is sent
//! meanwhile is its copy, which is not used then.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use varve_snapshot::{PageRange, chain};

use crate::answer::Asked;
use crate::away::{Back, Part};
use crate::depot::Depot;
use crate::error::TierError;
use crate::exec::{Hooks, Restore};
use crate::faults::FaultThreads;
use crate::guest_ram::{GuestRam, HugePages};
use crate::source::SourceError;
use crate::sys::uffd::Watch;
use crate::taking::{self, Taken, WINDOW};
use crate::threads::spawn;
use crate::watch::Watched;

/// Pages of a parcel.
const PARCEL: usize = 64;
/// Threads that answer for pages that are out, where no restore's do.
const FAULT_THREADS: usize = 2;

/// Why pages are not offloaded.
#[derive(Debug, thiserror::Error)]
pub enum OffloadError {
    /// Pages of 2 MiB cannot be taken out in part.
    #[error(
        "guest memory is made of 2 MiB pages of the system's pool, which are not offloaded; transparent \
         huge pages are"
    )]
    HugePages,
    /// One thing at a time.
    #[error(
        "offloading is under way ({0:?}): wait until GET /memory says idle, or recall the pages"
    )]
    Busy(Phase),
    /// Pages are with another depot.
    #[error("pages are out on other nodes: recall them first")]
    Elsewhere,
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
    /// Pages go to the depot.
    Sending,
    /// Pages come back.
    Recalling,
}

/// What was done, in pages.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct OffloadReport {
    /// What is under way.
    pub phase: Phase,
    /// At the depot now.
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
    /// Sent to the depot.
    pub sent: u64,
    /// Touched before they were sent.
    pub touched: u64,
    /// Accesses that waited for a page from the depot.
    pub faults: u64,
    /// Pages that came back from there because they, or their neighbours, were touched.
    pub fetched: u64,
    /// Pages that came back because they were recalled, or not taken by the depot.
    pub recalled: u64,
    /// Pages that the guest gave back while they were out.
    pub discarded: u64,
    /// Pages that the depot did not take.
    pub refused: u64,
    /// Why the last offload or recall did not end well.
    pub error: Option<String>,
}

/// What the thread is told.
#[derive(Debug)]
pub(crate) enum Message {
    /// Send what is set aside once it is this late.
    Send(Instant),
    /// Bring all back.
    Recall,
    /// Parcels are wanted no more.
    Freed,
    /// The machine ends.
    End,
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

struct Work {
    ram: Arc<GuestRam>,
    watched: Arc<Watched>,
    status: Mutex<Status>,
    /// Sending ends early.
    cancelled: AtomicBool,
    ending: AtomicBool,
    /// The thread may be waiting for a node.
    asking: AtomicBool,
}

#[derive(Default)]
struct Status {
    phase: Phase,
    clean: u64,
    left: u64,
    refused: u64,
    error: Option<String>,
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
        if let Some(restore) = restore {
            restore.cancel();
            restore.wait_populated();
        }
        let (watched, faults) = match ram.watched.get() {
            Some(watched) if restore.is_some_and(Restore::answers) => (watched.clone(), None),
            _ => {
                let watched = Arc::new(Watched::open(Watch::Missing).map_err(TierError::from)?);
                ram.watch(watched.clone()).map_err(TierError::from)?;
                let asked = Asked::of_nothing(&ram, watched.clone(), hooks.on_fatal.into())?;
                let faults = FaultThreads::start(asked, FAULT_THREADS)?;
                (watched, Some(faults))
            }
        };
        let (tell, told) = channel();
        // It is the memory's first: there is one offload for it, as one restore.
        let _ = watched.away.tell.set(tell.clone());
        let work = Arc::new(Work {
            ram,
            watched,
            status: Mutex::default(),
            cancelled: AtomicBool::default(),
            ending: AtomicBool::default(),
            asking: AtomicBool::default(),
        });
        let of_thread = work.clone();
        let thread = spawn("offload", move || of_thread.run(&told))?;
        let taking = Mutex::default();
        Ok(Offload { work, taking, tell, thread: Some(thread), _faults: faults })
    }

    /// Begins to take out at most `limit` pages, of which those that are not touched for `idle` will go
    /// to `depot`. [`Offload::take_some`] is to be called until nothing is left to be taken.
    pub fn begin(
        &self,
        depot: Arc<dyn Depot>,
        idle: Duration,
        limit: u64,
    ) -> Result<(), OffloadError> {
        let work = &self.work;
        let mut status = work.status();
        if status.phase != Phase::Idle {
            return Err(OffloadError::Busy(status.phase));
        }
        let same = work.watched.away.depot().is_some_and(|now| Arc::ptr_eq(&now, &depot));
        if !same && work.watched.away.counts() != (0, 0) {
            return Err(OffloadError::Elsewhere);
        }
        taking::watch(&work.ram, &work.watched).map_err(TierError::from)?;
        work.watched.away.set_depot(depot);
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
            Some(window) => taking::take(&work.ram, &work.watched, window, taking.limit),
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
        let tally = &watched.away.tally;
        let status = self.work.status();
        let (set_aside, out) = watched.away.counts();
        OffloadReport {
            phase: status.phase,
            out,
            set_aside,
            taken: tally.taken.get(),
            zero: tally.zero.get(),
            clean: status.clean,
            left: status.left,
            sent: tally.sent.get(),
            touched: tally.touched.get(),
            faults: tally.faults.get(),
            fetched: tally.fetched.get(),
            recalled: tally.recalled.get(),
            discarded: tally.discarded.get(),
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

/// What ended a wait.
enum Next {
    Send,
    Recall,
    End,
}

impl Work {
    fn status(&self) -> MutexGuard<'_, Status> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, told: &Receiver<Message>) {
        let _end = crate::faults::EndTogether;
        while let Ok(message) = told.recv() {
            let next = match message {
                Message::Send(at) => self.wait(told, at),
                Message::Recall => Next::Recall,
                Message::Freed => {
                    self.free();
                    continue;
                }
                Message::End => Next::End,
            };
            match next {
                Next::Send => self.send(),
                Next::Recall => self.recall(),
                Next::End => return,
            }
            self.free();
        }
    }

    /// Waits for the time to send.
    fn wait(&self, told: &Receiver<Message>, at: Instant) -> Next {
        loop {
            let rest = at.saturating_duration_since(Instant::now());
            match told.recv_timeout(rest) {
                Err(RecvTimeoutError::Timeout) => return Next::Send,
                Ok(Message::Freed) => self.free(),
                Ok(Message::Recall) => return Next::Recall,
                Ok(Message::Send(_)) => {}
                Ok(Message::End) | Err(RecvTimeoutError::Disconnected) => return Next::End,
            }
        }
    }

    /// Calls the depot.
    fn ask<T>(&self, call: impl FnOnce(&dyn Depot) -> T) -> Option<T> {
        let depot = self.watched.away.depot()?;
        self.asking.store(true, Relaxed);
        let answer = call(&*depot);
        self.asking.store(false, Relaxed);
        Some(answer)
    }

    fn free(&self) {
        let freed = self.watched.away.take_freed();
        if !freed.is_empty() {
            self.ask(|depot| depot.free(&freed));
        }
    }

    /// Sends what nobody has touched. All of it is at the depot before any of it is let go.
    fn send(&self) {
        if !self.goes_on(Phase::Sending) {
            return;
        }
        let away = &self.watched.away;
        let mut sent = Vec::new();
        let outcome = self.ask(|depot| self.send_to(depot, &mut sent)).unwrap_or(Ok(true));
        let error = match outcome {
            Ok(true) => {
                sent.into_iter().for_each(|(parcel, pages)| away.commit(parcel, pages));
                None
            }
            // A recall follows, or the end.
            Ok(false) => {
                let parcels: Vec<u64> = sent.iter().map(|(parcel, _)| *parcel).collect();
                self.ask(|depot| depot.free(&parcels));
                return;
            }
            Err(error) => {
                let parcels: Vec<u64> = sent.iter().map(|(parcel, _)| *parcel).collect();
                self.ask(|depot| depot.free(&parcels));
                let text = chain(&*error);
                log::warn!("offloading: {text}; the pages stay");
                self.status().refused += away.counts().0;
                Some(self.put_back().err().map_or(text, |e| chain(&e)))
            }
        };
        self.end(Phase::Sending, error);
    }

    /// Whether all was sent; otherwise it was cancelled.
    fn send_to(
        &self,
        depot: &dyn Depot,
        sent: &mut Vec<(u64, Vec<u64>)>,
    ) -> Result<bool, SourceError> {
        let mut data = Vec::new();
        for pages in self.watched.away.staged().chunks(PARCEL) {
            if self.cancelled.load(Relaxed) {
                return Ok(false);
            }
            let found = self.watched.away.copy_staged(pages, &mut data)?;
            if !found.is_empty() {
                sent.push((depot.put(&data)?, found));
            }
        }
        depot.confirm()?;
        Ok(true)
    }

    /// Brings back what is set aside.
    fn put_back(&self) -> Result<(), TierError> {
        for page in self.watched.away.staged() {
            if self.ending.load(Relaxed) {
                break;
            }
            self.watched.put_staged(self.ram.places(), page, Back::Called)?;
        }
        Ok(())
    }

    fn recall(&self) {
        self.status().phase = Phase::Recalling;
        let recalled = self.put_back().and_then(|()| self.fetch_all());
        let ended = recalled.and_then(|()| Ok(self.watched.end_lending(&self.ram)?));
        let error = ended.err().map(|e| chain(&e));
        if let Some(error) = &error {
            log::warn!("recalling pages: {error}");
        }
        self.end(Phase::Recalling, error);
    }

    fn fetch_all(&self) -> Result<(), TierError> {
        let mut buffer = Vec::new();
        while let Some((parcel, wanted, pages)) = self.watched.away.some_parcel() {
            if self.ending.load(Relaxed) {
                break;
            }
            self.ask(|depot| {
                let Work { ram, watched, .. } = self;
                let whole = Part { parcel, first: 0, pages: &pages };
                watched.fetch(ram.places(), whole, wanted, depot, &mut buffer, Back::Called)
            })
            .unwrap_or(Ok(()))?;
            self.free();
        }
        Ok(())
    }

    /// Begins a phase, unless a recall is to come.
    fn goes_on(&self, phase: Phase) -> bool {
        let mut status = self.status();
        let goes_on = status.phase != Phase::Recalling;
        if goes_on {
            status.phase = phase;
        }
        goes_on
    }

    /// Ends a phase; an earlier error stays.
    fn end(&self, phase: Phase, error: Option<String>) {
        let mut status = self.status();
        if status.phase == phase {
            status.phase = Phase::Idle;
        }
        if error.is_some() {
            status.error = error;
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
