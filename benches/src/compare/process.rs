//! A monitor's process in a folder of its own: started, waited for, never left behind.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use super::arrival::Arrival;

/// Nothing that is asked of a guest takes longer, even eight at once in the lab.
pub const PATIENCE: Duration = Duration::from_secs(300);

/// The process.
pub struct Process {
    child: Child,
    arrival: Arrival,
    folder: tempfile::TempDir,
}

impl Process {
    /// Starts what `command` makes for a new folder.
    ///
    /// # Errors
    ///
    /// If it cannot be started.
    pub fn start(command: impl FnOnce(&Path) -> Command, before: impl FnOnce()) -> Result<Process> {
        let folder = tempfile::Builder::new().prefix("varve-bench").tempdir()?;
        let arrival = Arrival::watch(folder.path())?;
        let mut command = command(folder.path());
        command.stdin(Stdio::null()).stdout(File::create(folder.path().join("stdout"))?);
        command.stderr(File::create(folder.path().join("stderr"))?);
        before();
        let child = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
        Ok(Process { child, arrival, folder })
    }

    /// Its id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Tries until it works: sockets come, and are closed by guests that learn that they were restored.
    ///
    /// # Errors
    ///
    /// If the process ends, or [`PATIENCE`] does.
    pub fn until<T>(&mut self, socket: &Path, what: impl Fn() -> Result<T>) -> Result<T> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let error = match what() {
                Ok(done) => return Ok(done),
                Err(error) => error,
            };
            if let Some(status) = self.child.try_wait()? {
                bail!("the monitor ended: {status}");
            }
            if Instant::now() > deadline {
                return Err(error.context("it does not answer"));
            }
            self.arrival.wait(socket)?;
        }
    }

    /// Asks it to end, and waits until it has.
    ///
    /// # Errors
    ///
    /// If it cannot be asked.
    pub fn terminate(&mut self) -> Result<ExitStatus> {
        kill_process(Pid::from_child(&self.child), Signal::TERM).context("SIGTERM")?;
        Ok(self.child.wait()?)
    }

    /// What it said on standard output.
    ///
    /// # Errors
    ///
    /// If that is no text.
    pub fn output(&self) -> Result<String> {
        Ok(fs::read_to_string(self.folder.path().join("stdout"))?)
    }

    /// What it said on standard error, and if that is nothing, on standard output.
    pub fn story(&self) -> String {
        let read = |name| fs::read(self.folder.path().join(name)).unwrap_or_default();
        let (errors, output) = (read("stderr"), read("stdout"));
        let said = if errors.is_empty() { output } else { errors };
        String::from_utf8_lossy(&said).trim().to_owned()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Whichever way it went, no machine is left; one that has ended is none.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
