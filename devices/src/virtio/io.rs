//! What a device may touch while it handles an event: memory, its queues, its interrupt.

use std::sync::atomic::Ordering;

use virtio_queue::desc::split::Descriptor;
use virtio_queue::{DescriptorChain, Error, Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::BrokenQueue;
use super::turn::{MAX_CHAIN, Turn};
use crate::interrupt::{STATUS_CONFIG, STATUS_USED, VirtioInterrupt};
use crate::memory::DeviceMemory;

/// A descriptor chain over the guest's memory. One of more than `MAX_CHAIN` descriptors is cut.
#[derive(Debug)]
pub struct Chain<'a> {
    inner: DescriptorChain<&'a DeviceMemory>,
    turn: &'a Turn,
    seen: u32,
}

impl Chain<'_> {
    /// Index of its first descriptor, by which it is handed back.
    pub fn head_index(&self) -> u16 {
        self.inner.head_index()
    }
}

impl Iterator for Chain<'_> {
    type Item = Descriptor;

    fn next(&mut self) -> Option<Descriptor> {
        if self.seen == MAX_CHAIN {
            return None;
        }
        self.seen += 1;
        self.turn.descriptor();
        self.inner.next()
    }
}

/// What became of a chain in [`DeviceIo::drain`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Done {
    /// It goes back to the driver; so many bytes were written into it.
    Used(u32),
    /// It stays in the ring until the device calls again.
    Waits,
    /// It stays in the ring, and the rest of it is done in the next turn.
    InPart,
}

impl From<u32> for Done {
    fn from(written: u32) -> Done {
        Done::Used(written)
    }
}

/// A device's view of the machine during one call.
pub struct DeviceIo<'a> {
    /// Guest memory.
    pub mem: &'a DeviceMemory,
    /// The device's queues, by index. A queue that the driver did not set up is not ready.
    pub queues: &'a mut [Queue],
    /// The device's interrupt.
    pub interrupt: &'a VirtioInterrupt,
    /// What was done in this turn.
    pub turn: &'a Turn,
    /// Queues to be called for again, as a bit set; see [`DeviceIo::requeue`].
    pub(super) again: u64,
    /// The configuration space changed; see [`DeviceIo::signal_config`].
    pub(super) config_changed: bool,
}

impl<'a> DeviceIo<'a> {
    pub(super) fn new(
        mem: &'a DeviceMemory,
        queues: &'a mut [Queue],
        interrupt: &'a VirtioInterrupt,
        turn: &'a Turn,
    ) -> DeviceIo<'a> {
        DeviceIo { mem, queues, interrupt, turn, again: 0, config_changed: false }
    }

    /// Asks for another queue event for `queue` after the other devices had their turn.
    pub fn requeue(&mut self, queue: usize) {
        self.again |= 1u64.checked_shl(queue as u32).unwrap_or(0);
    }

    /// The next chain that the driver made available on `queue`, if any.
    ///
    /// A queue that is not set up has none. An error means that the available ring lies (its index
    /// is ahead by more than the queue holds) or is outside of memory.
    pub fn pop(&mut self, queue: usize) -> Result<Option<Chain<'a>>, BrokenQueue> {
        let mem = self.mem;
        let Some(q) = self.queues.get_mut(queue).filter(|q| q.ready()) else { return Ok(None) };
        match q.iter(mem) {
            Ok(mut iter) => Ok(iter.next().map(|inner| Chain { inner, turn: self.turn, seen: 0 })),
            Err(cause) => Err(BrokenQueue { queue, cause }),
        }
    }

    /// Gives the last popped chain back unused: the next [`DeviceIo::pop`] returns it again.
    pub fn undo_pop(&mut self, queue: usize) {
        self.queues[queue].go_to_previous_position();
    }

    /// Hands chain `head` back to the driver, `written` bytes into it.
    pub fn add_used(&mut self, queue: usize, head: u16, written: u32) -> Result<(), BrokenQueue> {
        self.queues[queue]
            .add_used(self.mem, head, written)
            .map_err(|cause| BrokenQueue { queue, cause })
    }

    /// Hands several chains back at once, each with the bytes written into it: the driver sees all
    /// of them or none. They are followed by [`DeviceIo::signal_used_since`].
    pub fn add_used_together(
        &mut self,
        queue: usize,
        chains: &[(u16, u32)],
    ) -> Result<(), BrokenQueue> {
        let Some((&(head, written), before)) = chains.split_last() else { return Ok(()) };
        let broken = |cause| BrokenQueue { queue, cause };
        let q = &mut self.queues[queue];
        for &(head, written) in before {
            if head >= q.size() {
                return Err(broken(Error::InvalidDescriptorIndex));
            }
            // An element of the used ring behind its flags and index (virtio 1.2, 2.7.8). What
            // the index does not cover yet is not the driver's.
            let slot = 4 + 8 * u64::from(q.next_used() % q.size());
            let address = q.used_ring().checked_add(slot).ok_or(broken(Error::AddressOverflow))?;
            let mut element = [0; 8];
            element[..4].copy_from_slice(&u32::from(head).to_le_bytes());
            element[4..].copy_from_slice(&written.to_le_bytes());
            self.mem
                .write_slice(&element, GuestAddress(address))
                .map_err(|e| broken(Error::GuestMemory(e)))?;
            q.set_next_used(q.next_used().wrapping_add(1));
        }
        q.add_used(self.mem, head, written).map_err(broken)
    }

    /// Like [`DeviceIo::signal_used`], where the used index was `since` at the last signal.
    pub fn signal_used_since(&mut self, queue: usize, since: u16) -> Result<(), BrokenQueue> {
        let broken = |cause| BrokenQueue { queue, cause };
        let q = &mut self.queues[queue];
        // The queue counts what went through its own `add_used` only.
        let mut needed = q.needs_notification(self.mem).map_err(broken)?;
        if q.event_idx_enabled() {
            // `used_event` stands behind the available ring (virtio 1.2, 2.7.7).
            let slot = 4 + 2 * u64::from(q.size());
            let address = q.avail_ring().checked_add(slot).ok_or(broken(Error::AddressOverflow))?;
            let used_event: u16 = self
                .mem
                .load(GuestAddress(address), Ordering::Relaxed)
                .map(u16::from_le)
                .map_err(|e| broken(Error::GuestMemory(e)))?;
            let now = q.next_used();
            needed |= now.wrapping_sub(used_event).wrapping_sub(1) < now.wrapping_sub(since);
        }
        if needed {
            self.interrupt.raise(STATUS_USED);
        }
        Ok(())
    }

    /// Asks the driver to notify when it makes more available on `queue` than was popped; whether
    /// there is more by now, so that no notification will come for it.
    ///
    /// What is given back by [`DeviceIo::undo_pop`] afterwards does not count: no notification
    /// comes until the driver adds something.
    pub fn enable_notification(&mut self, queue: usize) -> Result<bool, BrokenQueue> {
        self.queues[queue]
            .enable_notification(self.mem)
            .map_err(|cause| BrokenQueue { queue, cause })
    }

    /// Interrupts the driver for what was handed back on `queue`, unless it asked not to be.
    pub fn signal_used(&mut self, queue: usize) -> Result<(), BrokenQueue> {
        let needed = self.queues[queue]
            .needs_notification(self.mem)
            .map_err(|cause| BrokenQueue { queue, cause })?;
        if needed {
            self.interrupt.raise(STATUS_USED);
        }
        Ok(())
    }

    /// Takes all chains of `queue`, one by one, through `handle`, which returns how many bytes it
    /// wrote into the chain; then interrupts the driver once.
    ///
    /// A handler may leave the chain in its place in the ring ([`Done::Waits`]): the device calls
    /// again when it can go on, and until then it asks for no notifications.
    ///
    /// Notifications are off while it works and it looks once more after they are on again, so
    /// that none is lost and a busy driver does not exit for each buffer. It ends when the ring is
    /// empty; a driver that refills it faster than it is worked through, or asks for much, is served
    /// in portions (`turn.rs`), so that one guest queue never holds the event loop.
    pub fn drain<D: Into<Done>>(
        &mut self,
        queue: usize,
        mut handle: impl FnMut(Chain<'a>, &'a DeviceMemory) -> D,
    ) -> Result<(), BrokenQueue> {
        if !self.queues.get(queue).is_some_and(|q| q.ready()) {
            return Ok(());
        }
        let mem = self.mem;
        let broken = |cause| BrokenQueue { queue, cause };
        let mut budget = usize::from(self.queues[queue].size()) * 2;
        let mut used = false;
        'rounds: loop {
            self.queues[queue].disable_notification(mem).map_err(broken)?;
            while let Some(chain) = self.pop(queue)? {
                let head = chain.head_index();
                match handle(chain, mem).into() {
                    Done::Used(written) => self.add_used(queue, head, written)?,
                    Done::Waits => {
                        self.undo_pop(queue);
                        break 'rounds;
                    }
                    Done::InPart => {
                        self.undo_pop(queue);
                        self.requeue(queue);
                        break 'rounds;
                    }
                }
                used = true;
                budget = budget.saturating_sub(1);
                if budget == 0 || self.turn.is_over() {
                    self.requeue(queue);
                    self.queues[queue].enable_notification(mem).map_err(broken)?;
                    break 'rounds;
                }
            }
            if !self.queues[queue].enable_notification(mem).map_err(broken)? {
                break;
            }
        }
        if used {
            self.signal_used(queue)?;
        }
        Ok(())
    }

    /// Tells the driver that the configuration space changed; its generation changes with it
    /// (virtio 1.2, 2.5.2).
    pub fn signal_config(&mut self) {
        self.config_changed = true;
        self.interrupt.raise(STATUS_CONFIG);
    }
}
