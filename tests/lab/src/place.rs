//! Where the lab keeps what it made: one folder, in the checkout's `target` unless told otherwise.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// Names another folder for all that the lab keeps.
pub const DIR_VARIABLE: &str = "VARVE_LAB_DIR";

/// The lab's folder.
#[derive(Clone, Debug)]
pub struct Place(PathBuf);

impl Place {
    /// The folder that [`DIR_VARIABLE`] names, or else `target/lab` of the checkout.
    pub fn find() -> Result<Self> {
        if let Some(dir) = env::var_os(DIR_VARIABLE) {
            let dir = PathBuf::from(dir);
            if !dir.is_absolute() {
                bail!("{DIR_VARIABLE} must be an absolute path, and it is `{}`", dir.display());
            }
            return Ok(Self(dir));
        }
        // The checkout that this program was built from.
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let root = root.canonicalize().context(
            "the checkout of this program is gone: set VARVE_LAB_DIR to a folder for the lab",
        )?;
        Ok(Self(root.join("target/lab")))
    }

    /// The lab in `dir`.
    pub fn at(dir: &Path) -> Self {
        Self(dir.to_owned())
    }

    /// The whole folder.
    pub fn dir(&self) -> &Path {
        &self.0
    }

    /// The emulated host's kernel, as `varve_guest_images::kernel` lays it out.
    pub fn kernel(&self) -> PathBuf {
        self.0.join("kernel")
    }

    /// A static busybox.
    pub fn busybox(&self) -> PathBuf {
        self.0.join("busybox")
    }

    /// Debian packages and their lists.
    pub fn packages(&self) -> PathBuf {
        self.0.join("apt")
    }

    /// The QEMU for labs with several CPUs or counted instructions, if `tests/lab/qemu/build` has made
    /// it.
    pub fn built_qemu(&self) -> PathBuf {
        self.0.join("qemu/qemu-system-x86_64")
    }

    /// Saved labs.
    pub fn snapshots(&self) -> PathBuf {
        self.0.join("snap")
    }
}
