//! ACPI power registers of a hardware-reduced platform: sleep control, sleep status and reset.
//!
//! ACPI 6.5, 4.8.3.7 (sleep control and status) and 4.8.3.6 (reset). The machine's ACPI tables
//! point at these ports.

use crate::bus::BusDevice;
use crate::stop::{SharedStopSink, StopReason};

/// First port: the sleep control register.
pub const POWER_BASE: u64 = 0x600;
/// Ports: sleep control, sleep status, reset.
pub const POWER_LEN: u64 = 3;
/// Offset of the sleep status register.
pub const SLEEP_STATUS: u64 = 1;
/// Offset of the reset register.
pub const RESET: u64 = 2;
/// The value that resets the machine.
pub const RESET_VALUE: u8 = 1;
/// SLP_TYP of state S5, as the machine's `\_S5` package says.
pub const SLEEP_TYPE_S5: u8 = 5;

const SLP_EN: u8 = 1 << 5;
const SLP_TYP_SHIFT: u8 = 2;
/// Bits that mean neither sleep type nor sleep enable.
const SLP_REST: u8 = 0b1100_0011;

/// The three registers.
pub struct PowerRegisters(SharedStopSink);

impl PowerRegisters {
    /// Registers that report what the guest asks for to `stop`.
    pub fn new(stop: SharedStopSink) -> PowerRegisters {
        PowerRegisters(stop)
    }
}

impl BusDevice for PowerRegisters {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        // Never asleep, nothing pending.
        data.fill(0);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        match (offset, data) {
            (0, &[v]) if v & !SLP_REST == SLP_EN | SLEEP_TYPE_S5 << SLP_TYP_SHIFT => {
                self.0.stop(StopReason::PowerOff);
            }
            (RESET, &[RESET_VALUE]) => self.0.stop(StopReason::Reset),
            _ => {}
        }
    }
}

crate::state::stateless!(PowerRegisters);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stop::Recorded;
    use std::sync::Arc;

    #[test]
    fn s5_and_reset() {
        let sink = Arc::new(Recorded::default());
        let regs = PowerRegisters::new(sink.clone());
        for (offset, value) in [(0, 5 << 2), (0, SLP_EN), (1, 0xff), (2, 0)] {
            regs.write(offset, &[value]);
        }
        assert!(sink.reasons().is_empty());
        regs.write(0, &[SLP_EN | (5 << 2)]);
        regs.write(2, &[1]);
        assert_eq!(sink.reasons(), [StopReason::PowerOff, StopReason::Reset]);
    }
}
