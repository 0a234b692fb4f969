//! Limits for messages that a guest causes: each line of source has so many in a row, and then so
//! many a second.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Messages of one line of source in a row, as Firecracker allows.
const BURST: u32 = 10;
/// Time after which one more is allowed, as Firecracker's.
const REFILL: Duration = Duration::from_millis(500);

/// Whether a message may be written.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Yes; so many like it were left out before.
    Write(u64),
    /// No.
    LeaveOut,
}

#[derive(Debug)]
struct Bucket {
    left: u32,
    /// When `left` was right.
    at: Instant,
    left_out: u64,
}

/// The limits of all lines of source.
#[derive(Debug, Default)]
pub struct Limits(HashMap<(&'static str, u32), Bucket>);

impl Limits {
    /// Judges a message of line `line` of `file`, at `now`.
    pub fn judge(&mut self, file: &'static str, line: u32, now: Instant) -> Verdict {
        let full = || Bucket { left: BURST, at: now, left_out: 0 };
        let bucket = self.0.entry((file, line)).or_insert_with(full);
        let refills = now.saturating_duration_since(bucket.at).as_millis() / REFILL.as_millis();
        if refills > 0 {
            let refills = u32::try_from(refills).unwrap_or(BURST);
            bucket.left = bucket.left.saturating_add(refills).min(BURST);
            bucket.at = now;
        }
        if bucket.left == 0 {
            bucket.left_out += 1;
            return Verdict::LeaveOut;
        }
        bucket.left -= 1;
        Verdict::Write(std::mem::take(&mut bucket.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_then_one_at_a_time() {
        let mut limits = Limits::default();
        let start = Instant::now();
        let mut judge = |line, ms| limits.judge("f.rs", line, start + Duration::from_millis(ms));
        let written = (0..50).filter(|_| judge(1, 0) == Verdict::Write(0)).count();
        assert_eq!(written, 10);
        assert_eq!(judge(2, 0), Verdict::Write(0), "another line has its own");
        assert_eq!(judge(1, 499), Verdict::LeaveOut);
        assert_eq!(judge(1, 500), Verdict::Write(41));
        assert_eq!(judge(1, 501), Verdict::LeaveOut);
        let written = (0..50).filter(|_| judge(1, 60_000) != Verdict::LeaveOut).count();
        assert_eq!(written, 10);
    }
}
