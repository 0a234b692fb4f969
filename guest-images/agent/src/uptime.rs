//! The guest's clocks.

use rustix::time::{ClockId, clock_gettime};

/// Seconds since the kernel started: the first number of `/proc/uptime`, with more digits.
pub fn seconds() -> f64 {
    nanos(ClockId::Boottime) as f64 / 1e9
}

/// A clock's time in nanoseconds.
pub fn nanos(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000
        + u64::try_from(time.tv_nsec).unwrap_or(0)
}
