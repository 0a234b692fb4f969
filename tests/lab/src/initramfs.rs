//! The emulated host's first file system: busybox, the modules that are loaded before a lab is
//! saved, and the two stages of its init.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;

use anyhow::{Context, Result};
use varve_guest_images::cpio::{Archive, Device};
use varve_guest_images::modules::Modules;

/// The init's stages.
const FIRST: &str = include_str!("../init/first.sh");
const SECOND: &str = include_str!("../init/second.sh");

/// Loaded in each lab: the way to the host's files, KVM, and what the options need. They cost a
/// saved lab nothing when they are not used.
const MODULES: [&str; 15] = [
    "virtio_pci",
    "virtio_console",
    "virtio_net",
    "9pnet_virtio",
    "9p",
    "overlay",
    "kvm-amd",
    "tun",
    "ext4",
    "nd_e820",
    "nd_pmem",
    "dummy",
    "ib_uverbs",
    "rdma_ucm",
    "rdma_rxe",
];

/// A file name for the archive, which differs when one of the things does that it is made from.
pub fn name(modules: &Path, kernel: &Path, busybox: &[u8]) -> String {
    let mut hasher = DefaultHasher::new();
    (FIRST, SECOND, MODULES, modules, busybox).hash(&mut hasher);
    let changed = fs::metadata(kernel).ok().map(|meta| (meta.len(), meta.modified().ok()));
    changed.hash(&mut hasher);
    format!("initramfs-{:016x}.cpio", hasher.finish())
}

/// Makes the archive from a kernel's modules and a static busybox.
pub fn build(modules: &Path, busybox: &[u8]) -> Result<Vec<u8>> {
    let modules = Modules::open(modules)?;
    let mut archive = Archive::new();
    for folder in ["dev", "proc", "sys", "p", "lower", "upper", "root"] {
        archive.dir(folder, 0o755)?;
    }
    // The kernel opens it for init before anything is mounted.
    archive.device("dev/console", 0o600, Device::Char, (5, 1))?;
    archive.file("bin/busybox", 0o755, busybox)?;
    let mut order = String::new();
    for module in modules.load_order(&MODULES)? {
        let name = format!("{}.ko", module.name);
        archive.file(&format!("modules/{name}"), 0o644, &module.read()?)?;
        // A line for insmod. The dummy driver would make a link of its own accord.
        let parameters = if module.name == "dummy" { " numdummies=0" } else { "" };
        order = order + &name + parameters + "\n";
    }
    archive.file("modules/order", 0o644, order.as_bytes())?;
    archive.file("init", 0o755, FIRST.as_bytes())?;
    archive.file("second", 0o755, SECOND.as_bytes())?;
    archive.finish().context("cannot write the lab's initramfs")
}
