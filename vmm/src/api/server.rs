//! The listening socket and its connections, as events of the loop.
//!
//! A client that is slow, sends garbage or goes away costs its own connection only: nothing here
//! blocks, and what a connection may hold is bounded. When all connections are taken, the one that
//! has been quiet longest makes room for a new client. When the process has no descriptor left, the
//! socket is not listened to for a moment.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use event_manager::{EventOps, EventSet, EventSubscriber, Events};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use varve_devices::socket_file::SocketFile;

use super::http::{MAX_HEAD, Parsed, Request, Response, parse};

/// Connections at a time; Firecracker's limit is 10.
const MAX_CONNECTIONS: usize = 16;
/// How long a connection must have been quiet to make room for a new client.
const QUIET: Duration = Duration::from_secs(if cfg!(test) { 0 } else { 1 });
/// Connections accepted in a row before others have their turn.
const MAX_ACCEPTS: usize = 2 * MAX_CONNECTIONS;
/// How long the socket is not listened to when descriptors have run out.
const PAUSE: Duration = Duration::from_millis(if cfg!(test) { 50 } else { 500 });
const TOKEN_LISTENER: u32 = u32::MAX;
const TOKEN_TIMER: u32 = u32::MAX - 1;

/// A request that waits for its answer.
#[derive(Debug)]
pub struct Pending {
    connection: u32,
    keep_alive: bool,
    /// The request.
    pub request: Request,
}

#[derive(Debug)]
struct Connection {
    stream: UnixStream,
    max_body: usize,
    input: Vec<u8>,
    output: VecDeque<u8>,
    /// A request of this connection is being answered; the next one waits in `input`.
    busy: bool,
    told_to_continue: bool,
    closing: bool,
    /// The client will send no more.
    ended: bool,
    /// When the client last sent something, or took something of an answer.
    active: Instant,
}

#[derive(Debug, Default)]
struct State {
    connections: BTreeMap<u32, Connection>,
    next: u32,
    pending: VecDeque<Pending>,
}

/// The API socket.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    _file: SocketFile,
    /// Goes off when the socket is to be listened to again.
    timer: OwnedFd,
    max_body: usize,
    state: Mutex<State>,
}

impl Server {
    /// Listens at `path`, which must not exist. Bodies are at most `max_body` bytes.
    pub fn bind(path: &Path, max_body: usize) -> io::Result<Server> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        let (listener, file) = SocketFile::bind(path)?;
        Ok(Server { listener, _file: file, timer, max_body, state: Mutex::default() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a request waits for its answer.
    pub fn has_requests(&self) -> bool {
        !self.state().pending.is_empty()
    }

    /// The next request that waits for an answer.
    pub fn next_request(&self) -> Option<Pending> {
        self.state().pending.pop_front()
    }

    /// Answers a request.
    pub fn respond(&self, pending: &Pending, response: &Response) {
        let state = &mut *self.state();
        // A client that has gone away needs no answer.
        let Some(connection) = state.connections.get_mut(&pending.connection) else { return };
        connection.output.extend(response.encode(pending.keep_alive));
        connection.busy = false;
        connection.closing |= !pending.keep_alive;
        connection.flush();
        // A pipelined request may be in the buffer already.
        connection.advance(pending.connection, &mut state.pending);
        if connection.done() {
            // The client learns at once, also one that sends no more and reads to the end; the
            // hang-up comes back as an event, which removes it.
            let _ = connection.stream.shutdown(Shutdown::Both);
        }
    }

    fn accept(&self, ops: &mut EventOps) {
        let state = &mut *self.state();
        for _ in 0..MAX_ACCEPTS {
            let stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(e) if e.kind() == ErrorKind::WouldBlock => return,
                // It went away while it waited.
                Err(e) if e.kind() == ErrorKind::ConnectionAborted => continue,
                // A descriptor of a quiet client may be what is missing.
                Err(_) if state.make_room(ops) => continue,
                Err(e) => {
                    log::warn!("API socket: a client cannot be accepted: {e}");
                    return self.pause(ops);
                }
            };
            if let Err(e) = stream.set_nonblocking(true) {
                log::warn!("API socket: {e}");
                continue;
            }
            if state.connections.len() >= MAX_CONNECTIONS && !state.make_room(ops) {
                log::warn!("API socket: too many connections, one is turned away");
                let full = Response::fault(503, "Too many open connections.");
                let _ = (&stream).write(&full.encode(false));
                continue;
            }
            let id = state.next;
            // Other tokens are never reached by counting connections up.
            state.next = (state.next + 1) % TOKEN_TIMER;
            // Edge-triggered: read until it would block, write until it would block.
            let set =
                EventSet::IN | EventSet::OUT | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
            if let Err(e) = ops.add(Events::with_data(&stream, id, set)) {
                log::warn!("API socket: {e}");
                continue;
            }
            let connection = Connection {
                stream,
                max_body: self.max_body,
                input: Vec::new(),
                output: VecDeque::new(),
                busy: false,
                told_to_continue: false,
                closing: false,
                ended: false,
                active: Instant::now(),
            };
            state.connections.insert(id, connection);
        }
    }

    /// Stops listening, as the loop would be called at once again, until the timer goes off. Clients
    /// wait in the socket's queue.
    fn pause(&self, ops: &mut EventOps) {
        let _ = ops.remove(Events::empty_raw(self.listener.as_raw_fd()));
        let it_value = Timespec { tv_sec: 0, tv_nsec: PAUSE.subsec_nanos().into() };
        let spec = Itimerspec { it_interval: Timespec::default(), it_value };
        if let Err(e) = timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &spec) {
            log::error!("API socket: timer: {e}");
            self.listen(ops);
        }
    }

    fn listen(&self, ops: &mut EventOps) {
        let events = Events::with_data(&self.listener, TOKEN_LISTENER, EventSet::IN);
        if let Err(e) = ops.add(events) {
            log::error!("API socket: {e}");
        }
    }

    fn serve(&self, id: u32, ops: &mut EventOps) {
        let state = &mut *self.state();
        let Some(connection) = state.connections.get_mut(&id) else { return };
        connection.receive();
        connection.flush();
        connection.advance(id, &mut state.pending);
        if connection.done() {
            let events = Events::empty_raw(connection.stream.as_raw_fd());
            let _ = ops.remove(events);
            state.connections.remove(&id);
        }
    }

    /// Closes connections that ended while a request of theirs was answered.
    fn sweep(&self, ops: &mut EventOps) {
        self.state().connections.retain(|_, connection| {
            let done = connection.done();
            if done {
                let _ = ops.remove(Events::empty_raw(connection.stream.as_raw_fd()));
            }
            !done
        });
    }
}

impl State {
    /// Closes the connection that has been quiet longest, if that is long enough and no request of
    /// it is being answered; whether there was one.
    fn make_room(&mut self, ops: &mut EventOps) -> bool {
        let idle = self.connections.iter().filter(|(_, c)| !c.busy && c.active.elapsed() >= QUIET);
        let Some((&id, _)) = idle.min_by_key(|(_, connection)| connection.active) else {
            return false;
        };
        if let Some(connection) = self.connections.remove(&id) {
            let _ = ops.remove(Events::empty_raw(connection.stream.as_raw_fd()));
            log::debug!("API socket: a quiet connection makes room for a new one");
        }
        true
    }
}

impl Connection {
    fn done(&self) -> bool {
        let answered = !self.busy && self.output.is_empty();
        answered && (self.closing || self.ended)
    }

    fn receive(&mut self) {
        let mut buf = [0u8; 4096];
        // Never more than the largest request and a part of the next one.
        while self.input.len() < self.max_body.saturating_mul(2).saturating_add(MAX_HEAD) {
            match self.stream.read(&mut buf) {
                Ok(0) => return self.ended = true,
                Ok(n) => {
                    self.input.extend_from_slice(&buf[..n]);
                    self.active = Instant::now();
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => return,
                Err(_) => {
                    (self.ended, self.closing) = (true, true);
                    self.output.clear();
                    return;
                }
            }
        }
    }

    /// Hands the next whole request over, if none of this connection is being answered and the
    /// client has taken the answers to those before: who only asks is not listened to.
    fn advance(&mut self, id: u32, pending: &mut VecDeque<Pending>) {
        if self.busy || self.closing || !self.output.is_empty() {
            return;
        }
        match parse(&self.input, self.max_body) {
            Parsed::Request { request, len, keep_alive } => {
                self.input.drain(..len);
                self.busy = true;
                self.told_to_continue = false;
                pending.push_back(Pending { connection: id, keep_alive, request });
                // More may wait in the socket than the buffer took.
                self.receive();
            }
            Parsed::Partial { expects_continue } => {
                if expects_continue && !self.told_to_continue {
                    self.output.extend(b"HTTP/1.1 100 Continue\r\n\r\n");
                    self.told_to_continue = true;
                    self.flush();
                }
            }
            Parsed::Bad(response) => {
                self.output.extend(response.encode(false));
                self.closing = true;
                self.flush();
            }
        }
    }

    fn flush(&mut self) {
        while !self.output.is_empty() {
            let (front, _) = self.output.as_slices();
            match self.stream.write(front) {
                Ok(n) => {
                    self.output.drain(..n);
                    self.active = Instant::now();
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => return,
                Err(_) => {
                    self.output.clear();
                    (self.ended, self.closing) = (true, true);
                }
            }
        }
    }
}

impl EventSubscriber for Server {
    fn init(&self, ops: &mut EventOps) {
        self.listen(ops);
        if let Err(e) = ops.add(Events::with_data(&self.timer, TOKEN_TIMER, EventSet::IN)) {
            log::error!("API socket: timer: {e}");
        }
    }

    fn process(&self, events: Events, ops: &mut EventOps) {
        match events.data() {
            TOKEN_LISTENER => {
                self.sweep(ops);
                self.accept(ops);
            }
            TOKEN_TIMER => {
                let _ = rustix::io::read(&self.timer, &mut [0; 8]);
                self.listen(ops);
            }
            id => self.serve(id, ops),
        }
    }
}

#[cfg(test)]
mod tests;
