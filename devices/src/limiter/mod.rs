//! Rate limiters: a bucket of bytes and one of operations, and the timer that says when a device
//! may go on. What a request costs, and where it waits, is the device's.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use serde::{Deserialize, Serialize};

mod bucket;
mod writer;

pub use bucket::{Bucket, BucketConfig, Level};
pub use writer::LimitedWriter;

/// What is limited, under the names of Firecracker's API. A bucket that is absent is no limit; in an
/// update it is left as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LimiterConfig {
    /// Bytes.
    #[serde(default)]
    pub bandwidth: Option<BucketConfig>,
    /// Requests.
    #[serde(default)]
    pub ops: Option<BucketConfig>,
}

impl LimiterConfig {
    /// This, or none where nothing is limited.
    pub fn given(self) -> Option<LimiterConfig> {
        (self != LimiterConfig::default()).then_some(self)
    }

    /// This with the buckets that `update` names in their place.
    pub fn updated(self, update: LimiterConfig) -> LimiterConfig {
        let limiting = |bucket: Option<BucketConfig>| bucket.filter(BucketConfig::limits);
        LimiterConfig {
            bandwidth: limiting(update.bandwidth.or(self.bandwidth)),
            ops: limiting(update.ops.or(self.ops)),
        }
    }
}

/// What a snapshot keeps of a limiter: how full its buckets are. Their sizes are config.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimiterState {
    bandwidth: Option<Level>,
    ops: Option<Level>,
}

/// Shortest wait. No bucket is full sooner than after this time, so it costs no throughput, and a
/// limiter of millions of requests a second does not wake the event loop for each of them.
const MIN_WAIT: Duration = Duration::from_millis(1);

/// A limiter. While it [waits](Limiter::waits) nothing passes; then its descriptor becomes readable.
#[derive(Debug)]
pub struct Limiter {
    bandwidth: Option<Bucket>,
    ops: Option<Bucket>,
    timer: OwnedFd,
    /// The timer is set and has not been read.
    waits: bool,
    start: Instant,
}

impl AsRawFd for Limiter {
    /// Becomes readable when the wait is over; then comes [`Limiter::resume`].
    fn as_raw_fd(&self) -> RawFd {
        self.timer.as_raw_fd()
    }
}

impl Limiter {
    /// A limiter with full buckets. It has its timer even if nothing is limited yet.
    pub fn new(config: LimiterConfig) -> io::Result<Limiter> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        let LimiterConfig { bandwidth, ops } = config;
        Ok(Limiter {
            bandwidth: bandwidth.and_then(Bucket::new),
            ops: ops.and_then(Bucket::new),
            timer,
            waits: false,
            start: Instant::now(),
        })
    }

    /// Whether the timer runs: all that could be asked would be refused.
    pub fn waits(&self) -> bool {
        self.waits
    }

    /// Whether one request of `bytes` may go now. If not, the timer is set to when it may.
    pub fn admits(&mut self, bytes: u64) -> bool {
        if self.waits {
            return false;
        }
        let now = self.start.elapsed();
        let wait = |bucket: &Option<Bucket>, tokens| {
            bucket.as_ref().map_or(Duration::ZERO, |b| b.wait(now, tokens))
        };
        let wait = wait(&self.bandwidth, bytes).max(wait(&self.ops, 1));
        if !wait.is_zero() {
            self.wait(wait.max(MIN_WAIT));
        }
        !self.waits
    }

    /// Pays for one request of `bytes`. What the buckets lack becomes debt.
    pub fn charge(&mut self, bytes: u64) {
        let now = self.start.elapsed();
        for (bucket, tokens) in [(&mut self.bandwidth, bytes), (&mut self.ops, 1)] {
            if let Some(bucket) = bucket {
                bucket.charge(now, tokens);
            }
        }
    }

    /// Pays for one request of `bytes` if it may go now.
    pub fn take(&mut self, bytes: u64) -> bool {
        let goes = self.admits(bytes);
        if goes {
            self.charge(bytes);
        }
        goes
    }

    /// The descriptor is readable: whether the wait is over.
    pub fn resume(&mut self) -> bool {
        let mut expirations = [0; 8];
        // Set anew between the event and now, it has nothing to read.
        if rustix::io::read(&self.timer, &mut expirations).is_ok() {
            self.waits = false;
        }
        !self.waits
    }

    /// Replaces the buckets that `update` names by full ones. Whoever waits is called at once.
    pub fn update(&mut self, update: LimiterConfig) {
        let LimiterConfig { bandwidth, ops } = update;
        if let Some(config) = bandwidth {
            self.bandwidth = Bucket::new(config);
        }
        if let Some(config) = ops {
            self.ops = Bucket::new(config);
        }
        if self.waits {
            self.wait(Duration::from_nanos(1));
        }
    }

    fn wait(&mut self, time: Duration) {
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let it_value = Timespec::try_from(time).unwrap_or(Timespec { tv_sec: i64::MAX, ..now });
        let spec = Itimerspec { it_interval: now, it_value };
        match timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &spec) {
            Ok(_) => self.waits = true,
            // Better without its limit than standing still for ever.
            Err(e) => log::error!("rate limiter: timer: {e}"),
        }
    }

    /// What a snapshot keeps.
    pub fn save(&self) -> LimiterState {
        let now = self.start.elapsed();
        let level = |bucket: &Option<Bucket>| bucket.as_ref().map(|b| b.level(now));
        LimiterState { bandwidth: level(&self.bandwidth), ops: level(&self.ops) }
    }

    /// Goes on where a limiter with the same config was saved.
    pub fn restore(&mut self, state: LimiterState) {
        let LimiterState { bandwidth, ops } = state;
        let now = self.start.elapsed();
        for (bucket, level) in [(&mut self.bandwidth, bandwidth), (&mut self.ops, ops)] {
            if let (Some(bucket), Some(level)) = (bucket, level) {
                bucket.set_level(now, level);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(bandwidth: Option<(u64, u64)>, ops: Option<(u64, u64)>) -> LimiterConfig {
        let bucket = |(size, refill_time)| BucketConfig { size, one_time_burst: None, refill_time };
        LimiterConfig { bandwidth: bandwidth.map(bucket), ops: ops.map(bucket) }
    }

    /// Waits for the timer, and returns how long that took.
    fn expire(limiter: &mut Limiter) -> Duration {
        use rustix::event::{PollFd, PollFlags, poll};
        let start = Instant::now();
        poll(&mut [PollFd::new(&limiter.timer, PollFlags::IN)], None).unwrap();
        let time = start.elapsed();
        assert!(limiter.resume());
        time
    }

    #[test]
    fn without_buckets_all_pass() {
        let mut limiter = Limiter::new(LimiterConfig::default()).unwrap();
        assert!((0..1000).all(|_| limiter.take(u64::MAX)));
        let zero = config(Some((0, 10)), Some((10, 0)));
        let mut limiter = Limiter::new(zero).unwrap();
        assert!((0..1000).all(|_| limiter.take(u64::MAX)));
    }

    #[test]
    fn what_is_refused_costs_nothing_and_is_admitted_after_the_wait() {
        let mut limiter = Limiter::new(config(Some((100, 60_000)), Some((2, 40)))).unwrap();
        assert!(limiter.take(30) && limiter.take(30));
        let before = limiter.save();
        assert!(!limiter.take(30) && limiter.waits(), "no operation is left");
        assert_eq!(before.bandwidth.is_some(), limiter.save().bandwidth.is_some());
        let time = expire(&mut limiter);
        assert!(time >= Duration::from_millis(10), "half of the bucket took {time:?}");
        assert!(limiter.take(30), "bytes were not taken by the one refused");
        assert!(!limiter.take(30) && limiter.waits());
    }

    #[test]
    fn an_update_ends_the_wait_and_replaces_what_it_names() {
        let mut limiter = Limiter::new(config(Some((10, 600_000)), Some((5, 600_000)))).unwrap();
        assert!(limiter.take(10));
        assert!(!limiter.take(10));
        limiter.update(config(Some((20, 600_000)), None));
        assert!(expire(&mut limiter) < Duration::from_secs(10));
        assert!(limiter.take(20), "a new bucket is full");
        limiter.update(config(Some((0, 0)), None));
        assert!(limiter.take(1000) && limiter.take(1000) && limiter.take(1000), "no limit");
        assert!(!limiter.take(0), "the operations are still limited: five were");
        assert!(expire_soon(&mut limiter));
    }

    fn expire_soon(limiter: &mut Limiter) -> bool {
        limiter.update(LimiterConfig::default());
        expire(limiter) < Duration::from_secs(10)
    }

    #[test]
    fn a_restored_limiter_goes_on() {
        let limits = config(Some((1000, 600_000)), None);
        let mut limiter = Limiter::new(limits).unwrap();
        assert!(limiter.take(900));
        let mut other = Limiter::new(limits).unwrap();
        other.restore(limiter.save());
        assert!(other.take(100) && !other.take(100));
        // A limit that is new, or gone, is as configured.
        let mut unlimited = Limiter::new(LimiterConfig::default()).unwrap();
        unlimited.restore(limiter.save());
        assert!(unlimited.take(1 << 40));
        let mut limiter = Limiter::new(limits).unwrap();
        limiter.restore(LimiterState::default());
        assert!(limiter.take(1000));
    }
}
