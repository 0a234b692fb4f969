//! File systems: those of the kernel, and the change from the initramfs to the root device.

use std::fs;
use std::io;

use anyhow::{Context, Result};
use rustix::mount::{MountFlags, mount, mount_move};
use rustix::process::{chdir, chroot};

use super::cmdline::Root;
use super::wait;

/// Where the root device, the memory above it, and both together are mounted before the change.
const LOWER: &str = "/root-device";
const MEMORY: &str = "/root-memory";
const NEW: &str = "/new-root";

/// Mounts `/proc`, `/sys` and `/dev`.
pub fn kernel_filesystems() -> Result<()> {
    let quiet = MountFlags::NOSUID | MountFlags::NOEXEC | MountFlags::NODEV;
    attach("proc", "/proc", "proc", quiet, None)?;
    attach("sysfs", "/sys", "sysfs", quiet, None)?;
    attach("devtmpfs", "/dev", "devtmpfs", MountFlags::NOSUID, None)?;
    attach("devpts", "/dev/pts", "devpts", MountFlags::NOSUID | MountFlags::NOEXEC, None)?;
    attach("tmpfs", "/dev/shm", "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, None)
}

/// Makes `root` the root directory of this process and its children.
///
/// The device is mounted read-only below a file system in memory that takes the writes; without
/// the overlay it is mounted for writing if it allows that. The mounts made so far move along.
/// This program lives on in the initramfs, and is reached as `/proc/self/exe`.
pub fn switch_root(root: &Root) -> Result<()> {
    wait::device(&root.device)?;
    if root.overlay {
        attach(&root.device, LOWER, &root.kind, MountFlags::RDONLY, None)?;
        attach("tmpfs", MEMORY, "tmpfs", MountFlags::empty(), None)?;
        let (upper, work) = (format!("{MEMORY}/upper"), format!("{MEMORY}/work"));
        fs::create_dir(&upper).with_context(|| upper.clone())?;
        fs::create_dir(&work).with_context(|| work.clone())?;
        let layers = format!("lowerdir={LOWER},upperdir={upper},workdir={work}");
        attach("overlay", NEW, "overlay", MountFlags::empty(), Some(&layers))?;
    } else {
        let read_only = attach(&root.device, NEW, &root.kind, MountFlags::empty(), None);
        if read_only.is_err() {
            attach(&root.device, NEW, &root.kind, MountFlags::RDONLY, None)?;
        }
    }
    for point in ["/proc", "/sys", "/dev"] {
        let target = format!("{NEW}{point}");
        make_folder(&target)?;
        mount_move(point, target.as_str()).with_context(|| format!("cannot move {point}"))?;
    }
    chdir(NEW)?;
    mount_move(".", "/").context("cannot move the new root")?;
    chroot(".").context("cannot change the root")?;
    chdir("/")?;
    attach("tmpfs", "/run", "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, None)
}

fn attach(
    source: &str,
    target: &str,
    kind: &str,
    flags: MountFlags,
    data: Option<&str>,
) -> Result<()> {
    make_folder(target)?;
    let data = data.map(std::ffi::CString::new).transpose()?;
    mount(source, target, kind, flags, data.as_deref())
        .with_context(|| format!("cannot mount {source} ({kind}) at {target}"))
}

fn make_folder(path: &str) -> Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(error).with_context(|| format!("cannot create {path}"))
        }
        _ => Ok(()),
    }
}
