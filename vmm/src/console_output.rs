//! The console's output: written at once where there is room, kept where there is none until the
//! event loop can write it, dropped when too much is kept. A vCPU never waits here.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Write};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use event_manager::{EventOps, EventSet, EventSubscriber, Events};
use varve_devices::metrics::UartMetrics;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::stdio::Stream;

/// Bytes that are kept for a reader that is slow.
const ROOM: usize = 64 << 10;
/// How long the end of a machine waits for a reader of what is kept.
const PATIENCE: Duration = Duration::from_millis(300);

const TOKEN_KEPT: u32 = 0;
const TOKEN_STREAM: u32 = 1;

/// The output, shared by the serial port and the event loop.
pub struct ConsoleOutput {
    state: Mutex<State>,
    stream: RawFd,
    /// Something is kept: the loop is to watch the stream for room.
    kept: EventFd,
    metrics: OnceLock<Arc<UartMetrics>>,
}

struct State {
    stream: Stream,
    kept: VecDeque<u8>,
    said: bool,
}

impl ConsoleOutput {
    /// Output to `stream`.
    pub fn new(stream: Stream) -> io::Result<Arc<ConsoleOutput>> {
        Ok(Arc::new(ConsoleOutput {
            stream: stream.as_fd().as_raw_fd(),
            state: Mutex::new(State { stream, kept: VecDeque::new(), said: false }),
            kept: EventFd::new(EFD_NONBLOCK)?,
            metrics: OnceLock::new(),
        }))
    }

    /// Counts there what is lost after it was taken.
    pub fn count_in(&self, metrics: Arc<UartMetrics>) {
        let _ = self.metrics.set(metrics);
    }

    /// What the serial port writes to.
    pub fn writer(self: &Arc<ConsoleOutput>) -> Box<dyn Write + Send> {
        Box::new(Writer(self.clone()))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, bytes: &[u8]) -> io::Result<usize> {
        let state = &mut *self.state();
        if state.kept.is_empty() {
            match state.stream.write(bytes) {
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                done => return done,
            }
            let _ = self.kept.write(1);
        }
        let taken = bytes.len().min(ROOM.saturating_sub(state.kept.len()));
        if taken == 0 {
            if !std::mem::replace(&mut state.said, true) {
                log::warn!("console: its reader is too slow; what does not fit is dropped");
            }
            return Err(ErrorKind::WouldBlock.into());
        }
        state.kept.extend(&bytes[..taken]);
        Ok(taken)
    }

    /// Writes what is kept, as far as there is room, and no more than was kept at the start; whether
    /// something is left.
    fn flush(&self) -> bool {
        let state = &mut *self.state();
        while !state.kept.is_empty() {
            let (front, _) = state.kept.as_slices();
            match state.stream.write(front) {
                Ok(n) => drop(state.kept.drain(..n)),
                Err(e) if e.kind() == ErrorKind::WouldBlock => return true,
                Err(_) => {
                    // Nobody will read it.
                    if let Some(metrics) = self.metrics.get() {
                        metrics.missed_write_count.add(state.kept.len() as u64);
                    }
                    state.kept.clear();
                }
            }
        }
        false
    }
}

struct Writer(Arc<ConsoleOutput>);

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.take(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl EventSubscriber for ConsoleOutput {
    fn init(&self, ops: &mut EventOps) {
        if let Err(e) = ops.add(Events::with_data(&self.kept, TOKEN_KEPT, EventSet::IN)) {
            log::error!("console: {e}");
        }
    }

    fn process(&self, events: Events, ops: &mut EventOps) {
        let stream = Events::with_data_raw(self.stream, TOKEN_STREAM, EventSet::OUT);
        if events.data() == TOKEN_KEPT {
            let _ = self.kept.read();
            // What cannot be watched has no end of room, and keeps nothing.
            let _ = ops.add(stream);
        } else if !self.flush() {
            let _ = ops.remove(stream);
        }
    }
}

/// The last lines of a guest are those that matter most: a reader that goes on reading gets them.
impl Drop for ConsoleOutput {
    fn drop(&mut self) {
        let until = Instant::now() + PATIENCE;
        while self.flush() && Instant::now() < until {
            self.state().stream.has_room(PATIENCE.as_millis() as i64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use event_manager::{EventManager, SubscriberOps};
    use std::fs::File;
    use std::io::Read;

    fn pipe() -> (File, Stream) {
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::NONBLOCK).unwrap();
        (read.into(), Stream::nonblocking(write.into()))
    }

    /// As the serial port does it.
    fn print(output: &mut dyn Write, bytes: &[u8]) -> u64 {
        bytes.iter().map(|byte| u64::from(output.write_all(&[*byte]).is_err())).sum()
    }

    fn text(bytes: usize) -> Vec<u8> {
        (0..bytes).map(|n| b'a' + (n % 23) as u8).collect()
    }

    fn read(pipe: &mut File) -> Vec<u8> {
        let mut bytes = vec![0; 1 << 20];
        let n = pipe.read(&mut bytes).unwrap_or(0);
        bytes.truncate(n);
        bytes
    }

    #[test]
    fn a_slow_reader_loses_nothing_and_one_that_never_reads_stops_nobody() {
        let (mut reader, stream) = pipe();
        let output = ConsoleOutput::new(stream).unwrap();
        let mut events = EventManager::new().unwrap();
        events.add_subscriber(output.clone());
        let mut writer = output.writer();
        let long = text(300 << 10);
        let lost = print(&mut writer, &long) as usize;
        let taken = long.len() - lost;
        assert!((ROOM..200 << 10).contains(&taken), "{taken}");
        // Without a reader the loop waits.
        assert_eq!(events.run_with_timeout(0).unwrap(), 1, "it is told that something is kept");
        assert_eq!(events.run_with_timeout(0).unwrap(), 0);
        let mut got: Vec<u8> = Vec::new();
        loop {
            let more = read(&mut reader);
            got.extend(&more);
            if more.is_empty() && events.run_with_timeout(0).unwrap() == 0 {
                break;
            }
        }
        assert!(got == long[..taken], "{} of {taken} bytes", got.len());
        // As before.
        assert_eq!(print(&mut writer, b"again"), 0);
        assert_eq!(read(&mut reader), b"again");
        assert_eq!(events.run_with_timeout(0).unwrap(), 0);
    }

    #[test]
    fn a_reader_that_is_gone_costs_what_was_kept() {
        let (reader, stream) = pipe();
        let output = ConsoleOutput::new(stream).unwrap();
        let metrics = Arc::<UartMetrics>::default();
        output.count_in(metrics.clone());
        let mut events = EventManager::new().unwrap();
        events.add_subscriber(output.clone());
        let mut writer = output.writer();
        assert!(print(&mut writer, &text(300 << 10)) > 0);
        drop(reader);
        while events.run_with_timeout(0).unwrap() > 0 {}
        assert_eq!(metrics.missed_write_count.get(), ROOM as u64);
        assert_eq!(writer.write(b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);
    }

    #[test]
    fn the_last_words_wait_for_a_reader() {
        let (mut reader, stream) = pipe();
        let output = ConsoleOutput::new(stream).unwrap();
        let long = text(100 << 10);
        assert_eq!(print(&mut output.writer(), &long), 0);
        let first = read(&mut reader);
        drop(output);
        let got = [first, read(&mut reader)].concat();
        assert!(got == long, "{} bytes", got.len());
    }
}
