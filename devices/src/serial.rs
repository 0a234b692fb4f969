//! Serial port: a 16550A whose output goes to a writer and whose input comes from a descriptor.

use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use event_manager::{EventOps, EventSet, EventSubscriber, Events};
use serde::{Deserialize, Serialize};
use vm_superio::serial::SerialEvents;
use vm_superio::{Serial, SerialState};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::bus::BusDevice;
use crate::interrupt::IrqLine;
use crate::limiter::{BucketConfig, LimitedWriter};
use crate::metrics::UartMetrics;
use crate::state::{self, Savable, StateError};

/// First port of COM1.
pub const COM1_BASE: u64 = 0x3f8;
/// Ports of a UART.
pub const COM_LEN: u64 = 8;
/// Interrupt of COM1.
pub const COM1_IRQ: u32 = 4;

const VERSION: u32 = 1;
const TOKEN_INPUT: u32 = 0;
const TOKEN_ROOM: u32 = 1;

/// Where the guest's output goes; shared so that the chip can be rebuilt around it.
#[derive(Clone)]
struct Output(Arc<Mutex<Box<dyn Write + Send>>>);

impl Write for Output {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).write(buf)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).flush()
    }
}

/// What the chip reports: counted, and the event loop learns that the guest has emptied the receive
/// buffer.
#[derive(Clone)]
struct Reports {
    room: Arc<EventFd>,
    metrics: Arc<UartMetrics>,
}

impl SerialEvents for Reports {
    fn buffer_read(&self) {
        self.metrics.read_count.inc();
    }
    fn out_byte(&self) {
        self.metrics.write_count.inc();
    }
    fn tx_lost_byte(&self) {
        self.metrics.missed_write_count.inc();
    }
    fn in_buffer_empty(&self) {
        // A full counter means that the event is pending already.
        let _ = self.room.write(1);
    }
}

/// COM1 of the machine.
pub struct SerialPort {
    chip: Mutex<Serial<IrqLine, Reports, Output>>,
    line: IrqLine,
    output: Output,
    reports: Reports,
    input: Option<OwnedFd>,
}

/// What a snapshot keeps of the UART: its registers and what the guest has not read yet.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct SerialStateV1 {
    baud_divisor_low: u8,
    baud_divisor_high: u8,
    interrupt_enable: u8,
    interrupt_identification: u8,
    line_control: u8,
    line_status: u8,
    modem_control: u8,
    modem_status: u8,
    scratch: u8,
    in_buffer: Vec<u8>,
}

impl SerialPort {
    /// A port that raises `line`, prints to `output` and, if there is one, reads `input`. What it
    /// prints beyond `limit` bytes is dropped.
    pub fn new(
        line: IrqLine,
        output: Box<dyn Write + Send>,
        input: Option<OwnedFd>,
        limit: Option<BucketConfig>,
    ) -> io::Result<SerialPort> {
        let metrics = Arc::<UartMetrics>::default();
        let output = match limit {
            Some(limit) => limited(output, limit, metrics.clone()),
            None => output,
        };
        let output = Output(Arc::new(Mutex::new(output)));
        let room = Arc::new(EventFd::new(EFD_NONBLOCK)?);
        let reports = Reports { room, metrics };
        let chip = Serial::with_events(line.clone(), reports.clone(), output.clone());
        Ok(SerialPort { chip: Mutex::new(chip), line, output, reports, input })
    }

    /// What it counts.
    pub fn metrics(&self) -> Arc<UartMetrics> {
        self.reports.metrics.clone()
    }

    fn chip(&self) -> MutexGuard<'_, Serial<IrqLine, Reports, Output>> {
        self.chip.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Moves input into the receive buffer while there is room. Returns whether more may come.
    fn receive(&self) -> Input {
        let Some(input) = &self.input else { return Input::Ended };
        let mut chip = self.chip();
        let mut buf = [0u8; 64];
        let room = chip.fifo_capacity().min(buf.len());
        if room == 0 {
            return Input::Full;
        }
        // The guest makes room whether there is input or not, and the descriptor may block: a read
        // that waits would hold the chip, and with it the vCPU that touches it next.
        if !readable(input.as_fd()) {
            return Input::More;
        }
        match rustix::io::read(input.as_fd(), &mut buf[..room]) {
            Ok(0) => Input::Ended,
            Ok(n) => {
                if let Err(e) = chip.enqueue_raw_bytes(&buf[..n]) {
                    log::warn!("serial input lost: {e:?}");
                }
                if n == room { Input::Full } else { Input::More }
            }
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Input::More,
            Err(e) => {
                log::warn!("serial input: {e}");
                Input::Ended
            }
        }
    }
}

/// `output` with a limit; says once that it was reached.
fn limited(
    output: Box<dyn Write + Send>,
    limit: BucketConfig,
    metrics: Arc<UartMetrics>,
) -> Box<dyn Write + Send> {
    let mut said = false;
    Box::new(LimitedWriter::new(output, limit, move |lost| {
        metrics.rate_limiter_dropped_bytes.add(lost);
        if !std::mem::replace(&mut said, true) {
            log::warn!("console: more output than its limit allows; the rest is dropped");
        }
    }))
}

/// Whether a read returns at once, be it with an error or the end.
fn readable(input: BorrowedFd) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    // What cannot be asked is read: the read says why.
    poll(&mut [PollFd::from_borrowed_fd(input, PollFlags::IN)], Some(&now)) != Ok(0)
}

/// What [`SerialPort::receive`] found.
enum Input {
    More,
    Full,
    Ended,
}

impl BusDevice for SerialPort {
    fn read(&self, offset: u64, data: &mut [u8]) {
        match data {
            [byte] => *byte = self.chip().read(offset as u8),
            _ => self.reports.metrics.missed_read_count.inc(),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let [byte] = data else { return self.reports.metrics.missed_write_count.inc() };
        if let Err(e) = self.chip().write(offset as u8, *byte) {
            log::debug!("serial output lost: {e:?}");
            self.reports.metrics.error_count.inc();
        }
    }
}

impl EventSubscriber for SerialPort {
    fn init(&self, ops: &mut EventOps) {
        let Some(input) = &self.input else { return };
        let room = Events::with_data(&*self.reports.room, TOKEN_ROOM, EventSet::IN);
        if let Err(e) = ops.add(room) {
            log::error!("serial input: {e}");
        }
        let wanted = Events::with_data(input, TOKEN_INPUT, EventSet::IN);
        if ops.add(wanted).is_err() {
            // A regular file or /dev/null cannot be polled and is always readable: it is read
            // whenever there is room, and there is room now.
            let _ = self.reports.room.write(1);
        }
    }

    fn process(&self, events: Events, ops: &mut EventOps) {
        let Some(input) = &self.input else { return };
        if events.data() == TOKEN_ROOM {
            let _ = self.reports.room.read();
        }
        let watch = Events::with_data_raw(input.as_raw_fd(), TOKEN_INPUT, EventSet::IN);
        // For a descriptor that cannot be polled all of these fail, which is right.
        match self.receive() {
            Input::More => drop(ops.modify(watch).or_else(|_| ops.add(watch))),
            // Not only its set of events: the other end's hang-up would be reported all the same,
            // again and again.
            Input::Full | Input::Ended => drop(ops.remove(watch)),
        }
    }
}

impl Savable for SerialPort {
    fn version(&self) -> u32 {
        VERSION
    }

    fn save(&self) -> Vec<u8> {
        let SerialState {
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
            in_buffer,
        } = self.chip().state();
        state::encode(&SerialStateV1 {
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
            in_buffer,
        })
    }

    fn restore(&mut self, version: u32, bytes: &[u8]) -> Result<(), StateError> {
        let SerialStateV1 {
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
            in_buffer,
        } = state::decode(version, VERSION, bytes)?;
        let state = SerialState {
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
            in_buffer,
        };
        let chip = Serial::from_state(
            &state,
            self.line.clone(),
            self.reports.clone(),
            self.output.clone(),
        )
        .map_err(|e| StateError::Invalid(format!("serial port: {e:?}")))?;
        self.chip = Mutex::new(chip);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);
    impl Write for Sink {
        fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(buf);
            Ok(buf.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn port(sink: &Sink, input: Option<OwnedFd>) -> SerialPort {
        SerialPort::new(IrqLine::new().unwrap(), Box::new(sink.clone()), input, None).unwrap()
    }

    fn read_byte(port: &SerialPort, offset: u64) -> u8 {
        let mut data = [0];
        port.read(offset, &mut data);
        data[0]
    }

    #[test]
    fn prints_and_reads_with_backpressure() {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let sink = Sink::default();
        let port = port(&sink, Some(theirs.into()));
        for b in b"hi" {
            port.write(0, &[*b]);
        }
        assert_eq!(*sink.0.lock().unwrap(), b"hi");

        let sent: Vec<u8> = (0..100).collect();
        (&ours).write_all(&sent).unwrap();
        assert!(matches!(port.receive(), Input::Full));
        assert!(matches!(port.receive(), Input::Full), "no room: nothing read, nothing lost");
        let mut got = Vec::new();
        while got.len() < sent.len() {
            if read_byte(&port, 5) & 1 == 0 {
                assert!(port.reports.room.read().is_ok(), "told that there is room");
                port.receive();
                continue;
            }
            got.push(read_byte(&port, 0));
        }
        assert_eq!(got, sent);
        drop(ours);
        assert!(matches!(port.receive(), Input::Ended));
    }

    /// One byte at a time, as a guest does; tells how often the loop had to run for it.
    #[test]
    fn the_loop_waits_for_the_guest_and_never_for_input() {
        use event_manager::SubscriberOps;
        let mut manager = event_manager::EventManager::new().unwrap();
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let port = Arc::new(port(&Sink::default(), Some(theirs.into())));
        manager.add_subscriber(port.clone());
        let mut settle = || {
            let busy = (0..10).take_while(|_| manager.run_with_timeout(0).unwrap() > 0).count();
            assert!(busy < 10, "the loop spins");
        };
        settle();
        // Room without input: what blocks here would block the guest.
        port.reports.room.write(1).unwrap();
        settle();

        // The other end hangs up while the guest has not read yet.
        let sent: Vec<u8> = (0..200).collect();
        (&ours).write_all(&sent).unwrap();
        drop(ours);
        let mut got = Vec::new();
        while got.len() < sent.len() {
            settle();
            assert_eq!(read_byte(&port, 5) & 1, 1, "{} bytes came", got.len());
            got.push(read_byte(&port, 0));
        }
        assert_eq!(got, sent);
        settle();
    }

    #[test]
    fn state_survives() {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let sink = Sink::default();
        let a = port(&sink, Some(theirs.into()));
        a.write(1, &[1]);
        a.write(7, &[0x5a]);
        (&ours).write_all(b"xyz").unwrap();
        a.receive();
        let saved = a.save();
        let mut b = port(&sink, None);
        b.restore(a.version(), &saved).unwrap();
        assert_eq!(b.save(), saved);
        assert_eq!(read_byte(&b, 7), 0x5a);
        assert_eq!([read_byte(&b, 0), read_byte(&b, 0), read_byte(&b, 0)], *b"xyz");

        let mut big: SerialStateV1 = state::decode(1, 1, &saved).unwrap();
        big.in_buffer = vec![0; 65];
        assert!(matches!(b.restore(1, &state::encode(&big)), Err(StateError::Invalid(_))));
    }
}
