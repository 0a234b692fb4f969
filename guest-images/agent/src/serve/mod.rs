//! The agent: listens, and gives each connection a thread. What a request does is in its own file.

mod block;
mod connection;
mod exec;
mod generation;
mod info;
mod invoke;
mod io;
pub mod listen;
mod memory;
mod poll;
mod power;
mod rng;
mod stream;

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};

use crate::init::{self, boot_timer};
use crate::{say, uptime};
use generation::Generation;
use listen::{Listener, Transport};

/// How the agent was started.
#[derive(Debug)]
pub struct Options {
    /// Where it listens, and where `connect` requests go.
    pub transport: Transport,
    /// The folder of the sample functions.
    pub functions: PathBuf,
    /// Where to tell that it listens.
    pub boot_timer: Option<u64>,
}

impl Default for Options {
    fn default() -> Self {
        Self { transport: Transport::Vsock, functions: "/opt/varve".into(), boot_timer: None }
    }
}

/// What all connections share.
#[derive(Debug)]
pub struct Agent {
    transport: Transport,
    /// None where the agent is a process of a machine that is no guest of varve's, in tests.
    generation: Option<Generation>,
    workers: invoke::Workers,
    regions: memory::Regions,
}

/// Listens and serves, for ever.
pub fn run(options: Options) -> Result<()> {
    let control = options.transport.listen(varve_agent::CONTROL_PORT)?;
    let streams = options.transport.listen(varve_agent::STREAM_PORT)?;
    let agent = Arc::new(Agent {
        generation: generation(&options.transport),
        transport: options.transport,
        workers: invoke::Workers::new(options.functions),
        regions: memory::Regions::default(),
    });
    if let Some(address) = options.boot_timer {
        init::signal(address, boot_timer::READY);
    }
    say(&format!("varve-agent: ready {:.6}\n", uptime::seconds()));
    let thread = std::thread::Builder::new().name("streams".into());
    thread
        .spawn(move || accept_all(&streams, |connection| stream::serve(&connection)))
        .context("cannot start a thread")?;
    accept_all(&control, move |connection| connection::serve(&agent, &connection));
    Ok(())
}

impl Agent {
    /// Comes first after every wait for the host: if the machine was restored meanwhile, its random
    /// numbers become its own before anything is done or answered.
    ///
    /// # Errors
    ///
    /// They may be those of another machine. The console tells it, too.
    pub fn check_generation(&self) -> Result<()> {
        let checked = self.generation.as_ref().map_or(Ok(()), Generation::check);
        checked.context("random numbers may repeat those of another machine").inspect_err(|error| {
            say(&format!("varve-agent: {error:#}\n"));
        })
    }
}

/// The VM generation id of a guest. Without one, the console tells what that means.
fn generation(transport: &Transport) -> Option<Generation> {
    if *transport != Transport::Vsock {
        return None;
    }
    let found = Generation::find();
    found
        .inspect_err(|error| {
            say(&format!(
                "varve-agent: no VM generation id: {error:#}; \
                 random numbers of a restored machine may repeat those of another\n"
            ));
        })
        .ok()
}

/// Accepts connections and serves each in a thread of its own.
fn accept_all(
    listener: &Listener,
    serve: impl Fn(std::fs::File) -> std::io::Result<()> + Clone + Send + 'static,
) {
    loop {
        let connection = match listener.accept() {
            Ok(connection) => connection,
            Err(error) => {
                // Out of descriptors, or the peer is gone already. The listener itself stays good.
                say(&format!("varve-agent: accept: {error}\n"));
                std::thread::yield_now();
                continue;
            }
        };
        let serve = serve.clone();
        // A stream that breaks off is its peer's doing and concerns nobody else. A thread that
        // cannot be started drops the connection, which closes it.
        let thread = std::thread::Builder::new().name("connection".into());
        if let Err(error) = thread.spawn(move || drop(serve(connection))) {
            say(&format!("varve-agent: cannot start a thread: {error}\n"));
        }
    }
}
