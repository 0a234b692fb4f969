//! Waits for a file to come into a folder, without looking again and again: on one processor whoever
//! polls takes time from what is measured.

use std::mem::MaybeUninit;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::fs::inotify::{CreateFlags, Reader, WatchFlags, add_watch, init};

/// For sockets that are there and do not listen yet, and guests that are not ready.
const AGAIN: Duration = Duration::from_millis(1);
/// Monitors end, too.
const AT_LATEST: Timespec = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };

/// What comes into a folder.
pub struct Arrival(OwnedFd);

impl Arrival {
    /// Of a folder, from now on.
    ///
    /// # Errors
    ///
    /// If the kernel cannot watch it.
    pub fn watch(folder: &Path) -> Result<Arrival> {
        let watch = || -> rustix::io::Result<OwnedFd> {
            let fd = init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
            add_watch(&fd, folder, WatchFlags::CREATE)?;
            Ok(fd)
        };
        Ok(Arrival(watch().with_context(|| format!("watching {}", folder.display()))?))
    }

    /// Waits until `file` may be there, but not for long; a moment if it is there already.
    ///
    /// # Errors
    ///
    /// If the kernel does not tell.
    pub fn wait(&self, file: &Path) -> Result<()> {
        if file.exists() {
            std::thread::sleep(AGAIN);
            return Ok(());
        }
        let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
        poll(&mut fds, Some(&AT_LATEST)).context("waiting for a socket")?;
        let mut buffer = [MaybeUninit::uninit(); 1024];
        let mut events = Reader::new(&self.0, &mut buffer);
        while events.next().is_ok() {}
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn what_has_come_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let arrival = Arrival::watch(dir.path()).unwrap();
        let wait = |name: &str| {
            let start = Instant::now();
            arrival.wait(&dir.path().join(name)).unwrap();
            start.elapsed()
        };
        // Nothing comes: the pause is as long as it gets.
        assert!(wait("a") >= Duration::from_millis(200));
        std::fs::write(dir.path().join("a"), "").unwrap();
        // What came is taken note of, once.
        wait("b");
        assert!(wait("b") >= Duration::from_millis(200));
        assert!(wait("a") >= AGAIN);
        assert!(Arrival::watch(Path::new("/none")).is_err());
    }
}
