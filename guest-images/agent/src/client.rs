//! The host's side of the protocol, over any byte stream; and how to reach a guest's vsock port
//! through the monitor's unix socket. Nothing here starts a machine.

use std::io::{self, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde::de::DeserializeOwned;

use crate::frame::{MAX_LINE, read_line, write_line};
use crate::protocol::Request;

/// Why a request was not answered as hoped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The stream failed.
    #[error("the stream to the guest's agent failed")]
    Io(#[from] io::Error),
    /// The guest closed the stream before it answered.
    #[error("the guest's agent closed the stream without an answer")]
    Closed,
    /// The monitor does not connect to that port: nothing listens there, or the guest is gone.
    #[error("the monitor refused a connection to the guest's port {port}: {answer:?}")]
    Refused {
        /// The port.
        port: u32,
        /// What the monitor said instead of OK.
        answer: String,
    },
    /// The agent could not do it, and says why.
    #[error("the guest's agent: {0}")]
    Agent(String),
    /// The answer is not of the expected form.
    #[error("the guest's agent answered {line:?}")]
    Malformed {
        /// Its beginning.
        line: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
}

/// A connection to an agent's control port.
#[derive(Debug)]
pub struct Client<S: Read + Write> {
    stream: BufReader<S>,
}

impl Client<UnixStream> {
    /// Connects through the unix socket of a machine's vsock device; see [`connect_vsock`].
    pub fn connect(uds: &Path, port: u32) -> Result<Self, Error> {
        Ok(Self::new(connect_vsock(uds, port)?))
    }
}

impl<S: Read + Write> Client<S> {
    /// A client on a stream that stands already.
    pub fn new(stream: S) -> Self {
        Self { stream: BufReader::new(stream) }
    }

    /// Sends a request and waits for its answer; `T` is the reply that the request's text names.
    pub fn call<T: DeserializeOwned>(&mut self, request: &Request) -> Result<T, Error> {
        write_line(self.stream.get_mut(), request)?;
        self.answer()
    }

    /// Reads one answer, such as the one that ends a stream of kind `sink`.
    pub fn answer<T: DeserializeOwned>(&mut self) -> Result<T, Error> {
        let line = read_line(&mut self.stream, MAX_LINE)?.ok_or(Error::Closed)?;
        let malformed = |source| {
            let start = &line[..line.len().min(200)];
            Error::Malformed { line: String::from_utf8_lossy(start).into_owned(), source }
        };
        #[derive(serde::Deserialize)]
        struct Verdict {
            ok: bool,
            #[serde(default)]
            error: String,
        }
        let verdict: Verdict = serde_json::from_slice(&line).map_err(malformed)?;
        if !verdict.ok {
            return Err(Error::Agent(verdict.error));
        }
        serde_json::from_slice(&line).map_err(malformed)
    }

    /// The stream below; nothing that was read is left behind if all answers were taken.
    pub fn into_inner(self) -> S {
        self.stream.into_inner()
    }
}

/// Opens a stream to a guest's vsock port through the unix socket `uds` of its vsock device, by
/// Firecracker's handshake: `CONNECT <port>\n`, answered by `OK <host port>\n`.
pub fn connect_vsock(uds: &Path, port: u32) -> Result<UnixStream, Error> {
    let mut stream = UnixStream::connect(uds)?;
    stream.write_all(format!("CONNECT {port}\n").as_bytes())?;
    // Byte by byte: what follows the line belongs to the stream.
    let mut answer = Vec::new();
    while answer.len() < 32 && !answer.ends_with(b"\n") {
        let mut byte = [0];
        if stream.read(&mut byte)? == 0 {
            break;
        }
        answer.extend(byte);
    }
    if answer.starts_with(b"OK ") && answer.ends_with(b"\n") {
        return Ok(stream);
    }
    Err(Error::Refused { port, answer: String::from_utf8_lossy(&answer).into_owned() })
}
