//! pvpanic: one port through which a guest kernel says that it crashed.
//!
//! The interface is QEMU's (`docs/specs/pvpanic`): a read tells which events are understood, a
//! write reports one. Linux's `pvpanic` driver finds it by ACPI (`QEMU0001`).

use crate::bus::BusDevice;
use crate::stop::{SharedStopSink, StopReason};

/// The port.
pub const PVPANIC_PORT: u64 = 0x505;
/// Event bit: the guest panicked.
pub const PANICKED: u8 = 1;

/// The port's device.
pub struct PvPanic(SharedStopSink);

impl PvPanic {
    /// A device that reports a panic to `stop`.
    pub fn new(stop: SharedStopSink) -> PvPanic {
        PvPanic(stop)
    }
}

impl BusDevice for PvPanic {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(PANICKED);
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        if matches!(data, [v] if v & PANICKED != 0) {
            self.0.stop(StopReason::Panic);
        }
    }
}

crate::state::stateless!(PvPanic);
