//! Waiting for completions by events rather than by looking again and again.
//!
//! UNSAFETY: the safe wrappers leave events out, so the verbs themselves are called, on a queue and
//! a channel that this file owns.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdma_mummy_sys::{ibv_ack_cq_events, ibv_get_cq_event, ibv_req_notify_cq};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use sideway::ibverbs::completion::{
    BasicCompletionQueue, CompletionChannel, CompletionQueue, PollCompletionQueueError,
};

use crate::device::Port;
use crate::error::RdmaError;

/// A completion queue and the channel that tells of it.
#[derive(Debug)]
pub(crate) struct Completions {
    pub queue: Arc<BasicCompletionQueue>,
    channel: Arc<CompletionChannel>,
}

/// A completion: which request, and 0 or what went wrong.
pub(crate) type Completion = (u64, u32);

impl Completions {
    /// A queue for `entries` completions.
    pub fn new(port: &Port, entries: u32) -> Result<Completions, RdmaError> {
        let context = &port.context;
        let channel =
            context.create_comp_channel().map_err(RdmaError::verb("make a completion channel"))?;
        channel.set_nonblocking(true).map_err(RdmaError::verb("make a completion channel"))?;
        let mut builder = context.create_cq_builder();
        builder.setup_cqe(entries).setup_comp_channel(&channel, 0);
        let queue = builder.build().map_err(RdmaError::verb("make a completion queue"))?;
        Ok(Completions { queue, channel })
    }

    /// The completions that are there, at least one; waits for it until `deadline`.
    pub fn wait(&mut self, deadline: Instant) -> Result<Vec<Completion>, RdmaError> {
        let began = Instant::now();
        loop {
            // Asked first: what completes after the look below makes an event.
            self.ask()?;
            let found = self.take()?;
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

    fn take(&mut self) -> Result<Vec<Completion>, RdmaError> {
        match self.queue.start_poll() {
            Ok(found) => Ok(found.map(|c| (c.wr_id(), c.status())).collect()),
            Err(PollCompletionQueueError::CompletionQueueEmpty) => Ok(Vec::new()),
            Err(e) => Err(RdmaError::verb("look for completions")(e)),
        }
    }

    fn ask(&mut self) -> Result<(), RdmaError> {
        // SAFETY: the queue lives as long as `self`.
        match unsafe { ibv_req_notify_cq(self.queue.cq().as_ptr(), 0) } {
            0 => Ok(()),
            _ => Err(RdmaError::last("ask for an event")),
        }
    }

    /// Sleeps until an event comes, and takes it.
    fn sleep(&mut self, left: Duration) -> Result<(), RdmaError> {
        // SAFETY: the descriptor is the channel's, which lives as long as `self`.
        let fd = unsafe { BorrowedFd::borrow_raw(self.channel.as_raw_fd()) };
        let limit = Timespec::try_from(left).ok();
        match poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)], limit.as_ref()) {
            Ok(0) | Err(rustix::io::Errno::INTR) => return Ok(()),
            Ok(_) => {}
            Err(e) => return Err(RdmaError::verb("wait for an event")(std::io::Error::from(e))),
        }
        let (mut queue, mut context) = (std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: the channel lives as long as `self`, and both pointers are valid to write to.
        let taken = unsafe {
            ibv_get_cq_event(self.channel.comp_channel().as_ptr(), &mut queue, &mut context)
        };
        if taken == 0 {
            // At once: a queue with events that are not acknowledged cannot be destroyed.
            // SAFETY: the event's queue is the only one of this channel, which lives.
            unsafe { ibv_ack_cq_events(queue, 1) };
        }
        Ok(())
    }
}
