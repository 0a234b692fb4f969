//! The keyboard controller, as far as a microVM needs it: its reset command.

use std::sync::{Arc, Mutex};

use vm_superio::{I8042Device, Trigger};

use crate::bus::BusDevice;
use crate::metrics::I8042Metrics;
use crate::stop::{SharedStopSink, StopReason};

/// First port of the controller (data register; the command register is four further).
pub const I8042_BASE: u64 = 0x60;
/// Ports it occupies.
pub const I8042_LEN: u64 = 5;

struct ResetTrigger {
    stop: SharedStopSink,
    metrics: Arc<I8042Metrics>,
}

impl Trigger for ResetTrigger {
    type E = std::convert::Infallible;

    fn trigger(&self) -> Result<(), Self::E> {
        self.metrics.reset_count.inc();
        self.stop.stop(StopReason::Reset);
        Ok(())
    }
}

/// The controller at ports 0x60 to 0x64.
pub struct I8042 {
    chip: Mutex<I8042Device<ResetTrigger>>,
    metrics: Arc<I8042Metrics>,
}

impl I8042 {
    /// A controller that reports a reset to `stop`.
    pub fn new(stop: SharedStopSink) -> I8042 {
        let metrics = Arc::<I8042Metrics>::default();
        let trigger = ResetTrigger { stop, metrics: metrics.clone() };
        I8042 { chip: Mutex::new(I8042Device::new(trigger)), metrics }
    }

    /// What it counts.
    pub fn metrics(&self) -> Arc<I8042Metrics> {
        self.metrics.clone()
    }
}

impl BusDevice for I8042 {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if let ([byte], Ok(mut chip)) = (data, self.chip.lock()) {
            self.metrics.read_count.inc();
            *byte = chip.read(offset as u8);
        } else {
            self.metrics.missed_read_count.inc();
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let ([byte], Ok(mut chip)) = (data, self.chip.lock()) {
            self.metrics.write_count.inc();
            let Ok(()) = chip.write(offset as u8, *byte);
        } else {
            self.metrics.missed_write_count.inc();
        }
    }
}

crate::state::stateless!(I8042);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stop::Recorded;
    use std::sync::Arc;

    #[test]
    fn only_the_reset_command_resets() {
        let sink = Arc::new(Recorded::default());
        let chip = I8042::new(sink.clone());
        chip.write(0, &[0xfe]);
        chip.write(4, &[0xd1]);
        chip.write(4, &[0xfe, 0xfe]);
        assert!(sink.reasons().is_empty());
        chip.write(4, &[0xfe]);
        assert_eq!(sink.reasons(), [StopReason::Reset]);
    }
}
