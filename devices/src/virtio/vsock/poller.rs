//! One descriptor for many: the device's own epoll instance, with an alarm clock in it.
//!
//! Sockets are watched edge-triggered: who owns one remembers that it is readable until a read
//! says otherwise, so that a socket whose data the guest has no room for costs nothing.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

/// Token of the alarm.
pub const ALARM: u64 = 0;
/// Token of the listening socket.
pub const LISTENER: u64 = 1;
/// Sockets have tokens from here up.
const FIRST_SOCKET: u64 = 2;

/// Events taken at once; the rest stays for the next call, after other devices had their turn.
const BATCH: usize = 64;

/// An epoll instance and its alarm.
pub struct Poller {
    epoll: OwnedFd,
    timer: OwnedFd,
    /// When the alarm goes off.
    armed: Option<Instant>,
    next_token: u64,
}

impl Poller {
    /// One that watches nothing but its alarm.
    pub fn new() -> io::Result<Poller> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        epoll::add(&epoll, &timer, EventData::new_u64(ALARM), EventFlags::IN)?;
        Ok(Poller { epoll, timer, armed: None, next_token: FIRST_SOCKET })
    }

    /// The descriptor that is readable while an event waits.
    pub fn fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }

    /// A token that no socket has had.
    pub fn new_token(&mut self) -> u64 {
        self.next_token += 1;
        self.next_token - 1
    }

    /// Watches a listening socket, level-triggered.
    pub fn watch_listener(&self, fd: impl AsFd) -> io::Result<()> {
        Ok(epoll::add(&self.epoll, fd, EventData::new_u64(LISTENER), EventFlags::IN)?)
    }

    /// Stops watching `fd`. (Closing it does so, too.)
    pub fn forget(&self, fd: impl AsFd) {
        let _ = epoll::delete(&self.epoll, fd);
    }

    /// Watches a socket for data, the other side's end, and an error.
    pub fn watch(&self, fd: impl AsFd, token: u64) -> io::Result<()> {
        Ok(epoll::add(&self.epoll, fd, EventData::new_u64(token), interest(false))?)
    }

    /// Watches a socket also for room to write, or no longer so. Reports at once if there is any.
    pub fn watch_writable(&self, fd: impl AsFd, token: u64, on: bool) -> io::Result<()> {
        Ok(epoll::modify(&self.epoll, fd, EventData::new_u64(token), interest(on))?)
    }

    /// What is ready now.
    pub fn ready(&self) -> Vec<(u64, EventFlags)> {
        let blank = Event { flags: EventFlags::empty(), data: EventData::new_u64(0) };
        let mut events = [blank; BATCH];
        let count = epoll::wait(&self.epoll, &mut events[..], Some(&Timespec::default()));
        let ready = &events[..count.unwrap_or(0)];
        ready.iter().map(|e| ({ e.data }.u64(), { e.flags })).collect()
    }

    /// Has the alarm go off at `at`, or earlier.
    pub fn alarm(&mut self, at: Instant) {
        if self.armed.is_some_and(|armed| armed <= at) {
            return;
        }
        // A time of zero would disarm it.
        let left = at.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        let it_value = Timespec {
            tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        };
        let spec = Itimerspec { it_interval: Timespec::default(), it_value };
        match timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &spec) {
            Ok(_) => self.armed = Some(at),
            Err(e) => log::error!("vsock: alarm: {e}"),
        }
    }

    /// The alarm went off: it is quiet until set again.
    pub fn silence(&mut self) {
        self.armed = None;
        let _ = rustix::io::read(&self.timer, &mut [0u8; 8]);
    }
}

fn interest(writable: bool) -> EventFlags {
    let base = EventFlags::IN | EventFlags::RDHUP | EventFlags::ET;
    if writable { base | EventFlags::OUT } else { base }
}
