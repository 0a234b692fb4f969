//! How a machine ends, and how whoever knows it first tells the others.

use std::fmt;
use std::sync::OnceLock;

use event_manager::{EventOps, EventSet, EventSubscriber, Events};
use varve_devices::stop::{StopReason, StopSink};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Why the machine ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The guest asked for it, or panicked.
    Guest(StopReason),
    /// The guest shut a vCPU down by a triple fault, which resets a PC.
    TripleFault,
    /// A signal asked the monitor to end.
    Signal(&'static str),
    /// What the machine was restored for is done.
    Done,
    /// A snapshot could not be loaded on request.
    NotLoaded(String),
    /// A vCPU could not go on: KVM met something that it cannot emulate.
    Crash(String),
    /// KVM itself failed.
    Kvm(String),
    /// A page of guest memory could not be had from its tier.
    Memory(String),
    /// The same, but KVM does not tell which page; the monitor looks for it.
    Unbacked(String),
}

impl End {
    /// Exit code of the process: 0 for a guest that ended as guests end and for SIGINT and SIGTERM, 156
    /// for SIGHUP, 1 for a snapshot that could not be loaded, 3 for a guest that crashed, 4 for KVM, 5 for memory that is lost.
    pub fn exit_code(&self) -> u8 {
        match self {
            End::Guest(StopReason::Reset | StopReason::PowerOff) | End::TripleFault | End::Done => {
                0
            }
            // Firecracker's code for a terminal that hangs up.
            End::Signal("SIGHUP") => 156,
            End::Signal(_) => 0,
            End::NotLoaded(_) => 1,
            End::Guest(StopReason::Panic) | End::Crash(_) => 3,
            End::Kvm(_) => 4,
            End::Memory(_) | End::Unbacked(_) => 5,
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            End::Guest(reason) => write!(f, "{reason}"),
            End::TripleFault => write!(f, "guest reset (triple fault)"),
            End::Done => write!(f, "done"),
            End::NotLoaded(why) => f.write_str(why),
            End::Signal(name) => write!(f, "stopped by {name}"),
            End::Crash(what) => write!(f, "guest crashed: {what}"),
            End::Kvm(what) => write!(f, "KVM failed: {what}"),
            End::Memory(what) | End::Unbacked(what) => write!(f, "guest memory is lost: {what}"),
        }
    }
}

/// Where the end is announced: the first one counts.
#[derive(Debug)]
pub struct EndSignal {
    end: OnceLock<End>,
    event: EventFd,
}

impl EndSignal {
    /// Nothing has ended yet.
    pub fn new() -> std::io::Result<EndSignal> {
        Ok(EndSignal { end: OnceLock::new(), event: EventFd::new(EFD_NONBLOCK)? })
    }

    /// Announces an end.
    pub fn announce(&self, end: End) {
        let _ = self.end.set(end);
        let _ = self.event.write(1);
    }

    /// The end, once there is one.
    pub fn get(&self) -> Option<&End> {
        self.end.get()
    }
}

impl StopSink for EndSignal {
    fn stop(&self, reason: StopReason) {
        self.announce(End::Guest(reason));
    }
}

impl EventSubscriber for EndSignal {
    fn init(&self, ops: &mut EventOps) {
        if let Err(e) = ops.add(Events::new(&self.event, EventSet::IN)) {
            log::error!("end of the machine: {e}");
        }
    }

    /// Only wakes the loop, which looks at [`EndSignal::get`] each time.
    fn process(&self, _events: Events, _ops: &mut EventOps) {}
}
