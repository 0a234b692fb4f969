//! Deadlines: a stream that is read until a time, and the time that a number of bytes may take.

use std::io::{self, ErrorKind, Read};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// Bytes a second below which the other side counts as silent.
const SLOWEST: u64 = 256 << 10;

/// The time by which `bytes` must have come or gone: `patience` from now, and more for many bytes.
///
/// A limit for each piece is not enough: who sends a byte now and then would keep a thread for days.
pub(crate) fn deadline(patience: Duration, bytes: u64) -> Instant {
    Instant::now() + patience + Duration::from_millis(bytes.saturating_mul(1000) / SLOWEST)
}

/// A stream that is read until a time, in however many pieces its bytes come.
pub(crate) struct Until<'s> {
    /// The stream.
    pub stream: &'s TcpStream,
    /// Reading fails from then on.
    pub end: Instant,
}

impl Read for Until<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        self.stream.set_read_timeout(Some(left))?;
        self.stream.read(buffer)
    }
}
