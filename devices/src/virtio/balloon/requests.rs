//! What a balloon does with the requests of each queue.

use virtio_queue::QueueT;
use vm_memory::{Bytes, Le32};

use super::super::buffers::{Buffers, ChainError};
use super::super::{BrokenQueue, Chain, DeviceIo};
use super::control::{CMD_DONE, CMD_STOP};
use super::pages::{self, Extents, Given};
use super::queues::Role;
use super::{Balloon, Part, stats};

impl Balloon {
    /// Gives back the pages that the guest put into the balloon.
    pub(super) fn inflate(&self, chain: Chain, part: Part) -> Result<Given, ChainError> {
        let sent = Buffers::new(chain, part.mem)?.readable;
        pages::discard_numbered(sent, part.mem, &*self.reclaim, part.turn, part.done)
    }

    /// Gives back the free pages that the guest reports by itself.
    pub(super) fn report(&self, chain: Chain, part: Part) -> Result<Given, ChainError> {
        let mut free = Extents::default();
        for desc in pages::descriptors(chain)?.iter().filter(|d| d.is_write_only()) {
            free.push(desc.addr().0, desc.len().into());
        }
        Ok(free.discard(part.mem, &*self.reclaim, part.turn, part.done))
    }

    /// One request of the hinting queue: the id of a run, or free pages, or both in turn.
    pub(super) fn hint(&self, chain: Chain, part: Part) -> Result<Given, ChainError> {
        let Part { mem, turn, done } = part;
        let mut free = Extents::default();
        for desc in pages::descriptors(chain)? {
            let mut control = self.handle.lock();
            let hinting = &mut control.hinting;
            if desc.is_write_only() {
                // Hints of an older run: the guest may be using those pages again.
                if hinting.host_cmd > CMD_DONE && hinting.guest_cmd == Some(hinting.host_cmd) {
                    free.push(desc.addr().0, desc.len().into());
                }
                continue;
            }
            if desc.len() != 4 {
                return Err(ChainError::Short);
            }
            let (address, len) = (desc.addr().0, desc.len());
            let command: Le32 = mem
                .read_obj(desc.addr())
                .map_err(|source| ChainError::Address { address, len, source })?;
            hinting.guest_cmd = Some(command.to_native());
            if command.to_native() == CMD_STOP
                && hinting.acknowledge_on_stop
                && hinting.host_cmd > CMD_DONE
            {
                hinting.host_cmd = CMD_DONE;
                control.config_changed = true;
            }
        }
        Ok(free.discard(mem, &*self.reclaim, turn, done))
    }

    /// Takes the statistics in and leaves the newest buffer where it is: handing it back is how
    /// the device asks for the next ones (virtio 1.2, 5.5.6.3). A held buffer thus needs no state.
    pub(super) fn take_stats(
        &mut self,
        queue: usize,
        io: &mut DeviceIo,
    ) -> Result<(), BrokenQueue> {
        if !io.queues.get(queue).is_some_and(|q| q.ready()) {
            return Ok(());
        }
        let mut held = None;
        let mut budget = io.queues[queue].size();
        loop {
            let Some(chain) = io.pop(queue)? else {
                if io.enable_notification(queue)? {
                    continue;
                }
                break;
            };
            let head = chain.head_index();
            match Buffers::new(chain, io.mem).and_then(|b| stats::parse(b.readable)) {
                Ok(values) => {
                    self.metrics.stats_updates_count.inc();
                    self.handle.lock().stats = values;
                }
                Err(e) => {
                    log::debug!("balloon: malformed statistics: {e}");
                    self.metrics.stats_update_fails.inc();
                }
            }
            if let Some(older) = held.replace(head) {
                io.add_used(queue, older, 0)?;
            }
            budget -= 1;
            if budget == 0 || io.turn.is_over() {
                io.requeue(queue);
                break;
            }
        }
        if held.is_some() {
            io.undo_pop(queue);
        }
        Ok(())
    }

    /// Asks the driver for new statistics, if it has answered the last request.
    pub(super) fn ask_stats(&mut self, io: &mut DeviceIo) -> Result<(), BrokenQueue> {
        let Some(queue) = self.roles.iter().position(|&r| r == Role::Stats) else { return Ok(()) };
        self.take_stats(queue, io)?;
        let Some(chain) = io.pop(queue)? else { return Ok(()) };
        if io.enable_notification(queue)? {
            io.requeue(queue);
        }
        io.add_used(queue, chain.head_index(), 0)?;
        io.signal_used(queue)
    }
}
