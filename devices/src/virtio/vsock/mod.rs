//! virtio-vsock (virtio 1.2, 5.10), bridged to unix sockets of the host as Firecracker does it.
//!
//! - A host program connects to `uds_path`, sends `CONNECT <port>\n`, and gets `OK <host port>\n`
//!   once a program of the guest has accepted on that port; then bytes flow. It is hung up on if
//!   none does.
//! - A program of the guest that connects to context id 2 (the host) and port P reaches the host
//!   program that listens on `<uds_path>_<P>`; it is refused if none does.
//!
//! ```text
//!  rx, tx, event queues <── mod.rs: buffers, reset event, saved state
//!        │ packet.rs: headers
//!     muxer.rs: which stream ──── poller.rs: one epoll for all sockets and deadlines
//!        │                 ├───── endpoint.rs: uds_path, greeting, calls to <uds_path>_<P>
//!        │                 └───── callers.rs: host programs that have not named a port
//!     connection.rs: one stream's life ── credit.rs, outbox.rs
//! ```
//!
//! Data is read from a socket straight into the guest's buffer and written from the guest's
//! memory straight to the socket; only what the socket does not take waits in the device, up to
//! the credit that the guest was given. Half-closed streams stay open the other way. A write to a
//! socket that nobody reads must not end the process: the monitor ignores SIGPIPE, as Rust programs
//! do from the start.
//!
//! **Snapshots.** Streams do not survive a restore, listeners of the guest do: the restored device
//! sends the guest a transport reset event (virtio 1.2, 5.10.6.7) and has nothing else for it until
//! the guest has taken that; otherwise the guest would reset the first new stream, too. Host programs
//! that call meanwhile wait.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use event_manager::EventSet;
use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_ids::VIRTIO_ID_VSOCK;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::QueueT;

use self::endpoint::Endpoint;
use self::muxer::Muxer;
use self::packet::{HEADER_LEN, HOST_CID, Header};
use super::buffers::{Buffers, ChainError};
use super::{BrokenQueue, Chain, DeviceIo, Failure, Source, Turn, VirtioDevice, read_config_bytes};
use crate::memory::DeviceMemory;
use crate::metrics::VsockMetrics;
use crate::state::{self, Savable, StateError};

mod callers;
mod connection;
mod credit;
mod endpoint;
mod error;
mod muxer;
mod outbox;
mod packet;
mod poller;

pub use error::VsockError;

/// Feature bit: streams are on offer (virtio 1.2, 5.10.3).
const VIRTIO_VSOCK_F_STREAM: u64 = 0;
/// Event id: all streams are gone (virtio 1.2, 5.10.6.7).
const TRANSPORT_RESET: u32 = 0;

const RX: usize = 0;
const TX: usize = 1;
const EVENT: usize = 2;
const QUEUE_SIZES: [u16; 3] = [256, 256, 64];

const VERSION: u32 = 1;

/// How long a driver may take to give the buffer of a reset event back. A guest whose pages come from
/// far takes seconds for its first steps.
const RESET_TIME: Duration = Duration::from_secs(if cfg!(test) { 4 } else { 10 });

/// What the user asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VsockConfig {
    /// The guest's context id, from 3 to 4294967294.
    pub guest_cid: u32,
    /// Where host programs connect; nothing may be there yet. Sockets that the guest reaches are
    /// named after it.
    pub uds_path: PathBuf,
}

/// A vsock device.
pub struct Vsock {
    guest_cid: u32,
    muxer: Muxer,
    active: bool,
    reset: Reset,
    metrics: Arc<VsockMetrics>,
}

/// How far the guest knows that a restore has cut its streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reset {
    /// There is nothing to know.
    Settled,
    /// It must be told.
    Due { until: Option<Instant> },
    /// It was told, when the event queue's available index was `avail`.
    Told { avail: u16, until: Instant },
}

/// What a snapshot keeps: streams are not part of it.
#[derive(Serialize, Deserialize)]
struct VsockStateV1 {
    guest_cid: u32,
    /// The guest may have streams, which it must be told to reset.
    reset_due: bool,
    /// Host ports of later calls: Linux refuses one that a program's dead stream still has.
    next_port: u32,
}

impl Vsock {
    /// Makes the device and its socket at `uds_path`.
    pub fn new(config: VsockConfig) -> Result<Vsock, VsockError> {
        let VsockConfig { guest_cid, uds_path } = config;
        if u64::from(guest_cid) <= HOST_CID || guest_cid == u32::MAX {
            return Err(VsockError::Cid(guest_cid));
        }
        let metrics = Arc::<VsockMetrics>::default();
        let muxer = Muxer::new(guest_cid, Endpoint::new(&uds_path)?, metrics.clone())?;
        Ok(Vsock { guest_cid, muxer, active: false, reset: Reset::Settled, metrics })
    }

    /// What it counts.
    pub fn metrics(&self) -> Arc<VsockMetrics> {
        self.metrics.clone()
    }

    /// Takes the guest's packets.
    fn take_packets(&mut self, io: &mut DeviceIo) -> Result<(), BrokenQueue> {
        let turn = io.turn;
        io.drain(TX, |chain, mem| {
            if let Err(e) = self.take_packet(chain, mem, turn) {
                log::debug!("vsock: malformed packet: {e}");
                self.metrics.tx_queue_event_fails.inc();
            }
            0
        })
    }

    fn take_packet(
        &mut self,
        chain: Chain,
        mem: &DeviceMemory,
        turn: &Turn,
    ) -> Result<(), ChainError> {
        let mut data = Buffers::new(chain, mem)?.readable;
        let mut header = [0; HEADER_LEN];
        data.read_exact(&mut header)?;
        let header = Header::from_bytes(&header);
        // More than a stream's buffer is refused without a look at it.
        turn.bytes(header.len.min(credit::BUFFER).into());
        self.muxer.receive(&header, data);
        Ok(())
    }

    /// Fills the guest's buffers as long as there are both packets and buffers.
    ///
    /// The driver's notifications are on only while packets wait for buffers.
    fn give_packets(&mut self, io: &mut DeviceIo) -> Result<(), BrokenQueue> {
        if !io.queues[RX].ready() || self.held() || !self.muxer.wants_buffer() {
            return Ok(());
        }
        let broken = |cause| BrokenQueue { queue: RX, cause };
        let mem = io.mem;
        let mut budget = usize::from(io.queues[RX].size()) * 2;
        let mut used = false;
        io.queues[RX].disable_notification(mem).map_err(broken)?;
        while self.muxer.wants_buffer() {
            if budget == 0 || io.turn.is_over() {
                io.requeue(RX);
                break;
            }
            budget -= 1;
            let Some(chain) = io.pop(RX)? else {
                if io.queues[RX].enable_notification(mem).map_err(broken)? {
                    continue;
                }
                break;
            };
            let head = chain.head_index();
            let written = match Buffers::new(chain, mem) {
                Ok(buffers) if buffers.writable.len() > HEADER_LEN => {
                    self.muxer.fill(buffers.writable)
                }
                Ok(_) => Err(ChainError::Short),
                Err(e) => Err(e),
            };
            match written {
                Ok(Some(written)) => {
                    io.turn.bytes(written.into());
                    io.add_used(RX, head, written)?;
                }
                Ok(None) => {
                    io.undo_pop(RX);
                    continue;
                }
                Err(e) => {
                    log::debug!("vsock: malformed buffer: {e}");
                    self.metrics.rx_queue_event_fails.inc();
                    io.add_used(RX, head, 0)?;
                }
            }
            used = true;
        }
        if used { io.signal_used(RX) } else { Ok(()) }
    }

    /// Tells the guest of a reset, if it must know, and sees whether it has taken it.
    fn tell_reset(&mut self, io: &mut DeviceIo) -> Result<(), BrokenQueue> {
        if self.reset == Reset::Settled || !io.queues[EVENT].ready() {
            return Ok(());
        }
        let avail = watch_refills(io)?;
        if let Reset::Told { avail: before, .. } = self.reset {
            // The driver has given the buffer back: it has dealt with the event.
            if avail != before {
                self.reset = Reset::Settled;
                self.muxer.postpone_calls();
            }
            return Ok(());
        }
        while let Reset::Due { until } = self.reset {
            let Some(chain) = io.pop(EVENT)? else { break };
            let head = chain.head_index();
            let event = TRANSPORT_RESET.to_le_bytes();
            let sent = Buffers::new(chain, io.mem).and_then(|mut b| b.writable.write_all(&event));
            let written = if sent.is_ok() { event.len() as u32 } else { 0 };
            io.add_used(EVENT, head, written)?;
            io.signal_used(EVENT)?;
            if sent.is_ok() {
                let until = until.unwrap_or_else(|| Instant::now() + RESET_TIME);
                self.reset = Reset::Told { avail, until };
            }
        }
        Ok(())
    }

    /// Whether the guest's buffers are left alone, because it has not taken the reset event yet.
    fn held(&mut self) -> bool {
        let until = match self.reset {
            Reset::Settled => return false,
            Reset::Told { until, .. } => until,
            Reset::Due { until: Some(until) } => until,
            Reset::Due { until: None } => {
                let until = Instant::now() + RESET_TIME;
                self.reset = Reset::Due { until: Some(until) };
                until
            }
        };
        let held = Instant::now() < until;
        if held {
            self.muxer.alarm(until);
        } else if let Reset::Told { .. } = self.reset {
            self.reset = Reset::Settled;
        }
        held
    }
}

/// Has the driver notify when it makes its next event buffer available; returns the index of the
/// available ring.
///
/// With event index a queue asks for a notification at the entry that it takes next, but the
/// driver keeps several here: the wish is put at the end of what is there.
fn watch_refills(io: &mut DeviceIo) -> Result<u16, BrokenQueue> {
    let broken = |cause| BrokenQueue { queue: EVENT, cause };
    let (mem, queue) = (io.mem, &mut io.queues[EVENT]);
    let next = queue.next_avail();
    let mut avail = next;
    // Again if one came in between; a driver that is never done gets by without the notification.
    for _ in 0..4 {
        avail = queue.avail_idx(mem, Ordering::Acquire).map_err(broken)?.0;
        queue.set_next_avail(avail);
        let more = queue.enable_notification(mem);
        queue.set_next_avail(next);
        if !more.map_err(broken)? {
            break;
        }
    }
    Ok(avail)
}

impl VirtioDevice for Vsock {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_VSOCK
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC | 1 << VIRTIO_VSOCK_F_STREAM
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&u64::from(self.guest_cid).to_le_bytes(), offset, data);
    }

    fn activate(&mut self, _features: u64) {
        self.active = true;
    }

    fn reset(&mut self) {
        self.muxer.clear();
        self.active = false;
        self.reset = Reset::Settled;
    }

    fn sources(&self) -> Vec<Source> {
        vec![Source { fd: self.muxer.fd(), token: 0, events: EventSet::IN }]
    }

    fn queue_event(&mut self, queue: usize, io: &mut DeviceIo) -> Result<(), BrokenQueue> {
        self.tell_reset(io)?;
        match queue {
            RX => self.metrics.rx_queue_event_count.inc(),
            TX => {
                self.metrics.tx_queue_event_count.inc();
                self.take_packets(io)?;
            }
            _ => {}
        }
        self.give_packets(io)
    }

    fn failed(&self, failure: Failure) {
        match failure {
            Failure::Activation => self.metrics.activate_fails.inc(),
            Failure::Queue(RX) => self.metrics.rx_queue_event_fails.inc(),
            Failure::Queue(TX) => self.metrics.tx_queue_event_fails.inc(),
            Failure::Queue(_) => self.metrics.ev_queue_event_fails.inc(),
        }
    }

    fn source_event(
        &mut self,
        _token: u32,
        _events: EventSet,
        io: &mut DeviceIo,
    ) -> Result<(), BrokenQueue> {
        // Also at the end of that time, or what waited would be given up just when the guest gets it.
        if matches!(self.reset, Reset::Told { .. }) || self.held() {
            self.muxer.postpone_calls();
        }
        self.muxer.poll();
        self.give_packets(io)
    }
}

impl Savable for Vsock {
    fn version(&self) -> u32 {
        VERSION
    }

    fn save(&self) -> Vec<u8> {
        let Vsock { guest_cid, muxer, active, reset, metrics: _ } = self;
        let reset_due = *active || *reset != Reset::Settled;
        let next_port = muxer.next_port();
        state::encode(&VsockStateV1 { guest_cid: *guest_cid, reset_due, next_port })
    }

    fn restore(&mut self, version: u32, bytes: &[u8]) -> Result<(), StateError> {
        let VsockStateV1 { guest_cid, reset_due, next_port } =
            state::decode(version, VERSION, bytes)?;
        if guest_cid != self.guest_cid {
            return Err(StateError::Invalid(format!(
                "the guest had guest_cid {guest_cid}, the configuration has {}",
                self.guest_cid
            )));
        }
        if !self.muxer.set_next_port(next_port) {
            return Err(StateError::Invalid(format!("port {next_port} for host programs")));
        }
        self.reset = if reset_due { Reset::Due { until: None } } else { Reset::Settled };
        Ok(())
    }
}

#[cfg(test)]
mod tests;
