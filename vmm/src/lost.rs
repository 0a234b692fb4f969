//! A page of guest memory is lost while the machine runs: its image became shorter, its disk fails, or the
//! host's memory does. Who touches the page finds out, each in another way:
//!
//! - a thread of the monitor, or a vCPU's on memory that failed: SIGBUS, whose handler names the page;
//! - KVM for the guest: KVM_RUN fails with EFAULT, without a word about the page, or KVM tries for ever, as a
//!   page that must be waited for. So the images' lengths are looked at each second.
//!
//! Each ends the process with exit code 5.
//!
//! UNSAFETY: a signal's handler reads a leaked pointer.
#![allow(unsafe_code)]

use std::ffi::c_int;
use std::fmt::Write;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use event_manager::{EventOps, EventSet, EventSubscriber, Events};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use varve_memory_tiers::{GuestRam, MappedPages, TierError};

use crate::end::End;
use crate::signal_handlers::{self, Line};

/// Time between two looks at the images' lengths.
pub const PERIOD: Duration = Duration::from_secs(1);

/// `si_code` of SIGBUS: memory of the host failed (sigaction(2)).
const BUS_MCEERR: [c_int; 2] = [libc::BUS_MCEERR_AR, libc::BUS_MCEERR_AO];

/// The machine's memory, as the handler sees it.
struct Known {
    ram: Weak<GuestRam>,
    mapped: Option<MappedPages>,
}

/// Memory of the machine that was built last. Never freed: a handler may be reading it.
static KNOWN: AtomicPtr<Known> = AtomicPtr::new(std::ptr::null_mut());
/// Has the handler know a machine's memory, and what is mapped there.
pub fn watch(ram: &Arc<GuestRam>, mapped: Option<MappedPages>) {
    let known = Box::new(Known { ram: Arc::downgrade(ram), mapped });
    KNOWN.store(Box::into_raw(known), Ordering::Release);
    signal_handlers::explain_bus(explain);
}

/// Says which page is lost at the host address `address`, and by what; the exit code. Nothing if that is no
/// guest memory. It runs in a signal's handler.
fn explain(address: usize, code: c_int, to: &mut Line) -> Option<u8> {
    // SAFETY: null, or a value that was leaked for this.
    let known = unsafe { KNOWN.load(Ordering::Acquire).as_ref() }?;
    let ram = known.ram.upgrade()?;
    let page = ram.guest_address(address as u64).map(|address| address & !0xfff);
    // The last owner must not be a handler, which may not free memory.
    std::mem::forget(ram);
    let page = page?;
    let _ = write!(to, "guest memory is lost: guest page {page:#x} cannot be had ");
    let mapped = known.mapped.as_ref().is_some_and(|mapped| mapped.describe(page, to));
    let cause = match (BUS_MCEERR.contains(&code), mapped) {
        (true, true) => ": the host's memory failed there",
        (true, false) => "from local memory: the host's memory failed there",
        (false, true) => ": the file is shorter than it was, or its disk fails",
        (false, false) => "from local memory",
    };
    let _ = to.write_str(cause);
    Some(End::Memory(String::new()).exit_code())
}

/// Looks at the images' lengths each [`PERIOD`].
pub struct LengthCheck {
    timer: OwnedFd,
    check: Box<dyn Fn() + Send + Sync>,
}

impl LengthCheck {
    /// Starts the clock; `check` is called at each tick.
    ///
    /// # Errors
    ///
    /// If there is no timer to be had.
    pub fn start(check: Box<dyn Fn() + Send + Sync>) -> io::Result<LengthCheck> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        let time = Timespec { tv_sec: PERIOD.as_secs() as i64, tv_nsec: 0 };
        let spec = Itimerspec { it_interval: time, it_value: time };
        timerfd_settime(&timer, TimerfdTimerFlags::empty(), &spec)?;
        Ok(LengthCheck { timer, check })
    }
}

impl EventSubscriber for LengthCheck {
    fn init(&self, ops: &mut EventOps) {
        if let Err(e) = ops.add(Events::new(&self.timer, EventSet::IN)) {
            log::error!("lengths of images: {e}");
        }
    }

    fn process(&self, _events: Events, _ops: &mut EventOps) {
        let _ = rustix::io::read(&self.timer, &mut [0; 8]);
        (self.check)();
    }
}

/// The end of a machine whose vCPU met a page that KVM could not have, with the page's name if `found` has it.
pub fn named(end: &End, found: impl FnOnce() -> Option<TierError>) -> End {
    match end {
        End::Unbacked(what) => match found() {
            Some(error) => End::Memory(format!("{} ({what})", varve_snapshot::chain(&error))),
            None => End::Memory(what.clone()),
        },
        other => other.clone(),
    }
}
