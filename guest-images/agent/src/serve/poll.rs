//! Waiting for descriptors until a deadline.

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

/// The longest time limit that a request may set.
const LONGEST_S: f64 = 86_400.0;

/// The moment `seconds` from now; an error if that is no sensible time.
pub fn deadline(seconds: f64) -> Result<Instant> {
    if !(0.0..=LONGEST_S).contains(&seconds) {
        bail!("timeout_s must be from 0 to {LONGEST_S}, not {seconds}");
    }
    Ok(Instant::now() + Duration::from_secs_f64(seconds))
}

/// Waits until one of `wanted` is ready (or broken), and says which are; none when time is up.
pub fn ready<const N: usize>(
    wanted: [Option<(BorrowedFd<'_>, PollFlags)>; N],
    deadline: Instant,
) -> Result<Option<[bool; N]>> {
    let places: Vec<usize> = (0..N).filter(|&place| wanted[place].is_some()).collect();
    let mut fds: Vec<PollFd<'_>> = wanted
        .into_iter()
        .flatten()
        .map(|(fd, flags)| PollFd::from_borrowed_fd(fd, flags))
        .collect();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match poll(&mut fds, Some(&Timespec::try_from(left)?)) {
            Ok(0) => return Ok(None),
            Ok(_) => break,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let mut result = [false; N];
    for (place, fd) in places.into_iter().zip(&fds) {
        result[place] = !fd.revents().is_empty();
    }
    Ok(Some(result))
}
