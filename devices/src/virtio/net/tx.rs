//! Frames from the guest to the tap.

use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::time::Instant;

use virtio_queue::QueueT;

use super::super::buffers::{Buffers, Run};
use super::super::{BrokenQueue, DeviceIo, iov};
use super::{HEADER, MAX_FRAME, Net, TX};

/// Frames of one turn; then other devices have theirs.
const TURN: usize = 256;
/// Bytes of an Ethernet header, which every frame has.
const ETHERNET: usize = 14;

impl Net {
    /// Sends what the guest has queued, until the tap takes no more; what went past the tap may have
    /// an answer at once.
    pub(super) fn transmit(&mut self, io: &mut DeviceIo) -> Result<(), BrokenQueue> {
        if !io.queues[TX].ready() {
            return Ok(());
        }
        self.blocked = false;
        let since = io.queues[TX].next_used();
        let result = self.send_all(io);
        if io.queues[TX].next_used() != since {
            io.signal_used(TX)?;
        } else if !self.blocked && !self.tx_limiter.waits() {
            self.metrics.no_tx_avail_buffer.inc();
        }
        result?;
        self.answer(io)
    }

    fn send_all(&mut self, io: &mut DeviceIo) -> Result<(), BrokenQueue> {
        for _ in 0..TURN {
            if self.tx_limiter.waits() {
                return Ok(());
            }
            let Some(chain) = io.pop(TX)? else {
                if io.enable_notification(TX)? {
                    continue;
                }
                return Ok(());
            };
            let head = chain.head_index();
            match Buffers::new(chain, io.mem) {
                Ok(buffers) if !self.tx_limiter.admits(buffers.readable.len() as u64) => {
                    // Comes again when the limiter's timer says so.
                    self.metrics.tx_rate_limiter_throttled.inc();
                    io.undo_pop(TX);
                    return Ok(());
                }
                Ok(buffers) if self.diverts(&buffers.readable) => {
                    io.turn.bytes(buffers.readable.len() as u64);
                    self.tx_limiter.charge(buffers.readable.len() as u64);
                }
                Ok(buffers) if !self.send(&buffers.readable) => {
                    // Comes again when there is room, or when the guest queues more.
                    io.undo_pop(TX);
                    self.blocked = true;
                    // Being asked anew is what makes the tap tell when there is room.
                    self.rearm();
                    return Ok(());
                }
                Ok(buffers) => {
                    // One that is too long is dropped without a look at its bytes.
                    io.turn.bytes(buffers.readable.len().min(MAX_FRAME) as u64);
                    self.tx_limiter.charge(buffers.readable.len() as u64);
                }
                Err(e) => {
                    log::debug!("net {:?}: malformed frame: {e}", self.config.id);
                    self.metrics.tx_malformed_frames.inc();
                }
            }
            io.add_used(TX, head, 0)?;
            if io.turn.is_over() {
                break;
            }
        }
        io.requeue(TX);
        Ok(())
    }

    /// Sends or drops one frame; `false` if the tap has no room for it now.
    fn send(&self, frame: &Run) -> bool {
        let sound = (HEADER + ETHERNET..=MAX_FRAME).contains(&frame.len())
            && frame.slices().len() <= iov::MAX_PIECES;
        if !sound {
            let (id, len) = (&self.config.id, frame.len());
            log::debug!("net {id:?}: a frame of {len} bytes with its header is dropped");
            self.metrics.tx_malformed_frames.inc();
            return true;
        }
        let start = Instant::now();
        loop {
            return match iov::write(self.tap.as_fd(), frame) {
                Ok(_) => {
                    self.metrics.tap_write_agg.record_since(start);
                    self.metrics.tx_count.inc();
                    self.metrics.tx_packets_count.inc();
                    self.metrics.tx_bytes_count.add((frame.len() - HEADER) as u64);
                    true
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Err(e) if e.kind() == ErrorKind::WouldBlock => false,
                Err(e) => {
                    // The interface is down, or the header makes no sense.
                    log::debug!("net {:?}: frame dropped: {e}", self.config.id);
                    self.metrics.tap_write_fails.inc();
                    self.metrics.tx_fails.inc();
                    true
                }
            };
        }
    }
}
