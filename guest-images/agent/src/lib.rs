//! What a guest's agent and its hosts agree on: requests and replies, how they are framed, the
//! pseudo-random data that tests move about, and a client. The agent itself is the binary.

pub mod client;
pub mod frame;
pub mod pattern;
pub mod protocol;

/// The vsock port of requests.
pub const CONTROL_PORT: u32 = 1024;

/// The vsock port of raw streams.
pub const STREAM_PORT: u32 = 1025;
