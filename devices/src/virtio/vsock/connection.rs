//! One stream between a host socket and a guest port: its state and what it has to say.
//!
//! ```text
//!  host program calls ──> Requested ── RESPONSE ──┐
//!                             │                   v   host's end of both ways
//!  guest calls ───────────────┼─────────────────> Open ──────────────────────> HostClosed ─┐
//!                             │ RST, time           │ guest's SHUTDOWN of both ways, RST   │ RST,
//!                             │                     v                                      │ time
//!                             └──────> Dead <── GuestClosed <── (waiting bytes sent) ──────┘
//! ```
//!
//! Each way closes by itself: the end of what the host sends becomes SHUTDOWN(SEND) for the guest,
//! and the other way round. The table of connections, and packets that belong to none, are
//! `muxer.rs`'s.

use std::io::{ErrorKind, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::epoll::EventFlags;

use super::credit::{self, Credit};
use super::endpoint::would_block;
use super::outbox::{Outbox, Sent};
use super::packet::{Header, Key, op, shutdown};
use crate::metrics::VsockMetrics;
use crate::virtio::buffers::Run;
use crate::virtio::iov;

/// How long the guest may take to accept a call.
pub const ACCEPT_TIME: Duration = Duration::from_secs(2);
/// How long the guest may take to confirm that both ways are closed.
pub const CLOSE_TIME: Duration = Duration::from_secs(2);
/// How long a host program may take none of the bytes that wait after the guest has closed.
pub const DRAIN_TIME: Duration = Duration::from_secs(30);

/// Largest payload of one packet to the guest, in bytes: as much as Linux sends in one.
const MAX_PAYLOAD: usize = 64 << 10;

/// Where a connection is in its life; see the module's picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// A host program called; the guest has not answered.
    Requested,
    /// Bytes flow.
    Open,
    /// The host has closed both ways; the guest is to confirm.
    HostClosed,
    /// The guest has closed both ways; bytes that it sent before still wait.
    GuestClosed {
        /// The guest waits for an RST that confirms it.
        confirm: bool,
    },
    /// Over; to be removed.
    Dead {
        /// The guest is to be sent an RST.
        reset: bool,
    },
}

/// A connection.
pub struct Connection {
    /// Who talks to whom.
    pub key: Key,
    /// The socket's token in the poller.
    pub token: u64,
    /// When the state ends by itself.
    pub deadline: Option<Instant>,
    /// Waits in the muxer's line for buffers of the guest.
    pub in_line: bool,
    /// The poller watches the socket for room to write.
    pub watches_writable: bool,
    state: State,
    socket: UnixStream,
    credit: Credit,
    outbox: Outbox,
    /// The socket may have something to read.
    readable: bool,
    /// The end of the socket's data is in sight: a short read is not the last one.
    ending: bool,
    /// Ways that the host has closed, and what of that the guest was told.
    host_shut: u32,
    host_shut_told: u32,
    /// Ways that the guest has closed.
    guest_shut: u32,
    /// A REQUEST or RESPONSE that the guest is to get first.
    opening: Option<u16>,
    say_credit: bool,
    /// The guest was asked for credit since it last gave some.
    asked_credit: bool,
    metrics: Arc<VsockMetrics>,
}

impl Connection {
    fn new(
        key: Key,
        token: u64,
        socket: UnixStream,
        state: State,
        opening: u16,
        metrics: Arc<VsockMetrics>,
    ) -> Connection {
        Connection {
            key,
            token,
            deadline: None,
            in_line: false,
            watches_writable: false,
            state,
            socket,
            credit: Credit::default(),
            outbox: Outbox::default(),
            readable: true,
            ending: false,
            host_shut: 0,
            host_shut_told: 0,
            guest_shut: 0,
            opening: Some(opening),
            say_credit: false,
            asked_credit: false,
            metrics,
        }
    }

    /// A host program calls the guest.
    pub fn from_host(
        key: Key,
        token: u64,
        socket: UnixStream,
        metrics: Arc<VsockMetrics>,
    ) -> Connection {
        let mut c = Connection::new(key, token, socket, State::Requested, op::REQUEST, metrics);
        c.deadline = Some(Instant::now() + ACCEPT_TIME);
        c
    }

    /// The guest called by the packet `request`, and a host program answered.
    pub fn from_guest(
        request: &Header,
        token: u64,
        socket: UnixStream,
        metrics: Arc<VsockMetrics>,
    ) -> Connection {
        let key = request.key();
        let mut c = Connection::new(key, token, socket, State::Open, op::RESPONSE, metrics);
        c.credit.learn(request);
        c
    }

    /// Where it is in its life.
    pub fn state(&self) -> State {
        self.state
    }

    /// The host socket.
    pub fn socket(&self) -> impl AsFd + '_ {
        &self.socket
    }

    /// Bytes that wait for the host socket.
    #[cfg(test)]
    pub fn waiting(&self) -> usize {
        self.outbox.len()
    }

    /// Takes a packet of the guest.
    pub fn receive(&mut self, header: &Header, payload: &mut Run) {
        self.credit.learn(header);
        if self.credit.room() > 0 {
            self.asked_credit = false;
        }
        match (header.op, self.state) {
            (op::RST, State::Open | State::GuestClosed { .. }) => self.close_by_guest(false),
            (op::RST, _) => self.state = State::Dead { reset: false },
            (_, State::GuestClosed { .. } | State::Dead { .. }) => {}
            (op::SHUTDOWN, State::HostClosed) => {
                self.guest_shut |= header.flags & shutdown::BOTH;
                if self.guest_shut == shutdown::BOTH {
                    self.state = State::Dead { reset: true };
                }
            }
            // What still came before the guest heard of the end.
            (op::RW | op::CREDIT_UPDATE | op::CREDIT_REQUEST, State::HostClosed) => {}
            (op::RESPONSE, State::Requested) if self.opening.is_none() => self.accepted(),
            (op::RW, State::Open) if self.guest_shut & shutdown::SEND == 0 => self.send(payload),
            (op::SHUTDOWN, State::Open) => self.guest_shuts(header.flags & shutdown::BOTH),
            (op::CREDIT_UPDATE, State::Open) => {}
            (op::CREDIT_REQUEST, State::Open) => self.say_credit = true,
            _ => {
                log::debug!("vsock: {:?}: operation {} out of place", self.key, header.op);
                self.state = State::Dead { reset: true };
            }
        }
    }

    /// The guest accepts: the host program learns its port.
    fn accepted(&mut self) {
        let line = format!("OK {}\n", self.key.host_port);
        self.deadline = None;
        // The first bytes into an empty socket: they fit, or the program is gone.
        self.state = match (&self.socket).write(line.as_bytes()) {
            Ok(n) if n == line.len() => State::Open,
            _ => State::Dead { reset: true },
        };
    }

    fn send(&mut self, payload: &mut Run) {
        let len = payload.len();
        self.metrics.tx_bytes_count.add(len as u64);
        if self.outbox.len() + len > credit::BUFFER as usize {
            log::debug!("vsock: {:?}: the guest sends more than it has credit for", self.key);
            self.state = State::Dead { reset: true };
        } else if self.host_shut & shutdown::RCV != 0 {
            self.count(Sent::Lost(len));
        } else {
            match self.outbox.send(&self.socket, payload) {
                Ok(sent) => {
                    if matches!(sent, Sent::Lost(_)) {
                        self.metrics.tx_write_fails.inc();
                    }
                    self.count(sent);
                }
                Err(e) => {
                    log::debug!("vsock: {:?}: payload: {e}", self.key);
                    self.state = State::Dead { reset: true };
                }
            }
        }
    }

    /// Bytes of the guest have left the device, one way or the other.
    fn count(&mut self, sent: Sent) {
        let (count, lost) = match sent {
            Sent::Bytes(count) => (count, false),
            Sent::Lost(count) => (count, true),
        };
        self.credit.forwarded(count);
        self.say_credit |= self.credit.update_due();
        if lost {
            self.host_shuts(shutdown::RCV);
        }
    }

    fn guest_shuts(&mut self, ways: u32) {
        let new = ways & !self.guest_shut;
        self.guest_shut |= ways;
        if self.guest_shut == shutdown::BOTH {
            self.close_by_guest(true);
        } else if new & shutdown::RCV != 0 {
            let _ = self.socket.shutdown(Shutdown::Read);
        } else if new & shutdown::SEND != 0 && self.outbox.is_empty() {
            let _ = self.socket.shutdown(Shutdown::Write);
        }
    }

    fn close_by_guest(&mut self, confirm: bool) {
        if self.outbox.is_empty() {
            self.state = State::Dead { reset: confirm };
        } else {
            self.state = State::GuestClosed { confirm };
            self.deadline = Some(Instant::now() + DRAIN_TIME);
        }
    }

    fn host_shuts(&mut self, ways: u32) {
        self.host_shut |= ways;
        match self.state {
            State::Open if self.host_shut == shutdown::BOTH => {
                self.state = State::HostClosed;
                self.deadline = Some(Instant::now() + CLOSE_TIME);
                self.outbox.clear();
            }
            State::Requested if self.host_shut & shutdown::RCV != 0 => {
                self.state = State::Dead { reset: true };
            }
            State::GuestClosed { confirm } if self.host_shut & shutdown::RCV != 0 => {
                self.state = State::Dead { reset: confirm };
            }
            _ => {}
        }
    }

    /// The host socket is ready for something.
    pub fn socket_ready(&mut self, events: EventFlags) {
        self.readable |= events.intersects(EventFlags::IN | EventFlags::RDHUP | EventFlags::HUP);
        self.ending |= events.intersects(EventFlags::RDHUP | EventFlags::HUP);
        if events.contains(EventFlags::OUT) && !self.outbox.is_empty() {
            self.flush();
        }
        // Both ways are closed; what there is to read comes first, though.
        if events.intersects(EventFlags::HUP | EventFlags::ERR) {
            let lost = self.outbox.clear();
            self.count(Sent::Lost(lost));
            if self.guest_shut & shutdown::RCV != 0 {
                self.host_shuts(shutdown::SEND);
            }
        }
    }

    fn flush(&mut self) {
        let sent = self.outbox.flush(&self.socket);
        let progress = sent != Sent::Bytes(0);
        if matches!(sent, Sent::Lost(_)) {
            self.metrics.tx_flush_fails.inc();
        }
        self.count(sent);
        match self.state {
            State::GuestClosed { confirm } if self.outbox.is_empty() => {
                self.state = State::Dead { reset: confirm };
            }
            State::GuestClosed { .. } if progress => {
                self.deadline = Some(Instant::now() + DRAIN_TIME);
            }
            State::Open if self.outbox.is_empty() && self.guest_shut & shutdown::SEND != 0 => {
                let _ = self.socket.shutdown(Shutdown::Write);
            }
            _ => {}
        }
    }

    /// Ends the state whose deadline has passed.
    pub fn expire(&mut self, now: Instant) {
        if self.deadline.is_some_and(|at| at <= now) {
            log::debug!("vsock: {:?}: no answer in {:?}", self.key, self.state);
            self.metrics.conns_killed.inc();
            let confirm = !matches!(self.state, State::GuestClosed { confirm: false });
            self.state = State::Dead { reset: confirm };
        }
    }

    /// A call that waits for its answer may wait from `now` on.
    pub fn postpone(&mut self, now: Instant) {
        if self.state == State::Requested {
            self.deadline = Some(now + ACCEPT_TIME);
        }
    }

    /// Whether the poller must watch for room in the socket.
    pub fn wants_writable(&self) -> bool {
        !self.outbox.is_empty()
    }

    fn may_read(&self) -> bool {
        self.state == State::Open
            && self.readable
            && self.host_shut & shutdown::SEND == 0
            && self.guest_shut & shutdown::RCV == 0
    }

    fn shutdown_due(&self) -> bool {
        matches!(self.state, State::Open | State::HostClosed)
            && self.host_shut & !self.host_shut_told != 0
    }

    /// Whether there is something for the guest.
    pub fn wants_buffer(&self) -> bool {
        match self.state {
            State::GuestClosed { .. } | State::Dead { .. } => false,
            State::Requested | State::Open | State::HostClosed => {
                self.opening.is_some()
                    || self.say_credit
                    || self.shutdown_due()
                    || self.may_read() && (self.credit.room() > 0 || !self.asked_credit)
            }
        }
    }

    /// The next packet for the guest, if there is one after all: its payload goes into `room`,
    /// which is not empty.
    pub fn next_packet(&mut self, room: &mut Run, guest_cid: u32) -> Option<Header> {
        if !self.wants_buffer() {
            return None;
        }
        let (op, flags, len) = self.next(room)?;
        let mut header = Header::to_guest(self.key, guest_cid, op);
        (header.flags, header.len) = (flags, len);
        self.credit.tell(&mut header);
        self.say_credit = false;
        Some(header)
    }

    fn next(&mut self, room: &mut Run) -> Option<(u16, u32, u32)> {
        if let Some(op) = self.opening.take() {
            return Some((op, 0, 0));
        }
        if self.may_read() {
            match self.credit.room() {
                0 if self.asked_credit => {}
                0 => {
                    self.asked_credit = true;
                    return Some((op::CREDIT_REQUEST, 0, 0));
                }
                credit => {
                    if let Some(len) = self.read(room, credit) {
                        return Some((op::RW, 0, len));
                    }
                }
            }
        }
        if self.shutdown_due() {
            self.host_shut_told = self.host_shut;
            return Some((op::SHUTDOWN, self.host_shut, 0));
        }
        self.say_credit.then_some((op::CREDIT_UPDATE, 0, 0))
    }

    /// Reads the socket straight into `room`, no more than `credit` bytes.
    fn read(&mut self, room: &mut Run, credit: u32) -> Option<u32> {
        let want = room.len().min(MAX_PAYLOAD).min(credit as usize);
        let piece = room.take(want).ok().filter(|piece| !piece.is_empty())?;
        match iov::read(self.socket.as_fd(), &piece) {
            Ok(0) => {}
            Ok(n) => {
                // Less than asked for: the socket is empty, and will be reported when it is not.
                self.readable = n == want || self.ending;
                self.credit.sent(n);
                return Some(n as u32);
            }
            Err(e) if would_block(&e) => {
                self.readable = e.kind() == ErrorKind::Interrupted;
                return None;
            }
            Err(_) => {
                self.metrics.rx_read_fails.inc();
                let lost = self.outbox.clear();
                self.count(Sent::Lost(lost));
            }
        }
        self.readable = false;
        self.host_shuts(shutdown::SEND);
        None
    }
}
