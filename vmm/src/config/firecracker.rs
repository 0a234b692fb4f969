//! Firecracker's configuration file: its schema, defaults and the way into a [`VmConfig`].
//!
//! Fields that mean something this build cannot do are refused by name, never ignored.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;
use varve_devices::limiter::LimiterConfig;
use varve_devices::virtio::balloon::BalloonConfig;
use varve_devices::virtio::block::BlockConfig;
use varve_devices::virtio::net::NetConfig;
use varve_devices::virtio::vsock::VsockConfig;

use super::{BootConfig, ConfigError, Console, VmConfig};
use crate::arch::kernel::BootProtocol;

/// Firecracker's default `boot_args`.
pub const DEFAULT_BOOT_ARGS: &str = "reboot=k panic=1 nomodule 8250.nr_uarts=0 i8042.noaux \
                                     i8042.nomux i8042.dumbkbd swiotlb=noforce";

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct File {
    boot_source: BootSource,
    #[serde(default)]
    drives: Vec<Drive>,
    machine_config: Option<Machine>,
    #[serde(default)]
    network_interfaces: Vec<NetworkInterface>,
    vsock: Option<Vsock>,
    balloon: Option<Balloon>,
    entropy: Option<Entropy>,
    logger: Option<Value>,
    metrics: Option<Value>,
    mmds_config: Option<Value>,
    cpu_config: Option<Value>,
    serial: Option<Value>,
    pmem: Option<Value>,
    memory_hotplug: Option<Value>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct BootSource {
    kernel_image_path: PathBuf,
    initrd_path: Option<PathBuf>,
    boot_args: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Drive {
    drive_id: String,
    path_on_host: Option<PathBuf>,
    is_root_device: bool,
    partuuid: Option<String>,
    #[serde(default)]
    is_read_only: Option<bool>,
    cache_type: Option<CacheType>,
    io_engine: Option<IoEngine>,
    rate_limiter: Option<Value>,
    socket: Option<Value>,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
enum CacheType {
    Unsafe,
    Writeback,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
enum IoEngine {
    Sync,
    Async,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Machine {
    vcpu_count: u8,
    mem_size_mib: u64,
    #[serde(default)]
    smt: bool,
    #[serde(default)]
    track_dirty_pages: bool,
    cpu_template: Option<String>,
    huge_pages: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NetworkInterface {
    iface_id: String,
    host_dev_name: String,
    guest_mac: Option<String>,
    mtu: Option<u16>,
    rx_rate_limiter: Option<Value>,
    tx_rate_limiter: Option<Value>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Vsock {
    guest_cid: u32,
    uds_path: PathBuf,
    /// Deprecated; has no meaning.
    #[serde(rename = "vsock_id")]
    _vsock_id: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Balloon {
    amount_mib: u32,
    deflate_on_oom: bool,
    #[serde(default)]
    stats_polling_interval_s: u16,
    #[serde(default)]
    free_page_hinting: bool,
    #[serde(default)]
    free_page_reporting: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entropy {
    rate_limiter: Option<Value>,
}

/// Memory of a machine whose file has no `machine-config`, as Firecracker's.
const DEFAULT_MIB: u64 = 128;

/// Reads a configuration file.
pub fn read(path: &Path) -> Result<VmConfig, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ConfigError::Read { path: path.into(), source })?;
    parse(&text, path)
}

/// Parses the text of a configuration file; `path` is for messages.
pub fn parse(text: &str, path: &Path) -> Result<VmConfig, ConfigError> {
    let file: File = serde_json::from_str(text)
        .map_err(|source| ConfigError::Parse { path: path.into(), source })?;
    file.into_config()
}

/// Refuses a field that is there and not null.
fn unsupported(field: &str, value: &Option<Value>) -> Result<(), ConfigError> {
    match value {
        None => Ok(()),
        Some(_) => Err(ConfigError::field(field, "not supported by this version; remove it")),
    }
}

impl File {
    fn into_config(self) -> Result<VmConfig, ConfigError> {
        let File {
            boot_source,
            drives,
            machine_config,
            network_interfaces,
            vsock,
            balloon,
            entropy,
            logger,
            metrics,
            mmds_config,
            cpu_config,
            serial,
            pmem,
            memory_hotplug,
        } = self;
        for (field, value) in [
            ("logger", logger),
            ("metrics", metrics),
            ("mmds-config", mmds_config),
            ("cpu-config", cpu_config),
            ("serial", serial),
            ("pmem", pmem.filter(|v| v.as_array().is_none_or(|a| !a.is_empty()))),
            ("memory-hotplug", memory_hotplug),
        ] {
            unsupported(field, &value)?;
        }
        let machine = machine_config.unwrap_or(Machine {
            vcpu_count: 1,
            mem_size_mib: DEFAULT_MIB,
            smt: false,
            track_dirty_pages: false,
            cpu_template: None,
            huge_pages: None,
        });
        if let Some(template) = machine.cpu_template.filter(|t| t != "None") {
            let problem = format!("{template:?} is not supported; remove it");
            return Err(ConfigError::field("machine-config.cpu_template", problem));
        }
        if let Some(pages) = machine.huge_pages.filter(|p| p != "None") {
            let problem = format!("{pages:?} is not supported; \"None\" is");
            return Err(ConfigError::field("machine-config.huge_pages", problem));
        }
        let memory = machine.mem_size_mib.checked_mul(1 << 20).ok_or_else(|| {
            ConfigError::field("machine-config.mem_size_mib", "more than any machine has")
        })?;
        let mut cmdline = boot_source.boot_args.unwrap_or_else(|| DEFAULT_BOOT_ARGS.into());
        let drives = convert_drives(drives, &mut cmdline)?;
        let nets = network_interfaces
            .into_iter()
            .enumerate()
            .map(|(i, n)| convert_net(i, n))
            .collect::<Result<_, _>>()?;
        if let Some(Entropy { rate_limiter }) = &entropy {
            unsupported("entropy.rate_limiter", rate_limiter)?;
        }
        Ok(VmConfig {
            vcpus: machine.vcpu_count,
            smt: machine.smt,
            memory,
            track_dirty_pages: machine.track_dirty_pages,
            boot: BootConfig {
                kernel: boot_source.kernel_image_path,
                initrd: boot_source.initrd_path,
                cmdline,
                protocol: BootProtocol::Auto,
            },
            drives,
            nets,
            vsock: vsock.map(|v| VsockConfig { guest_cid: v.guest_cid, uds_path: v.uds_path }),
            balloon: balloon.map(|b| BalloonConfig {
                amount_mib: b.amount_mib,
                deflate_on_oom: b.deflate_on_oom,
                stats_polling_interval_s: b.stats_polling_interval_s,
                free_page_hinting: b.free_page_hinting,
                free_page_reporting: b.free_page_reporting,
            }),
            entropy: entropy.is_some(),
            entropy_limiter: LimiterConfig::default(),
            console: Console::Stdio,
            boot_timer: false,
        })
    }
}

/// The root device comes first, so that it is `/dev/vda`, and is named on the command line.
fn convert_drives(
    mut drives: Vec<Drive>,
    cmdline: &mut String,
) -> Result<Vec<BlockConfig>, ConfigError> {
    if drives.iter().filter(|d| d.is_root_device).count() > 1 {
        return Err(ConfigError::field("drives", "more than one has is_root_device: true"));
    }
    drives.sort_by_key(|d| !d.is_root_device);
    let mut configs = Vec::with_capacity(drives.len());
    for drive in drives {
        let field = |name: &str| format!("drives[{:?}].{name}", drive.drive_id);
        unsupported(&field("rate_limiter"), &drive.rate_limiter)?;
        unsupported(&field("socket"), &drive.socket)?;
        if drive.io_engine == Some(IoEngine::Async) {
            let problem = "\"Async\" is not supported; \"Sync\" is";
            return Err(ConfigError::field(field("io_engine"), problem));
        }
        let path = drive
            .path_on_host
            .clone()
            .ok_or_else(|| ConfigError::field(field("path_on_host"), "missing"))?;
        let read_only = drive.is_read_only.unwrap_or(false);
        if drive.is_root_device {
            let root = match &drive.partuuid {
                Some(id) => format!("PARTUUID={id}"),
                None => "/dev/vda".into(),
            };
            let mode = if read_only { "ro" } else { "rw" };
            *cmdline = format!("{cmdline} root={root} {mode}");
        }
        let flush = drive.cache_type == Some(CacheType::Writeback);
        configs.push(BlockConfig {
            id: drive.drive_id,
            path,
            read_only,
            flush,
            limiter: LimiterConfig::default(),
        });
    }
    Ok(configs)
}

fn convert_net(index: usize, net: NetworkInterface) -> Result<NetConfig, ConfigError> {
    let field = |name: &str| format!("network-interfaces[{index}].{name}");
    unsupported(&field("rx_rate_limiter"), &net.rx_rate_limiter)?;
    unsupported(&field("tx_rate_limiter"), &net.tx_rate_limiter)?;
    let mac = net
        .guest_mac
        .map(|text| {
            parse_mac(&text).ok_or_else(|| {
                let problem = format!("{text:?} is not an address such as 06:00:ac:10:00:02");
                ConfigError::field(field("guest_mac"), problem)
            })
        })
        .transpose()?;
    Ok(NetConfig {
        id: net.iface_id,
        tap: net.host_dev_name,
        mac,
        mtu: net.mtu,
        rx_limiter: LimiterConfig::default(),
        tx_limiter: LimiterConfig::default(),
    })
}

/// Six hexadecimal bytes with colons between them.
pub fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        let part = parts.next().filter(|p| p.len() == 2)?;
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    parts.next().is_none().then_some(mac)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<VmConfig, ConfigError> {
        parse(text, Path::new("vm.json"))
    }

    #[test]
    fn a_file_as_firecracker_users_have_it() {
        let config = parsed(
            r#"{
            "boot-source": {"kernel_image_path": "vmlinux", "boot_args": "console=ttyS0",
                            "initrd_path": null},
            "drives": [
              {"drive_id": "data", "partuuid": null, "is_root_device": false,
               "cache_type": "Writeback", "is_read_only": false, "path_on_host": "data.img",
               "io_engine": "Sync", "rate_limiter": null, "socket": null},
              {"drive_id": "rootfs", "is_root_device": true, "is_read_only": true,
               "path_on_host": "root.img"}],
            "machine-config": {"vcpu_count": 2, "mem_size_mib": 1024, "smt": false,
                               "track_dirty_pages": true, "huge_pages": "None"},
            "cpu-config": null,
            "balloon": {"amount_mib": 1, "deflate_on_oom": true, "stats_polling_interval_s": 1},
            "network-interfaces": [{"iface_id": "eth0", "guest_mac": "06:00:AC:10:00:02",
                                    "host_dev_name": "tap0"}],
            "vsock": {"guest_cid": 3, "uds_path": "./v.sock"},
            "logger": null, "metrics": null, "mmds-config": null, "entropy": {}}"#,
        )
        .unwrap();
        config.validate().unwrap();
        assert_eq!((config.vcpus, config.memory, config.entropy), (2, 1 << 30, true));
        let drives: Vec<_> =
            config.drives.iter().map(|d| (d.id.as_str(), d.read_only, d.flush)).collect();
        assert_eq!(drives, [("rootfs", true, false), ("data", false, true)]);
        assert_eq!(config.boot.cmdline, "console=ttyS0 root=/dev/vda ro");
        assert_eq!(config.nets[0].mac, Some([6, 0, 0xac, 0x10, 0, 2]));
        assert_eq!(config.vsock.unwrap().guest_cid, 3);
    }

    #[test]
    fn the_shortest_file() {
        let config = parsed(r#"{"boot-source": {"kernel_image_path": "k"}}"#).unwrap();
        assert_eq!((config.vcpus, config.memory), (1, 128 << 20));
        assert_eq!(config.boot.cmdline, DEFAULT_BOOT_ARGS);
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        let base = |more: &str| {
            parsed(&format!(r#"{{"boot-source": {{"kernel_image_path": "k"}}, {more}}}"#))
                .expect_err(more)
                .to_string()
        };
        assert!(base(r#""drive": []"#).contains("unknown field `drive`"));
        let typo = r#""machine-config": {"vcpu_count": 1, "mem_size_mib": 64, "memsize": 1}"#;
        assert!(base(typo).contains("unknown field `memsize`"));
        assert!(base(r#""metrics": {"metrics_path": "x"}"#).starts_with("metrics: not supported"));
        let limited = r#""drives": [{"drive_id": "a", "is_root_device": false,
                         "path_on_host": "p", "rate_limiter": {}}]"#;
        assert!(base(limited).starts_with("drives[\"a\"].rate_limiter"));
        let mac = r#""network-interfaces": [{"iface_id": "e", "host_dev_name": "t",
                     "guest_mac": "06:00"}]"#;
        assert!(base(mac).starts_with("network-interfaces[0].guest_mac"));
        let huge = r#""machine-config": {"vcpu_count": 1, "mem_size_mib": 18446744073709551615}"#;
        assert!(base(huge).contains("mem_size_mib"));
        let err = parsed("{").unwrap_err().to_string();
        assert!(err.contains("vm.json") && err.contains("line 1"), "{err}");
    }
}
