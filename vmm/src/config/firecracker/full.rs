//! All pieces of a machine in one: the configuration file, and the answer of `GET /vm/config`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use varve_devices::mmds::MmdsConfig;

use super::balloon::Balloon;
use super::boot_source::BootSource;
use super::drive::Drive;
use super::entropy::Entropy;
use super::machine_config::MachineConfig;
use super::network_interface::NetworkInterface;
use super::resources::Resources;
use super::serial::Serial;
use super::vsock::Vsock;
use crate::config::ConfigError;
use crate::logger::LoggerConfig;
use crate::metrics::MetricsConfig;

/// The configuration file's schema.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
#[expect(missing_docs, reason = "each field is a resource with its own documentation")]
pub struct FullConfig {
    pub balloon: Option<Balloon>,
    #[serde(default)]
    pub drives: Vec<Drive>,
    pub boot_source: Option<BootSource>,
    /// In a file: where the template is.
    pub cpu_config: Option<PathBuf>,
    pub logger: Option<LoggerConfig>,
    pub machine_config: Option<MachineConfig>,
    pub metrics: Option<MetricsConfig>,
    pub mmds_config: Option<MmdsConfig>,
    #[serde(default)]
    pub network_interfaces: Vec<NetworkInterface>,
    pub vsock: Option<Vsock>,
    pub entropy: Option<Entropy>,
    #[serde(default)]
    pub pmem: Vec<Value>,
    pub serial: Option<Serial>,
    pub memory_hotplug: Option<Value>,
}

impl FullConfig {
    /// Refuses what this build cannot do, by name.
    pub fn check(&self) -> Result<(), ConfigError> {
        let here =
            [("pmem", !self.pmem.is_empty()), ("memory-hotplug", self.memory_hotplug.is_some())];
        match here.into_iter().find(|(_, here)| *here) {
            Some((field, _)) => {
                Err(ConfigError::field(field, "not supported by this version; remove it"))
            }
            None => Ok(()),
        }
    }
}

impl From<Resources> for FullConfig {
    fn from(resources: Resources) -> FullConfig {
        FullConfig {
            balloon: resources.balloon,
            drives: resources.drives,
            boot_source: resources.boot_source,
            machine_config: Some(resources.machine),
            network_interfaces: resources.nets,
            mmds_config: resources.mmds,
            vsock: resources.vsock,
            entropy: resources.entropy,
            ..FullConfig::default()
        }
    }
}
