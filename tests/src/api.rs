//! Monitors that are controlled through their API socket.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::Vm;
use crate::images::varve;
use crate::vm::PATIENCE;

impl Vm {
    /// A monitor with Firecracker's command line and no machine yet, whose socket answers. More
    /// options are separated by blanks.
    ///
    /// # Panics
    ///
    /// If the socket does not come.
    pub fn unconfigured(options: &str) -> Vm {
        let dir = tempfile::Builder::new().prefix("varve-test").tempdir().unwrap();
        let mut command = Command::new(varve());
        command
            .arg("--api-sock")
            .arg(dir.path().join("api.sock"))
            .args(options.split_whitespace())
            .stdin(Stdio::null())
            .stdout(File::create(dir.path().join("console")).unwrap());
        let mut vm = Vm::spawn(command, dir);
        vm.wait_for_api();
        vm
    }

    /// Waits until the control socket answers: a machine that was restored paused has been built.
    /// The file alone says less, as it is there before anybody listens.
    ///
    /// # Panics
    ///
    /// If the machine ends before, or the socket does not come.
    pub fn wait_for_api(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        while UnixStream::connect(self.api()).is_err() {
            assert!(self.runs() && Instant::now() < deadline, "no socket: {}", self.stderr());
            // Benchmarks measure until here.
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// The control socket.
    pub fn api(&self) -> PathBuf {
        self.dir().join("api.sock")
    }

    /// Sends a request to the control socket and returns the body of the answer.
    ///
    /// # Panics
    ///
    /// If it is refused.
    pub fn control(&self, method: &str, target: &str, body: &Value) -> Value {
        let (status, answer) = self.ask(method, target, body);
        assert!(status == 200 || status == 204, "{method} {target} {body}: {status} {answer}");
        answer
    }

    /// Sends a request to the control socket that must be refused, and returns the message.
    ///
    /// # Panics
    ///
    /// If it is not refused with status 400.
    pub fn refused(&self, method: &str, target: &str, body: &Value) -> String {
        let (status, answer) = self.ask(method, target, body);
        assert_eq!(status, 400, "{method} {target} {body}: {answer}");
        answer["fault_message"].as_str().unwrap().into()
    }

    /// Sends a request to the control socket and returns status code and body of the answer.
    pub fn ask(&self, method: &str, target: &str, body: &Value) -> (u16, Value) {
        ask(&self.api(), method, target, body).unwrap()
    }
}

/// Sends a request to a control socket; status code and body of the answer.
///
/// # Errors
///
/// If the monitor gives no whole answer within [`PATIENCE`].
pub fn ask(
    socket: &Path,
    method: &str,
    target: &str,
    body: &Value,
) -> std::io::Result<(u16, Value)> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let length = body.len();
    let head = format!(
        "{method} {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n"
    );
    stream.write_all(format!("{head}{body}").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let bad = || std::io::Error::other(format!("{method} {target} was answered {answer:?}"));
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(bad)?;
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).ok_or_else(bad)?;
    let body = if body.is_empty() { Value::Null } else { serde_json::from_str(body)? };
    Ok((status, body))
}
