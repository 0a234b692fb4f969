//! `sizes`: from process start to running vCPUs, against guest memory, by strategy. Most of the guest's
//! memory is zero, so what grows is not the working set.

use std::path::Path;

use anyhow::Result;

use super::Effort;
use crate::demo::command::{json, words};
use crate::demo::said::Restored;
use crate::prepare::Recipe;
use crate::progress::Progress;
use crate::recorder::{Recorder, Series};
use crate::report::Unit;

const SIZES: [&str; 7] = ["128M", "256M", "512M", "1G", "2G", "4G", "8G"];
const STRATEGIES: [&str; 7] = ["lazy", "eager", "reap", "faasnap", "tiered", "template", "auto"];
/// What is called: the least that a function can do.
const FUNCTION: &str = "hello";

pub fn run(effort: Effort, folder: &Path, recorder: &mut Recorder) -> Result<()> {
    let sizes = if effort.quick { &SIZES[..3] } else { &SIZES[..] };
    let steps = sizes.len() * (1 + STRATEGIES.len() * effort.runs);
    let mut progress = Progress::new("sizes", steps);
    // One size after another: the files of all of them would not fit into memory.
    for size in sizes {
        let folder = tempfile::Builder::new().prefix("varve-bench").tempdir_in(folder)?;
        progress.step(&format!("{size}: boot, record, tier"));
        let made = Recipe::least(FUNCTION, size).make(folder.path(), |_| ())?;
        let snapshot = made.snapshot();
        for _ in 0..effort.runs {
            for strategy in STRATEGIES {
                progress.step(&format!("{size}, {strategy}"));
                let call = format!("{FUNCTION} 3");
                let vsock = folder.path().join("v.sock");
                let words = words![
                    "restore",
                    &snapshot,
                    "--strategy",
                    strategy,
                    "--vsock",
                    &vsock,
                    "--json",
                    "--invoke",
                    &call
                ];
                let (run, _): (Restored, f64) = json(words)?;
                let series = |name: &str, unit| {
                    let labels = [("memory", *size), ("strategy", strategy)];
                    Series::new("sizes", name, unit).with(&labels)
                };
                recorder.add(&series("to resumed", Unit::Millis), run.resumed_ms)?;
                recorder.add(&series("to answer", Unit::Millis), run.first_answer_ms)?;
                if let Some(mappings) = run.counters.and_then(|c| c.mappings) {
                    recorder.add(&series("mappings", Unit::Count), mappings as f64)?;
                }
            }
        }
    }
    Ok(())
}
