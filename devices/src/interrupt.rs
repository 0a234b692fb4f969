//! Interrupts as devices raise them.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use vm_superio::Trigger;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::metrics::Count;

/// One interrupt line: an event descriptor whose every write becomes an edge at the interrupt
/// controller, once the monitor has tied the two together.
#[derive(Clone, Debug)]
pub struct IrqLine {
    event: Arc<EventFd>,
    raised: Arc<Count>,
}

impl IrqLine {
    /// A line that is not yet tied to anything.
    pub fn new() -> io::Result<IrqLine> {
        let event = Arc::new(EventFd::new(EFD_NONBLOCK)?);
        Ok(IrqLine { event, raised: Arc::default() })
    }

    /// The descriptor, to be tied to an interrupt controller's input.
    pub fn event(&self) -> &EventFd {
        &self.event
    }

    /// How often the line was raised.
    pub fn raised(&self) -> Arc<Count> {
        self.raised.clone()
    }
}

impl AsRawFd for IrqLine {
    fn as_raw_fd(&self) -> RawFd {
        self.event.as_raw_fd()
    }
}

impl Trigger for IrqLine {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.raised.inc();
        match self.event.write(1) {
            // The counter is full: an edge is pending already, which is all a line can say.
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(()),
            other => other,
        }
    }
}

/// `InterruptStatus` bit: a buffer was used (virtio 1.2, 4.2.2).
pub const STATUS_USED: u32 = 1;
/// `InterruptStatus` bit: the configuration changed (virtio 1.2, 4.2.2).
pub const STATUS_CONFIG: u32 = 2;

/// A virtio device's interrupt: the line and its `InterruptStatus` register.
///
/// It stands outside the device's lock, so that a vCPU that acknowledges an interrupt never waits
/// for I/O that the event loop is doing.
#[derive(Debug)]
pub struct VirtioInterrupt {
    status: AtomicU32,
    line: IrqLine,
}

impl VirtioInterrupt {
    /// An interrupt over `line`, with nothing pending.
    pub fn new(line: IrqLine) -> VirtioInterrupt {
        VirtioInterrupt { status: AtomicU32::new(0), line }
    }

    /// Sets `bits` in the status register and raises the line.
    pub fn raise(&self, bits: u32) {
        self.status.fetch_or(bits, Ordering::SeqCst);
        if let Err(e) = self.line.trigger() {
            log::error!("interrupt line: {e}");
        }
    }

    /// The status register.
    pub fn status(&self) -> u32 {
        self.status.load(Ordering::SeqCst)
    }

    /// Clears `bits`, as the driver's write to `InterruptACK` asks.
    pub fn acknowledge(&self, bits: u32) {
        self.status.fetch_and(!bits, Ordering::SeqCst);
    }

    /// Sets the whole register (reset and restore).
    pub fn set_status(&self, bits: u32) {
        self.status.store(bits, Ordering::SeqCst);
    }

    /// The line.
    pub fn line(&self) -> &IrqLine {
        &self.line
    }
}
