//! `block`: throughput and latency of a virtio disk, from inside the guest, over a file in memory.

use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use varve_agent::protocol::{Direction, Io, IoReply, Request};
use varve_tests::Vm;
use varve_tests::images::image;

use super::{Effort, agent};
use crate::progress::Progress;
use crate::recorder::{Recorder, Series};
use crate::report::Unit;

/// Size of the disk in MiB.
const DISK_MIB: u64 = 64;

/// Requests of one kind: size, order, how many.
struct Case {
    size: u64,
    size_text: &'static str,
    random: bool,
    requests: u64,
}

const CASES: [Case; 5] = [
    Case { size: 1 << 20, size_text: "1M", random: false, requests: 64 },
    Case { size: 64 << 10, size_text: "64K", random: false, requests: 256 },
    Case { size: 4 << 10, size_text: "4K", random: false, requests: 1024 },
    Case { size: 64 << 10, size_text: "64K", random: true, requests: 256 },
    Case { size: 4 << 10, size_text: "4K", random: true, requests: 1024 },
];

const DIRECTIONS: [(Direction, &str); 2] = [(Direction::Read, "read"), (Direction::Write, "write")];

pub fn run(effort: Effort, folder: &Path, recorder: &mut Recorder) -> Result<()> {
    let disk = disk(folder).with_context(|| format!("a disk image in {}", folder.display()))?;
    let mut vm = Vm::builder()
        .initrd(Some(image("initramfs.cpio")))
        .option("--memory", "128M")
        .option("--drive", disk.path())
        .start();
    let mut agent = agent(&mut vm)?;
    let mut progress = Progress::new("block", effort.runs * CASES.len() * DIRECTIONS.len());
    for round in 0..effort.runs {
        for case in &CASES {
            for (direction, what) in DIRECTIONS {
                progress.step(&format!("{what}, {}", case.size_text));
                let request = Request::Io(Io {
                    device: "vda".into(),
                    direction,
                    request_bytes: case.size,
                    requests: if effort.quick { case.requests / 8 } else { case.requests },
                    span: DISK_MIB << 20,
                    random: case.random,
                    seed: round as u64,
                });
                let reply: IoReply = agent.call(&request).with_context(|| {
                    format!(
                        "{what} of {}; if the operation is unknown: 'make images'",
                        case.size_text
                    )
                })?;
                record(case, what, &reply, recorder)?;
            }
        }
    }
    Ok(())
}

fn record(case: &Case, what: &str, reply: &IoReply, recorder: &mut Recorder) -> Result<()> {
    let order = if case.random { "random" } else { "sequential" };
    let series = |name: &str, unit| {
        Series::new("block", name, unit).with(&[("order", order), ("size", case.size_text)])
    };
    let seconds = reply.micros as f64 / 1e6;
    let throughput = reply.bytes as f64 / f64::from(1 << 20) / seconds;
    recorder.add(&series(what, Unit::MibPerSecond), throughput)?;
    if case.size == 4096 {
        let operations = (reply.bytes / case.size) as f64 / seconds;
        recorder.add(&series(&format!("{what}, operations"), Unit::PerSecond), operations)?;
        let median = reply.median_nanos as f64 / 1e3;
        recorder.add(&series(&format!("{what}, median latency"), Unit::Micros), median)?;
        let tail = reply.p99_nanos as f64 / 1e3;
        recorder.add(&series(&format!("{what}, 99 % latency"), Unit::Micros), tail)?;
    }
    Ok(())
}

/// A disk without holes, which would be read without any copy from a file.
fn disk(folder: &Path) -> Result<tempfile::NamedTempFile> {
    let mut file = tempfile::Builder::new().prefix("varve-bench").tempfile_in(folder)?;
    for _ in 0..DISK_MIB {
        file.write_all(&vec![0xa5; 1 << 20])?;
    }
    Ok(file)
}
