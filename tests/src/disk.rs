//! File systems of a test's own: a small one that gets full, and one on a block device, which memory
//! is not.

use std::fs::File;
use std::path::Path;
use std::process::Command;

/// A mounted file system; unmounted when dropped.
pub struct Disk {
    mount: tempfile::TempDir,
    /// Where the loop device's content is.
    _image: Option<tempfile::NamedTempFile>,
}

impl Disk {
    /// A tmpfs of `mib` MiB. Tells why if that cannot be.
    pub fn small(mib: u64) -> Result<Disk, String> {
        let mount = tempfile::Builder::new().prefix("varve-disk").tempdir().unwrap();
        run(Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={mib}M"), "varve"])
            .arg(mount.path()))?;
        Ok(Disk { mount, _image: None })
    }

    /// An ext4 of `mib` MiB on a loop device: its page cache can be dropped. Tells why if that cannot
    /// be.
    pub fn on_a_device(mib: u64) -> Result<Disk, String> {
        let mount = tempfile::Builder::new().prefix("varve-disk").tempdir().unwrap();
        let image = tempfile::NamedTempFile::new().unwrap();
        image.as_file().set_len(mib << 20).unwrap();
        run(Command::new("mkfs.ext4").arg("-qF").arg(image.path()))?;
        // Where it is built in, or there already, this fails and does no harm.
        let _ = run(Command::new("modprobe").arg("loop"));
        run(Command::new("mount")
            .args(["-t", "ext4", "-o", "loop"])
            .arg(image.path())
            .arg(mount.path()))?;
        Ok(Disk { mount, _image: Some(image) })
    }

    /// Its folder.
    pub fn path(&self) -> &Path {
        self.mount.path()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = run(Command::new("umount").arg(self.path()));
    }
}

/// A copy of a folder on a disk that fails when it is told to.
pub struct FailingDisk {
    name: String,
    disk: Option<Disk>,
}

impl FailingDisk {
    /// Copies the files in `folder` to an ext4 of `mib` MiB behind the device mapper. Nothing of it is in the
    /// page cache. Tells why if that cannot be.
    pub fn holding(folder: &Path, mib: u64) -> Result<FailingDisk, String> {
        for module in ["loop", "dm-mod"] {
            // Where it is built in, or there already, this fails and does no harm.
            let _ = run(Command::new("modprobe").arg(module));
        }
        let mount = tempfile::Builder::new().prefix("varve-disk").tempdir().unwrap();
        let image = tempfile::NamedTempFile::new().unwrap();
        image.as_file().set_len(mib << 20).unwrap();
        run(Command::new("mkfs.ext4").arg("-qF").arg(image.path()))?;
        run(Command::new("mount").args(["-o", "loop"]).arg(image.path()).arg(mount.path()))?;
        let copied = run(Command::new("cp").arg("-a").arg(folder.join(".")).arg(mount.path()));
        run(Command::new("umount").arg(mount.path()))?;
        copied?;
        let mut losetup = Command::new("losetup");
        let device = output(losetup.args(["--find", "--show"]).arg(image.path()))?;
        let name = format!("varve-{}", std::process::id());
        // From here on, dropping it takes back what was done.
        let mut failing = FailingDisk { name, disk: None };
        let table = format!("0 {} linear {device} 0", (mib << 20) / 512);
        let made = run(Command::new("dmsetup").args(["create", &failing.name, "--table", &table]));
        // It goes with its last user.
        run(Command::new("losetup").args(["--detach", &device]))?;
        made?;
        let minor = ["info", "-c", "--noheadings", "-o", "minor", &failing.name];
        let minor = output(Command::new("dmsetup").args(minor))?;
        run(Command::new("mount")
            .args(["-t", "ext4", &format!("/dev/dm-{minor}")])
            .arg(mount.path()))?;
        failing.disk = Some(Disk { mount, _image: Some(image) });
        Ok(failing)
    }

    /// Where the copy is.
    ///
    /// # Panics
    ///
    /// Never, once it is made.
    pub fn path(&self) -> &Path {
        self.disk.as_ref().unwrap().path()
    }

    /// From now on each access is an error (EIO).
    ///
    /// # Panics
    ///
    /// If the device mapper refuses.
    pub fn fail(&self) {
        run(Command::new("dmsetup").args(["wipe_table", "--noflush", &self.name])).unwrap();
    }
}

impl Drop for FailingDisk {
    fn drop(&mut self) {
        self.disk = None;
        let _ = run(Command::new("dmsetup").args(["remove", "--retry", &self.name]));
    }
}

/// Drops what the page cache holds of a file.
///
/// # Panics
///
/// If the file system refuses.
pub fn drop_cache(path: &Path) {
    use rustix::fs::{Advice, fadvise};
    let file = File::open(path).unwrap();
    // What is dirty stays.
    file.sync_all().unwrap();
    fadvise(&file, 0, None, Advice::DontNeed).unwrap();
}

fn run(command: &mut Command) -> Result<(), String> {
    output(command).map(drop)
}

fn output(command: &mut Command) -> Result<String, String> {
    match command.output() {
        Ok(output) if output.status.success() => {
            Ok(String::from_utf8_lossy(&output.stdout).trim().into())
        }
        Ok(output) => {
            Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim()))
        }
        Err(error) => Err(format!("{command:?}: {error}")),
    }
}
