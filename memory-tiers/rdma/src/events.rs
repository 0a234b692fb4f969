//! Waiting for completions by events rather than by looking again and again.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::device::Port;
use crate::error::RdmaError;
use crate::verbs::{Completion, CompletionQueue};

/// A completion queue that is waited for.
#[derive(Debug)]
pub(crate) struct Completions {
    pub queue: Arc<CompletionQueue>,
}

impl Completions {
    /// A queue for `entries` completions.
    pub fn new(port: &Port, entries: u32) -> Result<Completions, RdmaError> {
        let queue = CompletionQueue::new(&port.context, entries)
            .map_err(RdmaError::verb("make a completion queue"))?;
        Ok(Completions { queue: Arc::new(queue) })
    }

    /// The completions that are there, at least one; waits for it until `deadline`.
    pub fn wait(&mut self, deadline: Instant) -> Result<Vec<Completion>, RdmaError> {
        let began = Instant::now();
        loop {
            // Asked first: what completes after the look below makes an event.
            self.queue.ask().map_err(RdmaError::verb("ask for an event"))?;
            let found = self.queue.take().map_err(RdmaError::verb("look for completions"))?;
            if !found.is_empty() {
                return Ok(found);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(RdmaError::Silent(deadline.saturating_duration_since(began)));
            }
            self.sleep(left)?;
        }
    }

    /// Sleeps until an event comes, and takes it.
    fn sleep(&mut self, left: Duration) -> Result<(), RdmaError> {
        let what = "wait for an event";
        let limit = Timespec::try_from(left).ok();
        let events = self.queue.events();
        match poll(&mut [PollFd::from_borrowed_fd(events, PollFlags::IN)], limit.as_ref()) {
            Ok(0) | Err(Errno::INTR) => Ok(()),
            Ok(_) => self.queue.take_event().map_err(RdmaError::verb(what)),
            Err(e) => Err(RdmaError::verb(what)(io::Error::from(e))),
        }
    }
}
