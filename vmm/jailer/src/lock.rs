//! One jail holds one monitor: a lock that lasts as long as the monitor's process.
//!
//! The lock is on the open file (flock(2)), which the monitor inherits: the kernel gives it up when the
//! last process that has the file open ends, however it ends. The file stays, and means nothing by itself.

use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result, bail};
use rustix::fs::{CWD, FlockOperation, Mode, OFlags, flock, openat};
use rustix::io::{Errno, FdFlags, fcntl_setfd};

/// The lock file's name, in the folder above the jail's root folder, which its user cannot see.
const NAME: &str = "lock";

/// Takes the lock of the jail in the folder `jail`.
///
/// # Errors
///
/// If another jailer, or its monitor, has it.
pub fn take(jail: &Path, id: &str) -> Result<File> {
    let path = jail.join(NAME);
    let flags = OFlags::RDONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let lock = openat(CWD, &path, flags, Mode::RUSR | Mode::WUSR)
        .with_context(|| format!("cannot open {}", path.display()))?;
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(lock.into()),
        Err(Errno::WOULDBLOCK) => bail!(
            "--id {id}: a monitor runs in the jail {} already; end it, or take another id",
            jail.display()
        ),
        Err(e) => Err(e).with_context(|| format!("cannot lock {}", path.display())),
    }
}

/// Leaves the lock to the program that this process becomes or starts.
///
/// # Errors
///
/// If the kernel refuses.
pub fn leave_to_monitor(lock: &File) -> Result<()> {
    fcntl_setfd(lock, FdFlags::empty()).context("cannot pass the jail's lock on")
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn the_lock_lasts_as_long_as_the_program_that_inherits_it() {
        let dir = tempfile::tempdir().unwrap();
        let lock = take(dir.path(), "a").unwrap();
        let error = take(dir.path(), "a").unwrap_err().to_string();
        assert!(error.contains("--id a: a monitor runs in the jail"), "{error}");

        leave_to_monitor(&lock).unwrap();
        let mut program = Command::new("sleep").arg("100").spawn().unwrap();
        drop(lock);
        assert!(take(dir.path(), "a").is_err());
        program.kill().unwrap();
        program.wait().unwrap();
        take(dir.path(), "a").unwrap();
    }

    #[test]
    fn a_link_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("elsewhere", dir.path().join(NAME)).unwrap();
        assert!(take(dir.path(), "a").is_err());
        assert!(!dir.path().join("elsewhere").exists());
    }
}
