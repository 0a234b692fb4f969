//! A process that brings the pages of other processes' machines: those of varve, which hand over all of
//! guest memory or what they do not lay themselves, and Firecracker's.
//!
//! ```text
//!  handshake ──> machine: FaultThreads (as in a machine's own process) ──> served: layout, images
//!                                                                             └──> cache ──> pool
//! ```

mod cache;
mod handshake;
mod machine;
#[cfg(test)]
mod proxy_tests;
mod served;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use varve_snapshot::chain;

pub use cache::{CacheCounters, ChunkCache};
pub use served::Served;

use crate::error::TierError;
use crate::fault::stats::{ByAccess, SourceCount};
use crate::fault::watchdog::lock;
use crate::ram::error::RamError;
use machine::End;

/// Settings of the pager.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Threads for each machine.
    pub threads: usize,
    /// Most machines at once.
    pub machines: usize,
    /// Limit of the time for a page.
    pub deadline: Duration,
}

/// What a pager did.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct PagerCounters {
    /// Machines.
    pub machines: MachineCounts,
    /// Chunks of images that are elsewhere, or compressed.
    pub cache: CacheCounters,
    /// By snapshot.
    pub snapshots: Vec<SnapshotCounters>,
}

/// Machines, by how they fared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct MachineCounts {
    /// Connected now.
    pub now: u64,
    /// Served until they ended, those that were lost among them.
    pub ended: u64,
    /// Lost, because a page could not be had.
    pub lost: u64,
    /// Refused: there were too many, or what they sent made no sense.
    pub refused: u64,
}

/// What the machines of one snapshot were given.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct SnapshotCounters {
    /// Its name.
    pub snapshot: String,
    /// Faults answered, by class.
    pub faults: BTreeMap<&'static str, ByAccess>,
    /// Of these, pages that were there already.
    pub faults_late: u64,
    /// Pages put in place from an image.
    pub fetched: u64,
    /// Among them: neighbours that no fault asked for.
    pub fetched_along: u64,
    /// Pages answered with zeros.
    pub zeroed: u64,
    /// Images that were read. What came from the cache counts, too.
    pub sources: Vec<SourceCount>,
}

/// A pager at work, until it is dropped.
pub struct Pager {
    shared: Arc<Shared>,
    listeners: Vec<JoinHandle<()>>,
}

/// Machines at once that connected and did not hand over their memory yet; one more ends the oldest.
const MAX_UNPROVED: usize = 32;

struct Shared {
    settings: Settings,
    cache: Arc<ChunkCache>,
    stop: OwnedFd,
    snapshots: Mutex<Vec<Arc<Served>>>,
    machines: Mutex<Vec<JoinHandle<()>>>,
    /// Connections of machines that are still to hand over their memory, the oldest first.
    unproved: Mutex<BTreeMap<u64, Arc<UnixStream>>>,
    next: AtomicU64,
    now: AtomicU64,
    ended: AtomicU64,
    lost: AtomicU64,
    refused: AtomicU64,
}

impl Pager {
    /// One that listens nowhere yet. `cache` is what its snapshots use.
    pub fn new(settings: Settings, cache: Arc<ChunkCache>) -> Result<Pager, TierError> {
        let stop = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|e| RamError::Thread(e.into()))?;
        let shared = Shared {
            settings,
            cache,
            stop,
            snapshots: Mutex::default(),
            machines: Mutex::default(),
            unproved: Mutex::default(),
            next: AtomicU64::new(0),
            now: AtomicU64::new(0),
            ended: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        };
        Ok(Pager { shared: Arc::new(shared), listeners: Vec::new() })
    }

    /// Serves a snapshot to all machines that connect to `listener`.
    pub fn serve(&mut self, listener: UnixListener, served: Served) -> Result<(), TierError> {
        let served = Arc::new(served);
        lock(&self.shared.snapshots).push(served.clone());
        let shared = self.shared.clone();
        let run = move || shared.listen(&listener, &served);
        let thread = Builder::new().name("listener".into()).spawn(run).map_err(RamError::Thread)?;
        self.listeners.push(thread);
        Ok(())
    }

    /// What it did up to now.
    pub fn counters(&self) -> PagerCounters {
        let shared = &self.shared;
        let snapshot = |served: &Arc<Served>| SnapshotCounters {
            snapshot: served.name.clone(),
            faults: served.stats.faults_by_class(),
            faults_late: served.stats.late.get(),
            fetched: served.stats.fetched.get(),
            fetched_along: served.stats.along.get(),
            zeroed: served.stats.zeroed.get(),
            sources: served.stats.sources(&served.images),
        };
        PagerCounters {
            machines: MachineCounts {
                now: shared.now.load(Relaxed),
                ended: shared.ended.load(Relaxed),
                lost: shared.lost.load(Relaxed),
                refused: shared.refused.load(Relaxed),
            },
            cache: shared.cache.counters(),
            snapshots: lock(&shared.snapshots).iter().map(snapshot).collect(),
        }
    }
}

impl Drop for Pager {
    fn drop(&mut self) {
        let _ = rustix::io::write(&self.shared.stop, &1u64.to_ne_bytes());
        let machines = std::mem::take(&mut *lock(&self.shared.machines));
        for thread in self.listeners.drain(..).chain(machines) {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn listen(self: &Arc<Shared>, listener: &UnixListener, served: &Arc<Served>) {
        loop {
            let mut fds =
                [PollFd::new(&self.stop, PollFlags::IN), PollFd::new(listener, PollFlags::IN)];
            let polled = poll(&mut fds, None);
            if !fds[0].revents().is_empty() {
                return;
            }
            let stream = match polled.map_err(Into::into).and_then(|_| listener.accept()) {
                Ok((stream, _)) => stream,
                Err(e) => {
                    log::warn!("{}: a machine cannot connect: {e}", served.name);
                    // As when descriptors are short, which others give back.
                    std::thread::sleep(Duration::from_millis(50));
                    continue;
                }
            };
            let mut machines = lock(&self.machines);
            machines.retain(|thread| !thread.is_finished());
            let mut unproved = lock(&self.unproved);
            // Those that may be no machines take no machine's place.
            let served_now = machines.len().saturating_sub(unproved.len());
            if served_now >= self.settings.machines {
                drop(unproved);
                self.refuse(&stream, served, &format!("{served_now} machines are served"));
                continue;
            }
            if unproved.len() >= MAX_UNPROVED
                && let Some((_, oldest)) = unproved.pop_first()
            {
                let _ = oldest.shutdown(Shutdown::Both);
            }
            let (shared, of_machine) = (self.clone(), served.clone());
            let of_thread = Arc::new(stream);
            let stream = of_thread.clone();
            let id = self.next.fetch_add(1, Relaxed);
            unproved.insert(id, stream.clone());
            drop(unproved);
            let run = move || shared.serve(id, &of_thread, &of_machine);
            match Builder::new().name("machine".into()).spawn(run) {
                Ok(thread) => machines.push(thread),
                Err(e) => {
                    lock(&self.unproved).remove(&id);
                    self.refuse(&stream, served, &format!("no thread: {e}"));
                }
            }
        }
    }

    fn serve(&self, id: u64, stream: &UnixStream, served: &Served) {
        self.now.fetch_add(1, Relaxed);
        let introduced = || lock(&self.unproved).remove(&id).is_some();
        let outcome = machine::serve(stream, served, &self.settings, &self.stop, introduced);
        lock(&self.unproved).remove(&id);
        match outcome {
            Ok(end) => {
                self.ended.fetch_add(1, Relaxed);
                self.lost.fetch_add(u64::from(matches!(end, End::Lost)), Relaxed);
            }
            Err(e) => self.refuse(stream, served, &chain(&e)),
        }
        self.now.fetch_sub(1, Relaxed);
    }

    fn refuse(&self, stream: &UnixStream, served: &Served, why: &str) {
        log::warn!("{}: refused: {why}", served.name);
        machine::say(stream, format!("refused: {why}"));
        self.refused.fetch_add(1, Relaxed);
    }
}
