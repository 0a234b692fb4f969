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
    match command.output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => {
            Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim()))
        }
        Err(error) => Err(format!("{command:?}: {error}")),
    }
}
