//! A client of the guest's agent, as far as `--invoke` needs it: one line of JSON each way, through
//! the unix socket of the machine's vsock (docs/guest-images.md).

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// The agent's vsock port.
const PORT: u32 = 1024;
/// Longest answer.
const MAX_LINE: u64 = 16 << 20;
/// How long a guest that is being started may take to listen.
const PATIENCE: Duration = Duration::from_secs(60);

/// A function call: what `--invoke` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invocation {
    /// The function.
    pub function: String,
    /// Its input.
    pub seed: u64,
    /// More arguments, as JSON.
    pub args: Value,
}

impl Invocation {
    /// Reads `FUNCTION SEED [JSON]`.
    pub fn parse(text: &str) -> Result<Invocation, String> {
        let bad = || format!("{text:?} is not FUNCTION SEED [JSON], as in 'json 7'");
        let mut words = text.trim().splitn(3, char::is_whitespace);
        let function = words.next().filter(|w| !w.is_empty()).ok_or_else(bad)?.to_owned();
        let seed = words.next().and_then(|w| w.parse().ok()).ok_or_else(bad)?;
        let args = match words.next().map(str::trim).filter(|w| !w.is_empty()) {
            Some(json) => serde_json::from_str(json).map_err(|e| format!("{}: {e}", bad()))?,
            None => Value::Null,
        };
        Ok(Invocation { function, seed, args })
    }
}

/// A connection to the agent.
pub struct Agent(BufReader<UnixStream>);

impl Agent {
    /// Connects as soon as the agent listens.
    pub fn connect(uds: &Path) -> io::Result<Agent> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match try_connect(uds) {
                Ok(agent) => return Ok(agent),
                Err(e) if Instant::now() >= deadline => {
                    let text =
                        format!("the guest's agent does not answer on {}: {e}", uds.display());
                    return Err(io::Error::new(e.kind(), text));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(2)),
            }
        }
    }

    /// Calls a function; the reply's fields.
    pub fn invoke(&mut self, call: &Invocation) -> io::Result<Value> {
        let Invocation { function, seed, args } = call;
        let mut request = json!({ "op": "invoke", "function": function, "seed": seed });
        if !args.is_null() {
            request["args"] = args.clone();
        }
        self.0.get_mut().write_all(format!("{request}\n").as_bytes())?;
        let mut line = Vec::new();
        self.0.by_ref().take(MAX_LINE).read_until(b'\n', &mut line)?;
        let reply: Value = serde_json::from_slice(&line)
            .map_err(|_| io::Error::other("the guest's agent gave no whole answer"))?;
        if reply["ok"] == json!(true) {
            return Ok(reply);
        }
        let error = reply["error"].as_str().unwrap_or("the guest's agent refused");
        Err(io::Error::other(format!("{function} {seed}: {error}")))
    }
}

fn try_connect(uds: &Path) -> io::Result<Agent> {
    let mut stream = UnixStream::connect(uds)?;
    stream.write_all(format!("CONNECT {PORT}\n").as_bytes())?;
    let mut stream = BufReader::new(stream);
    let mut answer = String::new();
    (&mut stream).take(64).read_line(&mut answer)?;
    if answer.starts_with("OK ") {
        Ok(Agent(stream))
    } else {
        Err(io::ErrorKind::ConnectionRefused.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invocations() {
        let call = Invocation::parse("json 7").unwrap();
        assert_eq!((call.function.as_str(), call.seed, call.args), ("json", 7, Value::Null));
        let call = Invocation::parse("mmap 1 {\"size_mib\": 8}").unwrap();
        assert_eq!(call.args, json!({ "size_mib": 8 }));
        for bad in ["", "json", "json x", "json 1 {"] {
            assert!(Invocation::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_agent_that_answers() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let guest = std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut lines = BufReader::new(stream);
            let mut line = String::new();
            lines.read_line(&mut line).unwrap();
            lines.get_mut().write_all(b"OK 5\n").unwrap();
            for answer in
                ["{\"ok\":true,\"checksum\":\"c\"}\n", "{\"ok\":false,\"error\":\"no\"}\n"]
            {
                lines.read_line(&mut line).unwrap();
                lines.get_mut().write_all(answer.as_bytes()).unwrap();
            }
            line
        });
        let mut agent = Agent::connect(&path).unwrap();
        let call = Invocation::parse("json 7").unwrap();
        assert_eq!(agent.invoke(&call).unwrap()["checksum"], "c");
        assert!(agent.invoke(&call).unwrap_err().to_string().contains("json 7: no"));
        let said = guest.join().unwrap();
        assert!(said.starts_with("CONNECT 1024\n{\"function\":\"json\""), "{said}");
    }
}
