//! Kernels from Debian's packages: the image in both forms, and its modules with their indices.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::{Deserialize, Serialize};

use crate::aside::Aside;
use crate::bzimage;
use crate::deb::{Apt, extract};
use crate::error::{Error, Result};
use crate::tool::run;

/// The oldest kernel that is recent: it has all that the lab needs (`KVM_PRE_FAULT_MEMORY`,
/// `PAGEMAP_SCAN`), and Debian builds it with the VM generation id's driver.
const RECENT: (u32, u32) = (6, 12);

/// Written last, so that its presence says that a folder is complete.
const MARKER: &str = "kernel.json";

/// What a kernel is for, which decides from which package it comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Flavour {
    /// The release's own `linux-image-cloud-amd64`, with virtual devices only: for guests.
    Cloud,
    /// `linux-image-cloud-amd64`, 6.12 or newer: for guests.
    RecentCloud,
    /// `linux-image-amd64`, 6.12 or newer, with all drivers: for the lab's emulated host.
    Lab,
}

impl Flavour {
    /// The package that always depends on the newest image.
    fn meta(self) -> &'static str {
        match self {
            Self::Cloud | Self::RecentCloud => "linux-image-cloud-amd64",
            Self::Lab => "linux-image-amd64",
        }
    }
}

/// A kernel that is ready in a folder of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// What `uname -r` says in it.
    pub release: String,
    /// The package it came from, with its version.
    pub package: String,
    dir: PathBuf,
}

/// The marker's content.
#[derive(Serialize, Deserialize)]
struct Marker {
    flavour: Flavour,
    release: String,
    package: String,
}

impl Kernel {
    /// Makes sure that `dir` holds a kernel of this flavour, and returns it.
    ///
    /// Leaves there `vmlinuz` (a bzImage), `vmlinux` (its ELF, with the PVH note that
    /// distribution kernels have) and `lib/modules/<release>` with `depmod`'s indices. Nothing is
    /// fetched when they are there already. `apt` is the folder of a private apt ([`Apt::open`]),
    /// which may be shared by all. Interrupted at any point, it leaves no half kernel; of two
    /// calls at once, one waits for the other.
    pub fn prepare(flavour: Flavour, dir: &Path, apt: &Path) -> Result<Self> {
        if let Some(kernel) = Self::open(flavour, dir)? {
            return Ok(kernel);
        }
        let aside = Aside::begin(dir)?;
        if let Some(kernel) = Self::open(flavour, dir)? {
            return Ok(kernel);
        }
        let marker = build(flavour, aside.path(), apt)?;
        let path = aside.path().join(MARKER);
        let text = serde_json::to_vec_pretty(&marker).map_err(std::io::Error::from);
        text.and_then(|text| fs::write(&path, text)).map_err(Error::io("write", &path))?;
        aside.commit()?;
        let (release, package) = (marker.release, marker.package);
        Ok(Self { release, package, dir: dir.to_owned() })
    }

    /// The kernel in `dir`, if [`Kernel::prepare`] has put one of this flavour there.
    pub fn open(flavour: Flavour, dir: &Path) -> Result<Option<Self>> {
        let path = dir.join(MARKER);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io("read", &path)(error)),
        };
        let marker: Marker = serde_json::from_slice(&text)
            .map_err(|error| Error::io("parse", &path)(error.into()))?;
        let (release, package) = (marker.release, marker.package);
        Ok((marker.flavour == flavour).then(|| Self { release, package, dir: dir.to_owned() }))
    }

    /// The kernel's version without its last parts: `6.12` of `6.12.95+deb12-cloud-amd64`.
    pub fn line(&self) -> String {
        match version(&self.release) {
            Some((major, minor)) => format!("{major}.{minor}"),
            None => self.release.clone(),
        }
    }

    /// The compressed image, which boots by the Linux boot protocol.
    pub fn vmlinuz(&self) -> PathBuf {
        self.dir.join("vmlinuz")
    }

    /// The uncompressed ELF image, which boots by the 64-bit entry or PVH.
    pub fn vmlinux(&self) -> PathBuf {
        self.dir.join("vmlinux")
    }

    /// `lib/modules/<release>`, for [`crate::modules::Modules::open`].
    pub fn modules(&self) -> PathBuf {
        self.dir.join("lib/modules").join(&self.release)
    }
}

/// Fills `dir` with a kernel.
fn build(flavour: Flavour, dir: &Path, apt: &Path) -> Result<Marker> {
    let (apt, meta) = find(flavour, apt)?;
    // An update of the lists may bring another image, so that its name is looked up again.
    let (image, version, debs) = apt.insist(|| {
        let image = image_of(&apt, &meta)?;
        Ok((image.clone(), apt.version(&image)?, apt.download(&[&image])?))
    })?;
    let unpacked = dir.join("package");
    for deb in debs {
        extract(&deb, &unpacked)?;
    }
    let release = image.trim_start_matches("linux-image-").to_owned();
    let vmlinuz = dir.join("vmlinuz");
    rename(&unpacked.join(format!("boot/vmlinuz-{release}")), &vmlinuz)?;
    let bytes = fs::read(&vmlinuz).map_err(Error::io("read", &vmlinuz))?;
    let vmlinux = dir.join("vmlinux");
    fs::write(&vmlinux, bzimage::vmlinux(&bytes, &vmlinuz)?)
        .map_err(Error::io("write", &vmlinux))?;

    let modules = dir.join("lib/modules").join(&release);
    let parent = dir.join("lib/modules");
    fs::create_dir_all(&parent).map_err(Error::io("create", &parent))?;
    // Debian 13 and later put modules below usr.
    let places = ["lib", "usr/lib"].map(|lib| unpacked.join(lib).join("modules").join(&release));
    let place = places.iter().find(|place| place.is_dir()).unwrap_or(&places[0]);
    rename(place, &modules)?;
    depmod(&apt, dir, &release)?;
    fs::remove_dir_all(&unpacked).map_err(Error::io("remove", &unpacked))?;
    Ok(Marker { flavour, release, package: format!("{image} {version}") })
}

/// The meta package of a flavour as apt is asked for it, and an apt that can fetch its image.
fn find(flavour: Flavour, dir: &Path) -> Result<(Apt, String)> {
    let apt = Apt::open(dir, &[])?;
    let meta = flavour.meta();
    if flavour == Flavour::Cloud || is_recent(&image_of(&apt, meta)?) {
        return Ok((apt, meta.to_owned()));
    }
    let backports = format!("{}-backports", apt.codename());
    // Lists of backports are kept apart: another user of the same folder must not get its versions.
    let apt = Apt::open(&dir.join(&backports), &[&backports])?;
    let from_backports = format!("{meta}/{backports}");
    if is_recent(&image_of(&apt, &from_backports)?) {
        return Ok((apt, from_backports));
    }
    let (major, minor) = RECENT;
    let package = format!("{meta} of Linux {major}.{minor} or newer");
    Err(Error::NoPackage { package, suites: format!("{} and {backports}", apt.codename()) })
}

/// The image package that a meta package stands for.
fn image_of(apt: &Apt, meta: &str) -> Result<String> {
    let suites = apt.codename().to_owned();
    apt.depends(meta)?
        .into_iter()
        .find(|name| name.starts_with("linux-image-"))
        .ok_or_else(|| Error::NoPackage { package: meta.to_owned(), suites })
}

/// Whether an image package, such as `linux-image-6.12.95+deb12-amd64`, is [`RECENT`] or newer.
fn is_recent(image: &str) -> bool {
    version(image.trim_start_matches("linux-image-")).is_some_and(|version| version >= RECENT)
}

/// The first two numbers of a kernel's release.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    Some((parts.next()?.ok()?, parts.next()?.ok()?))
}

/// Makes `modules.dep` and its kin below `dir`, which packages leave to their scripts.
fn depmod(apt: &Apt, dir: &Path, release: &str) -> Result<()> {
    let installed =
        ["/usr/sbin/depmod", "/sbin/depmod"].iter().find(|path| Path::new(path).exists());
    let mut command = match installed {
        Some(path) => Command::new(path),
        None => {
            let tools = dir.join("package/tools");
            for deb in apt.download(&["kmod", "libkmod2"])? {
                extract(&deb, &tools)?;
            }
            // One binary under many names; the links to it say where it will be once installed.
            let places = ["usr/bin/kmod", "bin/kmod"].map(|name| tools.join(name));
            let kmod = places.iter().find(|path| path.exists()).unwrap_or(&places[0]);
            let mut command = Command::new(kmod);
            command.arg0("depmod");
            let libraries = ["usr/lib", "lib"]
                .map(|lib| tools.join(lib).join("x86_64-linux-gnu").display().to_string());
            command.env("LD_LIBRARY_PATH", libraries.join(":"));
            command
        }
    };
    run(command.arg("--basedir").arg(dir).arg(release), "kmod").map(drop)
}

fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).map_err(Error::io("rename", from))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_by_number() {
        assert!(is_recent("linux-image-6.12.95+deb12-amd64"));
        assert!(is_recent("linux-image-7.0.1-amd64"));
        assert!(!is_recent("linux-image-6.1.0-56-amd64"));
        assert!(!is_recent("linux-image-amd64"));
    }

    #[test]
    fn a_folder_without_its_marker_is_not_a_kernel() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("vmlinux"), "half").unwrap();
        assert_eq!(Kernel::open(Flavour::Cloud, dir.path()).unwrap(), None);
        fs::write(dir.path().join(MARKER), "{").unwrap();
        assert!(Kernel::open(Flavour::Cloud, dir.path()).is_err());
        let marker = r#"{"flavour":"lab","release":"6.12.1","package":"p 1"}"#;
        fs::write(dir.path().join(MARKER), marker).unwrap();
        assert_eq!(Kernel::open(Flavour::Cloud, dir.path()).unwrap(), None);
        let kernel = Kernel::open(Flavour::Lab, dir.path()).unwrap().unwrap();
        assert!(kernel.modules().ends_with("lib/modules/6.12.1"));
        assert_eq!(kernel.line(), "6.12");
    }
}
