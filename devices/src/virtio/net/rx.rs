//! Frames from the tap to the guest.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::os::fd::AsFd;

use virtio_queue::QueueT;

use super::super::buffers::{Buffers, ChainError, Run, Slice};
use super::super::{BrokenQueue, DeviceIo, iov};
use super::detour::write_frame;
use super::{HEADER, MAX_FRAME, Net, RX};

/// Frames of one turn; then other devices have theirs.
const TURN: usize = 256;
/// Offset of `num_buffers` in a frame's header (virtio 1.2, 5.1.6).
const NUM_BUFFERS: usize = 10;

/// Chains that were popped for the next frames. They are consecutive in the ring: what is left of
/// them at the end is given back by position.
#[derive(Default)]
struct Taken<'a> {
    chains: VecDeque<(u16, Run<'a>)>,
    bytes: usize,
    pieces: usize,
    /// A malformed chain stands behind the last one.
    closed: bool,
}

impl Net {
    /// Delivers frames until the tap has none, or the guest has no more buffers for them.
    pub(super) fn receive(&mut self, io: &mut DeviceIo) -> Result<(), BrokenQueue> {
        if !io.queues[RX].ready() {
            return Ok(());
        }
        let since = io.queues[RX].next_used();
        let mut taken = Taken::default();
        let result = self.deliver_all(io, &mut taken);
        taken.chains.iter().for_each(|_| io.undo_pop(RX));
        if io.queues[RX].next_used() != since {
            io.signal_used_since(RX, since)?;
        }
        result
    }

    fn deliver_all<'a>(
        &mut self,
        io: &mut DeviceIo<'a>,
        taken: &mut Taken<'a>,
    ) -> Result<(), BrokenQueue> {
        for _ in 0..TURN {
            if io.turn.is_over() {
                break;
            }
            // How long the next frame is shows when it has been read: it goes if anything may, and
            // what the limiter lacks for it holds up the ones behind it.
            if !self.rx_limiter.admits(1) {
                self.metrics.rx_rate_limiter_throttled.inc();
                return Ok(());
            }
            if !self.gather(io, taken)? {
                // Others' turn: what was popped is given back, and the turn goes on with it.
                if io.turn.is_over() {
                    break;
                }
                self.metrics.no_rx_avail_buffer.inc();
                return Ok(());
            }
            let pieces: Vec<&Slice> = taken.pieces().collect();
            let room: usize = pieces.iter().map(|p| p.len()).sum();
            // What the detour has goes first: it is little, and it is here.
            if let Some(frame) = self.diverted() {
                if write_frame(&pieces, room, &frame) {
                    io.turn.bytes((HEADER + frame.len()) as u64);
                    self.rx_limiter.charge((HEADER + frame.len()) as u64);
                    self.deliver(io, taken, HEADER + frame.len())?;
                } else {
                    let id = &self.config.id;
                    log::debug!("net {id:?}: a frame larger than {room} bytes is dropped");
                }
                continue;
            }
            match iov::read_packet(self.tap.as_fd(), &pieces) {
                Ok(len) if (HEADER..=room).contains(&len) => {
                    io.turn.bytes(len as u64);
                    self.rx_limiter.charge(len as u64);
                    self.deliver(io, taken, len)?;
                }
                Ok(_) => {
                    let id = &self.config.id;
                    log::debug!("net {id:?}: a frame larger than {room} bytes is dropped");
                    self.metrics.rx_fails.inc();
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(e) => {
                    self.metrics.tap_read_fails.inc();
                    // The interface was removed. No spin: the tap is edge-triggered. Said once: the
                    // guest decides how often it is tried.
                    if !std::mem::replace(&mut self.lost, true) {
                        log::error!("net {:?}: tap {:?}: {e}", self.config.id, self.config.tap);
                    }
                    return Ok(());
                }
            }
        }
        io.requeue(RX);
        Ok(())
    }

    /// Pops chains until there is room for any frame; `false` if the guest has to give more.
    fn gather<'a>(
        &self,
        io: &mut DeviceIo<'a>,
        taken: &mut Taken<'a>,
    ) -> Result<bool, BrokenQueue> {
        // Buffers this small fill the ring without ever being enough: then better a frame that is
        // dropped as too large now and then than none at all.
        let many = usize::from(io.queues[RX].size() / 4).max(1);
        while !taken.enough(self.mergeable, many) {
            if io.turn.is_over() {
                // The frame makes do with what there is, so that each turn gets on.
                taken.closed = !taken.chains.is_empty();
                return Ok(taken.closed);
            }
            let Some(chain) = io.pop(RX)? else {
                // Asked for before the chains go back, so that the next new one is notified.
                if io.enable_notification(RX)? {
                    continue;
                }
                return Ok(false);
            };
            let head = chain.head_index();
            let buffers = Buffers::new(chain, io.mem).and_then(|buffers| {
                let fits = buffers.writable.len() >= HEADER && buffers.readable.is_empty();
                if fits { Ok(buffers.writable) } else { Err(ChainError::Short) }
            });
            match buffers {
                Ok(run) => taken.push(head, run),
                Err(e) if taken.chains.is_empty() => {
                    log::debug!("net {:?}: malformed receive buffer: {e}", self.config.id);
                    self.metrics.rx_fails.inc();
                    io.add_used(RX, head, 0)?;
                }
                Err(_) => {
                    io.undo_pop(RX);
                    taken.closed = true;
                }
            }
        }
        Ok(true)
    }

    /// Hands a frame of `len` bytes, which lies in the first of `taken`, to the driver.
    fn deliver(&self, io: &mut DeviceIo, taken: &mut Taken, len: usize) -> Result<(), BrokenQueue> {
        let mut used = Vec::new();
        let mut header = None;
        let mut left = len;
        while left > 0 {
            let Some((head, run)) = taken.pop() else { break };
            let here = run.len().min(left);
            used.push((head, here as u32));
            header.get_or_insert(run);
            left -= here;
        }
        // The kernel leaves it as it was. It counts without merged buffers too (5.1.6.4).
        let count = (used.len() as u16).to_le_bytes();
        let written = header
            .ok_or(ChainError::Empty)
            .and_then(|mut run| run.take(NUM_BUFFERS).and_then(|_| run.write_all(&count)));
        if let Err(e) = written {
            log::error!("net {:?}: header of a frame: {e}", self.config.id);
        }
        self.metrics.rx_count.inc();
        self.metrics.rx_packets_count.inc();
        self.metrics.rx_bytes_count.add((len - HEADER) as u64);
        io.add_used_together(RX, &used)
    }
}

impl<'a> Taken<'a> {
    /// Whether the next frame may be read. If it can be merged from several chains, `many` of them
    /// are enough whatever they hold.
    fn enough(&self, mergeable: bool, many: usize) -> bool {
        !self.chains.is_empty()
            && (!mergeable
                || self.bytes >= MAX_FRAME
                || self.pieces >= iov::MAX_PIECES - 1
                || self.chains.len() >= many
                || self.closed)
    }

    fn push(&mut self, head: u16, run: Run<'a>) {
        self.bytes += run.len();
        self.pieces += run.slices().len();
        self.chains.push_back((head, run));
    }

    fn pop(&mut self) -> Option<(u16, Run<'a>)> {
        let (head, run) = self.chains.pop_front()?;
        self.bytes -= run.len();
        self.pieces -= run.slices().len();
        if self.chains.is_empty() {
            self.closed = false;
        }
        Some((head, run))
    }

    /// The pieces of memory that the next frame goes to, as many as one call takes.
    fn pieces(&self) -> impl Iterator<Item = &Slice<'a>> {
        self.chains.iter().flat_map(|(_, run)| run.slices()).take(iov::MAX_PIECES - 1)
    }
}
