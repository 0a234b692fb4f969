//! Threads that answer for pages that are missing: from their source, whole chunks at a time.
//!
//! They never touch guest memory themselves, for they would wait for their own answer. A page that
//! cannot be had stays missing and its threads stay waiting, while the machine is told to end.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use varve_snapshot::{PAGE_SIZE, PageClass, PageRange, Stored};

use crate::deadline::{Pending, lock, watch_deadlines};
use crate::error::TierError;
use crate::exec::Shared;
use crate::plan::stored_at;
use crate::sys::uffd::{Fault, Install, Installed};
use crate::threads::spawn;
use crate::watch::Watched;

/// The threads. They end when this is dropped; the descriptor stays open with the memory.
pub(crate) struct FaultThreads {
    threads: Vec<(JoinHandle<()>, Arc<Pending>)>,
    stop: Arc<OwnedFd>,
}

impl FaultThreads {
    /// Starts answering for `watched`.
    pub fn start(shared: Arc<Shared>, watched: Arc<Watched>) -> Result<FaultThreads, TierError> {
        let stop = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|e| TierError::Thread(e.into()))?;
        let stop = Arc::new(stop);
        let order = Arc::new(by_image(&shared));
        let mut threads = Vec::new();
        for _ in 0..shared.plan.policy.fault_threads.max(1) {
            let pending = Arc::new(Pending::default());
            let mut answerer = Answerer {
                shared: shared.clone(),
                watched: watched.clone(),
                order: order.clone(),
                pending: pending.clone(),
                buffer: Vec::new(),
            };
            let stop = stop.clone();
            let run = move || {
                let _end = EndTogether;
                answerer.run(&stop);
            };
            threads.push((spawn("faults", run)?, pending));
        }
        let pending: Vec<_> = threads.iter().map(|(_, pending)| pending.clone()).collect();
        let clock_stop = stop.clone();
        let run = move || watch_deadlines(&shared, &pending, &clock_stop);
        threads.push((spawn("deadlines", run)?, Arc::default()));
        Ok(FaultThreads { threads, stop })
    }
}

impl Drop for FaultThreads {
    fn drop(&mut self) {
        let _ = rustix::io::write(&*self.stop, &1u64.to_ne_bytes());
        for (thread, pending) in self.threads.drain(..) {
            // One that hangs in its source is left to itself: it holds what it uses.
            if lock(&pending).is_none() {
                let _ = thread.join();
            }
        }
    }
}

/// A thread that answers must not die alone: the guest would hang without a word.
pub(crate) struct EndTogether;

impl Drop for EndTogether {
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::process::abort();
        }
    }
}

/// Where the pages of each image belong, by image and page in it.
fn by_image(shared: &Shared) -> Vec<(Stored, PageRange)> {
    let regions = shared.plan.layout.regions().iter();
    let mut order: Vec<_> = regions.filter_map(|r| Some((r.stored?, r.pages))).collect();
    order.sort_unstable_by_key(|(stored, _)| (stored.image, stored.page));
    order
}

struct Answerer {
    shared: Arc<Shared>,
    watched: Arc<Watched>,
    order: Arc<Vec<(Stored, PageRange)>>,
    pending: Arc<Pending>,
    buffer: Vec<u8>,
}

impl Answerer {
    fn run(&mut self, stop: &OwnedFd) {
        loop {
            let uffd = self.watched.uffd.as_fd();
            let mut fds =
                [PollFd::from_borrowed_fd(uffd, PollFlags::IN), PollFd::new(stop, PollFlags::IN)];
            match poll(&mut fds, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(e) => return self.fatal(TierError::Fault { address: 0, source: e.into() }),
            }
            if !fds[1].revents().is_empty() {
                return;
            }
            match self.watched.uffd.read() {
                Ok(faults) => faults.into_iter().for_each(|fault| self.answer(fault)),
                Err(source) => return self.fatal(TierError::Fault { address: 0, source }),
            }
        }
    }

    fn fatal(&self, error: TierError) {
        (self.shared.hooks.on_fatal)(error);
    }

    fn answer(&mut self, fault: Fault) {
        let started = Instant::now();
        let Fault { address, write, .. } = fault;
        let Some(page) = self.shared.ram.guest_address(address) else {
            let source = std::io::ErrorKind::AddrNotAvailable.into();
            return self.fatal(TierError::Fault { address, source });
        };
        let region = self.shared.plan.layout.find(page);
        self.shared.tally.fault(region.map_or(PageClass::Zero, |r| r.class), write);
        let done = match stored_at(&self.shared.plan.layout, page) {
            Some(from) if !self.emptied(page) => self.fetch(page, from),
            _ => self.zero(page, write),
        };
        match done {
            Ok(()) => {
                self.shared.tally.fault_time.add_time(started);
                self.shared.tally.slowest_fault.raise(started.elapsed());
            }
            Err(error) => self.fatal(error),
        }
    }

    fn emptied(&self, page: u64) -> bool {
        self.watched.emptied.read().unwrap_or_else(PoisonError::into_inner).has(page)
    }

    /// Zero: a page to write on at once, or the one that all share.
    fn zero(&self, page: u64, write: bool) -> Result<(), TierError> {
        let pages = one(page)?;
        let ram = &self.shared.ram;
        let offset = ram.offset(pages)?;
        let zeros = [0; PAGE_SIZE as usize];
        loop {
            let done = if write {
                self.watched.uffd.copy(ram.reservation(), offset, &zeros, Install::Quiet)
            } else {
                self.watched.uffd.zero(ram.reservation(), offset, zeros.len())
            };
            match self.settled(pages, done)? {
                Some(Installed::Part(_)) => continue,
                Some(Installed::All) => self.shared.tally.zeroed.add(1),
                Some(Installed::Present) => self.shared.tally.late.add(1),
                None => {}
            }
            return self.wake(pages);
        }
    }

    /// Brings in the chunk that holds the page, all that is watched of it.
    fn fetch(&mut self, page: u64, from: Stored) -> Result<(), TierError> {
        let shared = self.shared.clone();
        let source = shared.source(from.image)?;
        let info = source.info();
        let unit = info.chunk_pages.max(1);
        let first = from.page / unit * unit;
        let count = unit.min(info.pages.saturating_sub(first));
        let wanted = one(page)?;
        self.buffer.resize((count * PAGE_SIZE) as usize, 0);
        *lock(&self.pending) = Some((Instant::now(), wanted, from));
        let read = source.read(first, &mut self.buffer);
        *lock(&self.pending) = None;
        read.map_err(|cause| shared.lost(wanted, source, cause))?;
        shared.tally.read(from.image.0, count);
        // The page that is waited for first, counted before its threads go on, then its neighbours.
        let at = ((from.page - first) * PAGE_SIZE) as usize;
        let data = self.buffer.get(at..at + PAGE_SIZE as usize).unwrap_or_default();
        let placed = self.place(wanted, data, Install::Quiet)?;
        shared.tally.fetched.add(placed);
        if placed == 0 {
            shared.tally.late.add(1);
        }
        self.wake(wanted)?;
        if count > 1 {
            self.place_along(Stored { page: first, ..from }, count)?;
        }
        Ok(())
    }

    /// Places what else the buffer, `count` pages of the image from `first` on, holds of watched
    /// memory.
    fn place_along(&self, first: Stored, count: u64) -> Result<(), TierError> {
        let end = first.page + count;
        let from = self.order.partition_point(|(stored, pages)| {
            (stored.image, stored.page + pages.pages()) <= (first.image, first.page)
        });
        for &(stored, pages) in self.order.get(from..).unwrap_or_default() {
            if stored.image != first.image || stored.page >= end {
                break;
            }
            let skip = first.page.saturating_sub(stored.page);
            let here = end.min(stored.page + pages.pages()) - (stored.page + skip);
            let range = PageRange::new(pages.start() + skip * PAGE_SIZE, here * PAGE_SIZE);
            let Ok(range) = range else { continue };
            let watched = self.watched.pages.read().unwrap_or_else(PoisonError::into_inner);
            for part in watched.within(range) {
                let in_image = stored.page + skip + (part.start() - range.start()) / PAGE_SIZE;
                let at = ((in_image - first.page) * PAGE_SIZE) as usize;
                let data = self.buffer.get(at..at + part.len() as usize).unwrap_or_default();
                let placed = self.place(part, data, Install::Plain)?;
                self.shared.tally.fetched.add(placed);
                self.shared.tally.along.add(placed);
            }
        }
        Ok(())
    }

    /// Puts those of `pages` in place that are missing and were not given back meanwhile; tells how
    /// many.
    fn place(&self, pages: PageRange, data: &[u8], how: Install) -> Result<u64, TierError> {
        let ram = &self.shared.ram;
        // Held until all are in place; see `Watched::emptied`.
        let emptied = self.watched.emptied.read().unwrap_or_else(PoisonError::into_inner);
        let mut placed = 0;
        for part in emptied.outside(pages) {
            let at = (part.start() - pages.start()) as usize;
            let mut data = data.get(at..at + part.len() as usize).unwrap_or_default();
            let mut offset = ram.offset(part)?;
            while !data.is_empty() {
                let done = self.watched.uffd.copy(ram.reservation(), offset, data, how);
                let step = match self.settled(part, done)? {
                    Some(Installed::All) => data.len(),
                    Some(Installed::Part(bytes)) => bytes,
                    Some(Installed::Present) | None => {
                        offset += PAGE_SIZE as usize;
                        data = data.get(PAGE_SIZE as usize..).unwrap_or_default();
                        continue;
                    }
                };
                placed += step as u64 / PAGE_SIZE;
                offset += step;
                data = data.get(step..).unwrap_or_default();
            }
        }
        Ok(placed)
    }

    /// Tells results from failures. Something else may have been laid over the page meanwhile, which
    /// ends the watch (ENOENT): who waits looks again and finds that.
    fn settled(
        &self,
        pages: PageRange,
        done: std::io::Result<Installed>,
    ) -> Result<Option<Installed>, TierError> {
        match done {
            Ok(installed) => Ok(Some(installed)),
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(source) => {
                Err(crate::RamError::Call { what: "install", range: pages, source }.into())
            }
        }
    }

    /// Has waiting threads look again, also those that came after the page was in place.
    fn wake(&self, pages: PageRange) -> Result<(), TierError> {
        let offset = self.shared.ram.offset(pages)?;
        let woken =
            self.watched.uffd.wake(self.shared.ram.reservation(), offset, pages.len() as usize);
        self.settled(pages, woken.map(|()| Installed::All)).map(|_| ())
    }
}

/// The page at `address` as a range.
fn one(address: u64) -> Result<PageRange, TierError> {
    PageRange::new(address, PAGE_SIZE).map_err(|e| TierError::Plan(e.to_string()))
}
