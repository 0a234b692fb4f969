//! Control of a machine: HTTP over a unix socket, with Firecracker's paths.
//!
//! ```text
//!  client ──> server (connections, on the event loop) ──> queue ──> main loop ──> controller ──┐
//!     ^                                                        request (pure): what is asked? <─┤
//!     └──────────────────────────── respond <──────────────────────────────────────────────────┘
//! ```
//!
//! The server never touches the machine, the controller never touches a socket, and what a request
//! means is found out by [`request`] alone.
//!
//! The server is our own, on `httparse`: rust-vmm's `micro_http` is not published on crates.io (the
//! crate of that name there is another project), and it blocks on a peer that does not read.

pub mod client;
pub mod controller;
mod error;
pub mod http;
pub mod request;
mod server;

pub use error::ApiError;
pub use http::{Method, Request, Response};
pub use server::{Pending, Server};

use std::path::Path;
use std::sync::Arc;

use crate::error::VmmError;
use crate::monitor::{Control, Monitor};

/// Has `monitor` serve requests at the unix socket `path`, with bodies of at most `max_body` bytes.
///
/// # Errors
///
/// If the socket cannot be made.
pub fn listen(monitor: &mut Monitor, path: &Path, max_body: usize) -> Result<(), VmmError> {
    let server = Server::bind(path, max_body)
        .map_err(|source| VmmError::ApiSocket { path: path.into(), source })?;
    monitor.take_control(Arc::new(server));
    log::info!("the API listens at {path:?}");
    Ok(())
}

impl Control for Server {
    fn has_requests(&self) -> bool {
        Server::has_requests(self)
    }

    fn serve_next(&self, monitor: &mut Monitor) {
        if let Some(pending) = self.next_request() {
            let response = controller::handle(monitor, &pending.request);
            self.respond(&pending, &response);
        }
    }
}
