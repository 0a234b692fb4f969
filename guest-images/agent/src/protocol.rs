//! Requests that the agent takes on its control port, headers of its stream port, and replies.
//!
//! A request is one line of JSON with its name in `op`; the answer is one line: a reply's fields
//! beside `"ok": true`, or `{"ok": false, "error": "…"}`. docs/guest-images.md has examples.

use serde::{Deserialize, Serialize};

/// A request on the control port.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "lowercase")]
pub enum Request {
    /// Is the agent there? Answered by [`Ping`].
    Ping,
    /// What does the machine look like from inside? Answered by [`Info`].
    Info,
    /// Run a command. Answered by [`ExecReply`].
    Exec(Exec),
    /// Run a sample function. Answered by [`InvokeReply`].
    Invoke(Invoke),
    /// Open a stream to the host and exchange data. Answered by [`ConnectReply`].
    Connect(Connect),
    /// Read or write a block device, past the page cache. Answered by [`Transfer`].
    Block(Block),
    /// Many requests of one size to a block device, timed. Answered by [`IoReply`].
    Io(Io),
    /// Work on memory that the agent keeps. Answered by [`MemoryReply`].
    Memory(Memory),
    /// End the machine; the answer comes first, [`Done`].
    Power(Power),
    /// Read from the hardware's random number generator. Answered by [`RngReply`].
    Rng(Rng),
}

/// The first line on the stream port; data follow in the direction that it says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "lowercase", deny_unknown_fields)]
pub enum Stream {
    /// Send back what comes in, until `bytes` came, or until the sender stops.
    Echo {
        /// How many.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        bytes: Option<u64>,
    },
    /// Take `bytes` bytes and answer with a line: [`Transfer`].
    Sink {
        /// How many.
        bytes: u64,
    },
    /// Send `bytes` bytes of [`crate::pattern`], then close.
    Source {
        /// How many.
        bytes: u64,
        /// Of which seed.
        #[serde(default)]
        seed: u64,
    },
}

/// A command to run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exec {
    /// The program (looked up in `PATH`) and its arguments.
    pub argv: Vec<String>,
    /// What it reads on its standard input.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub stdin: String,
    /// After so many seconds it is killed, with the children in its process group. 60 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_s: Option<f64>,
}

/// A function to run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Invoke {
    /// Its name, such as `read-list`.
    pub function: String,
    /// The input, from which the function makes its data.
    pub seed: u64,
    /// The function's own arguments, an object.
    #[serde(default, skip_serializing_if = "serde_json::Value::is_null")]
    pub args: serde_json::Value,
    /// After so many seconds its process is killed. 600 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_s: Option<f64>,
}

/// A stream that the guest opens to the host; the host sends back what it gets.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Connect {
    /// The host's port.
    pub port: u32,
    /// How many bytes of [`crate::pattern`] go each way.
    pub bytes: u64,
    /// Of which seed.
    #[serde(default)]
    pub seed: u64,
}

/// The direction of a block transfer, seen from the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// From the device.
    Read,
    /// To the device, with a flush at the end.
    Write,
}

/// A transfer with direct I/O. Offset and length are multiples of 512 bytes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Block {
    /// The device's name, such as `vdb`.
    pub device: String,
    /// Read or write.
    pub direction: Direction,
    /// From which byte of the device.
    pub offset: u64,
    /// How many bytes.
    pub bytes: u64,
    /// What is written: [`crate::pattern`] of this seed, from its beginning.
    #[serde(default)]
    pub seed: u64,
}

/// Requests of one size to a block device, one at a time, with direct I/O; for benchmarks. What a
/// write leaves on the device is not specified.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Io {
    /// The device's name, such as `vdb`.
    pub device: String,
    /// Read or write; writes end with one flush, which is timed too.
    pub direction: Direction,
    /// Size of a request in bytes, a multiple of 512, at most 1 MiB.
    pub request_bytes: u64,
    /// How many requests, at most 262,144.
    pub requests: u64,
    /// Only so many bytes at the device's beginning are used, over and over.
    pub span: u64,
    /// Whether the places are random (by `seed`) rather than one after the other.
    #[serde(default)]
    pub random: bool,
    /// Chooses the random places.
    #[serde(default)]
    pub seed: u64,
}

/// What to do with a region of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// Make a region of `mib` MiB; its pages are not touched yet.
    Allocate,
    /// Write [`crate::pattern`] of `seed` all over it.
    Fill,
    /// Compare it with what was last written.
    Verify,
    /// Compare each page, then write [`crate::pattern`] of `seed` over it.
    Rewrite,
    /// Give it back.
    Free,
}

/// An operation on a named region of memory, which lives in the agent from request to request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Memory {
    /// The region's name.
    pub name: String,
    /// What to do.
    pub action: Action,
    /// The size of a new region.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mib: Option<u64>,
    /// The data's seed.
    #[serde(default)]
    pub seed: u64,
    /// How many threads share the work. 1 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threads: Option<usize>,
}

/// How the machine ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum How {
    /// The kernel's reboot, by whichever way its command line chose.
    Reboot,
    /// Power off.
    Poweroff,
    /// Stop the CPUs.
    Halt,
    /// A kernel panic.
    Panic,
    /// A reboot by triple fault.
    TripleFault,
}

/// The end of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Power {
    /// How.
    pub how: How,
}

/// Random bytes that are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rng {
    /// How many, at most 65,536.
    pub bytes: usize,
}

/// The agent is there.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ping {
    /// Its version.
    pub version: String,
    /// Seconds since the guest's kernel started.
    pub uptime_s: f64,
    /// The guest's monotonic clock, in nanoseconds.
    pub monotonic_ns: u64,
    /// The guest's wall clock, in nanoseconds since 1970.
    pub realtime_ns: u64,
}

/// The machine from inside.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Info {
    /// CPUs online.
    pub cpus: usize,
    /// `MemTotal` of `/proc/meminfo`, in KiB.
    pub memory_kib: u64,
    /// `MemAvailable`, in KiB.
    pub available_kib: u64,
    /// The kernel's release.
    pub kernel: String,
    /// Seconds since it started.
    pub uptime_s: f64,
    /// Its command line.
    pub cmdline: String,
    /// The guest's vsock address, if it has one.
    pub cid: Option<u32>,
    /// Block devices, by name.
    pub block: Vec<BlockDevice>,
    /// Network interfaces, by name.
    pub net: Vec<Interface>,
}

/// A block device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BlockDevice {
    /// Such as `vda`.
    pub name: String,
    /// Its size in bytes.
    pub bytes: u64,
    /// Whether it refuses to be written.
    pub read_only: bool,
    /// What it says of itself when asked for its id.
    pub serial: Option<String>,
}

/// A network interface.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Interface {
    /// Such as `eth0`.
    pub name: String,
    /// Its address, as `52:54:00:…`.
    pub mac: String,
    /// The largest packet, in bytes.
    pub mtu: u32,
    /// `up`, `down` or `unknown`.
    pub state: String,
}

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ExecReply {
    /// Its exit code; absent when a signal ended it.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Whether its time was up.
    pub timed_out: bool,
    /// Its standard output, invalid UTF-8 replaced.
    pub stdout: String,
    /// Its standard error, likewise.
    pub stderr: String,
    /// Whether one of the two was longer than the agent keeps (2 MiB each).
    pub truncated: bool,
}

/// What a function answered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InvokeReply {
    /// Its name.
    pub function: String,
    /// Its input.
    pub seed: u64,
    /// SHA-256 of what it made, in hexadecimal.
    pub checksum: String,
    /// From the request to the worker until its answer, in microseconds.
    pub micros: u64,
    /// The part spent in the function itself.
    pub function_micros: u64,
    /// Starting the worker, in microseconds, if this request had to.
    pub start_micros: Option<u64>,
    /// What the function says of its work.
    pub facts: serde_json::Value,
}

/// Both directions of a stream that the guest opened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ConnectReply {
    /// Bytes sent, and as many received.
    pub bytes: u64,
    /// Checksum of what was sent.
    pub sent_crc32: u32,
    /// Checksum of what came back.
    pub received_crc32: u32,
}

/// Data that were moved.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Transfer {
    /// How many bytes.
    pub bytes: u64,
    /// Their checksum.
    pub crc32: u32,
    /// How long it took, in microseconds.
    pub micros: u64,
}

/// Requests that were timed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct IoReply {
    /// How many bytes were moved.
    pub bytes: u64,
    /// From the first request to the end of the last, or of the flush, in microseconds.
    pub micros: u64,
    /// The median time of a request, in nanoseconds.
    pub median_nanos: u64,
    /// The time that 99 of 100 requests do not exceed, in nanoseconds.
    pub p99_nanos: u64,
}

/// A region of memory after an operation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MemoryReply {
    /// Its size in MiB.
    pub mib: u64,
    /// How long the operation took, in microseconds.
    pub micros: u64,
}

/// Random bytes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RngReply {
    /// In hexadecimal.
    pub hex: String,
    /// The generator that the kernel uses, such as `virtio_rng.0`.
    pub source: String,
}

/// Nothing to say but that it is done.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Done {}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(text: &str) -> Request {
        let request: Request = serde_json::from_str(text).unwrap();
        let again = serde_json::from_str(&serde_json::to_string(&request).unwrap()).unwrap();
        assert_eq!(request, again);
        request
    }

    #[test]
    fn requests_read_and_write_alike() {
        assert_eq!(round(r#"{"op":"ping"}"#), Request::Ping);
        assert_eq!(
            round(r#"{"op":"power","how":"triple-fault"}"#),
            Request::Power(Power { how: How::TripleFault })
        );
        let Request::Invoke(invoke) =
            round(r#"{"op":"invoke","function":"hello","seed":18446744073709551615}"#)
        else {
            panic!("not an invocation")
        };
        assert_eq!(invoke.seed, u64::MAX);
        round(r#"{"op":"memory","name":"a","action":"allocate","mib":3}"#);
        round(r#"{"op":"block","device":"vda","direction":"read","offset":0,"bytes":512}"#);
        let Request::Io(io) = round(
            r#"{"op":"io","device":"vda","direction":"write","request_bytes":512,"requests":9,"span":4096}"#,
        ) else {
            panic!("no io")
        };
        assert!(!io.random);
    }

    #[test]
    fn unknown_fields_and_operations_are_refused() {
        let error = |text: &str| serde_json::from_str::<Request>(text).unwrap_err().to_string();
        assert!(error(r#"{"op":"exec","argv":["a"],"cwd":"/"}"#).contains("cwd"));
        assert!(error(r#"{"op":"dance"}"#).contains("dance"));
        assert!(error(r#"{"seed":1}"#).contains("op"));
    }
}
