//! `start`: what a process costs before it has looked at a single file of its user's. Needs no KVM.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use varve_tests::images::varve;

use super::Effort;
use crate::progress::Progress;
use crate::recorder::{Recorder, Series};
use crate::report::Unit;

/// One start varies by more than what is looked for.
const STARTS: usize = 40;

/// Name, and options that go with it.
const FILTERS: [(&str, &[&str]); 2] = [("on", &[]), ("off", &["--no-seccomp"])];

pub fn run(effort: Effort, folder: &Path, recorder: &mut Recorder) -> Result<()> {
    let mut progress = Progress::new("start", effort.runs);
    let missing = tempfile::Builder::new().prefix("varve-bench").tempdir_in(folder)?;
    let missing = missing.path().join("snapshot");
    for _ in 0..effort.runs {
        progress.step("");
        for _ in 0..STARTS {
            let took = until_end(Command::new("true"), true)?;
            recorder.add(&Series::new("start", "another program", Unit::Micros), took)?;
            for (filters, options) in FILTERS {
                let mut command = Command::new(varve());
                command.arg("restore").arg(&missing).args(options);
                let took = until_end(command, false)?;
                let series = Series::new("start", "to first file", Unit::Micros);
                recorder.add(&series.with(&[("filters", filters)]), took)?;
            }
        }
    }
    Ok(())
}

/// Microseconds from before `fork` until the process has ended, which is to succeed or to fail.
fn until_end(mut command: Command, succeeds: bool) -> Result<f64> {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let start = Instant::now();
    let end = command.status().with_context(|| format!("cannot start {command:?}"))?;
    let took = start.elapsed();
    // 1: what was asked for is not there.
    let expected = if succeeds { 0 } else { 1 };
    ensure!(end.code() == Some(expected), "{command:?} ended with {end}");
    Ok(took.as_secs_f64() * 1e6)
}
