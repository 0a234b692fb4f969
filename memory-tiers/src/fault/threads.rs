//! Threads that answer for pages that are missing, in memory of this process or of another.
//!
//! They never touch that memory themselves, for they would wait for their own answer. A page that
//! cannot be had stays missing and its threads stay waiting, while the machine is told to end.
//!
//! One thread at a time waits for events; it takes one and leaves its place to the next. All threads
//! but one may be waiting for pages that are far: the last one has them wait in a queue, so that a
//! slow tier delays its own pages only.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

use crate::error::TierError;
use crate::fault::answer::{FaultContext, FaultHandler};
use crate::fault::watchdog::{Pending, lock, watch_deadlines};
use crate::ram::error::RamError;
use crate::ram::sys::uffd::Fault;
use crate::ram::threads::spawn;

/// The threads. They end when this is dropped; the descriptor stays open with the memory.
pub(crate) struct FaultThreads {
    threads: Vec<(JoinHandle<()>, Arc<Pending>)>,
    stop: Arc<OwnedFd>,
}

impl FaultThreads {
    /// Starts answering, by so many threads.
    pub fn start(context: FaultContext, threads: usize) -> Result<FaultThreads, TierError> {
        let stop = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|e| RamError::Thread(e.into()))?;
        let stop = Arc::new(stop);
        let context = Arc::new(context);
        let work = Arc::new(Work::new(threads));
        let mut started = FaultThreads { threads: Vec::new(), stop: stop.clone() };
        for _ in 0..threads.max(1) {
            let pending = Arc::new(Pending::default());
            let mut handler = FaultHandler::new(context.clone(), work.clone(), pending.clone());
            let stop = stop.clone();
            let run = move || {
                let _end = EndTogether;
                run(&mut handler, &stop);
            };
            started.threads.push((spawn("faults", run)?, pending));
        }
        let pending: Vec<_> = started.threads.iter().map(|(_, pending)| pending.clone()).collect();
        let run = move || watch_deadlines(&context, &pending, &stop);
        started.threads.push((spawn("deadlines", run)?, Arc::default()));
        Ok(started)
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

/// Faults that were read and not answered yet.
#[derive(Debug, Default)]
pub(crate) struct Work {
    /// Held by the thread that waits for events.
    turn: Mutex<()>,
    queues: Mutex<Queues>,
    /// Most threads that may wait for far pages at once.
    most_far: usize,
}

#[derive(Debug, Default)]
struct Queues {
    /// Read along, while something else was done.
    read: VecDeque<Fault>,
    /// Pages that are far, for which no thread was free.
    far: VecDeque<Fault>,
    /// Threads that wait for far pages.
    waiting: usize,
}

impl Work {
    fn new(threads: usize) -> Work {
        Work { most_far: threads.saturating_sub(1).max(1), ..Work::default() }
    }

    /// Whether this thread may now wait for the far page of `fault`; if not, another one will. Who
    /// may has to ask for the [`Work::next_far`] afterwards.
    pub fn may_wait(&self, fault: Fault) -> bool {
        let mut queues = lock(&self.queues);
        let may = queues.waiting < self.most_far;
        if may {
            queues.waiting += 1;
        } else {
            queues.far.push_back(fault);
        }
        may
    }

    /// The next fault for a thread that has waited for a far page; none: it is free again.
    pub fn next_far(&self) -> Option<Fault> {
        let mut queues = lock(&self.queues);
        let next = queues.far.pop_front();
        if next.is_none() {
            queues.waiting -= 1;
        }
        next
    }

    /// Reads an event that may hold up what the caller does, unless another thread does so.
    pub fn make_way(&self, context: &FaultContext) -> Result<(), TierError> {
        match self.turn.try_lock() {
            Ok(_turn) => {
                let fault = context.watched.next(&context.regions).map_err(failed)?;
                lock(&self.queues).read.extend(fault);
            }
            Err(_) => std::thread::yield_now(),
        }
        Ok(())
    }

    /// Waits for the next fault; none: it is time to end.
    fn next(&self, context: &FaultContext, stop: &OwnedFd) -> Result<Option<Fault>, TierError> {
        let _turn = lock(&self.turn);
        loop {
            if let Some(fault) = lock(&self.queues).read.pop_front() {
                return Ok(Some(fault));
            }
            let uffd = context.watched.uffd.as_fd();
            let mut fds =
                [PollFd::from_borrowed_fd(uffd, PollFlags::IN), PollFd::new(stop, PollFlags::IN)];
            match poll(&mut fds, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(failed(e.into())),
            }
            if !fds[1].revents().is_empty() {
                return Ok(None);
            }
            if let Some(fault) = context.watched.next(&context.regions).map_err(failed)? {
                return Ok(Some(fault));
            }
        }
    }
}

fn failed(source: std::io::Error) -> TierError {
    TierError::Fault { address: 0, source }
}

fn run(handler: &mut FaultHandler, stop: &OwnedFd) {
    loop {
        match handler.work.next(&handler.context, stop) {
            Ok(Some(fault)) => handler.answer(fault),
            Ok(None) => return,
            Err(error) => return (handler.context.on_fatal)(error),
        }
    }
}
