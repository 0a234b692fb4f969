//! What the guest sent and the host socket did not take yet.
//!
//! It holds no more than the guest was given credit for; `connection.rs` sees to that.

use std::collections::VecDeque;
use std::io::{self, IoSlice, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use super::endpoint::would_block;
use crate::virtio::buffers::{ChainError, Run};
use crate::virtio::iov;

/// Bytes on their way to a host socket.
#[derive(Debug, Default)]
pub struct Outbox {
    waiting: VecDeque<u8>,
}

/// What became of bytes for the socket.
#[derive(Debug, PartialEq, Eq)]
pub enum Sent {
    /// So many went out; the rest waits.
    Bytes(usize),
    /// Nobody receives any more. So many bytes were given up.
    Lost(usize),
}

impl Outbox {
    /// Bytes that wait.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Sends `data` behind what waits: straight from guest memory as far as the socket takes it.
    pub fn send(&mut self, socket: &UnixStream, data: &mut Run) -> Result<Sent, ChainError> {
        let mut done = 0;
        if self.is_empty() && !data.is_empty() {
            match iov::write(socket.as_fd(), data) {
                Ok(n) => done = n,
                Err(e) if would_block(&e) => {}
                Err(_) => return Ok(Sent::Lost(data.len())),
            }
            data.take(done)?;
        }
        if !data.is_empty() {
            let mut rest = vec![0; data.len()];
            data.read_exact(&mut rest)?;
            self.waiting.extend(rest);
        }
        Ok(Sent::Bytes(done))
    }

    /// Sends what waits, as far as the socket takes it.
    pub fn flush(&mut self, mut socket: &UnixStream) -> Sent {
        let mut done = 0;
        while !self.is_empty() {
            let (front, back) = self.waiting.as_slices();
            match socket.write_vectored(&[IoSlice::new(front), IoSlice::new(back)]) {
                Ok(n) => {
                    self.waiting.drain(..n);
                    done += n;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if would_block(&e) => return Sent::Bytes(done),
                Err(_) => return Sent::Lost(done + self.clear()),
            }
        }
        // An idle stream keeps no memory.
        self.waiting = VecDeque::new();
        Sent::Bytes(done)
    }

    /// Gives up what waits; returns how much that was.
    pub fn clear(&mut self) -> usize {
        std::mem::take(&mut self.waiting).len()
    }
}
