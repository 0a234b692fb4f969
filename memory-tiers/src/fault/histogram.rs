//! A histogram of durations, cheap enough to update on each fault.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Each power of two has so many buckets of equal width, so that a value is known to an eighth.
const STEPS: u64 = 4;
const BUCKETS: usize = 64 * STEPS as usize;

/// Durations, by nanoseconds.
#[derive(Debug)]
pub struct Histogram([AtomicU64; BUCKETS]);

/// Durations of about the same length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Bucket {
    /// All of them are shorter than so many nanoseconds, and not shorter than the bucket's before.
    pub below_ns: u64,
    /// Durations in this bucket.
    pub count: u64,
}

impl Default for Histogram {
    fn default() -> Histogram {
        Histogram([const { AtomicU64::new(0) }; BUCKETS])
    }
}

impl Histogram {
    /// One more.
    pub fn add(&self, time: Duration) {
        let ns = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        if let Some(bucket) = self.0.get(index(ns)) {
            bucket.fetch_add(1, Relaxed);
        }
    }

    /// The buckets that are not empty, shortest first.
    pub fn buckets(&self) -> Vec<Bucket> {
        let all = self.0.iter().map(|bucket| bucket.load(Relaxed)).enumerate();
        let some = all.filter(|(_, count)| *count > 0);
        some.map(|(index, count)| Bucket { below_ns: end(index as u64), count }).collect()
    }
}

/// The first bucket of each power of two begins at it; below [`STEPS`] each number has its own.
fn index(ns: u64) -> usize {
    if ns < STEPS {
        return ns as usize;
    }
    let power = u64::from(ns.ilog2());
    let within = (ns >> (power - 2)) - STEPS;
    ((power - 1) * STEPS + within) as usize
}

/// Where a bucket ends.
fn end(index: u64) -> u64 {
    if index < STEPS {
        return index + 1;
    }
    let (power, within) = (index / STEPS + 1, index % STEPS);
    let end = u128::from(STEPS + within + 1) << (power - 2);
    u64::try_from(end).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_known_to_a_quarter() {
        let mut last = 0;
        for ns in (0..5000).chain([1 << 20, (1 << 40) + 7, u64::MAX]) {
            let at = index(ns);
            assert!(at >= last && at < BUCKETS, "{ns}");
            last = at;
            let (from, to) = (if at == 0 { 0 } else { end(at as u64 - 1) }, end(at as u64));
            assert!(from <= ns && (ns < to || to == u64::MAX), "{ns}: {from}..{to}");
            assert!(to - from <= (from / STEPS).max(1) + 1, "{ns}: {from}..{to}");
        }
    }

    #[test]
    fn equal_ones_are_counted_together() {
        let histogram = Histogram::default();
        for ns in [100, 101, 5000, 100] {
            histogram.add(Duration::from_nanos(ns));
        }
        let bucket = |below_ns, count| Bucket { below_ns, count };
        assert_eq!(histogram.buckets(), [bucket(112, 3), bucket(5120, 1)]);
        assert!(Histogram::default().buckets().is_empty());
    }
}
