//! `machine-config`: vCPUs and memory.

use serde::{Deserialize, Serialize};
use varve_memory_tiers::HugePages;

use crate::arch::layout;
use crate::config::{MAX_VCPUS, VmConfig};

/// Memory of a machine that nothing is said of, in MiB.
const DEFAULT_MIB: u64 = 128;

/// vCPUs and memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineConfig {
    /// Number of vCPUs.
    pub vcpu_count: u8,
    /// MiB of memory.
    pub mem_size_mib: u64,
    /// Two threads a core, as the guest sees it.
    #[serde(default)]
    pub smt: bool,
    /// Features of a processor model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_template: Option<CpuTemplate>,
    /// Keep track of written pages, for diff snapshots.
    #[serde(default)]
    pub track_dirty_pages: bool,
    /// Pages that memory is made of.
    #[serde(default)]
    pub huge_pages: HugePageConfig,
}

/// Changes of a [`MachineConfig`]: what is not there stays.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineConfigUpdate {
    /// Number of vCPUs.
    pub vcpu_count: Option<u8>,
    /// MiB of memory.
    pub mem_size_mib: Option<u64>,
    /// Two threads a core, as the guest sees it.
    pub smt: Option<bool>,
    /// Features of a processor model.
    pub cpu_template: Option<CpuTemplate>,
    /// Keep track of written pages, for diff snapshots.
    pub track_dirty_pages: Option<bool>,
    /// Pages that memory is made of.
    pub huge_pages: Option<HugePageConfig>,
}

/// Firecracker's processor models, of which varve has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "names of processor models")]
pub enum CpuTemplate {
    C3,
    T2,
    T2S,
    T2CL,
    T2A,
    V1N1,
    None,
}

/// Pages that memory is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum HugePageConfig {
    /// 4 KiB.
    #[default]
    None,
    /// 2 MiB wherever the kernel finds them.
    Transparent,
    /// 2 MiB, of the system's pool.
    #[serde(rename = "2M")]
    Hugetlbfs2M,
}

/// Why there is no such machine.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum MachineConfigError {
    /// Wrong number of vCPUs.
    #[error(
        "The number of vCPUs must be greater than 0, less than {MAX_VCPUS} and must be 1 or an \
         even number if SMT is enabled."
    )]
    Vcpus,
    /// Wrong size of memory.
    #[error("The memory size (MiB) is either 0, or not a multiple of the configured page size.")]
    Memory,
    /// A size that varve does not make.
    #[error("The memory size of {0} MiB is not possible: from {min} to {max} MiB are.",
            min = layout::MIN_MEMORY >> 20, max = layout::MAX_MEMORY >> 20)]
    MemoryRange(u64),
    /// The balloon does not fit any more.
    #[error("The memory size (MiB) is smaller than the previously set balloon device target size.")]
    SmallerThanBalloon,
    /// A processor model.
    #[error("The static CPU template {0:?} is not supported; remove cpu_template.")]
    CpuTemplate(CpuTemplate),
}

impl Default for MachineConfig {
    fn default() -> MachineConfig {
        MachineConfig {
            vcpu_count: 1,
            mem_size_mib: DEFAULT_MIB,
            smt: false,
            cpu_template: None,
            track_dirty_pages: false,
            huge_pages: HugePageConfig::None,
        }
    }
}

impl From<MachineConfig> for MachineConfigUpdate {
    fn from(config: MachineConfig) -> MachineConfigUpdate {
        MachineConfigUpdate {
            vcpu_count: Some(config.vcpu_count),
            mem_size_mib: Some(config.mem_size_mib),
            smt: Some(config.smt),
            cpu_template: config.cpu_template,
            track_dirty_pages: Some(config.track_dirty_pages),
            huge_pages: Some(config.huge_pages),
        }
    }
}

impl MachineConfig {
    /// The configuration with `update` applied, if that can be.
    pub fn updated(
        &self,
        update: &MachineConfigUpdate,
    ) -> Result<MachineConfig, MachineConfigError> {
        let template = update.cpu_template.or(self.cpu_template);
        let config = MachineConfig {
            vcpu_count: update.vcpu_count.unwrap_or(self.vcpu_count),
            mem_size_mib: update.mem_size_mib.unwrap_or(self.mem_size_mib),
            smt: update.smt.unwrap_or(self.smt),
            cpu_template: template.filter(|t| *t != CpuTemplate::None),
            track_dirty_pages: update.track_dirty_pages.unwrap_or(self.track_dirty_pages),
            huge_pages: update.huge_pages.unwrap_or(self.huge_pages),
        };
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), MachineConfigError> {
        let vcpus = self.vcpu_count;
        let uneven = self.smt && vcpus > 1 && !vcpus.is_multiple_of(2);
        if vcpus == 0 || vcpus > MAX_VCPUS || uneven {
            return Err(MachineConfigError::Vcpus);
        }
        let step = if self.huge_pages == HugePageConfig::Hugetlbfs2M { 2 } else { 1 };
        if self.mem_size_mib == 0 || !self.mem_size_mib.is_multiple_of(step) {
            return Err(MachineConfigError::Memory);
        }
        let possible = layout::MIN_MEMORY >> 20..=layout::MAX_MEMORY >> 20;
        if !possible.contains(&self.mem_size_mib) {
            return Err(MachineConfigError::MemoryRange(self.mem_size_mib));
        }
        match self.cpu_template {
            Some(template) => Err(MachineConfigError::CpuTemplate(template)),
            None => Ok(()),
        }
    }
}

impl From<&VmConfig> for MachineConfig {
    fn from(config: &VmConfig) -> MachineConfig {
        MachineConfig {
            vcpu_count: config.vcpus,
            mem_size_mib: config.memory >> 20,
            smt: config.smt,
            cpu_template: None,
            track_dirty_pages: config.track_dirty_pages,
            huge_pages: match config.huge_pages {
                HugePages::Off => HugePageConfig::None,
                HugePages::Transparent => HugePageConfig::Transparent,
                HugePages::Pool => HugePageConfig::Hugetlbfs2M,
            },
        }
    }
}

impl From<HugePageConfig> for HugePages {
    fn from(pages: HugePageConfig) -> HugePages {
        match pages {
            HugePageConfig::None => HugePages::Off,
            HugePageConfig::Transparent => HugePages::Transparent,
            HugePageConfig::Hugetlbfs2M => HugePages::Pool,
        }
    }
}
