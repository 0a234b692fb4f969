//! Saved labs: an emulated host is saved when it has booted and waits for its job, and later runs
//! of the same configuration start from there. Any of them may be deleted at any time.

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use varve_guest_images::aside::Lock;

use crate::machine::Machine;
use crate::ports::{self, Ends};
use crate::qemu::{self, Boot, Wiring};
use crate::qmp::Qmp;

/// So many configurations are kept, about 130 MB each: those that were used last.
const KEPT: usize = 8;
/// What an interrupted run left aside is removed when it is this old.
const STALE: Duration = Duration::from_secs(15 * 60);
/// How long saving may take.
const SAVING: Duration = Duration::from_secs(120);
const SUFFIX: &str = "lab";

/// The saved lab of a configuration, which need not exist.
#[derive(Debug)]
pub struct Snapshot {
    dir: PathBuf,
    path: PathBuf,
    program: PathBuf,
    arguments: Vec<String>,
    machine: Machine,
    boot: Boot,
}

impl Snapshot {
    /// The saved lab of `machine`, with the QEMU `program`, in `dir`.
    pub fn of(machine: &Machine, boot: &Boot, program: &Path, dir: &Path) -> Self {
        let arguments = qemu::arguments(machine, boot, &Wiring::none(machine));
        let mut hasher = DefaultHasher::new();
        arguments.hash(&mut hasher);
        // That of an absolute path stays what it is.
        let installed = Path::new("/usr/bin").join(program);
        for file in [&boot.vmlinux, &boot.initramfs, &installed] {
            // A file that is not there has been, or will be, noticed by those that need it.
            let meta = fs::metadata(file).ok();
            meta.map(|meta| (meta.len(), meta.modified().ok())).hash(&mut hasher);
        }
        let path = dir.join(format!("{:016x}.{SUFFIX}", hasher.finish()));
        let (dir, program) = (dir.to_owned(), program.to_owned());
        let (machine, boot) = (machine.clone(), boot.clone());
        Self { dir, path, program, arguments, machine, boot }
    }

    /// Opens it, having made it if need be: `boot` limits the time that the lab has to boot.
    pub fn open(&self, boot: Duration, say: &dyn Fn(&str)) -> Result<File> {
        if let Some(file) = self.existing()? {
            return Ok(file);
        }
        let _lock = Lock::take(&self.dir.join("lock"))?;
        if let Some(file) = self.existing()? {
            return Ok(file);
        }
        say("booting the lab once and saving it for later runs");
        self.make(boot)?;
        prune(&self.dir)?;
        self.existing()?.context("the lab was saved, and then removed by someone")
    }

    /// Removes it, since it does not work.
    pub fn remove(&self) {
        let _ = fs::remove_file(&self.path);
    }

    fn existing(&self) -> Result<Option<File>> {
        match File::open(&self.path) {
            Ok(file) => {
                // Its time says when it was used last; that of another user's may not be set.
                let _ = file.set_modified(SystemTime::now());
                Ok(Some(file))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => {
                Err(error).with_context(|| format!("cannot open {}", self.path.display()))
            }
        }
    }

    fn make(&self, limit: Duration) -> Result<()> {
        let file = tempfile::Builder::new()
            .prefix("aside")
            .tempfile_in(&self.dir)
            .with_context(|| format!("cannot save a lab in {}", self.dir.display()))?;
        let (monitor, monitor_end) = ports::pair()?;
        let (ends, inherited) = ports::connect()?;
        let wiring = Wiring {
            console: inherited.console(),
            ports: inherited.ports(),
            ..Wiring::none(&self.machine)
        };
        let mut arguments = qemu::arguments(&self.machine, &self.boot, &wiring);
        debug_assert_eq!(arguments.len(), self.arguments.len());
        arguments.extend([
            "-chardev".to_owned(),
            format!("socket,id=monitor,fd={}", monitor_end.as_raw_fd()),
            "-mon".to_owned(),
            "chardev=monitor,mode=control".to_owned(),
        ]);
        let mut child = Guard(qemu::start(&self.program, &arguments, inherited.stderr()?)?);
        drop((monitor_end, inherited));
        ready(&ends, limit)?;
        let mut qmp = Qmp::connect(monitor, SAVING)?;
        qmp.save(file.as_file().as_fd(), SAVING)?;
        qmp.quit()?;
        child.0.wait().context("cannot wait for QEMU")?;
        file.persist(&self.path)
            .with_context(|| format!("cannot save a lab as {}", self.path.display()))?;
        Ok(())
    }
}

/// Ends QEMU with the attempt that started it.
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits until the lab says that it is ready for a job.
fn ready(ends: &Ends, limit: Duration) -> Result<()> {
    let end = Instant::now() + limit;
    let (mut console, mut ctl) = (Vec::new(), Vec::new());
    loop {
        let mut fds =
            [PollFd::new(&ends.ctl, PollFlags::IN), PollFd::new(&ends.console, PollFlags::IN)];
        match poll(&mut fds, Some(&Timespec { tv_sec: 1, tv_nsec: 0 })) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("cannot wait for the lab"),
        }
        let [ctl_ready, console_ready] = fds.map(|fd| !fd.revents().is_empty());
        let mut closed = false;
        for (is_ready, mut stream, kept) in
            [(ctl_ready, &ends.ctl, &mut ctl), (console_ready, &ends.console, &mut console)]
        {
            let mut buffer = [0; 4096];
            if is_ready {
                let length = stream.read(&mut buffer).unwrap_or(0);
                closed |= length == 0;
                kept.write_all(&buffer[..length])?;
            }
        }
        if ctl.starts_with(b"ready\n") {
            return Ok(());
        }
        if closed || !ctl.is_empty() && !b"ready\n".starts_with(&ctl) || Instant::now() > end {
            let said = String::from_utf8_lossy(if ctl.is_empty() { &console } else { &ctl });
            bail!("the lab did not get ready within {} s: {}", limit.as_secs(), said.trim());
        }
    }
}

/// Keeps the [`KEPT`] saved labs that were used last.
fn prune(dir: &Path) -> Result<()> {
    let mut labs = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let path = entry.with_context(|| format!("cannot read {}", dir.display()))?.path();
        let Ok(used) = fs::metadata(&path).and_then(|meta| meta.modified()) else { continue };
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if path.extension().is_some_and(|suffix| suffix == SUFFIX) {
            labs.push((used, path));
        } else if name.starts_with("aside") && used.elapsed().is_ok_and(|age| age > STALE) {
            let _ = fs::remove_file(&path);
        }
    }
    labs.sort();
    for (_, path) in labs.iter().rev().skip(KEPT) {
        let _ = fs::remove_file(path);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_labs_used_last_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        for index in 0..12_u64 {
            let file = File::create(dir.path().join(format!("{index:016x}.lab"))).unwrap();
            file.set_modified(at(1_000_000 + index)).unwrap();
        }
        File::create(dir.path().join("aside-new")).unwrap();
        File::create(dir.path().join("aside-old")).unwrap().set_modified(at(5)).unwrap();
        File::create(dir.path().join("lock")).unwrap().set_modified(at(5)).unwrap();
        prune(dir.path()).unwrap();
        let mut left: Vec<String> = fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        let mut expected: Vec<String> = (4..12).map(|index| format!("{index:016x}.lab")).collect();
        expected.extend(["aside-new".to_owned(), "lock".to_owned()]);
        assert_eq!(left, expected);
    }
}
