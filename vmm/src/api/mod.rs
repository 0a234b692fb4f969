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
pub use server::{MAX_BODY, Pending, Server};
