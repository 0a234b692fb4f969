//! Process 1: brings the guest up, step by step, then watches over the agent. Each step is a file.

pub mod boot_timer;
mod cmdline;
mod modules;
mod mounts;
mod net;
mod supervise;
mod wait;

use anyhow::{Context, Result};

use crate::{say, uptime};
use cmdline::Cmdline;

/// Brings the guest up and stays; returns only with an error, on which the kernel panics.
pub fn run() -> Result<()> {
    mounts::kernel_filesystems()?;
    let cmdline = Cmdline::read()?;
    if let Some(address) = cmdline.boot_timer {
        signal(address, boot_timer::INIT);
    }
    say(&format!("varve-init: up {:.6}\n", uptime::seconds()));
    modules::load_all()?;
    if let Some(root) = &cmdline.root {
        mounts::switch_root(root).with_context(|| format!("cannot use {} as root", root.device))?;
    }
    // A guest without a network still answers over vsock.
    if let Err(error) = net::bring_up(cmdline.network.as_ref()) {
        say(&format!("varve-init: network: {error:#}\n"));
    }
    supervise::run(cmdline.boot_timer)
}

/// Tells the boot timer; a machine that has none only loses the measurement.
pub fn signal(address: u64, value: u8) {
    if let Err(error) = boot_timer::write(address, value) {
        say(&format!("varve-init: boot timer at {address:#x}: {error}\n"));
    }
}
