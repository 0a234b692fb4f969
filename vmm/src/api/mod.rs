//! Control of a running machine: HTTP over a unix socket, with Firecracker's paths.
//!
//! ```text
//!  client ──> server (connections, on the event loop) ──> queue ──> main loop ──> controller ──┐
//!     ^──────────────────────────── respond <──────────────────────────────────────────────────┘
//! ```
//!
//! The server never touches the machine and the controller never touches a socket.

mod balloon;
pub mod client;
pub mod controller;
mod http;
mod server;

pub use http::{Method, Request, Response};
pub use server::{Pending, Server};
