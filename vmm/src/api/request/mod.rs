//! What a request asks for: a path and a body become an [`Action`], by one table of routes.
//!
//! Nothing here knows a machine. Paths, bodies and messages are Firecracker's, of which each route
//! names the operation; what varve adds of its own is marked so.

#[cfg(test)]
mod contract;
#[cfg(test)]
mod description;
mod error;
mod load;
mod routes;
#[cfg(test)]
mod tests;
mod trace;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use varve_devices::mmds::{MmdsConfig, Version};

pub use crate::machine::offload_request::{Destination, OffloadRequest};
pub use error::RequestError;
pub use load::LoadSnapshot;
pub use routes::{ROUTES, Route, parse};
pub use trace::TraceRequest;

use crate::arch::cpu_config::CpuConfig;
use crate::config::firecracker::balloon::{
    Balloon, BalloonStatsUpdate, BalloonUpdate, HintingStart,
};
use crate::config::firecracker::boot_source::BootSource;
use crate::config::firecracker::drive::{Drive, DriveUpdate};
use crate::config::firecracker::entropy::Entropy;
use crate::config::firecracker::machine_config::{MachineConfig, MachineConfigUpdate};
use crate::config::firecracker::network_interface::{NetworkInterface, NetworkInterfaceUpdate};
use crate::config::firecracker::serial::Serial;
use crate::config::firecracker::vsock::Vsock;
use crate::logger::LoggerConfig;
use crate::metrics::MetricsConfig;

/// What a request asks for.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "one variant per operation; the table of routes says which")]
pub enum Action {
    DescribeInstance,
    DescribeVersion,
    DescribeConfig,
    DescribeMachine,
    DescribeBalloon,
    DescribeBalloonStats,
    DescribeHinting,
    DescribeMemory,
    DescribeMetrics,
    GetMmds,

    StartInstance,
    SendCtrlAltDel,
    FlushMetrics,

    SetBootSource(BootSource),
    SetMachine(MachineConfig),
    UpdateMachine(MachineConfigUpdate),
    SetCpuConfig(CpuConfig),
    SetDrive(Drive),
    UpdateDrive(DriveUpdate),
    SetNet(NetworkInterface),
    UpdateNet(NetworkInterfaceUpdate),
    SetVsock(Vsock),
    SetEntropy(Entropy),
    SetSerial(Serial),
    SetLogger(LoggerConfig),
    SetMetrics(MetricsConfig),
    SetMmdsConfig(MmdsConfig),
    PutMmds(Value),
    PatchMmds(Value),

    SetBalloon(Balloon),
    UpdateBalloon(BalloonUpdate),
    UpdateBalloonStats(BalloonStatsUpdate),
    StartHinting(HintingStart),
    StopHinting,

    SetVmState(VmState),
    CreateSnapshot(CreateSnapshot),
    LoadSnapshot(Box<LoadSnapshot>),
    Trace(TraceRequest),
    Offload(OffloadRequest),
    Recall,
    DescribeOffload,

    /// What Firecracker has and varve has not, by its path.
    Unsupported(&'static str),
}

/// When an action is possible.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// At any time.
    Always,
    /// Until there is a machine.
    BeforeStart,
    /// As soon as there is a machine.
    AfterStart,
}

impl Action {
    /// Whether it uses something that Firecracker will do without some day.
    pub fn is_deprecated(&self) -> bool {
        match self {
            Action::SetVsock(vsock) => vsock.vsock_id.is_some(),
            Action::SetMachine(machine) => machine.cpu_template.is_some(),
            Action::UpdateMachine(update) => update.cpu_template.is_some(),
            Action::SetMmdsConfig(mmds) => mmds.version == Version::V1,
            _ => false,
        }
    }

    /// When it is possible.
    pub fn when(&self) -> When {
        use Action::*;
        match self {
            DescribeInstance | DescribeVersion | DescribeConfig | DescribeMachine
            | DescribeBalloon | DescribeMetrics | GetMmds | PutMmds(_) | PatchMmds(_)
            | Unsupported(_) => When::Always,
            StartInstance | SetBootSource(_) | SetMachine(_) | UpdateMachine(_)
            | SetCpuConfig(_) | SetDrive(_) | SetNet(_) | SetVsock(_) | SetEntropy(_)
            | SetSerial(_) | SetLogger(_) | SetMetrics(_) | SetMmdsConfig(_) | SetBalloon(_)
            | LoadSnapshot(_) => When::BeforeStart,
            SendCtrlAltDel
            | FlushMetrics
            | UpdateDrive(_)
            | UpdateNet(_)
            | UpdateBalloon(_)
            | UpdateBalloonStats(_)
            | StartHinting(_)
            | StopHinting
            | DescribeBalloonStats
            | DescribeHinting
            | DescribeMemory
            | SetVmState(_)
            | CreateSnapshot(_)
            | Trace(_)
            | Offload(_)
            | Recall
            | DescribeOffload => When::AfterStart,
        }
    }
}

/// Body of `PUT /actions`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ActionBody {
    action_type: ActionType,
}

#[derive(Deserialize)]
enum ActionType {
    FlushMetrics,
    InstanceStart,
    SendCtrlAltDel,
}

impl From<ActionBody> for Action {
    fn from(body: ActionBody) -> Action {
        match body.action_type {
            ActionType::FlushMetrics => Action::FlushMetrics,
            ActionType::InstanceStart => Action::StartInstance,
            ActionType::SendCtrlAltDel => Action::SendCtrlAltDel,
        }
    }
}

/// Body of `PATCH /vm`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Vm {
    state: VmState,
}

/// Whether the vCPUs shall run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[expect(missing_docs, reason = "the words say it")]
pub enum VmState {
    Paused,
    Resumed,
}

/// Body of `PUT /snapshot/create`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateSnapshot {
    /// The state file to be.
    pub snapshot_path: PathBuf,
    /// The memory file to be.
    pub mem_file_path: PathBuf,
    /// How much of memory it holds.
    #[serde(default)]
    pub snapshot_type: SnapshotType,
}

/// How much of memory a snapshot holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum SnapshotType {
    /// All of it.
    #[default]
    Full,
    /// What was written since the last one.
    Diff,
}
