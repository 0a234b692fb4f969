//! All guest images of a checkout: what there is, where it lies, and bringing it up to date.
//! Each part is made by its own file; here they are put together and listed in a manifest.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::aside::Lock;
use crate::error::{Error, Result};
use crate::kernel::{Flavour, Kernel};
use crate::part::{Inputs, Part, with_suffix, write_json};
use crate::{agent, functions, initramfs};

const KERNEL_FILES: [&str; 2] = ["vmlinux", "bzImage"];

/// What can be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Image {
    /// vmlinux and bzImage, from Debian's cloud kernel
    Kernel,
    /// initramfs.cpio, and initramfs-tools.cpio with busybox
    Initramfs,
    /// functions.ext4, a small Debian with Python and the sample functions
    Functions,
}

/// What was made, in `manifest.json`: for each image its inputs, files and facts.
pub type Manifest = BTreeMap<String, Part>;

/// The place of the guest images.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Images {
    root: PathBuf,
    out: PathBuf,
}

impl Image {
    /// All images.
    pub const ALL: [Self; 3] = [Self::Kernel, Self::Initramfs, Self::Functions];

    /// Its name, as in the manifest.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Initramfs => "initramfs",
            Self::Functions => "functions",
        }
    }
}

impl Default for Images {
    /// The images of the checkout that this program was built from, in its `target/guest`.
    fn default() -> Self {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let root = here.parent().unwrap_or(here).to_owned();
        let out = root.join("target/guest");
        Self { root, out }
    }
}

impl Images {
    /// The same images in another folder.
    pub fn in_folder(self, out: PathBuf) -> Self {
        Self { out, ..self }
    }

    /// Where a file is once it is made: `vmlinux`, `bzImage`, `initramfs.cpio`,
    /// `initramfs-tools.cpio`, `functions.ext4` or `manifest.json`.
    pub fn path(&self, file: &str) -> PathBuf {
        self.out.join(file)
    }

    /// What was made so far.
    pub fn manifest(&self) -> Result<Manifest> {
        let path = self.path("manifest.json");
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Manifest::new());
            }
            Err(error) => return Err(Error::io("read", &path)(error)),
        };
        serde_json::from_slice(&text).map_err(|error| Error::io("parse", &path)(error.into()))
    }

    /// Makes what of `wanted` is missing or was made from other inputs, and returns the manifest.
    ///
    /// With `again`, it is made even if nothing changed, from the newest packages. `say` is told of
    /// steps that take time. Of several callers at once, one works and the others wait for it.
    pub fn ensure(&self, wanted: &[Image], again: bool, say: &dyn Fn(&str)) -> Result<Manifest> {
        fs::create_dir_all(&self.out).map_err(Error::io("create", &self.out))?;
        let out = fs::canonicalize(&self.out).map_err(Error::io("find", &self.out))?;
        let _lock = Lock::take(&out.join(".lock"))?;
        // What another version left is replaced, so it need not be understood.
        let mut manifest = self.manifest().unwrap_or_default();
        let apt = out.join("parts/apt");
        for image in Image::ALL.into_iter().filter(|image| wanted.contains(image)) {
            let dir = out.join("parts").join(image.name());
            if again {
                remove(&dir)?;
            }
            let part = match image {
                Image::Kernel => {
                    if again {
                        remove(&out.join("parts/debian-kernel"))?;
                    }
                    self.kernel(&out, &apt, say).and_then(|kernel| link_kernel(&dir, &kernel))?
                }
                Image::Initramfs => {
                    let kernel = self.kernel(&out, &apt, say)?;
                    say("initramfs: building the agent");
                    let agent = agent::build(&self.root)?;
                    initramfs::ensure(&dir, &kernel, &agent, &apt)?
                }
                Image::Functions => functions::ensure(&dir, &self.root, &apt, say)?,
            };
            for name in part.files.keys() {
                publish(&dir.join(name), &out.join(name))?;
            }
            manifest.insert(image.name().to_owned(), part);
            write_json(&out.join("manifest.json"), &manifest)?;
        }
        Ok(manifest)
    }

    fn kernel(&self, out: &Path, apt: &Path, say: &dyn Fn(&str)) -> Result<Kernel> {
        let dir = out.join("parts/debian-kernel");
        if Kernel::open(Flavour::Cloud, &dir)?.is_none() {
            say("kernel: fetching Debian's cloud kernel");
        }
        Kernel::prepare(Flavour::Cloud, &dir, apt)
    }
}

/// Makes the part of the kernel's two images.
fn link_kernel(dir: &Path, kernel: &Kernel) -> Result<Part> {
    let mut inputs = Inputs::default();
    inputs.add("kernel", kernel.package.as_bytes());
    Part::ensure(dir, &inputs.finish(), &KERNEL_FILES, |work| {
        publish(&kernel.vmlinux(), &work.join(KERNEL_FILES[0]))?;
        publish(&kernel.vmlinuz(), &work.join(KERNEL_FILES[1]))?;
        Ok(serde_json::json!({ "package": kernel.package, "release": kernel.release }))
    })
}

/// Shows a part's file under its public name: the same file, not a copy.
fn publish(file: &Path, name: &Path) -> Result<()> {
    let aside = with_suffix(name, ".new");
    let _ = fs::remove_file(&aside);
    fs::hard_link(file, &aside).map_err(Error::io("link", file))?;
    // A rename of one name over another of the same file does nothing, and would leave both.
    fs::rename(&aside, name).map_err(Error::io("rename", &aside))?;
    let _ = fs::remove_file(&aside);
    Ok(())
}

fn remove(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::io("remove", dir)(error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn publishing_twice_leaves_one_name() {
        let dir = tempfile::tempdir().unwrap();
        let (file, name) = (dir.path().join("file"), dir.path().join("name"));
        for text in ["one", "two"] {
            let _ = fs::remove_file(&file);
            fs::write(&file, text).unwrap();
            publish(&file, &name).unwrap();
            publish(&file, &name).unwrap();
            assert_eq!(fs::read_to_string(&name).unwrap(), text);
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn images_lie_in_the_checkouts_target_folder() {
        let path = Images::default().path("vmlinux");
        assert!(path.ends_with("target/guest/vmlinux"));
        let other = Images::default().in_folder("/elsewhere".into());
        assert_eq!(other.path("bzImage"), Path::new("/elsewhere/bzImage"));
    }
}
