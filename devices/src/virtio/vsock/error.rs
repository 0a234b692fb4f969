//! Why a vsock device cannot be made.

use std::io;
use std::path::PathBuf;

/// A configuration that does not work.
#[derive(Debug, thiserror::Error)]
pub enum VsockError {
    /// Not a guest's context id (virtio 1.2, 5.10.4).
    #[error("guest_cid {0} is reserved: use a number from 3 to 4294967294")]
    Cid(u32),
    /// Something is at the socket's path already.
    #[error(
        "{0:?} exists already: another machine may be using it; remove it if none does, or choose \
         another uds_path"
    )]
    Exists(PathBuf),
    /// The socket cannot be made.
    #[error("cannot listen on {path:?}")]
    Listen {
        /// Where.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The device's own descriptors.
    #[error("cannot watch the vsock device's sockets")]
    Poll(#[source] io::Error),
}
