//! A [`Stack`] with a clock and a timer: what a network device is given.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::rand::{GetRandomFlags, getrandom};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

use super::stack::{HEAD, Stack};
use super::{Mmds, MmdsConfig};
use crate::virtio::net::Detour;

const SOONEST: Duration = Duration::from_millis(1);
const LATEST: Duration = Duration::from_secs(60);

/// The service's station behind one network interface.
pub struct Station {
    stack: Stack,
    start: Instant,
    timer: OwnedFd,
    /// When the timer goes off, after `start`.
    armed: Option<Duration>,
}

impl Station {
    /// A station for the guest that `config` describes; `mtu` is that of its interface.
    pub fn new(mmds: Arc<Mmds>, config: &MmdsConfig, mtu: Option<u16>) -> io::Result<Station> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let mut seed = [0; 8];
        getrandom(&mut seed, GetRandomFlags::empty())?;
        Ok(Station {
            stack: Stack::new(mmds, config, mtu, u64::from_ne_bytes(seed)),
            start: Instant::now(),
            timer: timerfd_create(TimerfdClockId::Monotonic, flags)?,
            armed: None,
        })
    }

    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    /// Sets the timer to when the stack has something to do.
    fn arm(&mut self, now: Duration) {
        let due = self.stack.poll_at(now);
        if due == self.armed {
            return;
        }
        // A time of zero would stop it; what is overdue waits a little, so that nothing spins. What
        // is far off is looked at before.
        let left = due.map(|due| due.saturating_sub(now).clamp(SOONEST, LATEST));
        let left = left.unwrap_or_default();
        let spec = Itimerspec {
            it_interval: Timespec::default(),
            it_value: Timespec {
                tv_sec: left.as_secs() as i64,
                tv_nsec: left.subsec_nanos().into(),
            },
        };
        match timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &spec) {
            Ok(_) => self.armed = due,
            Err(e) => log::error!("mmds: timer: {e}"),
        }
    }
}

impl Detour for Station {
    fn head(&self) -> usize {
        HEAD
    }

    fn wants(&self, head: &[u8]) -> bool {
        self.stack.wants(head)
    }

    fn receive(&mut self, frame: &[u8]) {
        let now = self.now();
        self.stack.receive(frame, now);
        self.arm(now);
    }

    fn waits(&self) -> bool {
        self.stack.waits()
    }

    fn next(&mut self) -> Option<Vec<u8>> {
        let now = self.now();
        let frame = self.stack.next(now);
        self.arm(now);
        frame
    }

    fn timer(&self) -> RawFd {
        self.timer.as_raw_fd()
    }

    fn tick(&mut self) {
        let mut count = [0; 8];
        // Nothing to read if it was set anew meanwhile.
        let _ = rustix::io::read(&self.timer, &mut count);
        self.armed = None;
        let now = self.now();
        self.stack.poll(now);
        self.arm(now);
    }

    fn reset(&mut self) {
        self.stack.reset();
        self.arm(self.now());
    }
}
