//! The rest of process 1's life: starts the agent, buries orphans, and reboots when asked to.

use std::process::{Child, Command};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, WaitOptions, wait};
use rustix::system::{RebootCommand, reboot};
use signal_hook::consts::{SIGCHLD, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::say;

/// Where programs are looked for, in the function image and in the initramfs with tools.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Runs the agent and waits for signals; returns only with an error.
pub fn run(boot_timer: Option<u64>) -> Result<()> {
    let mut signals = Signals::new([SIGCHLD, SIGTERM, SIGINT])?;
    // From now on ctrl-alt-del comes here as SIGINT, instead of rebooting without a sync.
    reboot(RebootCommand::CadOff)?;
    rustix::system::sethostname(b"varve")?;
    let agent = start(boot_timer)?;
    let agent = Pid::from_child(&agent);
    for signal in &mut signals {
        match signal {
            SIGCHLD => bury(agent)?,
            _ => {
                say("varve-init: rebooting\n");
                rustix::fs::sync();
                reboot(RebootCommand::Restart)?;
            }
        }
    }
    bail!("no more signals")
}

/// The agent is a process of its own, because process 1 would bury its children under its nose.
fn start(boot_timer: Option<u64>) -> Result<Child> {
    let mut command = Command::new("/proc/self/exe");
    command.env_clear().env("PATH", PATH).env("HOME", "/root").env("LANG", "C.UTF-8");
    if let Some(address) = boot_timer {
        command.arg("--boot-timer").arg(format!("{address:#x}"));
    }
    command.spawn().context("cannot start the agent")
}

/// Takes leave of every child that has ended. A guest whose agent has ended is of no use.
fn bury(agent: Pid) -> Result<()> {
    // An error says that there is no child at all.
    while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
        if pid == agent {
            bail!("the agent has ended: {status:?}");
        }
    }
    Ok(())
}
