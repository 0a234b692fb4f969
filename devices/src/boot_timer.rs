//! Boot timer: a byte that the guest writes when it has come far enough.
//!
//! The register and its first value are Firecracker's (a write of 123 means that init runs);
//! varve's own agent also writes 124 when it is ready for requests.

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
}

impl BootTimer {
    /// A timer that counts from `start` and hands each mark and its time to `report`.
    pub fn new(
        start: Instant,
        report: impl Fn(u8, std::time::Duration) + Send + Sync + 'static,
    ) -> BootTimer {
        BootTimer { start, report: Box::new(report) }
    }
}

impl BusDevice for BootTimer {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let (0, &[mark @ (INIT_REACHED | AGENT_READY)]) = (offset, data) {
            (self.report)(mark, self.start.elapsed());
        }
    }
}
