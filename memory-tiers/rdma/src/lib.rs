//! One-sided reads of another host's memory, by RDMA verbs.
//!
//! ```text
//!  responder   Port ── Domain ── Registered memory ── Link (answers by itself)
//!  initiator   Port ── Domain ── Staging ──────────── Link ── Reader
//! ```
//!
//! Two sides exchange [`Endpoint`]s over a connection that they have already, and trust, and each
//! makes its queue pair ready with the other's: what joins them is as well authenticated as that
//! connection. Memory is registered for remote reading only, within a protection domain whose keys no
//! other domain's links can use.
//!
//! Ports are found by the IP address that they carry (RoCE version 2, InfiniBand Annex A17). The
//! verbs library is loaded when ports are first asked for: without it, or without a device, there is
//! no port.

mod device;
mod error;
mod events;
mod link;
mod memory;
mod reader;
mod verbs;

pub use device::{Domain, Port, PortInfo, ports};
pub use error::RdmaError;
pub use link::{Endpoint, Half, Link};
pub use memory::{Fixed, Registered};
pub use reader::{Reader, Remote};
