//! All guest images of a checkout: what there is, where it lies, and bringing it up to date.
//! Each part is made by its own file; here they are put together and listed in a manifest.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::aside::Lock;
use crate::error::{Error, Result};
use crate::kernel::{Flavour, Kernel};
use crate::part::{Inputs, Part, publish, write_json};
use crate::{agent, functions, initramfs};

/// The kernels that guests are booted with, for which there are images of each.
const KERNELS: [(Flavour, &str); 2] =
    [(Flavour::Cloud, "debian-kernel"), (Flavour::RecentCloud, "debian-kernel-recent")];

/// What can be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Image {
    /// vmlinux and bzImage of Debian's cloud kernels: the release's own, and 6.12 or newer
    Kernel,
    /// initramfs.cpio, and initramfs-tools.cpio with busybox, for each of the kernels
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

    /// Where a file is once it is made, such as `vmlinux`, `vmlinux-6.12`, `initramfs-tools.cpio`,
    /// `functions.ext4` or `manifest.json`.
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
                        for (_, folder) in KERNELS {
                            remove(&out.join("parts").join(folder))?;
                        }
                    }
                    self.kernels(&out, &apt, say)
                        .and_then(|kernels| link_kernels(&dir, &kernels))?
                }
                Image::Initramfs => {
                    let kernels = self.kernels(&out, &apt, say)?;
                    say("initramfs: building the agent");
                    let agent = agent::build(&self.root)?;
                    initramfs::ensure(&dir, &kernels, &agent, &apt)?
                }
                Image::Functions => functions::ensure(&dir, &self.root, &apt, say)?,
            };
            for name in part.files.keys() {
                publish(&dir.join(name), &out.join(name))?;
            }
            let names: Vec<String> = part.files.keys().cloned().collect();
            if let Some(old) = manifest.insert(image.name().to_owned(), part) {
                // Images of a kernel whose version is another one now.
                for name in old.files.keys().filter(|name| !names.contains(name)) {
                    remove_file(&out.join(name))?;
                }
            }
            write_json(&out.join("manifest.json"), &manifest)?;
        }
        Ok(manifest)
    }

    /// The kernels for guests, the default one first. A release whose own kernel is recent has one.
    fn kernels(&self, out: &Path, apt: &Path, say: &dyn Fn(&str)) -> Result<Vec<Kernel>> {
        let mut kernels: Vec<Kernel> = Vec::new();
        for (flavour, folder) in KERNELS {
            let dir = out.join("parts").join(folder);
            if Kernel::open(flavour, &dir)?.is_none() {
                let which = match flavour {
                    Flavour::RecentCloud => ", 6.12 or newer",
                    _ => "",
                };
                say(&format!("kernel: fetching Debian's cloud kernel{which}"));
            }
            let kernel = Kernel::prepare(flavour, &dir, apt)?;
            if kernels.iter().all(|other| other.line() != kernel.line()) {
                kernels.push(kernel);
            }
        }
        Ok(kernels)
    }
}

/// What the images for each kernel lack, as lines for people: modules that the kernel does not have.
pub fn shortcomings(manifest: &Manifest) -> Vec<String> {
    let Some(part) = manifest.get(Image::Initramfs.name()) else { return Vec::new() };
    let kernels = part.facts["kernels"].as_object().into_iter().flatten();
    let mut lines = Vec::new();
    for (line, of) in kernels {
        let left_out = of["left_out"].as_array().into_iter().flatten();
        let left_out: Vec<&str> = left_out.filter_map(|name| name.as_str()).collect();
        if left_out.is_empty() {
            continue;
        }
        let names = left_out.join(", ");
        lines.push(format!("kernel {line} has no module {names}: left out of its initramfs"));
        if left_out.contains(&"vmgenid") {
            lines.push(format!(
                "warning: without vmgenid, guests of kernel {line} that are restored from one snapshot \
                 draw the same random numbers until the agent reads its first request"
            ));
        }
    }
    lines
}

/// Makes the part of the kernels' images: each in both forms, by its version, and the default one
/// without.
fn link_kernels(dir: &Path, kernels: &[Kernel]) -> Result<Part> {
    let mut inputs = Inputs::default();
    let mut files = Vec::new();
    for (kernel, suffix) in by_name(kernels) {
        inputs.add(&suffix, kernel.package.as_bytes());
        files.push((kernel.vmlinux(), format!("vmlinux{suffix}")));
        files.push((kernel.vmlinuz(), format!("bzImage{suffix}")));
    }
    let names: Vec<&str> = files.iter().map(|(_, name)| name.as_str()).collect();
    Part::ensure(dir, &inputs.finish(), &names, |work| {
        for (file, name) in &files {
            publish(file, &work.join(name))?;
        }
        let mut facts = serde_json::Map::new();
        for kernel in kernels {
            let of = serde_json::json!({ "package": kernel.package, "release": kernel.release });
            facts.insert(kernel.line(), of);
        }
        Ok(serde_json::json!({ "kernels": facts }))
    })
}

/// Kernels, and the ends of their images' names: the version for each, and nothing for the default.
fn by_name(kernels: &[Kernel]) -> impl Iterator<Item = (&Kernel, String)> {
    let default = kernels.iter().take(1).map(|kernel| (kernel, String::new()));
    default.chain(kernels.iter().map(|kernel| (kernel, format!("-{}", kernel.line()))))
}

fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::io("remove", path)(error))
        }
        _ => Ok(()),
    }
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
    fn what_is_left_out_is_named() {
        let facts = serde_json::json!({ "kernels": {
            "6.1": { "left_out": ["vmgenid", "pvpanic_pci"] }, "6.12": { "left_out": [] },
        }});
        let part = Part { inputs: String::new(), files: BTreeMap::new(), facts };
        let lines = shortcomings(&[("initramfs".to_owned(), part)].into());
        assert_eq!(
            lines[0],
            "kernel 6.1 has no module vmgenid, pvpanic_pci: left out of its initramfs"
        );
        assert!(lines[1].contains("kernel 6.1 ") && lines[1].contains("random"), "{lines:?}");
        assert_eq!(lines.len(), 2);
        assert!(shortcomings(&Manifest::new()).is_empty());
    }

    #[test]
    fn images_lie_in_the_checkouts_target_folder() {
        let path = Images::default().path("vmlinux");
        assert!(path.ends_with("target/guest/vmlinux"));
        let other = Images::default().in_folder("/elsewhere".into());
        assert_eq!(other.path("bzImage"), Path::new("/elsewhere/bzImage"));
    }
}
