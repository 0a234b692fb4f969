//! `ping` and `info`: what the guest sees of itself.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use rustix::time::ClockId;
use varve_agent::protocol::{BlockDevice, Info, Interface, Ping};

use crate::uptime;

/// A sign of life, with the guest's clocks.
pub fn ping() -> Ping {
    Ping {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        uptime_s: uptime::seconds(),
        monotonic_ns: uptime::nanos(ClockId::Monotonic),
        realtime_ns: uptime::nanos(ClockId::Realtime),
    }
}

/// The machine from inside.
pub fn info() -> Result<Info> {
    Ok(Info {
        cpus: cpus_online()?,
        memory_kib: meminfo("MemTotal")?,
        available_kib: meminfo("MemAvailable")?,
        kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
        uptime_s: uptime::seconds(),
        cmdline: read(Path::new("/proc/cmdline"))?,
        cid: vsock::get_local_cid().ok(),
        block: entries("/sys/block")?
            .iter()
            .map(|name| block_device(name))
            .collect::<Result<_>>()?,
        net: entries("/sys/class/net")?
            .iter()
            .map(|name| interface(name))
            .collect::<Result<_>>()?,
    })
}

/// A number of `/proc/meminfo`, in KiB.
pub fn meminfo(key: &str) -> Result<u64> {
    let text = read(Path::new("/proc/meminfo"))?;
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| *name == key)
        .and_then(|(_, value)| value.split_whitespace().next()?.parse().ok())
        .with_context(|| format!("/proc/meminfo has no {key}"))
}

/// Counts lists such as `0-3,5`.
fn cpus_online() -> Result<usize> {
    let list = read(Path::new("/sys/devices/system/cpu/online"))?;
    let count = |range: &str| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        last.checked_sub(first).map(|more| more + 1)
    };
    list.split(',')
        .map(count)
        .sum::<Option<usize>>()
        .with_context(|| format!("CPUs online: {list:?}"))
}

fn block_device(name: &str) -> Result<BlockDevice> {
    let folder = Path::new("/sys/block").join(name);
    let sectors: u64 = read(&folder.join("size"))?.parse()?;
    Ok(BlockDevice {
        name: name.to_owned(),
        // This file counts in units of 512 bytes, whatever the device's block size.
        bytes: sectors * 512,
        read_only: read(&folder.join("ro"))? == "1",
        serial: read(&folder.join("serial")).ok(),
    })
}

fn interface(name: &str) -> Result<Interface> {
    let folder = Path::new("/sys/class/net").join(name);
    Ok(Interface {
        name: name.to_owned(),
        mac: read(&folder.join("address"))?,
        mtu: read(&folder.join("mtu"))?.parse()?,
        state: read(&folder.join("operstate"))?,
    })
}

fn entries(folder: &str) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("cannot list {folder}"))? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

fn read(path: &Path) -> Result<String> {
    let text =
        fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(text.trim().to_owned())
}
