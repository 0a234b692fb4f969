//! One connection of a guest: requests in, answers out, one after the other.

use std::time::Duration;

use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp::{Socket, State};

use super::http::{MAX_REQUEST, answer};
use super::service::Service;

/// A connection of a guest.
#[derive(Debug)]
pub struct Connection {
    pub handle: SocketHandle,
    /// When bytes last went one way or the other.
    pub active: Duration,
    input: Vec<u8>,
    output: Vec<u8>,
    /// Bytes of `output` that the socket has.
    sent: usize,
    /// The last answer has been given.
    closing: bool,
}

impl Connection {
    pub fn new(handle: SocketHandle, now: Duration) -> Connection {
        Connection {
            handle,
            active: now,
            input: Vec::new(),
            output: Vec::new(),
            sent: 0,
            closing: false,
        }
    }

    /// Does all that can be done now. No input is taken while an answer waits to be sent, so that a
    /// guest that asks without reading holds one answer at most.
    pub fn serve(&mut self, socket: &mut Socket, service: &Service, now: Duration) {
        loop {
            let received = self.receive(socket);
            if self.output.is_empty() && !self.closing {
                let answered = answer(&self.input, |request| service.respond(request));
                if let Some(answered) = answered {
                    self.input.drain(..answered.taken);
                    self.output = answered.output;
                    self.closing = answered.close;
                }
            }
            let sent = self.send(socket);
            if received || sent {
                self.active = now;
            }
            // A whole answer went out: the next request may be here already.
            if !(sent && self.output.is_empty() && !self.closing) {
                break;
            }
        }
        // All that came has been read, and no more will come.
        let ended = socket.state() == State::CloseWait && !socket.can_recv();
        if self.output.is_empty() && (self.closing || ended) {
            socket.close();
        }
    }

    /// Takes what has come, as much as a request may have; whether that was anything.
    fn receive(&mut self, socket: &mut Socket) -> bool {
        let mut received = false;
        while socket.can_recv() && (self.closing || self.output.is_empty()) {
            let room = if self.closing { usize::MAX } else { MAX_REQUEST - self.input.len() };
            let (input, keep) = (&mut self.input, !self.closing);
            let taken = socket.recv(|bytes| {
                let taken = bytes.len().min(room);
                if keep {
                    input.extend_from_slice(&bytes[..taken]);
                }
                (taken, taken)
            });
            match taken {
                Ok(taken) if taken > 0 => received = true,
                _ => break,
            }
        }
        received
    }

    /// Hands the socket as much of the answer as it takes; whether that was anything.
    fn send(&mut self, socket: &mut Socket) -> bool {
        if self.output.is_empty() {
            return false;
        }
        if !socket.may_send() {
            // Nobody will read it.
            self.output.clear();
            self.sent = 0;
            return false;
        }
        let sent = socket.send_slice(&self.output[self.sent..]).unwrap_or(0);
        self.sent += sent;
        if self.sent == self.output.len() {
            self.output.clear();
            self.sent = 0;
        }
        sent > 0
    }
}
