//! The connections between this process and the emulated host: socket pairs, one end of each
//! inherited by QEMU.

use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::process::Stdio;

use anyhow::{Context, Result};
use rustix::io::{FdFlags, fcntl_setfd};

/// The virtio ports of the emulated host, in the order of their numbers from 1.
///
/// `ctl` brings the job and takes its exit code, `beat` says once a second that the host lives,
/// the others are the command's streams.
pub const PORTS: [&str; 5] = ["ctl", "beat", "out", "err", "in"];

/// Our ends.
#[derive(Debug)]
pub struct Ends {
    /// The serial console.
    pub console: UnixStream,
    /// The job, and what came of it.
    pub ctl: UnixStream,
    /// Signs of life.
    pub beat: UnixStream,
    /// Standard output.
    pub out: UnixStream,
    /// Standard error.
    pub err: UnixStream,
    /// Standard input.
    pub input: UnixStream,
}

/// QEMU's ends, to be dropped as soon as it runs.
#[derive(Debug)]
pub struct Inherited {
    console: OwnedFd,
    ports: Vec<OwnedFd>,
}

impl Inherited {
    /// The descriptor of the serial console.
    pub fn console(&self) -> RawFd {
        self.console.as_raw_fd()
    }

    /// The serial console as a stream for QEMU's own complaints, so that these are seen there.
    pub fn stderr(&self) -> Result<Stdio> {
        self.console.try_clone().map(Stdio::from).context("cannot copy a descriptor")
    }

    /// The descriptors of [`PORTS`].
    pub fn ports(&self) -> [RawFd; 5] {
        std::array::from_fn(|index| self.ports[index].as_raw_fd())
    }
}

/// Makes all connections.
pub fn connect() -> Result<(Ends, Inherited)> {
    let (console, console_end) = pair()?;
    let (ctl, ctl_end) = pair()?;
    let (beat, beat_end) = pair()?;
    let (out, out_end) = pair()?;
    let (err, err_end) = pair()?;
    let (input, input_end) = pair()?;
    let ports = vec![ctl_end, beat_end, out_end, err_end, input_end];
    Ok((Ends { console, ctl, beat, out, err, input }, Inherited { console: console_end, ports }))
}

/// Two connected sockets, the second of which a child process inherits.
pub fn pair() -> Result<(UnixStream, OwnedFd)> {
    let (ours, theirs) = UnixStream::pair().context("cannot make a socket pair")?;
    inherit(&theirs)?;
    Ok((ours, theirs.into()))
}

/// Lets child processes inherit `fd`.
pub fn inherit(fd: impl AsFd) -> Result<()> {
    fcntl_setfd(fd, FdFlags::empty()).context("cannot let a child process inherit a descriptor")
}
