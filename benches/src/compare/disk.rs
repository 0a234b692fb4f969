//! A disk that takes its time, for cold page caches in the lab, which has no other: a RAM-backed
//! null_blk with a completion delay, and ext4 on it. It goes when this is dropped.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::environment;

const DEVICE: &str = "/dev/nullb0";

/// The disk, mounted.
#[derive(Debug)]
pub struct Disk(tempfile::TempDir);

impl Disk {
    /// Makes one of `gib` GiB that answers each request after `delay_us`. Bandwidth has no limit.
    ///
    /// # Errors
    ///
    /// Outside of the lab, where it would meddle with the machine; if the kernel has no null_blk.
    pub fn make(gib: u64, delay_us: u64) -> Result<Disk> {
        ensure!(
            environment::is_lab(),
            "a slow disk is made in the lab only; name a folder on a real one by --folder"
        );
        ensure!(!Path::new(DEVICE).exists(), "{DEVICE} is there already");
        // Completions by a timer. It copies block by block, which a disk would do by itself: large ones cost
        // the processor least.
        let mut load = Command::new("modprobe");
        load.args(["null_blk", "nr_devices=1", "memory_backed=1", "irqmode=2", "bs=4096"]);
        run(load.arg(format!("gb={gib}")).arg(format!("completion_nsec={}", delay_us * 1000)))?;
        let disk = Disk(tempfile::Builder::new().prefix("varve-disk").tempdir()?);
        // Nothing is left to be made beside what is measured.
        let whole = ["-qF", "-O", "^has_journal", "-E", "lazy_itable_init=0", DEVICE];
        run(Command::new("mkfs.ext4").args(whole))?;
        run(Command::new("mount").args(["-o", "noatime", DEVICE]).arg(disk.folder()))?;
        Ok(disk)
    }

    /// Where it is mounted.
    pub fn folder(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // What fails here is gone with the lab.
        let _ = run(Command::new("umount").arg(self.folder()));
        let _ = run(Command::new("modprobe").args(["-r", "null_blk"]));
    }
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("cannot start {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
