//! As much of QEMU's control protocol as saving a lab takes.

use std::io::{BufRead, BufReader, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::{Value, json};

/// A connection to QEMU's monitor.
#[derive(Debug)]
pub struct Qmp(BufReader<UnixStream>);

impl Qmp {
    /// Greets the monitor at the other end of `stream`. No answer may take longer than `limit`.
    pub fn connect(stream: UnixStream, limit: Duration) -> Result<Self> {
        stream.set_read_timeout(Some(limit)).context("cannot limit the wait for QEMU's monitor")?;
        let mut qmp = Self(BufReader::new(stream));
        qmp.message()?;
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Writes the state of the machine to `file`.
    pub fn save(&mut self, file: BorrowedFd<'_>, limit: Duration) -> Result<()> {
        // Not limited in speed: nothing runs beside it.
        self.execute("migrate-set-parameters", json!({ "max-bandwidth": 1_u64 << 40 }))?;
        // QEMU takes a descriptor by the name under which it was handed over.
        self.request("getfd", json!({ "fdname": "state" }), &[file])?;
        self.execute("migrate", json!({ "uri": "fd:state" }))?;
        let end = Instant::now() + limit;
        loop {
            let state = self.execute("query-migrate", json!({}))?;
            match state["status"].as_str() {
                Some("completed") => return Ok(()),
                Some("failed" | "cancelled") => bail!("QEMU could not save the lab: {state}"),
                _ if Instant::now() > end => bail!("saving the lab took over {limit:?}"),
                _ => thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    /// Ends QEMU.
    pub fn quit(&mut self) -> Result<()> {
        self.execute("quit", json!({})).map(drop)
    }

    fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        self.request(command, arguments, &[])
    }

    /// Sends a command with descriptors, and waits for what it returns.
    fn request(
        &mut self,
        command: &str,
        arguments: Value,
        fds: &[BorrowedFd<'_>],
    ) -> Result<Value> {
        let line = json!({ "execute": command, "arguments": arguments }).to_string() + "\n";
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
            bail!("more descriptors than one message takes");
        }
        let parts = [IoSlice::new(line.as_bytes())];
        let sent = sendmsg(self.0.get_ref(), &parts, &mut ancillary, SendFlags::NOSIGNAL)
            .with_context(|| format!("QEMU takes no command `{command}`"))?;
        if sent != line.len() {
            bail!("QEMU took the command `{command}` in part only");
        }
        loop {
            let mut message = self.message()?;
            if let Some(error) = message.get("error") {
                bail!("QEMU refused `{command}`: {error}");
            }
            if let Some(result) = message.get_mut("return") {
                return Ok(result.take());
            }
        }
    }

    /// The next message: a greeting, an event, or a reply.
    fn message(&mut self) -> Result<Value> {
        let mut line = String::new();
        let length = self.0.read_line(&mut line).context("QEMU's monitor does not answer")?;
        if length == 0 {
            bail!("QEMU ended while it was spoken to");
        }
        serde_json::from_str(&line).context("QEMU's monitor sent no JSON")
    }
}
