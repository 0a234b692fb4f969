//! `power`: the ways in which a machine can end.

use std::fs::{self, File};
use std::io::Read;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::event::PollFlags;
use rustix::net::Shutdown;
use rustix::system::{RebootCommand, reboot};
use std::os::fd::AsFd;
use varve_agent::protocol::How;

use super::poll;

/// How long the peer may take to hang up after it was answered.
const GOODBYE: Duration = Duration::from_millis(200);

/// Ends the machine. Returns only if that fails.
pub fn carry_out(how: How, peer: &File) -> Result<()> {
    say_goodbye(peer);
    match how {
        How::Reboot => restart(RebootCommand::Restart),
        How::Poweroff => restart(RebootCommand::PowerOff),
        How::Halt => restart(RebootCommand::Halt),
        How::Panic => fs::write("/proc/sysrq-trigger", "c").context("/proc/sysrq-trigger"),
        How::TripleFault => {
            let file = "/sys/kernel/reboot/type";
            fs::write(file, "triple").context(file)?;
            restart(RebootCommand::Restart)
        }
    }
}

fn restart(command: RebootCommand) -> Result<()> {
    rustix::fs::sync();
    Ok(reboot(command)?)
}

/// Waits until the peer has hung up, and so has the answer, which would be lost with the machine.
fn say_goodbye(mut peer: &File) {
    let deadline = Instant::now() + GOODBYE;
    let _ = rustix::net::shutdown(peer, Shutdown::Write);
    let mut buffer = [0; 4096];
    while let Ok(Some(_)) = poll::ready([Some((peer.as_fd(), PollFlags::IN))], deadline) {
        if !matches!(peer.read(&mut buffer), Ok(count) if count > 0) {
            return;
        }
    }
}
