//! The initramfs: the agent as `/init`, and the kernel modules that a guest needs; a second one
//! also has busybox, for tests that want a shell. No scripts: the agent does it all.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cpio::{Archive, Device};
use crate::deb::{Apt, extract};
use crate::error::{Error, Result};
use crate::kernel::Kernel;
use crate::modules::{Module, Modules};
use crate::part::{Inputs, Part, publish};
use crate::tool::run_text;

/// Without these a guest is of no use. Some kernels have some of them inside.
const REQUIRED: [&str; 9] = [
    "virtio_mmio",
    "virtio_blk",
    "virtio_net",
    "vmw_vsock_virtio_transport",
    "virtio_rng",
    "virtio_balloon",
    "ext4",
    "overlay",
    "af_packet",
];

/// The files of this part, without a kernel's version and `.cpio`: the plain one, that with tools.
const NAMES: [&str; 2] = ["initramfs", "initramfs-tools"];

/// Loaded where the kernel has them; what it lacks is named when images are made.
const OPTIONAL: [&str; 7] =
    ["virtio_pci", "vmgenid", "pvpanic_mmio", "pvpanic_pci", "i8042", "atkbd", "crc32c_intel"];

/// Makes both archives in `dir`, for each of `kernels`, from the built agent `agent`. Those of the
/// first kernel have a name without a version, too.
///
/// The facts name each kernel's modules, and those that it does not have (`left_out`).
///
/// # Errors
///
/// If a kernel has no file of a required module, a package cannot be fetched, or a file cannot be
/// read or written.
pub fn ensure(dir: &Path, kernels: &[Kernel], agent: &Path, apt: &Path) -> Result<Part> {
    let mut inputs = Inputs::default();
    inputs.add("maker", include_bytes!("initramfs.rs"));
    inputs.add("agent", &read(agent)?);
    let mut names = NAMES.map(|name| format!("{name}.cpio")).to_vec();
    for kernel in kernels {
        inputs.add("kernel", kernel.package.as_bytes());
        names.extend(NAMES.map(|name| of_kernel(name, kernel)));
    }
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    Part::ensure(dir, &inputs.finish(), &names, |work| {
        let agent = read(agent)?;
        let busybox = Busybox::fetch(apt)?;
        let tools = busybox.unpack(&work.join("busybox"))?;
        let mut facts = serde_json::Map::new();
        for (index, kernel) in kernels.iter().enumerate() {
            let (order, left_out) = order(&Modules::open(&kernel.modules())?)?;
            for (name, tools) in NAMES.into_iter().zip([None, Some(&tools)]) {
                let path = work.join(of_kernel(name, kernel));
                let bytes = archive(&agent, &order, tools)?.map_err(Error::io("fill", &path))?;
                fs::write(&path, bytes).map_err(Error::io("write", &path))?;
                if index == 0 {
                    publish(&path, &work.join(format!("{name}.cpio")))?;
                }
            }
            let modules: Vec<&str> = order.iter().map(|module| module.name.as_str()).collect();
            let release = &kernel.release;
            let of =
                serde_json::json!({ "release": release, "modules": modules, "left_out": left_out });
            facts.insert(kernel.line(), of);
        }
        let packages = serde_json::json!({ "busybox-static": busybox.version });
        Ok(serde_json::json!({ "kernels": facts, "packages": packages }))
    })
}

/// The name of an archive with a kernel's modules.
fn of_kernel(name: &str, kernel: &Kernel) -> String {
    format!("{name}-{}.cpio", kernel.line())
}

/// The modules in loading order, and those of [`OPTIONAL`] that the kernel does not have.
fn order(modules: &Modules) -> Result<(Vec<Module>, Vec<&'static str>)> {
    let (there, left_out): (Vec<_>, Vec<_>) =
        OPTIONAL.into_iter().partition(|name| modules.load_order(&[name]).is_ok());
    Ok((modules.load_order(&[REQUIRED.as_slice(), &there].concat())?, left_out))
}

/// One archive; the outer error is a module's, the inner one the archive's own.
fn archive(agent: &[u8], order: &[Module], tools: Option<&Tools>) -> Result<io::Result<Vec<u8>>> {
    let mut contents = Vec::new();
    for module in order {
        contents.push((format!("{}.ko", module.name), module.read()?));
    }
    let build = || {
        let mut archive = Archive::new();
        // The kernel opens the console before anything is mounted, and Rust's runtime wants null.
        archive.device("dev/console", 0o600, Device::Char, (5, 1))?;
        archive.device("dev/null", 0o666, Device::Char, (1, 3))?;
        for folder in ["proc", "sys", "run", "root", "tmp"] {
            archive.dir(folder, 0o755)?;
        }
        let list: String = contents.iter().map(|(name, _)| format!("{name}\n")).collect();
        archive.file("modules/order", 0o644, list.as_bytes())?;
        for (name, bytes) in &contents {
            archive.file(&format!("modules/{name}"), 0o644, bytes)?;
        }
        if let Some(tools) = tools {
            archive.file("bin/busybox", 0o755, &tools.program)?;
            for path in &tools.names {
                archive.symlink(path, "/bin/busybox")?;
            }
        }
        archive.file("init", 0o755, agent)?;
        archive.finish()
    };
    Ok(build())
}

/// The package of busybox.
struct Busybox {
    deb: PathBuf,
    version: String,
}

/// Busybox itself, and the paths at which it is known.
struct Tools {
    program: Vec<u8>,
    names: BTreeSet<String>,
}

impl Busybox {
    fn fetch(apt: &Path) -> Result<Self> {
        let apt = Apt::open(apt, &[])?;
        let version = apt.version("busybox-static")?;
        let mut debs = apt.download(&["busybox-static"])?;
        let none =
            || Error::NoPackage { package: "busybox-static".into(), suites: "the suites".into() };
        Ok(Self { deb: debs.pop().ok_or_else(none)?, version })
    }

    fn unpack(&self, dir: &Path) -> Result<Tools> {
        extract(&self.deb, dir)?;
        // Debian 13 moved it.
        let places = ["bin/busybox", "usr/bin/busybox"].map(|place| dir.join(place));
        let path = places.iter().find(|path| path.exists()).unwrap_or(&places[0]);
        let names = run_text(Command::new(path).arg("--list-full"), "busybox-static")?;
        let mut names: BTreeSet<String> = names.lines().map(str::to_owned).collect();
        names.remove("bin/busybox");
        // The agent is init.
        names.retain(|name| !name.ends_with("/init"));
        Ok(Tools { program: read(path)?, names })
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(Error::io("read", path))
}
