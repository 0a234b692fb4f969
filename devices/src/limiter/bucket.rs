//! A token bucket over injected time. Pure: which clock it is, and who waits, is not known here.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Size and speed of a bucket, under the names of Firecracker's API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BucketConfig {
    /// Tokens that it holds: bytes, or operations. 0 is no limit.
    pub size: u64,
    /// Tokens beyond `size` that are there once, used up before any other, and never come back.
    #[serde(default)]
    pub one_time_burst: Option<u64>,
    /// Milliseconds in which an empty bucket becomes full. 0 is no limit.
    pub refill_time: u64,
}

impl BucketConfig {
    /// Whether it is a limit at all.
    pub fn limits(&self) -> bool {
        self.size > 0 && self.refill_time > 0
    }
}

/// What a snapshot keeps of a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Level {
    burst: u64,
    full_in_ns: u64,
}

/// A bucket. It starts full.
///
/// Time is a [`Duration`] since any fixed point; it must not go back.
#[derive(Clone, Debug)]
pub struct Bucket {
    size: u64,
    refill_ns: u64,
    burst: u64,
    /// What was missing from a full bucket at `at`. One token is `refill_ns` of this unit and one
    /// nanosecond brings `size` of it, so that nothing is ever rounded. More than the bucket holds
    /// is debt.
    missing: u128,
    at: Duration,
}

impl Bucket {
    /// A full bucket; `None` if `config` is no limit.
    pub fn new(config: BucketConfig) -> Option<Bucket> {
        let BucketConfig { size, one_time_burst, refill_time } = config;
        // Centuries, when it saturates.
        let refill_ns = refill_time.saturating_mul(1_000_000);
        config.limits().then(|| Bucket {
            size,
            refill_ns,
            burst: one_time_burst.unwrap_or(0),
            missing: 0,
            at: Duration::ZERO,
        })
    }

    fn missing(&self, now: Duration) -> u128 {
        let ns = now.saturating_sub(self.at).as_nanos();
        self.missing.saturating_sub(ns.saturating_mul(self.size.into()))
    }

    fn units(&self, tokens: u64) -> u128 {
        u128::from(tokens) * u128::from(self.refill_ns)
    }

    /// How long a request of `tokens` has to wait from `now` on; zero if it may go.
    ///
    /// A request larger than the bucket could wait for ever. It waits until there is no debt, and
    /// [`Bucket::charge`] then makes debt of what there was not, which the next ones wait for.
    pub fn wait(&self, now: Duration, tokens: u64) -> Duration {
        let tokens = tokens.saturating_sub(self.burst);
        if tokens == 0 {
            return Duration::ZERO;
        }
        let need = if tokens > self.size { 0 } else { self.units(tokens) };
        let lacking = self.missing(now).saturating_add(need).saturating_sub(self.units(self.size));
        nanos(lacking.div_ceil(self.size.into()))
    }

    /// Whether `tokens` are there at `now`, without debt.
    pub fn holds(&self, now: Duration, tokens: u64) -> bool {
        tokens.saturating_sub(self.burst) <= self.size && self.wait(now, tokens).is_zero()
    }

    /// Takes `tokens` out, whether they are there or not.
    pub fn charge(&mut self, now: Duration, tokens: u64) {
        let burst = self.burst.min(tokens);
        self.burst -= burst;
        self.missing = self.missing(now).saturating_add(self.units(tokens - burst));
        self.at = now;
    }

    /// What is left at `now`.
    pub fn level(&self, now: Duration) -> Level {
        let full_in = nanos(self.missing(now).div_ceil(self.size.into()));
        Level { burst: self.burst, full_in_ns: full_in.as_nanos() as u64 }
    }

    /// Goes on with what was left of a bucket like this one.
    pub fn set_level(&mut self, now: Duration, level: Level) {
        let Level { burst, full_in_ns } = level;
        self.burst = burst.min(self.burst);
        self.missing = u128::from(full_in_ns) * u128::from(self.size);
        self.at = now;
    }
}

fn nanos(ns: u128) -> Duration {
    Duration::from_nanos(u64::try_from(ns).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: Duration = Duration::from_millis(1);

    fn bucket(size: u64, burst: u64, refill_time: u64) -> Bucket {
        Bucket::new(BucketConfig { size, one_time_burst: Some(burst), refill_time }).unwrap()
    }

    /// Takes one request if it may go.
    fn take(bucket: &mut Bucket, now: Duration, tokens: u64) -> bool {
        let goes = bucket.wait(now, tokens).is_zero();
        if goes {
            bucket.charge(now, tokens);
        }
        goes
    }

    #[test]
    fn holds_its_size_and_fills_in_its_time() {
        // Thirds of a millisecond: nothing may be lost to rounding.
        let mut b = bucket(3, 0, 1);
        assert_eq!((0..9).filter(|_| take(&mut b, MS, 1)).count(), 3);
        assert_eq!(b.wait(MS, 1), Duration::from_nanos(333_334));
        assert_eq!(b.wait(MS, 3), MS);
        assert!(take(&mut b, 2 * MS, 3));
        assert!(!take(&mut b, 2 * MS, 1));
        // Time beyond the full bucket is lost.
        assert_eq!((0..9).filter(|_| take(&mut b, 100 * MS, 1)).count(), 3);
    }

    #[test]
    fn a_burst_comes_first_and_once() {
        let mut b = bucket(10, 25, 10);
        assert!(take(&mut b, MS, 20));
        assert!(take(&mut b, MS, 15), "5 of the burst and 10 of the bucket");
        assert!(!take(&mut b, MS, 1));
        assert!(take(&mut b, 1000 * MS, 10));
        assert!(!take(&mut b, 1000 * MS, 1), "no burst a second time");
    }

    #[test]
    fn more_than_the_bucket_makes_debt() {
        let mut b = bucket(10, 0, 10);
        assert!(take(&mut b, MS, 4));
        assert!(take(&mut b, MS, 26), "30 of 10: 20 are owed");
        assert_eq!(b.wait(MS, 1), 21 * MS);
        assert_eq!(b.wait(MS, 1000), 20 * MS, "a large one waits for the debt alone");
        assert!(!take(&mut b, 21 * MS, 1));
        assert!(take(&mut b, 22 * MS, 1));
    }

    #[test]
    fn zero_is_no_limit_and_extremes_do_not_overflow() {
        let config = |size, refill_time| BucketConfig { size, one_time_burst: None, refill_time };
        assert!(Bucket::new(config(0, 1)).is_none() && Bucket::new(config(1, 0)).is_none());
        for (size, refill) in [(1, u64::MAX), (u64::MAX, 1), (u64::MAX, u64::MAX)] {
            let mut b = Bucket::new(config(size, refill)).unwrap();
            assert!(take(&mut b, Duration::MAX, u64::MAX));
            b.charge(Duration::MAX, u64::MAX);
            b.charge(Duration::MAX, u64::MAX);
            assert!(b.wait(Duration::MAX, 1) > Duration::ZERO);
            let level = b.level(Duration::MAX);
            b.set_level(Duration::ZERO, level);
            b.wait(Duration::MAX, u64::MAX);
        }
    }

    #[test]
    fn a_saved_level_goes_on_elsewhere() {
        let mut b = bucket(10, 5, 10);
        b.charge(7 * MS, 11);
        let level = b.level(9 * MS);
        let mut other = bucket(10, 5, 10);
        other.set_level(100 * MS, level);
        assert_eq!(other.level(100 * MS), level);
        assert_eq!(other.wait(100 * MS, 7), b.wait(9 * MS, 7));
        assert_eq!(other.wait(100 * MS, 7), Duration::from_nanos(1_000_000));
        let mut smaller = bucket(10, 0, 10);
        smaller.set_level(MS, bucket(1, 99, 1).level(MS));
        assert_eq!(smaller.burst, 0, "no more than it was configured with");
    }

    proptest! {
        /// However requests come, what passed is never more than the bucket, its burst and the
        /// time allow (beside one overdraft), and a client that waits as told gets all of that.
        #[test]
        fn passes_what_the_rate_allows(
            size in 1u64..5000,
            burst in 0u64..5000,
            refill in 1u64..200,
            requests in prop::collection::vec((0u64..8000, 0u64..300_000_000), 1..200),
        ) {
            let mut b = bucket(size, burst, refill);
            let (mut now, mut passed) = (Duration::ZERO, 0u128);
            let mut largest = 0u64;
            for (tokens, pause) in requests {
                let wait = b.wait(now, tokens);
                // The promised time is the earliest one.
                if !wait.is_zero() {
                    let sooner = now + wait - Duration::from_nanos(1);
                    prop_assert!(!b.wait(sooner, tokens).is_zero());
                    prop_assert!(b.wait(now + wait, tokens).is_zero());
                    now += wait;
                }
                b.charge(now, tokens);
                passed += u128::from(tokens);
                largest = largest.max(tokens);
                let due = now.as_nanos() * u128::from(size) / u128::from(refill * 1_000_000);
                let allowed = u128::from(size) + u128::from(burst) + due;
                prop_assert!(passed <= allowed + u128::from(largest), "{passed} of {allowed}");
                if largest <= size {
                    prop_assert!(passed <= allowed, "{passed} of {allowed}");
                }
                now += Duration::from_nanos(pause);
            }
        }

        /// A client that never pauses gets the whole rate, to the token.
        #[test]
        fn gives_the_whole_rate(
            size in 1u64..5000,
            refill in 1u64..200,
            requests in prop::collection::vec(1u64..8000, 1..200),
        ) {
            let mut b = bucket(size, 0, refill);
            let (mut now, mut passed) = (Duration::ZERO, 0u128);
            for tokens in requests {
                now += b.wait(now, tokens);
                b.charge(now, tokens);
                passed += u128::from(tokens);
            }
            now += b.wait(now, 1);
            let due = now.as_nanos() * u128::from(size) / u128::from(refill * 1_000_000);
            // Full less what passed plus the refill: one token is there now, and none was before.
            let level = (u128::from(size) + due) as i128 - passed as i128;
            prop_assert!(level >= 1, "{level} at {now:?}");
            prop_assert!(now.is_zero() || level <= 1, "{level} at {now:?}");
        }
    }
}
