//! Why a resource is refused, in Firecracker's words where it has some.

use varve_devices::mmds::MmdsConfigError;

use super::balloon::BalloonError;
use super::boot_source::BootSourceError;
use super::drive::DriveError;
use super::machine_config::MachineConfigError;
use super::network_interface::NetworkError;
use super::vsock::VsockError;

/// A resource that cannot be.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "one variant per resource; each has its own documented error")]
pub enum ResourceError {
    #[error("Balloon config error: {0}")]
    Balloon(#[from] BalloonError),
    #[error("Boot source error: {0}")]
    BootSource(#[from] BootSourceError),
    #[error("Drive config error: {0}")]
    Drive(#[from] DriveError),
    #[error("Machine config error: {0}")]
    Machine(#[from] MachineConfigError),
    #[error("MMDS config error: {0}")]
    Mmds(#[from] MmdsConfigError),
    #[error("Network config error: {0}")]
    Network(#[from] NetworkError),
    #[error("Vsock config error: {0}")]
    Vsock(#[from] VsockError),
}
