//! Firecracker's schema: one file per resource, for the API's bodies and the configuration file alike.
//!
//! ```text
//!  API body ──┐                              ┌──> VmConfig ──> Machine
//!             ├──> a resource ──> Resources ─┤
//!  file ──────┘     (its rules)   (pieces)   └──> FullConfig ──> GET /vm/config
//! ```
//!
//! Fields that mean something this build cannot do are refused by name, never ignored.

pub mod balloon;
pub mod boot_source;
pub mod drive;
pub mod entropy;
mod error;
mod full;
pub mod machine_config;
pub mod network_interface;
mod resources;
pub mod serial;
pub mod vsock;

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::path::Path;

use serde::de::{DeserializeOwned, Error};

pub use error::ResourceError;
pub use full::FullConfig;
pub use resources::Resources;

use super::ConfigError;
use crate::observe::Observe;

/// Longest file of settings, in bytes. More is a mistake, such as a device in the place of a file.
const MOST_TEXT: u64 = 16 << 20;

/// The text of a file of settings. It may be a pipe, as `<(command)` and `/dev/stdin` are for a shell: then
/// this waits for who writes to it, until a signal ends the process.
///
/// # Errors
///
/// The file cannot be read, is no text, or is longer than 16 MiB.
pub fn text_of(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    let read = File::open(path)?.take(MOST_TEXT + 1).read_to_string(&mut text)?;
    if read as u64 > MOST_TEXT {
        let problem = "longer than 16 MiB: name a file of settings, in JSON";
        return Err(io::Error::new(ErrorKind::FileTooLarge, problem));
    }
    Ok(text)
}

/// Adds to `resources` what a configuration file says of the machine; returns what it says of log and
/// metrics.
pub fn read(path: &Path, resources: &mut Resources) -> Result<Observe, ConfigError> {
    let text = text_of(path).map_err(|source| ConfigError::Read { path: path.into(), source })?;
    parse(&text, path, resources)
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, ConfigError> {
    let text = text_of(path).map_err(|source| ConfigError::Read { path: path.into(), source })?;
    serde_json::from_str(&text).map_err(|source| ConfigError::Parse { path: path.into(), source })
}

/// As [`read`], with the file's text; `path` is for messages.
pub fn parse(text: &str, path: &Path, resources: &mut Resources) -> Result<Observe, ConfigError> {
    let bad = |source| ConfigError::Parse { path: path.into(), source };
    let mut full: FullConfig = serde_json::from_str(text).map_err(bad)?;
    if full.boot_source.is_none() {
        return Err(bad(serde_json::Error::custom("missing field `boot-source`")));
    }
    full.check()?;
    // Later pieces of one name replace earlier ones, which in one file can only be a mistake.
    super::unique("drive id", full.drives.iter().map(|d| d.drive_id.as_str()))?;
    let nets = full.network_interfaces.iter().map(|n| n.iface_id.as_str());
    super::unique("network interface id", nets)?;
    let observe = Observe { logger: full.logger.take(), metrics: full.metrics.take() };
    if let Some(path) = &full.cpu_config {
        resources.set_cpu_config(read_json(path)?);
    }
    resources
        .set_all(full)
        .map_err(|e| ConfigError::Resource { path: path.into(), source: Box::new(e) })?;
    Ok(observe)
}

#[cfg(test)]
mod tests {
    use super::boot_source::DEFAULT_BOOT_ARGS;
    use super::*;
    use crate::config::{Console, VmConfig};
    use varve_devices::limiter::{BucketConfig, LimiterConfig};

    fn parsed(text: &str) -> Result<VmConfig, ConfigError> {
        let mut resources = Resources::default();
        let _ = parse(text, Path::new("vm.json"), &mut resources)?;
        Ok(resources.to_config().unwrap())
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
        assert_eq!(config.boot.cmdline, "console=ttyS0");
        assert_eq!(config.root_parameter().unwrap(), "root=/dev/vda ro");
        assert_eq!(config.nets[0].mac, Some([6, 0, 0xac, 0x10, 0, 2]));
        assert_eq!(config.vsock.unwrap().guest_cid, 3);
    }

    #[test]
    fn log_and_metrics_are_the_process_s() {
        let mut resources = Resources::default();
        let text = r#"{"boot-source": {"kernel_image_path": "k"},
            "logger": {"log_path": "l", "level": "Debug", "show_level": true},
            "metrics": {"metrics_path": "m", "emit_id": true, "properties": {"a": "b"}}}"#;
        let Observe { logger, metrics } =
            parse(text, Path::new("vm.json"), &mut resources).unwrap();
        let logger = logger.unwrap();
        assert_eq!(
            (logger.log_path.unwrap().as_path(), logger.show_level),
            (Path::new("l"), Some(true))
        );
        assert_eq!(logger.level.unwrap().0, log::LevelFilter::Debug);
        let metrics = metrics.unwrap();
        assert_eq!((metrics.metrics_path.as_path(), metrics.emit_id), (Path::new("m"), true));
        assert_eq!(metrics.properties.unwrap()["a"], "b");
    }

    #[test]
    fn a_metadata_service_on_interfaces_that_are_there() {
        let with = |mmds: &str| {
            let nets = r#""network-interfaces": [{"iface_id": "eth0", "host_dev_name": "t"}]"#;
            let boot = r#""boot-source": {"kernel_image_path": "k"}"#;
            parsed(&format!("{{{boot}, {nets}, \"mmds-config\": {mmds}}}"))
        };
        let text = r#"{"version":"V2","network_interfaces":["eth0"],"ipv4_address":"169.254.170.2","imds_compat":true}"#;
        let mut config = with(text).unwrap();
        config.validate().unwrap();
        assert_eq!(serde_json::to_string(&config.mmds).unwrap(), text);
        // A snapshot keeps it, and older ones have none.
        let mut saved = serde_json::to_value(&config).unwrap();
        assert_eq!(serde_json::from_value::<VmConfig>(saved.clone()).unwrap().mmds, config.mmds);
        saved.as_object_mut().unwrap().remove("mmds");
        assert_eq!(serde_json::from_value::<VmConfig>(saved).unwrap().mmds, None);

        config.nets.clear();
        let error = config.validate().unwrap_err().to_string();
        assert!(error.starts_with("mmds-config: The list of network interface IDs"), "{error}");
        let error = with(r#"{"network_interfaces": ["eth1"]}"#).unwrap_err().to_string();
        assert!(error.contains("MMDS config error: The list of network interface IDs"), "{error}");
        let error = with(r#"{"network_interfaces": ["eth0"], "ipv4": "x"}"#).unwrap_err();
        assert!(error.to_string().contains("unknown field `ipv4`"), "{error}");
    }

    #[test]
    fn limits_of_all_devices() {
        let config = parsed(
            r#"{
            "boot-source": {"kernel_image_path": "k"},
            "drives": [{"drive_id": "d", "is_root_device": false, "path_on_host": "p",
              "rate_limiter": {"bandwidth": {"size": 1000, "refill_time": 100},
                               "ops": {"size": 5, "one_time_burst": 7, "refill_time": 50}}}],
            "network-interfaces": [{"iface_id": "e", "host_dev_name": "t",
              "rx_rate_limiter": {"ops": {"size": 1, "refill_time": 2}},
              "tx_rate_limiter": {"bandwidth": {"size": 3, "one_time_burst": null,
                                                "refill_time": 4}, "ops": null}}],
            "entropy": {"rate_limiter": {"bandwidth": {"size": 9, "refill_time": 9}}},
            "serial": {"serial_out_path": "/tmp/out", "rate_limiter": {"size": 6, "refill_time": 8}}
            }"#,
        )
        .unwrap();
        let bucket = |size, burst, refill_time| {
            Some(BucketConfig { size, one_time_burst: burst, refill_time })
        };
        let limits = |bandwidth, ops| LimiterConfig { bandwidth, ops };
        let expected = limits(bucket(1000, None, 100), bucket(5, Some(7), 50));
        assert_eq!(config.drives[0].limiter, expected);
        assert_eq!(config.nets[0].rx_limiter, limits(None, bucket(1, None, 2)));
        assert_eq!(config.nets[0].tx_limiter, limits(bucket(3, None, 4), None));
        assert_eq!(config.entropy_limiter, limits(bucket(9, None, 9), None));
        assert_eq!(config.console, Console::File("/tmp/out".into()));
        assert_eq!(config.console_limiter, bucket(6, None, 8));

        // A snapshot keeps those of the machine, and loads without them.
        let mut json = serde_json::to_value(&config).unwrap();
        let back: VmConfig = serde_json::from_value(json.clone()).unwrap();
        assert_eq!((&back.drives, &back.nets), (&config.drives, &config.nets));
        assert_eq!(back.entropy_limiter, config.entropy_limiter);
        json["drives"][0].as_object_mut().unwrap().remove("limiter").unwrap();
        json["nets"][0].as_object_mut().unwrap().remove("rx_limiter").unwrap();
        json["nets"][0].as_object_mut().unwrap().remove("tx_limiter").unwrap();
        json.as_object_mut().unwrap().remove("entropy_limiter").unwrap();
        let old: VmConfig = serde_json::from_value(json).unwrap();
        assert_eq!(old.drives[0].limiter, LimiterConfig::default());
        // And they are told as they were given.
        let full = serde_json::to_value(FullConfig::from(Resources::from(&config))).unwrap();
        assert_eq!(full["drives"][0]["rate_limiter"]["ops"]["one_time_burst"], 7);
        let rx = &full["network-interfaces"][0]["rx_rate_limiter"];
        assert_eq!((&rx["bandwidth"], &rx["ops"]["size"]), (&serde_json::Value::Null, &1.into()));
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
        assert!(base(r#""metrics": {"path": "x"}"#).contains("unknown field `path`"));
        assert!(base(r#""logger": {"level": "loud"}"#).contains("\"loud\" is not a level"));
        assert!(base(r#""pmem": [{"id": "p"}]"#).starts_with("pmem: not supported"));
        assert!(base(r#""cpu-config": {}"#).contains("invalid type: map, expected path string"));
        assert!(base(r#""cpu-config": "/no/such.json""#).contains("\"/no/such.json\""));
        let limited = r#""drives": [{"drive_id": "a", "is_root_device": false,
                         "path_on_host": "p", "rate_limiter": {"bandwith": {}}}]"#;
        assert!(base(limited).contains("unknown field `bandwith`"));
        let limited = limited.replace("bandwith", "bandwidth");
        assert!(base(&limited).contains("missing field `size`"));
        let engine = r#""drives": [{"drive_id": "a", "is_root_device": false,
                        "path_on_host": "p", "io_engine": "Fast"}]"#;
        assert!(base(engine).contains("unknown variant `Fast`"));
        let mac = r#""network-interfaces": [{"iface_id": "e", "host_dev_name": "t",
                     "guest_mac": "06:00"}]"#;
        assert!(base(mac).contains("\"06:00\" is not an address such as"));
        let huge = r#""machine-config": {"vcpu_count": 1, "mem_size_mib": 18446744073709551615}"#;
        assert!(base(huge).contains("from 32 to 65536 MiB"));
        let err = parsed("{").unwrap_err().to_string();
        assert!(err.contains("vm.json") && err.contains("line 1"), "{err}");
    }
}
