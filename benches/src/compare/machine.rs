//! One machine that is measured: started, asked several times, looked at from outside, ended.

use std::collections::BTreeMap;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use rustix::time::{ClockId, clock_gettime};
use serde::Deserialize;
use serde_json::Value;
use varve_agent::CONTROL_PORT;
use varve_agent::client::{Client, connect_vsock};
use varve_agent::protocol::{Invoke, InvokeReply, Request};
use varve_memory_tiers::{Bucket, Strategy};
use varve_tests::api::ask;
use varve_tests::images::varve;

use super::firecracker::{API, Loaded, UDS};
use super::process::{PATIENCE, Process};
use crate::demo::said::{ByAccess, Memory, Started, Times};
use crate::outside::{self, Outside};

/// How often the warm answer is measured.
const WARM_CALLS: usize = 2;

/// How a machine comes back.
#[derive(Clone, Debug)]
pub enum Way<'a> {
    /// By `varve restore`.
    Varve {
        /// The method.
        strategy: Strategy,
        /// Folder of the snapshot.
        snapshot: &'a Path,
        /// More options.
        options: Vec<String>,
    },
    /// By the API of a monitor that takes Firecracker's place.
    Api(&'a Loaded),
}

/// A call.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// The function.
    pub function: &'a str,
    /// Its input.
    pub seed: u64,
    /// Checksum of the right answer.
    pub checksum: &'a str,
}

/// What one machine took. Times begin before its process is started; counts are of the first call.
#[derive(Clone, Debug, Default)]
pub struct Taken {
    /// The method that was used, if the monitor says so.
    pub strategy: Option<String>,
    /// Milliseconds until the vCPUs ran.
    pub resumed_ms: f64,
    /// Until the first answer was read.
    pub answered_ms: f64,
    /// The same call again, from request to answer; the shorter of two.
    pub warm_ms: f64,
    /// Host faults of vCPUs that waited for I/O, and those that did not.
    pub host_faults: Option<(u64, u64)>,
    /// Faults of second-level page tables.
    pub stage2_faults: Option<u64>,
    /// Faults that the monitor answered, by class.
    pub answered_faults: BTreeMap<String, ByAccess>,
    /// How long these took.
    pub fault_latency: Vec<Bucket>,
    /// Exits of the vCPUs.
    pub exits: Option<u64>,
    /// Bytes that the monitor read, by tier.
    pub read: BTreeMap<String, u64>,
    /// Mappings that guest memory consists of.
    pub mappings: Option<u64>,
    /// Pages that were private though nothing had been written to them by recorded calls.
    pub private_unwritten: Option<u64>,
    /// What planning, mapping and copying took, of the time until the vCPUs ran.
    pub laying: Option<Times>,
    /// Processor time of vCPU threads, and of all others, in milliseconds.
    pub cpu_ms: Option<(f64, f64)>,
    /// Looked at from outside, after the last call.
    pub outside: Outside,
}

/// A restored machine answered otherwise than the one that was recorded: nothing to be tried again.
#[derive(Debug)]
pub struct WrongAnswer(String);

impl std::fmt::Display for WrongAnswer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "WRONG ANSWER to {}", self.0)
    }
}

impl std::error::Error for WrongAnswer {}

/// A machine that has answered, and runs.
pub struct Running {
    process: Process,
    began: Nanos,
    taken: Taken,
    /// What the monitor says at its end is a report.
    reports: bool,
}

/// A time of CLOCK_MONOTONIC.
#[derive(Clone, Copy, Debug)]
struct Nanos(u64);

impl Nanos {
    fn now() -> Nanos {
        let now = clock_gettime(ClockId::Monotonic);
        Nanos(now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs())
    }

    fn ms_since(self, start: Nanos) -> f64 {
        self.0.saturating_sub(start.0) as f64 / 1e6
    }
}

impl Running {
    /// Starts the machine and makes the call, and then again for the warm answer.
    ///
    /// # Errors
    ///
    /// If the machine ends or does not answer, or its answer is wrong.
    pub fn start(way: &Way, call: &Call) -> Result<Running> {
        let mut began = Nanos(0);
        let process = Process::start(|folder| command(way, folder), || began = Nanos::now())?;
        let reports = matches!(way, Way::Varve { .. });
        let mut running = Running { process, began, taken: Taken::default(), reports };
        let done = running.measure(way, call);
        done.with_context(|| running.process.story())?;
        Ok(running)
    }

    fn measure(&mut self, way: &Way, call: &Call) -> Result<()> {
        let (uds, api) = sockets(self.process.folder());
        if let Way::Api(loaded) = way {
            self.process.until(&api, || Ok(UnixStream::connect(&api)?))?;
            loaded.load(&api)?;
            self.taken.resumed_ms = Nanos::now().ms_since(self.began);
        }
        let (mut client, reply) = self.process.until(&uds, || ask_first(&uds, call))?;
        self.taken.answered_ms = Nanos::now().ms_since(self.began);
        right(&reply, call)?;
        match way {
            Way::Varve { .. } => self.ask_counts(&api)?,
            Way::Api(_) => self.count_from_outside(),
        }
        // Some functions have more to do every other time, such as to clear away what the calls before left.
        self.taken.warm_ms = f64::MAX;
        for _ in 0..WARM_CALLS {
            let start = Nanos::now();
            let reply: InvokeReply = client.call(&request(call))?;
            self.taken.warm_ms = self.taken.warm_ms.min(Nanos::now().ms_since(start));
            right(&reply, call)?;
        }
        Ok(())
    }

    /// Counters of the first call.
    fn ask_counts(&mut self, api: &Path) -> Result<()> {
        let (status, body) = ask(api, "GET", "/memory", &Value::Null)?;
        ensure!(status == 200, "GET /memory: {status} {body}");
        let found = Memory::deserialize(body)?;
        let taken = &mut self.taken;
        let vcpus = found.vcpu_faults;
        taken.strategy = found.strategy;
        taken.host_faults = Some((vcpus.major, vcpus.minor));
        (taken.stage2_faults, taken.exits) = (vcpus.stage2, vcpus.exits);
        let ms = |us: u64| us as f64 / 1e3;
        let others = found.cpu.process_us.saturating_sub(found.cpu.vcpus_us);
        taken.cpu_ms = Some((ms(found.cpu.vcpus_us), ms(others)));
        taken.private_unwritten = found.census.map(|census| {
            let unwritten = census.iter().filter(|(class, _)| class.as_str() != "rw");
            unwritten.map(|(_, pages)| pages.private).sum()
        });
        let Some(counters) = found.counters else { return Ok(()) };
        for source in &counters.sources {
            let tier = source.tier.clone().unwrap_or_else(|| "local".into());
            *taken.read.entry(tier).or_default() += source.bytes_read;
        }
        taken.mappings = counters.mappings;
        taken.laying = counters.times;
        taken.fault_latency = counters.fault_latency;
        taken.answered_faults = counters.faults;
        Ok(())
    }

    /// What the kernel tells of any monitor.
    fn count_from_outside(&mut self) {
        let found = outside::vcpus(self.process.id());
        self.taken.host_faults = found.host_faults;
        (self.taken.stage2_faults, self.taken.exits) = (found.stage2, found.exits);
        self.taken.cpu_ms = found.cpu_ms;
    }

    /// Looks at its memory; for machines that run at the same time, before any of them ends.
    ///
    /// # Errors
    ///
    /// If the kernel does not tell.
    pub fn look(&mut self) -> Result<()> {
        self.taken.outside = Outside::of(self.process.id())?;
        Ok(())
    }

    /// Ends it.
    ///
    /// # Errors
    ///
    /// If it does not end as it is told.
    pub fn end(mut self) -> Result<Taken> {
        if !self.reports {
            return Ok(self.taken);
        }
        let status = self.process.terminate()?;
        ensure!(status.success(), "it ended with {status}: {}", self.process.story());
        let text = self.process.output()?;
        let said: Started = serde_json::from_str(&text)
            .with_context(|| format!("varve printed what is not understood: {text}"))?;
        self.taken.resumed_ms = Nanos(said.began_ns).ms_since(self.began) + said.resumed_ms;
        Ok(self.taken)
    }
}

/// Of vsock and API.
fn sockets(folder: &Path) -> (PathBuf, PathBuf) {
    (folder.join(UDS), folder.join(API))
}

fn command(way: &Way, folder: &Path) -> Command {
    let (uds, api) = sockets(folder);
    let mut command;
    match way {
        Way::Varve { strategy, snapshot, options } => {
            command = Command::new(varve());
            command.arg("restore").arg(snapshot).args(["--strategy", strategy.name()]);
            command.arg("--vsock").arg(uds).arg("--api-sock").arg(api);
            command.args(["--console", "off", "--json"]).args(options);
        }
        Way::Api(loaded) => command = loaded.command(folder),
    }
    command
}

fn request(call: &Call) -> Request {
    let Call { function, seed, .. } = *call;
    Request::Invoke(Invoke { function: function.into(), seed, ..Invoke::default() })
}

fn ask_first(uds: &Path, call: &Call) -> Result<(Client<UnixStream>, InvokeReply)> {
    let stream = connect_vsock(uds, CONTROL_PORT)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut client = Client::new(stream);
    let reply = client.call(&request(call))?;
    Ok((client, reply))
}

fn right(reply: &InvokeReply, call: &Call) -> Result<()> {
    let Call { function, seed, checksum } = *call;
    let wrong =
        || WrongAnswer(format!("{function} {seed}: {} instead of {checksum}", reply.checksum));
    ensure!(reply.checksum == checksum, wrong());
    Ok(())
}
