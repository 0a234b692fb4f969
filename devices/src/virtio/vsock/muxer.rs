//! All streams over one pair of queues: who gets the next packet of the guest, and who may fill
//! its next buffer.
//!
//! Streams with something to say wait in one line and get one buffer each in turn, so that none
//! starves. All tables are bounded: [`MAX_CONNECTIONS`] connections and [`MAX_RESETS`] refusals that
//! wait for a buffer. Host programs that have not named a port yet are `callers.rs`'s.

use std::collections::{HashMap, VecDeque};
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::Instant;

use rustix::event::epoll::EventFlags;

use super::callers::Callers;
use super::connection::{Connection, State};
use super::endpoint::Endpoint;
use super::error::VsockError;
use super::packet::{HEADER_LEN, HOST_CID, Header, Key, TYPE_STREAM, op};
use super::poller::{ALARM, LISTENER, Poller};
use crate::metrics::VsockMetrics;
use crate::virtio::buffers::{ChainError, Run};

/// Connections at once, as many as Firecracker allows.
pub const MAX_CONNECTIONS: usize = 1023;
/// Refusals that wait; a guest that earns more without giving buffers for them gets no answer.
const MAX_RESETS: usize = 1024;
/// Host ports for calls of host programs: apart from the well-known ones.
const FIRST_PORT: u32 = 1 << 30;
const LAST_PORT: u32 = (1 << 31) - 1;

/// The streams of one guest.
pub struct Muxer {
    guest_cid: u32,
    endpoint: Endpoint,
    poller: Poller,
    connections: HashMap<Key, Connection>,
    callers: Callers,
    /// Which connection a token of the poller stands for.
    tokens: HashMap<u64, Key>,
    /// Connections that wait for a buffer; each is in it once, see [`Connection::in_line`].
    line: VecDeque<Key>,
    resets: VecDeque<Header>,
    next_port: u32,
    metrics: Arc<VsockMetrics>,
}

impl Muxer {
    /// Streams of guest `guest_cid`, called through `endpoint`.
    pub fn new(
        guest_cid: u32,
        endpoint: Endpoint,
        metrics: Arc<VsockMetrics>,
    ) -> Result<Muxer, VsockError> {
        let poller = Poller::new().map_err(VsockError::Poll)?;
        poller.watch_listener(endpoint.listener()).map_err(VsockError::Poll)?;
        Ok(Muxer {
            guest_cid,
            endpoint,
            poller,
            connections: HashMap::new(),
            callers: Callers::default(),
            tokens: HashMap::new(),
            line: VecDeque::new(),
            resets: VecDeque::new(),
            next_port: FIRST_PORT,
            metrics,
        })
    }

    /// The descriptor that is readable while a socket or a deadline waits.
    pub fn fd(&self) -> RawFd {
        self.poller.fd()
    }

    /// Has [`Muxer::poll`] called at `at`, or earlier.
    pub fn alarm(&mut self, at: Instant) {
        self.poller.alarm(at);
    }

    /// Closes every stream without a word to the guest, which has forgotten them.
    pub fn clear(&mut self) {
        self.metrics.conns_removed.add(self.connections.len() as u64);
        self.connections.clear();
        self.callers.clear();
        self.tokens.clear();
        self.line.clear();
        self.resets.clear();
        self.next_port = FIRST_PORT;
    }

    /// The host port of the next call of a host program.
    pub fn next_port(&self) -> u32 {
        self.next_port
    }

    /// Goes on with `port`; false if that is no port for calls of host programs.
    pub fn set_next_port(&mut self, port: u32) -> bool {
        let fits = (FIRST_PORT..=LAST_PORT).contains(&port);
        if fits {
            self.next_port = port;
        }
        fits
    }

    /// Looks after the sockets and deadlines that are ready.
    pub fn poll(&mut self) {
        for (token, events) in self.poller.ready() {
            if token == ALARM {
                self.poller.silence();
                self.expire(Instant::now());
            } else if token == LISTENER {
                self.callers.accept(&self.endpoint, &mut self.poller);
            } else if self.callers.contains(token) {
                self.greet(token, events);
            } else if let Some(&key) = self.tokens.get(&token) {
                self.with(key, |c| c.socket_ready(events));
            }
        }
    }

    /// Takes a packet of the guest.
    pub fn receive(&mut self, header: &Header, mut data: Run) {
        self.metrics.tx_packets_count.inc();
        if header.src_cid != u64::from(self.guest_cid) || header.dst_cid != HOST_CID {
            log::debug!("vsock: packet from {} to {} dropped", header.src_cid, header.dst_cid);
            return;
        }
        let key = header.key();
        let payload = usize::try_from(header.len).ok().and_then(|len| data.take(len).ok());
        let known = self.connections.contains_key(&key);
        match (header.kind, header.op, payload) {
            // The answer has the type of the question; a refusal is not refused in turn.
            (TYPE_STREAM, op::REQUEST, Some(_)) => self.open(header),
            (TYPE_STREAM, _, Some(mut payload)) if known => {
                self.with(key, |c| c.receive(header, &mut payload));
            }
            (TYPE_STREAM, _, None) if known => {
                self.remove(key);
                self.refuse(header);
            }
            (_, op::RST, _) => {}
            _ => self.refuse(header),
        }
    }

    /// Whether a buffer of the guest could be used.
    pub fn wants_buffer(&self) -> bool {
        !self.line.is_empty() || !self.resets.is_empty()
    }

    /// Fills a buffer of the guest with the next packet; returns its length, or none if the next
    /// in line had nothing to say after all. The buffer has room for a header and more.
    pub fn fill(&mut self, mut buffer: Run) -> Result<Option<u32>, ChainError> {
        let mut head = buffer.take(HEADER_LEN)?;
        if let Some(reset) = self.resets.pop_front() {
            self.metrics.rx_packets_count.inc();
            head.write_all(&reset.to_bytes())?;
            return Ok(Some(HEADER_LEN as u32));
        }
        let Some(key) = self.line.pop_front() else { return Ok(None) };
        let Some(connection) = self.connections.get_mut(&key) else { return Ok(None) };
        connection.in_line = false;
        let packet = connection.next_packet(&mut buffer, self.guest_cid);
        self.with(key, |_| ());
        let Some(header) = packet else { return Ok(None) };
        self.metrics.rx_packets_count.inc();
        self.metrics.rx_bytes_count.add(header.len.into());
        head.write_all(&header.to_bytes())?;
        Ok(Some(HEADER_LEN as u32 + header.len))
    }

    /// The guest calls a host port.
    fn open(&mut self, header: &Header) {
        let key = header.key();
        // A guest that calls from a port in use has forgotten what was there.
        self.remove(key);
        self.resets
            .retain(|reset| (reset.src_port, reset.dst_port) != (key.host_port, key.guest_port));
        if self.connections.len() >= MAX_CONNECTIONS {
            log::debug!("vsock: the guest has {MAX_CONNECTIONS} connections and gets no more");
            return self.refuse(header);
        }
        match self.endpoint.call(key.host_port) {
            Ok(socket) => {
                let token = self.poller.new_token();
                self.add(Connection::from_guest(header, token, socket, self.metrics.clone()));
            }
            Err(e) => {
                log::debug!("vsock: the guest calls port {}: {e}", key.host_port);
                self.refuse(header);
            }
        }
    }

    /// A host program has said something, or hung up.
    fn greet(&mut self, token: u64, events: EventFlags) {
        let Some((socket, port)) = self.callers.greet(token, events) else { return };
        if self.connections.len() >= MAX_CONNECTIONS {
            log::debug!(
                "vsock: no more than {MAX_CONNECTIONS} connections: a host program waits no more"
            );
            return;
        }
        let key = Key { host_port: self.new_port(port), guest_port: port };
        self.insert(Connection::from_host(key, token, socket, self.metrics.clone()));
        // Reported once only, and the connection must know, too.
        self.with(key, |c| c.socket_ready(events));
    }

    /// Watches a connection's socket and puts it into the tables.
    fn add(&mut self, connection: Connection) {
        match self.poller.watch(connection.socket(), connection.token) {
            Ok(()) => self.insert(connection),
            Err(e) => {
                log::error!("vsock: cannot watch a host program: {e}");
                self.metrics.muxer_event_fails.inc();
                self.refuse_key(connection.key);
            }
        }
    }

    fn insert(&mut self, connection: Connection) {
        self.metrics.conns_added.inc();
        let key = connection.key;
        self.tokens.insert(connection.token, key);
        self.connections.insert(key, connection);
        self.with(key, |_| ());
    }

    /// Lets a connection do something, then does for it what follows from its new state.
    fn with(&mut self, key: Key, act: impl FnOnce(&mut Connection)) {
        let Some(connection) = self.connections.get_mut(&key) else { return };
        act(connection);
        if let State::Dead { reset } = connection.state() {
            self.remove(key);
            if reset {
                self.refuse_key(key);
            }
            return;
        }
        let writable = connection.wants_writable();
        if writable != connection.watches_writable {
            connection.watches_writable = writable;
            let (socket, token) = (connection.socket(), connection.token);
            if let Err(e) = self.poller.watch_writable(socket, token, writable) {
                log::error!("vsock: cannot watch a host program: {e}");
                self.metrics.conn_event_fails.inc();
            }
        }
        if connection.wants_buffer() && !connection.in_line {
            connection.in_line = true;
            self.line.push_back(key);
        }
        if let Some(at) = connection.deadline {
            self.poller.alarm(at);
        }
    }

    fn remove(&mut self, key: Key) {
        if let Some(connection) = self.connections.remove(&key) {
            self.metrics.conns_removed.inc();
            self.tokens.remove(&connection.token);
            if connection.in_line {
                self.line.retain(|&k| k != key);
            }
        }
    }

    /// Answers a packet of the guest with RST.
    fn refuse(&mut self, packet: &Header) {
        let answer = Header::to_guest(packet.key(), self.guest_cid, op::RST);
        self.push_reset(Header { kind: packet.kind, ..answer });
    }

    fn refuse_key(&mut self, key: Key) {
        self.push_reset(Header::to_guest(key, self.guest_cid, op::RST));
    }

    fn push_reset(&mut self, reset: Header) {
        if self.resets.len() < MAX_RESETS {
            self.resets.push_back(reset);
        }
    }

    /// Ends what has run out of time and sets the alarm for what has not.
    pub(super) fn expire(&mut self, now: Instant) {
        self.callers.expire(now, &self.endpoint, &mut self.poller);
        let dated = self.connections.values().filter(|c| c.deadline.is_some());
        let dated: Vec<Key> = dated.map(|c| c.key).collect();
        for key in dated {
            self.with(key, |c| c.expire(now));
        }
    }

    /// Calls that the guest can only see now, or later, have their whole time from now on.
    pub fn postpone_calls(&mut self) {
        let now = Instant::now();
        self.connections.values_mut().for_each(|c| c.postpone(now));
    }

    /// A host port that has no connection with `guest_port` yet; there are far more of them than
    /// connections.
    fn new_port(&mut self, guest_port: u32) -> u32 {
        loop {
            let host_port = self.next_port;
            self.next_port = if host_port == LAST_PORT { FIRST_PORT } else { host_port + 1 };
            if !self.connections.contains_key(&Key { host_port, guest_port }) {
                return host_port;
            }
        }
    }

    /// How much it holds: connections, callers, line, resets, bytes that wait for host sockets.
    #[cfg(test)]
    pub fn holds(&self) -> [usize; 5] {
        let waiting = self.connections.values().map(Connection::waiting).sum();
        let (n, callers) = (self.connections.len(), self.callers.len());
        assert_eq!(self.tokens.len(), n);
        [n, callers, self.line.len(), self.resets.len(), waiting]
    }
}
