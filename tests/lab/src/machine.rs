//! What the emulated host is to be like: the options of `varve-lab run`, checked.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clap::Args;

use crate::memory::starts;

/// Where the DAX file system is mounted in the lab.
pub const DAX_PATH: &str = "/mnt/dax";
/// Where the device-DAX device is.
pub const DEVDAX_PATH: &str = "/dev/dax0.0";
/// The address of a lab's own network device, when it is joined to no other lab.
pub const RDMA_ADDRESS: &str = "10.78.0.1";
/// Addresses of two joined labs: of the one that listens and of the one that connects.
pub const NET_ADDRESSES: [&str; 2] = ["10.77.0.1", "10.77.0.2"];

/// The emulated host.
#[derive(Args, Clone, Debug)]
pub struct Machine {
    /// Memory of the emulated host, in MiB (that of --dax, --devdax and --cxl comes on top)
    #[arg(long, value_name = "MIB", default_value_t = 2048)]
    pub mem: u64,

    /// CPUs; with more than one, guests in the lab hang now and then (a fault of QEMU)
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub cpus: u32,

    /// A folder with another kernel, laid out as `setup` does it (vmlinux, lib/modules)
    #[arg(long, value_name = "DIR")]
    pub kernel: Option<PathBuf>,

    /// Add a byte-addressable memory device of this size, as an ext4 with -o dax on /mnt/dax
    #[arg(long, value_name = "MIB")]
    pub dax: Option<u64>,

    /// Add a device-DAX device /dev/dax0.0 of this size
    #[arg(long, value_name = "MIB")]
    pub devdax: Option<u64>,

    /// Add a NUMA node 1 of this size that has no CPU, and an HMAT: a stand-in for CXL memory
    #[arg(long, value_name = "MIB")]
    pub cxl: Option<u64>,

    /// Add an RDMA device rxe0 (soft-RoCE): over a link of its own, or over that of --net
    #[arg(long)]
    pub rdma: bool,

    /// Let virtual time follow the count of instructions, for repeatable timing
    #[arg(long)]
    pub icount: bool,

    /// Join this lab with another by a network: `listen=PORT` in one, `connect=PORT` in the other
    #[arg(long, value_name = "ROLE=PORT", value_parser = parse_net)]
    pub net: Option<Net>,

    /// More parameters for the emulated host's kernel
    #[arg(long, value_name = "PARAMETERS", default_value = "", allow_hyphen_values = true)]
    pub append: String,

    /// Let files below this folder be written through to the machine (may be repeated)
    #[arg(long, value_name = "DIR")]
    pub rw: Vec<PathBuf>,
}

/// One end of a network between two labs, over a TCP connection on this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Net {
    /// Whether this lab waits for the other.
    pub listens: bool,
    /// The TCP port on the loopback address.
    pub port: u16,
}

impl Net {
    /// This lab's address in the network.
    pub fn address(self) -> &'static str {
        NET_ADDRESSES[usize::from(!self.listens)]
    }
}

fn parse_net(text: &str) -> Result<Net, String> {
    let (role, port) = text.split_once('=').ok_or("write listen=PORT or connect=PORT")?;
    let listens = match role {
        "listen" => true,
        "connect" => false,
        _ => return Err(format!("`{role}` is neither listen nor connect")),
    };
    match port.parse() {
        Ok(0) | Err(_) => Err(format!("`{port}` is no port from 1 to 65535")),
        Ok(port) => Ok(Net { listens, port }),
    }
}

impl Machine {
    /// Memory of the node with CPUs, in MiB.
    pub fn node0(&self) -> u64 {
        self.mem + self.dax.unwrap_or(0) + self.devdax.unwrap_or(0)
    }

    /// All memory, in MiB.
    pub fn total(&self) -> u64 {
        self.node0() + self.cxl.unwrap_or(0)
    }

    /// Whether QEMU, as it is distributed, delivers an interrupt twice to its guests now and then
    /// (docs/lab.md).
    pub fn is_delicate(&self) -> bool {
        self.cpus > 1 || self.icount
    }

    /// Checks what the options alone can not, and makes folders absolute.
    pub fn check(&mut self) -> Result<()> {
        for (name, value, min) in [
            ("--mem", Some(self.mem), 256),
            ("--dax", self.dax, 64),
            ("--devdax", self.devdax, 64),
            ("--cxl", self.cxl, 128),
        ] {
            let Some(value) = value else { continue };
            if value < min || value > 1 << 16 || value % 2 != 0 {
                bail!("{name} {value}: give an even number of MiB from {min} to 65536");
            }
        }
        if self.cpus == 0 || self.cpus > 8 {
            bail!("--cpus {}: give a number from 1 to 8", self.cpus);
        }
        if self.persistent().is_none() {
            bail!("--dax, --devdax: no place for it in {} MiB of memory: raise --mem", self.mem);
        }
        if self.append.contains(['\n', '\0']) {
            bail!("--append: kernel parameters are one line");
        }
        for dir in self.rw.iter_mut().chain(&mut self.kernel) {
            *dir = checked_dir(dir)?;
        }
        Ok(())
    }

    /// Where what is called persistent lies in physical memory, as start and size in MiB: the file
    /// system's device, and the other one. `None` if there is no place for it.
    pub fn persistent(&self) -> Option<[Option<(u64, u64)>; 2]> {
        let sizes: Vec<u64> = self.dax.into_iter().chain(self.devdax).collect();
        let mut starts = starts(self.node0(), self.total(), &sizes)?.into_iter();
        Some([self.dax, self.devdax].map(|size| size.and_then(|size| Some((starts.next()?, size)))))
    }
}

fn checked_dir(dir: &Path) -> Result<PathBuf> {
    match dir.canonicalize() {
        Ok(path) if !path.is_dir() => bail!("`{}` is not a folder", dir.display()),
        Ok(path) if path.to_str().is_none() => bail!("`{}` is not UTF-8", dir.display()),
        Ok(path) => Ok(path),
        Err(error) => bail!("`{}`: {error}", dir.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Options {
        #[command(flatten)]
        machine: Machine,
    }

    fn machine(options: &str) -> Result<Machine> {
        let words = ["test"].into_iter().chain(options.split_whitespace());
        let mut machine = Options::try_parse_from(words)?.machine;
        machine.check()?;
        Ok(machine)
    }

    #[test]
    fn memory_adds_up() {
        let machine = machine("--mem 1024 --dax 512 --cxl 256").unwrap();
        assert_eq!((machine.node0(), machine.total()), (1536, 1792));
        assert_eq!(machine.persistent().unwrap()[0].unwrap().1, 512);
    }

    #[test]
    fn two_devices_are_apart() {
        let both = machine("--mem 1024 --dax 64 --devdax 64").unwrap();
        let [dax, devdax] = both.persistent().unwrap().map(Option::unwrap);
        assert!(devdax.0 + 64 < dax.0, "the kernel takes what meets for one");
    }

    #[test]
    fn bad_options_are_refused_by_name() {
        for (options, word) in [
            ("--mem 100", "--mem"),
            ("--mem 1025", "--mem"),
            ("--cpus 0", "--cpus"),
            ("--rw /no/such/folder", "/no/such/folder"),
            ("--rw /dev/null", "not a folder"),
            ("--net meet=1", "meet"),
            ("--net listen=0", "port"),
            ("--net listen", "listen=PORT"),
        ] {
            let error = format!("{:#}", machine(options).unwrap_err());
            assert!(error.contains(word), "{options}: {error}");
        }
    }

    #[test]
    fn two_joined_labs_have_different_addresses() {
        let listen = parse_net("listen=4000").unwrap();
        let connect = parse_net("connect=4000").unwrap();
        assert_ne!(listen.address(), connect.address());
    }
}
