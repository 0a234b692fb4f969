//! `memory`: what the monitor's process takes besides its guest's memory.

use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result};
use varve_tests::Vm;
use varve_tests::images::image;

use super::{Effort, wait_until_ready};
use crate::progress::Progress;
use crate::recorder::{Recorder, Series};
use crate::report::Unit;
use crate::smaps;

/// 5 MiB, in KiB: the bound to which Firecracker holds itself (its SPECIFICATION.md).
const TARGET: f64 = 5120.0;

/// Machines with one vCPU and 128 MiB, without and with devices.
const DEVICES: [&str; 2] = ["vsock", "vsock,block,entropy,balloon"];

pub fn run(effort: Effort, folder: &Path, recorder: &mut Recorder) -> Result<()> {
    let disk = tempfile::Builder::new().prefix("varve-bench").tempfile_in(folder)?;
    File::set_len(disk.as_file(), 16 << 20).context("a disk image")?;
    let mut progress = Progress::new("memory", DEVICES.len() * effort.runs);
    for _ in 0..effort.runs {
        for devices in DEVICES {
            progress.step(devices);
            let mut builder = Vm::builder()
                .initrd(Some(image("initramfs.cpio")))
                .option("--memory", "128M")
                .arg("--boot-timer");
            if devices != DEVICES[0] {
                builder = builder
                    .option("--drive", disk.path())
                    .arg("--entropy")
                    .option("--balloon", "size=0");
            }
            let mut vm = builder.start();
            wait_until_ready(&mut vm)?;
            let memory = smaps::read(vm.pid(), 128 << 20)?;
            let series = |name| {
                let labels = [("vcpus", "1"), ("memory", "128M"), ("devices", devices)];
                Series::new("memory", name, Unit::Kib).with(&labels)
            };
            recorder.add(&series("monitor").at_most(TARGET), memory.own as f64)?;
            recorder.add(&series("monitor, private"), memory.own_private as f64)?;
            recorder.add(&series("guest, resident"), memory.guest as f64)?;
        }
    }
    Ok(())
}
