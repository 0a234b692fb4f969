//! Limits for messages that a guest, a stranger or a client can cause at its own pace: each line of
//! source has so many in a row, and then so many a second.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// How often one line of source may speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Messages in a row.
    burst: u32,
    /// Time after which one more is allowed.
    refill: Duration,
}

/// As Firecracker allows.
const USUAL: Limit = Limit { burst: 10, refill: Duration::from_millis(500) };
/// Requests: a machine is described by many in a row.
const REQUESTS: Limit = Limit { burst: 100, refill: Duration::from_millis(100) };

/// Modules, each without those below it, that speak a few times in the life of a process, whatever
/// others do.
const OWN: &[&str] =
    &["varve_vmm::cli", "varve_vmm::boot", "varve_vmm::signals", "varve_vmm::logger"];

/// The limit for messages of `module`; none for those that nobody else can cause.
pub fn of(module: &str) -> Option<Limit> {
    if OWN.contains(&module) {
        None
    } else if module.starts_with("varve_vmm::api") {
        Some(REQUESTS)
    } else {
        Some(USUAL)
    }
}

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
    pub fn judge(
        &mut self,
        Limit { burst, refill }: Limit,
        file: &'static str,
        line: u32,
        now: Instant,
    ) -> Verdict {
        let full = || Bucket { left: burst, at: now, left_out: 0 };
        let bucket = self.0.entry((file, line)).or_insert_with(full);
        let refills = now.saturating_duration_since(bucket.at).as_millis() / refill.as_millis();
        if refills > 0 {
            let refills = u32::try_from(refills).unwrap_or(burst);
            bucket.left = bucket.left.saturating_add(refills).min(burst);
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
        let mut judge =
            |line, ms| limits.judge(USUAL, "f.rs", line, start + Duration::from_millis(ms));
        let written = (0..50).filter(|_| judge(1, 0) == Verdict::Write(0)).count();
        assert_eq!(written, 10);
        assert_eq!(judge(2, 0), Verdict::Write(0), "another line has its own");
        assert_eq!(judge(1, 499), Verdict::LeaveOut);
        assert_eq!(judge(1, 500), Verdict::Write(41));
        assert_eq!(judge(1, 501), Verdict::LeaveOut);
        let written = (0..50).filter(|_| judge(1, 60_000) != Verdict::LeaveOut).count();
        assert_eq!(written, 10);
    }

    #[test]
    fn only_what_nobody_else_can_cause_is_not_limited() {
        for module in ["virtio_queue::chain", "varve_devices::virtio", "varve_vmm::monitor"] {
            assert_eq!(of(module), Some(USUAL), "{module}");
        }
        assert_eq!(of("varve_vmm::api::server"), Some(REQUESTS));
        // The guest writes to the boot timer.
        assert_eq!(of("varve_vmm::cli::run"), Some(USUAL));
        assert_eq!(of("varve_vmm::cli"), None);
    }
}
