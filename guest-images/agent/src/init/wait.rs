//! Waiting for a device node, woken by the kernel's events instead of asking again and again.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::netlink::{KOBJECT_UEVENT, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with};

/// How long a device may take after its driver is loaded.
const LIMIT: Duration = Duration::from_secs(10);
/// The group of netlink listeners that get the kernel's own events.
const KERNEL_EVENTS: u32 = 1;

/// Returns as soon as the file `path` is there, or fails.
pub fn device(path: &str) -> Result<()> {
    if Path::new(path).exists() {
        return Ok(());
    }
    let events = socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        Some(KOBJECT_UEVENT),
    )?;
    bind(&events, &SocketAddrNetlink::new(0, KERNEL_EVENTS))?;
    let deadline = Instant::now() + LIMIT;
    // Asked again only after the socket listens, so that no event falls between.
    while !Path::new(path).exists() {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left)?;
        if poll(&mut [PollFd::new(&events, PollFlags::IN)], Some(&timeout))? == 0 {
            bail!("there is no {path} after {} seconds", LIMIT.as_secs());
        }
        recv(&events, &mut [0_u8; 8192][..], RecvFlags::empty())?;
    }
    Ok(())
}
