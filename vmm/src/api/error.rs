//! Why a request is not carried out: status code and message.

use varve_devices::mmds::StoreError;

use super::request::RequestError;
use crate::config::firecracker::ResourceError;
use crate::error::{VmmError, chain};
use crate::logger::LoggerError;
use crate::metrics::MetricsError;

/// A request that is not carried out. The words are Firecracker's where it has some.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// It is not understood.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// Only possible without a machine.
    #[error("The requested operation is not supported after starting the microVM.")]
    AfterStart,
    /// Only possible with a machine.
    #[error("The requested operation is not supported before starting the microVM.")]
    BeforeStart,
    /// Something that varve does not do.
    #[error("The requested operation is not supported: {0}")]
    NotSupported(String),
    /// A resource that cannot be.
    #[error(transparent)]
    Resource(#[from] ResourceError),
    /// Nothing to boot.
    #[error("Start microvm error: Cannot start microvm without kernel configuration.")]
    NoKernel,
    /// The machine does not start.
    #[error("Start microvm error: {}", chain(.0))]
    Start(VmmError),
    /// The balloon does not change.
    #[error("Balloon update error: {0}")]
    BalloonUpdate(String),
    /// The metadata service's document does not change.
    #[error(transparent)]
    Mmds(#[from] StoreError),
    /// No snapshot, because the machine runs.
    #[error("Create snapshot error: the microVM must be paused first.")]
    NotPaused,
    /// No snapshot.
    #[error("Create snapshot error: {}", chain(.0))]
    CreateSnapshot(VmmError),
    /// The machine cannot be restored any more.
    #[error(
        "Load snapshot error: Loading a microVM snapshot not allowed after configuring \
         boot-specific resources."
    )]
    LoadAfterConfiguration,
    /// The machine is not restored.
    #[error("Load snapshot error: Failed to restore from snapshot: {}", chain(.0))]
    LoadSnapshot(VmmError),
    /// The machine that was restored does not run.
    #[error("Load snapshot error: Failed to resume microVM: {}", chain(.0))]
    ResumeLoaded(VmmError),
    /// Nothing to mark or to save.
    #[error("Trace error: the machine is not being recorded; load a snapshot with `record`")]
    NotRecorded,
    /// Nothing to mark any more.
    #[error("Trace error: the recording has ended")]
    RecordingEnded,
    /// The trace is not written.
    #[error("Trace error: {}", chain(.0))]
    Trace(VmmError),
    /// Pages stay in memory.
    #[error("Offload error: {}", chain(.0))]
    Offload(VmmError),
    /// The log stays where it is.
    #[error(transparent)]
    Logger(#[from] LoggerError),
    /// Metrics stay where they are, or a line of them is lost.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    /// Something failed.
    #[error("Internal VMM error")]
    Internal(#[from] VmmError),
}

impl ApiError {
    /// Status code of the answer.
    pub fn status(&self) -> u16 {
        match self {
            ApiError::Mmds(StoreError::TooLong) => 413,
            _ => 400,
        }
    }
}
