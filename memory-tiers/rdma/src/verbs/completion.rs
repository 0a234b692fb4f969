//! Completion queues, and the channels that tell of them.
//!
//! UNSAFETY: calls of the library on objects that live as long as their values.
#![allow(unsafe_code)]

use std::ffi::c_int;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr;
use std::sync::Arc;

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

use super::abi;
use super::context::Context;
use super::handle::{Handle, answered};

/// Completions that are taken at a time.
const BATCH: usize = 32;

/// A completion: which request, and 0 or what went wrong.
pub(crate) type Completion = (u64, u32);

/// A channel for the events of one queue. Taking an event from it does not wait.
#[derive(Debug)]
struct Channel {
    raw: Handle<abi::Channel>,
    descriptor: c_int,
    context: Arc<Context>,
}

impl Channel {
    fn new(context: &Arc<Context>) -> io::Result<Channel> {
        let create = context.library().ibv_create_comp_channel;
        // SAFETY: the context is open.
        let raw = Handle::new(unsafe { create(context.raw()) })?;
        // SAFETY: the channel was just made.
        let descriptor = unsafe { (*raw.raw()).fd };
        // From here on it is given back.
        let channel = Channel { raw, descriptor, context: context.clone() };
        if descriptor < 0 {
            return Err(io::Error::other("a channel without a descriptor"));
        }
        let flags = fcntl_getfl(&channel)?;
        fcntl_setfl(&channel, flags | OFlags::NONBLOCK)?;
        Ok(channel)
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is the channel's, which is not closed before the borrow ends; a
        // channel with a number below 0 never leaves `new`.
        unsafe { BorrowedFd::borrow_raw(self.descriptor) }
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        // SAFETY: the channel is there; its queue, if any, is gone.
        unsafe { (self.context.library().ibv_destroy_comp_channel)(self.raw.raw()) };
    }
}

/// A completion queue, with a channel of its own.
#[derive(Debug)]
pub(crate) struct CompletionQueue {
    raw: Handle<abi::Cq>,
    channel: Channel,
}

impl CompletionQueue {
    /// A queue for `entries` completions.
    pub fn new(context: &Arc<Context>, entries: u32) -> io::Result<CompletionQueue> {
        let entries = c_int::try_from(entries).map_err(io::Error::other)?;
        let channel = Channel::new(context)?;
        let create = context.library().ibv_create_cq;
        // SAFETY: the context is open, the channel is one of its, and completion vector 0 is always
        // there. There is nothing that events should name.
        let raw = Handle::new(unsafe {
            create(context.raw(), entries, ptr::null_mut(), channel.raw.raw(), 0)
        })?;
        Ok(CompletionQueue { raw, channel })
    }

    /// What becomes readable with an event.
    pub fn events(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }

    /// Has the next completion make an event.
    pub fn ask(&self) -> io::Result<()> {
        let ask = self.context().req_notify_cq()?;
        // SAFETY: the queue is there, and of the device whose function it is.
        answered(unsafe { ask(self.raw(), 0) })
    }

    /// Takes an event, if there is one.
    pub fn take_event(&self) -> io::Result<()> {
        let library = self.context().library();
        let (mut queue, mut context) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: the channel is there, and both pointers can be written.
        let taken =
            unsafe { (library.ibv_get_cq_event)(self.channel.raw.raw(), &mut queue, &mut context) };
        if taken != 0 {
            // This one gives -1, and sets errno.
            let error = io::Error::last_os_error();
            return match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(()),
                _ => Err(error),
            };
        }
        // At once: a queue with events that are not acknowledged cannot be destroyed.
        // SAFETY: the queue is there, and the event is its own: no other has this channel.
        unsafe { (library.ibv_ack_cq_events)(self.raw(), 1) };
        Ok(())
    }

    /// Takes completions, as many as are there, up to a number.
    pub fn take(&self) -> io::Result<Vec<Completion>> {
        let poll = self.context().poll_cq()?;
        let mut found = [abi::Wc::default(); BATCH];
        // SAFETY: the queue is there, and of the device whose function it is; `found` has room for
        // so many completions.
        let count = unsafe { poll(self.raw(), BATCH as c_int, found.as_mut_ptr()) };
        let count = usize::try_from(count)
            .map_err(|_| io::Error::other(format!("a completion queue that answers {count}")))?;
        Ok(found
            .iter()
            .take(count)
            .map(|completion| (completion.wr_id, completion.status))
            .collect())
    }

    /// Its device.
    pub(super) fn context(&self) -> &Arc<Context> {
        &self.channel.context
    }

    /// Its address for the library.
    pub(super) fn raw(&self) -> *mut abi::Cq {
        self.raw.raw()
    }
}

impl Drop for CompletionQueue {
    fn drop(&mut self) {
        // SAFETY: the queue is there, all its events are acknowledged, and all queue pairs that use
        // it hold it, and so are gone. Its channel is dropped after it.
        unsafe { (self.context().library().ibv_destroy_cq)(self.raw()) };
    }
}
