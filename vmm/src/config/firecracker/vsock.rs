//! `vsock`: sockets between host and guest.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use varve_devices::virtio::vsock as device;

/// A vsock device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vsock {
    /// Deprecated; has no meaning.
    #[serde(skip_serializing)]
    pub vsock_id: Option<String>,
    /// The guest's context id, from 3.
    pub guest_cid: u32,
    /// Where host programs connect.
    pub uds_path: PathBuf,
}

/// Why there is no such device.
#[derive(Debug, thiserror::Error)]
pub enum VsockError {
    /// The device cannot be made.
    #[error("Cannot create backend for vsock device")]
    Create(#[from] device::VsockError),
}

impl Vsock {
    /// As the device knows it.
    pub fn to_config(&self) -> device::VsockConfig {
        device::VsockConfig { guest_cid: self.guest_cid, uds_path: self.uds_path.clone() }
    }
}

impl From<&device::VsockConfig> for Vsock {
    fn from(vsock: &device::VsockConfig) -> Vsock {
        Vsock { vsock_id: None, guest_cid: vsock.guest_cid, uds_path: vsock.uds_path.clone() }
    }
}
