//! `sizes`: from process start to running vCPUs, against guest memory, by strategy. Most of the guest's
//! memory is zero, so what grows is not the working set.

use std::path::Path;

use anyhow::{Context, Result};
use varve_tests::images::image;

use super::Effort;
use crate::demo::command::{json, output, words};
use crate::demo::said::Restored;
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
        let snapshot = folder.path().join("snapshot");
        prepare(size, folder.path(), &snapshot).with_context(|| format!("a guest of {size}"))?;
        for _ in 0..effort.runs {
            for strategy in STRATEGIES {
                progress.step(&format!("{size}, {strategy}"));
                let call = format!("{FUNCTION} 3");
                let words = words![
                    "restore",
                    &snapshot,
                    "--strategy",
                    strategy,
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

/// A tiered snapshot of a guest that has answered once, recorded with another input.
pub fn prepare(memory: &str, folder: &Path, snapshot: &Path) -> Result<()> {
    let rootfs = format!("{}:ro", image("functions.ext4").display());
    let vsock = format!("cid=3,uds={}", folder.join("vsock").display());
    let console = format!("file={}", folder.join("console").display());
    let (kernel, initrd) = (image("vmlinux"), image("initramfs.cpio"));
    let call = format!("{FUNCTION} 1");
    output(words![
        "run",
        "--kernel",
        &kernel,
        "--initrd",
        &initrd,
        "--rootfs",
        &rootfs,
        "--memory",
        memory,
        "--vsock",
        &vsock,
        "--console",
        &console,
        "--cmdline",
        "console=ttyS0 reboot=k panic=-1 init_on_free=1",
        "--invoke",
        &call,
        "--snapshot-on-ready",
        snapshot
    ])?;
    let (trace, call) = (folder.join("trace"), format!("{FUNCTION} 2"));
    output(words!["snapshot", "record", snapshot, "--trace", &trace, "--invoke", &call])?;
    output(words!["snapshot", "tier", snapshot, "--trace", &trace])?;
    Ok(())
}
