//! What a machine is to be: plain data, and the rules it must keep.
//!
//! The command line (`crate::cli`) and the configuration file ([`firecracker`]) both end up here.

pub mod firecracker;

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use varve_devices::limiter::{BucketConfig, LimiterConfig};
use varve_devices::mmds::MmdsConfig;
use varve_devices::virtio::balloon::BalloonConfig;
use varve_devices::virtio::block::BlockConfig;
use varve_devices::virtio::net::NetConfig;
use varve_devices::virtio::vsock::VsockConfig;
use varve_memory_tiers::HugePages;
use varve_snapshot::PAGE_SIZE;

use crate::arch::kernel::BootProtocol;
use crate::arch::layout;

/// Longest body of an API request and longest metadata document, in bytes, as Firecracker's default.
pub const MAX_BODY: usize = 51_200;

/// Most vCPUs of a machine.
pub const MAX_VCPUS: u8 = 32;

/// A machine. A snapshot keeps it as JSON, but for what belongs to the process and not the machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmConfig {
    /// Number of vCPUs.
    pub vcpus: u8,
    /// Two threads a core, as the guest sees it.
    pub smt: bool,
    /// Bytes of memory.
    pub memory: u64,
    /// Pages that memory is made of.
    #[serde(default)]
    pub huge_pages: HugePages,
    /// Keep track of the pages that were written, for incremental snapshots.
    pub track_dirty_pages: bool,
    /// Changes of what the guest sees of its processor.
    #[serde(default)]
    pub cpu: Option<crate::arch::cpu_config::CpuConfig>,
    /// What to boot.
    pub boot: BootConfig,
    /// Drives, in the order of `/dev/vda`, `/dev/vdb`, …
    pub drives: Vec<BlockConfig>,
    /// Network interfaces.
    pub nets: Vec<NetConfig>,
    /// Metadata service, on some of them.
    #[serde(default)]
    pub mmds: Option<MmdsConfig>,
    /// Host-guest sockets.
    pub vsock: Option<VsockConfig>,
    /// Memory balloon.
    pub balloon: Option<BalloonConfig>,
    /// Entropy device.
    pub entropy: bool,
    /// Limits of the entropy device.
    #[serde(default)]
    pub entropy_limiter: LimiterConfig,
    /// Serial console.
    #[serde(skip)]
    pub console: Console,
    /// Limit of its output in bytes; what is more is dropped.
    #[serde(skip)]
    pub console_limiter: Option<BucketConfig>,
    /// Report when the guest writes to the boot timer.
    #[serde(skip)]
    pub boot_timer: bool,
}

/// A kernel and what it is given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootConfig {
    /// ELF vmlinux or bzImage.
    pub kernel: PathBuf,
    /// Initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// Command line, without what the machine adds.
    pub cmdline: String,
    /// How the kernel is entered.
    pub protocol: BootProtocol,
    /// The root file system; none if the command line says it, or an initrd needs none.
    #[serde(default)]
    pub root: Option<RootDrive>,
}

/// Where the root file system is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootDrive {
    /// Name of the drive, the machine's first.
    pub drive: String,
    /// The partition of that drive, if it has some.
    pub partuuid: Option<String>,
}

/// Where the serial port goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Console {
    /// Standard input and output.
    #[default]
    Stdio,
    /// Output to a file, no input.
    File(PathBuf),
    /// Nowhere.
    Off,
}

/// A configuration that cannot be.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A field has a value that cannot be.
    #[error("{field}: {problem}")]
    Field {
        /// The field, as the user wrote it.
        field: String,
        /// What is wrong, and the cure.
        problem: String,
    },
    /// The configuration file does not open.
    #[error("configuration file {path:?}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The configuration file does not parse.
    #[error("configuration file {path:?}: {source}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Line, column and cause.
        source: serde_json::Error,
    },
    /// The configuration file asks for what cannot be.
    #[error("configuration file {path:?}: {source}")]
    Resource {
        /// The file.
        path: PathBuf,
        /// The resource, and why not.
        source: Box<firecracker::ResourceError>,
    },
}

impl ConfigError {
    /// A problem with one field.
    pub fn field(field: impl Into<String>, problem: impl Into<String>) -> ConfigError {
        ConfigError::Field { field: field.into(), problem: problem.into() }
    }
}

impl VmConfig {
    /// The parameter that tells the kernel of its root file system.
    pub fn root_parameter(&self) -> Option<String> {
        let RootDrive { drive, partuuid } = self.boot.root.as_ref()?;
        let drive = self.drives.iter().find(|d| d.id == *drive)?;
        let root = match partuuid {
            Some(id) => format!("PARTUUID={id}"),
            None => "/dev/vda".into(),
        };
        let mode = if drive.read_only { "ro" } else { "rw" };
        Some(format!("root={root} {mode}"))
    }

    /// Checks what can be checked without opening anything.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.vcpus == 0 || self.vcpus > MAX_VCPUS {
            let problem = format!("{} vCPUs; from 1 to {MAX_VCPUS} are possible", self.vcpus);
            return Err(ConfigError::field("vcpus", problem));
        }
        if self.smt && self.vcpus > 1 && !self.vcpus.is_multiple_of(2) {
            let problem = format!("{} vCPUs with smt; the number must be even", self.vcpus);
            return Err(ConfigError::field("vcpus", problem));
        }
        let mib = |bytes| bytes >> 20;
        if !self.memory.is_multiple_of(PAGE_SIZE) {
            let near = self.memory.next_multiple_of(PAGE_SIZE);
            let problem = format!(
                "{} bytes are not a whole number of 4 KiB pages; {near} would be",
                self.memory
            );
            return Err(ConfigError::field("memory", problem));
        }
        if !(layout::MIN_MEMORY..=layout::MAX_MEMORY).contains(&self.memory) {
            let problem = format!(
                "{} MiB; from {} to {} MiB are possible",
                mib(self.memory),
                mib(layout::MIN_MEMORY),
                mib(layout::MAX_MEMORY)
            );
            return Err(ConfigError::field("memory", problem));
        }
        if let Some(balloon) = &self.balloon
            && u64::from(balloon.amount_mib) > mib(self.memory)
        {
            let problem = format!(
                "{} MiB are more than the machine's memory of {} MiB",
                balloon.amount_mib,
                mib(self.memory)
            );
            return Err(ConfigError::field("balloon.amount_mib", problem));
        }
        unique("drive id", self.drives.iter().map(|d| d.id.as_str()))?;
        self.validate_drive_paths()?;
        unique("network interface id", self.nets.iter().map(|n| n.id.as_str()))?;
        unique("tap", self.nets.iter().map(|n| n.tap.as_str()))?;
        if let Some(mmds) = &self.mmds {
            mmds.validate(self.nets.iter().map(|n| n.id.as_str()))
                .map_err(|e| ConfigError::field("mmds-config", e.to_string()))?;
        }
        Ok(())
    }

    /// Two file systems on one image destroy it, unless both only read.
    fn validate_drive_paths(&self) -> Result<(), ConfigError> {
        let mut seen = std::collections::HashMap::new();
        for drive in &self.drives {
            // By its inode, whatever its names. One that is not there is reported when it is opened.
            let inode = drive.path.metadata().map(|found| (found.dev(), found.ino()));
            let file = inode.map_err(|_| drive.path.clone());
            if let Some((other, read_only)) = seen.insert(file, (&drive.id, drive.read_only))
                && !(read_only && drive.read_only)
            {
                let problem = format!(
                    "{:?} and {other:?} are the same image {:?}; both must be read-only",
                    drive.id, drive.path
                );
                return Err(ConfigError::field("drives", problem));
            }
        }
        Ok(())
    }
}

fn unique<'a>(what: &str, names: impl Iterator<Item = &'a str>) -> Result<(), ConfigError> {
    let mut seen = std::collections::HashSet::new();
    for name in names {
        if !seen.insert(name) {
            return Err(ConfigError::field(what, format!("{name:?} is given twice")));
        }
    }
    Ok(())
}

/// Reads a size with an optional binary suffix: `268435456`, `256M`, `1G`.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let bad = || format!("{text:?} is not a size such as 256M");
    if digits == 0 {
        return Err(bad());
    }
    let shift = match text[digits..].to_ascii_uppercase().as_str() {
        "" | "B" => 0,
        "K" | "KIB" => 10,
        "M" | "MIB" => 20,
        "G" | "GIB" => 30,
        other => return Err(format!("{other:?} is not a unit; K, M and G are")),
    };
    let number: u64 = text[..digits].parse().map_err(|_| bad())?;
    number.checked_mul(1 << shift).ok_or_else(|| format!("{text:?} is more than any machine has"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> VmConfig {
        VmConfig {
            vcpus: 1,
            smt: false,
            memory: 128 << 20,
            huge_pages: HugePages::Off,
            track_dirty_pages: false,
            cpu: None,
            boot: BootConfig {
                kernel: "vmlinux".into(),
                initrd: None,
                cmdline: String::new(),
                protocol: BootProtocol::Auto,
                root: None,
            },
            drives: vec![],
            nets: vec![],
            mmds: None,
            vsock: None,
            balloon: None,
            entropy: false,
            entropy_limiter: LimiterConfig::default(),
            console: Console::Off,
            console_limiter: None,
            boot_timer: false,
        }
    }

    #[test]
    fn sizes() {
        assert_eq!(parse_size("4096"), Ok(4096));
        assert_eq!(parse_size("256M"), Ok(256 << 20));
        assert_eq!(parse_size("1GiB"), Ok(1 << 30));
        assert_eq!(parse_size(" 64k "), Ok(64 << 10));
        for bad in ["", "M", "12Q", "-1", "1.5G", "99999999999G", "256 M"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn each_rule_names_its_field() {
        let broken = |change: fn(&mut VmConfig)| {
            let mut c = config();
            change(&mut c);
            c.validate().unwrap_err().to_string()
        };
        config().validate().unwrap();
        assert!(broken(|c| c.vcpus = 0).starts_with("vcpus:"));
        assert!(broken(|c| c.vcpus = 33).contains("1 to 32"));
        assert!(broken(|c| (c.vcpus, c.smt) = (3, true)).contains("even"));
        assert!(broken(|c| c.memory += 1).contains("134221824 would be"));
        assert!(broken(|c| c.memory = 16 << 20).contains("from 32"));
        assert!(broken(|c| c.memory = 65 << 30).contains("65536"));
        let drive = BlockConfig {
            id: "a".into(),
            path: "x".into(),
            read_only: true,
            flush: false,
            limiter: LimiterConfig::default(),
            apart: false,
        };
        let mut c = config();
        c.drives = vec![drive.clone(), drive];
        assert_eq!(c.validate().unwrap_err().to_string(), "drive id: \"a\" is given twice");
        c.drives[1].id = "b".into();
        c.validate().unwrap();
        for writable in [0, 1] {
            let mut c = c.clone();
            c.drives[writable].read_only = false;
            let error = c.validate().unwrap_err().to_string();
            assert!(error.starts_with("drives: \"b\" and \"a\" are the same image"), "{error}");
        }
    }

    #[test]
    fn an_image_is_the_same_by_all_its_names() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("image"), "").unwrap();
        std::fs::write(at("other"), "").unwrap();
        std::fs::hard_link(at("image"), at("hard")).unwrap();
        std::os::unix::fs::symlink("image", at("soft")).unwrap();
        let drive = |id: &str, name: &str| BlockConfig {
            id: id.into(),
            path: at(name),
            read_only: false,
            flush: false,
            limiter: LimiterConfig::default(),
            apart: false,
        };
        for (name, same) in [("image", true), ("hard", true), ("soft", true), ("other", false)] {
            let mut config = config();
            config.drives = vec![drive("a", "image"), drive("b", name)];
            assert_eq!(config.validate().is_err(), same, "{name}");
        }
    }
}
