//! Running a machine from its first instruction to its end.

use std::sync::Arc;
use std::time::Instant;

use crate::config::{Console, VmConfig};
use crate::console::RawTerminal;
use crate::end::End;
use crate::error::VmmError;
use crate::machine::Machine;
use crate::signals::Signals;

/// Boots the machine that `config` describes and returns how it ended. `start` is when the process
/// began.
pub fn run(config: &VmConfig, start: Instant) -> Result<End, VmmError> {
    let mut machine = Machine::boot(config, start)?;
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
