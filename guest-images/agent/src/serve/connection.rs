//! One connection to the control port: requests are read, handed to who does them, and answered.

use std::fs::File;
use std::io::{self, BufReader};

use anyhow::{Context, Result};
use serde::Serialize;
use varve_agent::frame::{MAX_LINE, read_line, write_line};
use varve_agent::protocol::Request;

use super::{Agent, block, exec, info, io as timed, power, rng, stream};

/// The answer to a request that was carried out.
#[derive(Serialize)]
struct Success {
    ok: bool,
    #[serde(flatten)]
    reply: serde_json::Value,
}

/// The answer to one that was not.
#[derive(Serialize)]
struct Failure {
    ok: bool,
    error: String,
}

/// Serves requests until the peer has no more.
pub fn serve(agent: &Agent, connection: &File) -> io::Result<()> {
    let mut reader = BufReader::new(connection);
    loop {
        let line = read_line(&mut reader, MAX_LINE);
        let own = agent.check_generation();
        let line = match line {
            Ok(Some(line)) => line,
            Ok(None) => return Ok(()),
            Err(error) => {
                // Where the next request begins is not known any more.
                return fail(connection, &error.into());
            }
        };
        let request: Request =
            match serde_json::from_slice(&line).context("the request is malformed") {
                Ok(request) => request,
                Err(error) => {
                    fail(connection, &error)?;
                    continue;
                }
            };
        if let Err(error) = own
            && runs_programs(&request)
        {
            fail(connection, &error.context("not run"))?;
            continue;
        }
        let end = if let Request::Power(power) = &request { Some(power.how) } else { None };
        match carry_out(agent, request) {
            Ok(reply) => write_line(&mut &*connection, &Success { ok: true, reply })?,
            Err(error) => fail(connection, &error)?,
        }
        if let Some(how) = end {
            // The answer is given and the stream closed: what goes wrong now, the console tells.
            if let Err(error) = power::carry_out(how, connection) {
                crate::say(&format!("varve-agent: power: {error:#}\n"));
            }
            return Ok(());
        }
    }
}

/// Whether a request starts what may draw random numbers: that must not happen while they may be those of
/// another machine. What asks about the machine or ends it is answered.
fn runs_programs(request: &Request) -> bool {
    match request {
        Request::Exec(_) | Request::Invoke(_) => true,
        Request::Ping
        | Request::Info
        | Request::Connect(_)
        | Request::Block(_)
        | Request::Io(_)
        | Request::Memory(_)
        | Request::Power(_)
        | Request::Rng(_) => false,
    }
}

/// Answers that it went wrong.
pub fn fail(mut connection: &File, error: &anyhow::Error) -> io::Result<()> {
    write_line(&mut connection, &Failure { ok: false, error: format!("{error:#}") })
}

/// Answers with a reply.
pub fn succeed(mut connection: &File, reply: &impl Serialize) -> Result<()> {
    let reply = serde_json::to_value(reply)?;
    Ok(write_line(&mut connection, &Success { ok: true, reply })?)
}

fn carry_out(agent: &Agent, request: Request) -> Result<serde_json::Value> {
    Ok(match request {
        Request::Ping => serde_json::to_value(info::ping())?,
        Request::Info => serde_json::to_value(info::info()?)?,
        Request::Exec(request) => serde_json::to_value(exec::run(&request)?)?,
        Request::Invoke(request) => serde_json::to_value(agent.workers.invoke(&request)?)?,
        Request::Connect(request) => {
            serde_json::to_value(stream::connect(&agent.transport, &request)?)?
        }
        Request::Block(request) => serde_json::to_value(block::transfer(&request)?)?,
        Request::Io(request) => serde_json::to_value(timed::run(&request)?)?,
        Request::Memory(request) => serde_json::to_value(agent.regions.carry_out(&request)?)?,
        Request::Rng(request) => serde_json::to_value(rng::read(request.bytes)?)?,
        // The answer comes before the deed.
        Request::Power(_) => serde_json::json!({}),
    })
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, Write};
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;
    use std::sync::atomic::{AtomicBool, Ordering};

    use anyhow::bail;

    use super::super::generation::Generation;
    use super::super::listen::Transport;
    use super::super::{invoke, memory};
    use super::*;

    /// Whether the kernel refuses to be reseeded.
    static REFUSES: AtomicBool = AtomicBool::new(true);

    fn reseed(_: &[u8; 16]) -> Result<()> {
        if REFUSES.load(Ordering::SeqCst) { bail!("RNDRESEEDCRNG: refused") } else { Ok(()) }
    }

    #[test]
    fn nothing_runs_before_random_numbers_are_the_machines_own() {
        let agent = Agent {
            transport: Transport::Vsock,
            generation: Some(Generation::new(Box::new(|| Ok([7; 16])), reseed)),
            workers: invoke::Workers::new("/none".into()),
            regions: memory::Regions::default(),
        };
        let (mut client, served) = UnixStream::pair().unwrap();
        let (agent, served) = (&agent, &File::from(OwnedFd::from(served)));
        // The client goes with the closure, so that a test that fails ends.
        std::thread::scope(move |scope| {
            scope.spawn(|| serve(agent, served));
            let mut answers = BufReader::new(client.try_clone().unwrap());
            let mut ask = |request: &str| {
                writeln!(client, "{request}").unwrap();
                let mut answer = String::new();
                answers.read_line(&mut answer).unwrap();
                answer
            };
            for request in [
                r#"{"op":"exec","argv":["true"]}"#,
                r#"{"op":"invoke","function":"hello","seed":1}"#,
            ] {
                let answer = ask(request);
                assert!(answer.contains("not run: random numbers may repeat"), "{answer}");
                assert!(answer.contains("RNDRESEEDCRNG: refused"), "{answer}");
            }
            assert!(ask(r#"{"op":"ping"}"#).contains("true"));
            // The next request has it tried again.
            REFUSES.store(false, Ordering::SeqCst);
            let answer = ask(r#"{"op":"exec","argv":["true"]}"#);
            assert!(answer.contains(r#""ok":true"#), "{answer}");
        });
    }
}
