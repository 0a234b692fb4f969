//! `balloon`: memory that the guest gives back.

use serde::{Deserialize, Serialize};
use varve_devices::virtio::balloon::BalloonConfig;

/// A balloon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Balloon {
    /// Size to ask the guest for, in MiB.
    pub amount_mib: u32,
    /// The guest may take memory back before it kills a process for want of it.
    pub deflate_on_oom: bool,
    /// Seconds between two requests for statistics; 0: no statistics.
    #[serde(default)]
    pub stats_polling_interval_s: u16,
    /// The guest tells which pages are free when asked to.
    #[serde(default)]
    pub free_page_hinting: bool,
    /// The guest reports pages that became free, by itself.
    #[serde(default)]
    pub free_page_reporting: bool,
}

/// A new size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BalloonUpdate {
    /// Size to ask the guest for, in MiB.
    pub amount_mib: u32,
}

/// A new interval.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BalloonStatsUpdate {
    /// Seconds between two requests for statistics.
    pub stats_polling_interval_s: u16,
}

/// How a run of free page hinting ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HintingStart {
    /// By itself, when the guest has told all its free pages.
    #[serde(default = "yes")]
    pub acknowledge_on_stop: bool,
}

impl Default for HintingStart {
    fn default() -> HintingStart {
        HintingStart { acknowledge_on_stop: true }
    }
}

fn yes() -> bool {
    true
}

/// Why there is no such balloon.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BalloonError {
    /// Larger than memory.
    #[error("Amount of pages requested is too large.")]
    TooLarge,
    /// There is none.
    #[error("No balloon device found.")]
    Missing,
}

impl Balloon {
    /// Checks that it fits into a machine with `memory` MiB.
    pub fn check(&self, memory: u64) -> Result<(), BalloonError> {
        if u64::from(self.amount_mib) > memory { Err(BalloonError::TooLarge) } else { Ok(()) }
    }

    /// As the device knows it.
    pub fn to_config(&self) -> BalloonConfig {
        BalloonConfig {
            amount_mib: self.amount_mib,
            deflate_on_oom: self.deflate_on_oom,
            stats_polling_interval_s: self.stats_polling_interval_s,
            free_page_reporting: self.free_page_reporting,
            free_page_hinting: self.free_page_hinting,
        }
    }
}

impl From<&BalloonConfig> for Balloon {
    fn from(balloon: &BalloonConfig) -> Balloon {
        Balloon {
            amount_mib: balloon.amount_mib,
            deflate_on_oom: balloon.deflate_on_oom,
            stats_polling_interval_s: balloon.stats_polling_interval_s,
            free_page_hinting: balloon.free_page_hinting,
            free_page_reporting: balloon.free_page_reporting,
        }
    }
}
