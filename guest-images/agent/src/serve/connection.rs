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
        agent.check_generation();
        let line = match line {
            Ok(Some(line)) => line,
            Ok(None) => return Ok(()),
            Err(error) => {
                // Where the next request begins is not known any more.
                return fail(connection, &error.into());
            }
        };
        let request = match serde_json::from_slice(&line).context("the request is malformed") {
            Ok(request) => request,
            Err(error) => {
                fail(connection, &error)?;
                continue;
            }
        };
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
