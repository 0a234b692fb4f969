//! Running a machine from its first instruction to its end.

use std::sync::Arc;
use std::time::Instant;

use varve_memory_tiers::GuestRam;

use crate::arch::layout;
use crate::config::{Console, VmConfig};
use crate::console::RawTerminal;
use crate::end::End;
use crate::error::VmmError;
use crate::machine::{Machine, Start};
use crate::signals::Signals;

/// Boots the machine that `config` describes and returns how it ended. `start` is when the process
/// began.
pub fn run(config: &VmConfig, start: Instant) -> Result<End, VmmError> {
    config.validate()?;
    let ranges = layout::memory_ranges(config.memory);
    let ram = Arc::new(GuestRam::new(&ranges, config.track_dirty_pages)?);
    let mut machine = Machine::build(config, ram, Start::Boot, start)?;
    let end = machine.end().clone();
    machine.subscribe(end.clone());
    let signals =
        Signals::install(end.clone()).map_err(|e| VmmError::System("signal handlers", e))?;
    machine.subscribe(Arc::new(signals));
    let _terminal = (config.console == Console::Stdio).then(RawTerminal::enter);
    machine.resume()?;
    loop {
        machine.run_events()?;
        if let Some(end) = end.get() {
            return Ok(end.clone());
        }
    }
}
