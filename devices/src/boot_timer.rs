//! Boot timer: a byte that the guest writes when it has come far enough.
//!
//! The register and its first value are Firecracker's (a write of 123 means that init runs);
//! varve's own agent also writes 124 when it is ready for requests.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use crate::bus::BusDevice;

/// Written when init starts.
pub const INIT_REACHED: u8 = 123;
/// Written when the agent answers.
pub const AGENT_READY: u8 = 124;
/// Bytes that the register occupies (a page, so that a guest can map it).
pub const BOOT_TIMER_LEN: u64 = 0x1000;

/// Reports marks with the time since the process started.
pub struct BootTimer {
    start: Instant,
    report: Box<dyn Fn(u8, std::time::Duration) + Send + Sync>,
    /// Reports that may still be made: a guest can write as often as it likes.
    left: AtomicU32,
}

/// Reports in the life of a machine; a guest has two things to tell.
const REPORTS: u32 = 16;

impl BootTimer {
    /// A timer that counts from `start` and hands each mark and its time to `report`.
    pub fn new(
        start: Instant,
        report: impl Fn(u8, std::time::Duration) + Send + Sync + 'static,
    ) -> BootTimer {
        BootTimer { start, report: Box::new(report), left: AtomicU32::new(REPORTS) }
    }
}

impl BusDevice for BootTimer {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let left = || {
            let less = |left: u32| left.checked_sub(1);
            self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok()
        };
        if let (0, &[mark @ (INIT_REACHED | AGENT_READY)]) = (offset, data)
            && left()
        {
            (self.report)(mark, self.start.elapsed());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn a_guest_that_never_stops_writing_is_not_always_heard() {
        let heard = Arc::new(AtomicU32::new(0));
        let count = heard.clone();
        let timer = BootTimer::new(Instant::now(), move |_, _| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        for _ in 0..100 {
            timer.write(0, &[INIT_REACHED]);
            timer.write(0, &[1]);
        }
        assert_eq!(heard.load(Ordering::Relaxed), REPORTS);
    }
}
