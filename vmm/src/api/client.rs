//! The command line's side of the control socket: one request, one answer.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use serde_json::Value;

/// Why a request was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens, or the stream failed.
    #[error("API socket {path:?}")]
    Io {
        /// The socket.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The answer is no HTTP.
    #[error("API socket {0:?} gave an answer that is not HTTP")]
    Malformed(PathBuf),
    /// The machine refused.
    #[error("{message} (status {status})")]
    Refused {
        /// Status code.
        status: u16,
        /// What it said.
        message: String,
    },
}

/// Sends a request to the socket at `path` and returns the body of a good answer.
pub fn request(
    path: &Path,
    method: &str,
    target: &str,
    body: &Value,
) -> Result<Value, ClientError> {
    let io = |source| ClientError::Io { path: path.into(), source };
    let mut stream = UnixStream::connect(path).map_err(io)?;
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let head = format!(
        "{method} {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(format!("{head}{body}").as_bytes()).map_err(io)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).map_err(io)?;

    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut response = httparse::Response::new(&mut headers);
    let malformed = || ClientError::Malformed(path.into());
    let Ok(httparse::Status::Complete(start)) = response.parse(&answer) else {
        return Err(malformed());
    };
    let status = response.code.ok_or_else(malformed)?;
    let body = match &answer[start..] {
        [] => Value::Null,
        bytes => serde_json::from_slice(bytes).map_err(|_| malformed())?,
    };
    if status < 300 {
        return Ok(body);
    }
    let message = body["fault_message"].as_str().unwrap_or("refused").to_owned();
    Err(ClientError::Refused { status, message })
}
