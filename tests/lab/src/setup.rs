//! Preparing the lab: tools that are missing, the emulated host's kernel, and its initramfs.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use varve_guest_images::aside::Lock;
use varve_guest_images::deb::{Apt, extract};
use varve_guest_images::kernel::{Flavour, Kernel};

use crate::initramfs;
use crate::place::Place;
use crate::qemu::Boot;

/// A tool that the lab uses, on this machine or inside, the Debian package that has it, and
/// whether no run can do without.
const TOOLS: [(&str, &str, bool); 9] = [
    ("qemu-system-x86_64", "qemu-system-x86", true),
    ("setpriv", "util-linux", true),
    ("modprobe", "kmod", true),
    ("mkfs.ext4", "e2fsprogs", false),
    ("ip", "iproute2", false),
    ("rdma", "iproute2", false),
    // What programs need to speak to the soft-RoCE device, and a tool to try it with.
    ("/etc/libibverbs.d/rxe.driver", "ibverbs-providers", false),
    ("ibv_rc_pingpong", "ibverbs-utils", false),
    ("/usr/lib/x86_64-linux-gnu/librdmacm.so.1", "librdmacm1", false),
];

/// Where tools are, beside `PATH`, which a user's own may not have.
const SBIN: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// A lab that can be started.
#[derive(Debug)]
pub struct Prepared {
    /// What QEMU boots.
    pub boot: Boot,
    /// The folder that is to be `/lib/modules` in the lab.
    pub modules: PathBuf,
}

/// Prepares the lab in `place`, telling each step to `say`. What is there already stays.
pub fn setup(place: &Place, say: &dyn Fn(&str)) -> Result<Prepared> {
    tools(say)?;
    let _lock = Lock::take(&place.dir().join("setup.lock"))?;
    say("the emulated host's kernel (fetched from Debian if it is not there)");
    let kernel = Kernel::prepare(Flavour::Lab, &place.kernel(), &place.packages())?;
    say(&format!("{}: ready", kernel.package));
    busybox(place)?;
    let prepared = prepared(place, None)?;
    say(&format!("the lab is ready in {}", place.dir().display()));
    Ok(prepared)
}

/// The lab that [`setup`] left in `place`; or one with the kernel in `other` instead of its own.
pub fn prepared(place: &Place, other: Option<&Path>) -> Result<Prepared> {
    let not_ready = || {
        let dir = place.dir().display();
        format!("the lab is not prepared in {dir}: run `varve-lab setup` once")
    };
    let busybox = fs::read(place.busybox()).with_context(not_ready)?;
    let kernel = match other {
        Some(dir) => dir.to_owned(),
        None if Kernel::open(Flavour::Lab, &place.kernel())?.is_some() => place.kernel(),
        None => bail!(not_ready()),
    };
    // Seen from the lab, a link of this machine would lead elsewhere.
    let kernel = fs::canonicalize(&kernel).with_context(not_ready)?;
    let vmlinux = kernel.join("vmlinux");
    let modules = kernel.join("lib/modules");
    let indexed = only_entry(&modules)?;
    // Named by what it is made from, so that another version of this program makes its own.
    let initramfs = place.dir().join(initramfs::name(&indexed, &vmlinux, &busybox));
    if !initramfs.exists() {
        write_whole(&initramfs, &initramfs::build(&indexed, &busybox)?)?;
    }
    Ok(Prepared { boot: Boot { vmlinux, initramfs }, modules })
}

/// The only folder in `dir`.
fn only_entry(dir: &Path) -> Result<PathBuf> {
    let entries = fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))?;
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    match (paths.pop(), paths.pop()) {
        (Some(path), None) => Ok(path),
        _ => bail!("{} must hold one kernel's modules", dir.display()),
    }
}

/// The packages of the tools that are missing on this machine, or only of those that every run
/// needs.
pub fn missing(only_needed: bool) -> Vec<&'static str> {
    let mut packages = Vec::new();
    for (tool, package, needed) in TOOLS {
        let own_qemu =
            tool.starts_with("qemu") && env::var_os(crate::qemu::QEMU_VARIABLE).is_some();
        let wanted = (needed || !only_needed) && !own_qemu;
        if wanted && find(tool).is_none() && !packages.contains(&package) {
            packages.push(package);
        }
    }
    packages
}

fn tools(say: &dyn Fn(&str)) -> Result<()> {
    let packages = missing(false);
    if packages.is_empty() {
        return Ok(());
    }
    let names = packages.join(" ");
    let install = format!("apt-get install --no-install-recommends {names}");
    if !rustix::process::geteuid().is_root() {
        if !missing(true).is_empty() {
            bail!("the lab needs tools that are not installed: as root, run `{install}`");
        }
        say(&format!("--dax, --net and --rdma need more tools: as root, run `{install}`"));
        return Ok(());
    }
    say(&format!("installing {names}"));
    let apt = |arguments: &[&str]| -> Result<bool> {
        let mut command = Command::new("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive").args(["-qq", "--yes"]).args(arguments);
        // Its output is progress: ours belongs to no one yet, but stays clean all the same.
        let output = command.output().context("cannot start apt-get")?;
        Ok(output.status.success())
    };
    let arguments: Vec<&str> = ["install", "--no-install-recommends"]
        .into_iter()
        .chain(packages.iter().copied())
        .collect();
    // Package lists may be missing or old: fetched only if need be.
    let installed = apt(&arguments)? || (apt(&["update"])? && apt(&arguments)?);
    if !installed {
        bail!("`{install}` failed: run it by hand to see why");
    }
    match missing(false).as_slice() {
        [] => Ok(()),
        still => bail!("{} installed, and yet their tools are not found", still.join(" ")),
    }
}

fn find(tool: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = env::split_paths(&path).chain(SBIN.iter().map(PathBuf::from));
    // A full path stays what it is.
    folders.map(|folder| folder.join(tool)).find(|path| path.is_file())
}

/// A static busybox, from Debian's package and not installed.
fn busybox(place: &Place) -> Result<()> {
    let path = place.busybox();
    if path.exists() {
        return Ok(());
    }
    let apt = Apt::open(&place.packages(), &[])?;
    let into = tempfile::tempdir_in(place.dir()).context("cannot make a folder in the lab's")?;
    for deb in apt.download(&["busybox-static"])? {
        extract(&deb, into.path())?;
    }
    let places = ["bin/busybox", "usr/bin/busybox"].map(|name| into.path().join(name));
    let found = places.iter().find(|path| path.is_file());
    let found = found.context("the package busybox-static has no busybox")?;
    let bytes = fs::read(found).with_context(|| format!("cannot read {}", found.display()))?;
    write_whole(&path, &bytes)
}

/// Writes a file that is there whole or not at all.
fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let folder = path.parent().context("a file has a folder")?;
    let mut file = tempfile::NamedTempFile::new_in(folder)
        .with_context(|| format!("cannot write in {}", folder.display()))?;
    std::io::Write::write_all(&mut file, bytes)
        .and_then(|()| file.as_file().sync_all())
        .with_context(|| format!("cannot write {}", path.display()))?;
    file.persist(path).with_context(|| format!("cannot make {}", path.display()))?;
    Ok(())
}
