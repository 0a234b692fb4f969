//! The jail's root folder: made, entered, and furnished with what a monitor opens.
//!
//! The user of an earlier jail of the same name owned the folder, and may have left anything there.
//! Until this process is inside, nothing in it is followed or written through; inside, a link leads
//! nowhere else.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use rustix::fs::{CWD, FileType, Mode, StatVfsMountFlags, makedev, mknodat, statvfs};
use rustix::mount::{
    MountPropagationFlags, UnmountFlags, mount_bind_recursive, mount_change, unmount,
};

/// Folders that the monitor owns: the last is where its API socket is by default.
const FOLDERS: [&str; 4] = ["/", "/dev", "/dev/net", "/run"];

/// Makes the folder, if it is not there, on a file system where devices and programs work.
pub fn make(root: &Path) -> Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(root)
        .with_context(|| format!("--chroot-base-dir: cannot make {}", root.display()))?;
    let mount = statvfs(root).with_context(|| format!("cannot examine {}", root.display()))?;
    for (flag, name) in [(StatVfsMountFlags::NODEV, "nodev"), (StatVfsMountFlags::NOEXEC, "noexec")]
    {
        ensure!(
            !mount.f_flag.contains(flag),
            "--chroot-base-dir: {} is on a file system that is mounted {name}, where a jail \
             cannot be",
            root.display()
        );
    }
    Ok(())
}

/// Copies the monitor's program to `target`, where anyone in the jail may run it. A copy, since jails
/// share no memory, not even of a program's text. The program itself may be mounted there already.
pub fn copy_program(program: &Path, target: &Path) -> Result<()> {
    let copy = || -> io::Result<()> {
        let mut from = File::open(program)?;
        match remove(target) {
            // What is mounted there is the host's, so it is never written.
            Err(e) if mounted(&e) && same_file(program, target)? => return Ok(()),
            done => done?,
        }
        // Fails if anything is there again.
        let mut to = OpenOptions::new().write(true).create_new(true).mode(0o600).open(target)?;
        io::copy(&mut from, &mut to)?;
        to.set_permissions(Permissions::from_mode(0o555))
    };
    copy().with_context(|| {
        format!("--exec-file: cannot copy {} to {}", program.display(), target.display())
    })
}

/// Makes `root` the root of a mount namespace of this process's own. The host's is out of reach from
/// then on.
pub fn enter(root: &Path) -> Result<()> {
    let enter = || -> io::Result<()> {
        super::sys::unshare_mounts()?;
        // What is mounted here does not appear on the host.
        mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)?;
        // A new root must be a mount point.
        mount_bind_recursive(root, root)?;
        std::env::set_current_dir(root)?;
        // The old root lands on top of the new one (pivot_root(2)), and is taken off from there.
        rustix::process::pivot_root(".", ".")?;
        unmount(".", UnmountFlags::DETACH)?;
        std::env::set_current_dir("/")?;
        rustix::process::chroot(".")?;
        Ok(())
    };
    enter().with_context(|| format!("cannot make {} the root folder", root.display()))
}

/// A character device that is made in the jail.
pub struct Device {
    /// Where.
    pub path: &'static str,
    /// Numbers (linux/Documentation/admin-guide/devices.txt).
    pub major: u32,
    /// As above.
    pub minor: u32,
}

/// The devices that a monitor opens: KVM, taps, random numbers, and userfaultfd where the host has
/// its device, whose number the text of /proc/misc tells.
pub fn devices(misc: &str) -> Vec<Device> {
    let mut devices = vec![
        Device { path: "/dev/kvm", major: 10, minor: 232 },
        Device { path: "/dev/net/tun", major: 10, minor: 200 },
        Device { path: "/dev/urandom", major: 1, minor: 9 },
    ];
    let minor = misc.lines().find_map(|line| {
        let (minor, name) = line.trim().split_once(' ')?;
        if name == "userfaultfd" { minor.parse().ok() } else { None }
    });
    if let Some(minor) = minor {
        devices.push(Device { path: "/dev/userfaultfd", major: 10, minor });
    }
    devices
}

/// Makes what a monitor needs inside of the jail, to which this process has gone, and gives it to the
/// monitor's user.
pub fn furnish(devices: &[Device], uid: u32, gid: u32) -> Result<()> {
    for folder in FOLDERS {
        fs::create_dir_all(folder)
            .and_then(|()| fs::set_permissions(folder, Permissions::from_mode(0o700)))
            .and_then(|()| chown(folder, Some(uid), Some(gid)))
            .with_context(|| format!("cannot make {folder} in the jail"))?;
    }
    for device in devices {
        make_device(device, uid, gid)
            .with_context(|| format!("cannot make {} in the jail", device.path))?;
    }
    Ok(())
}

fn make_device(device: &Device, uid: u32, gid: u32) -> io::Result<()> {
    let path = Path::new(device.path);
    let numbers = makedev(device.major, device.minor);
    // A node of an earlier jail may have another number or mode.
    match remove(path) {
        // The host's own node, whose owner and mode are the host's affair.
        Err(e) if mounted(&e) && fs::metadata(path)?.rdev() == numbers => return Ok(()),
        done => done?,
    }
    mknodat(CWD, path, FileType::CharacterDevice, Mode::RUSR | Mode::WUSR, numbers)?;
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    chown(path, Some(uid), Some(gid))
}

/// Writes the monitor's process number to `path`, for whoever started the jail. A file that is mounted
/// there is written: only the host's administrator can have mounted it.
pub fn write_pid(path: &Path, pid: u32) -> Result<()> {
    let write = || -> io::Result<()> {
        let mut how = OpenOptions::new();
        how.write(true).mode(0o644);
        match remove(path) {
            Ok(()) => how.create_new(true),
            Err(e) if mounted(&e) => {
                // A pipe or a device there keeps nobody waiting, and is written as well.
                how.truncate(true)
                    .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY)
            }
            Err(e) => return Err(e),
        };
        how.open(path)?.write_all(pid.to_string().as_bytes())
    };
    write().with_context(|| format!("cannot write {} in the jail", path.display()))
}

/// Whether a file cannot be removed because something is mounted on it.
fn mounted(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::ResourceBusy
}

fn same_file(one: &Path, other: &Path) -> io::Result<bool> {
    let (one, other) = (fs::metadata(one)?, fs::metadata(other)?);
    Ok((one.dev(), one.ino()) == (other.dev(), other.ino()))
}

/// Removes a file, or a link itself, if there is one.
fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_in_the_jail_is_not_written_through() {
        let dir = tempfile::tempdir().unwrap();
        let (program, victim) = (dir.path().join("program"), dir.path().join("victim"));
        fs::write(&program, "program").unwrap();
        fs::write(&victim, "victim").unwrap();
        let target = dir.path().join("target");
        std::os::unix::fs::symlink(&victim, &target).unwrap();
        copy_program(&program, &target).unwrap();
        assert_eq!(fs::read_to_string(&victim).unwrap(), "victim");
        assert_eq!(fs::read_to_string(&target).unwrap(), "program");
        assert_eq!(fs::symlink_metadata(&target).unwrap().permissions().mode() & 0o7777, 0o555);
        copy_program(&program, &target).unwrap();
        let error = copy_program(&dir.path().join("none"), &target).unwrap_err();
        assert!(error.to_string().contains("--exec-file"), "{error}");
        assert!(copy_program(&program, dir.path()).is_err(), "a folder stays");
    }

    #[test]
    fn the_number_of_userfaultfd_is_the_hosts() {
        let devices = devices("232 kvm\n 51 userfaultfd\n");
        let last = devices.last().unwrap();
        assert_eq!((last.path, last.major, last.minor), ("/dev/userfaultfd", 10, 51));
        assert_eq!(super::devices("232 kvm\n").len(), 3);
    }
}
