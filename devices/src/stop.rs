//! How a device tells the monitor that the machine ends.

use std::fmt;
use std::sync::Arc;

/// Why the guest asked for the machine to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// Reset through the keyboard controller or the ACPI reset register.
    Reset,
    /// Power off through the ACPI sleep register (state S5).
    PowerOff,
    /// The guest kernel reported a panic through the pvpanic port.
    Panic,
}

impl fmt::Display for StopReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            StopReason::Reset => "guest reset",
            StopReason::PowerOff => "guest power-off",
            StopReason::Panic => "guest kernel panic",
        })
    }
}

/// Receives the guest's wish to stop. Called on a vCPU thread; must not block.
pub trait StopSink: Send + Sync {
    /// The machine should stop for `reason`; the first call counts.
    fn stop(&self, reason: StopReason);
}

/// A stop sink that devices share.
pub type SharedStopSink = Arc<dyn StopSink>;

/// Keeps the reasons that a device under test gave.
#[cfg(test)]
#[derive(Default)]
pub(crate) struct Recorded(std::sync::Mutex<Vec<StopReason>>);

#[cfg(test)]
impl Recorded {
    pub fn reasons(&self) -> Vec<StopReason> {
        self.0.lock().unwrap().clone()
    }
}

#[cfg(test)]
impl StopSink for Recorded {
    fn stop(&self, reason: StopReason) {
        self.0.lock().unwrap().push(reason);
    }
}
