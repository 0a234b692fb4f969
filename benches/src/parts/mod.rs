//! What can be measured. Each part starts its own machines and records into a [`Recorder`].

mod api;
mod block;
mod boot;
mod fetch;
mod mechanisms;
mod memory;
mod offload;
mod plan;
mod pool;
mod shared;
mod sizes;
mod start;
mod vsock;

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::ValueEnum;
use varve_agent::client::Client;
use varve_tests::Vm;

use crate::recorder::Recorder;

/// A part of the benchmarks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// What a process costs before it looks at the first file of its user's (without KVM)
    Start,
    /// Time from process start to the guest's init and to its agent, by kernel format
    Boot,
    /// Time from process start to the API's socket and first answer, and of loading a snapshot
    Api,
    /// Memory that the monitor takes besides the guest's
    Memory,
    /// Sending idle pages to another host and getting them back, by transport
    Offload,
    /// Throughput and latency of a block device
    Block,
    /// Throughput of vsock streams, latency of a request
    Vsock,
    /// What each way to bring a page costs (without KVM)
    Mechanisms,
    /// Reading metadata, planning and mapping, by number of extents (without KVM)
    Plan,
    /// A missing page from a file, a pool and a pager (without KVM)
    Fetch,
    /// Reading from a memory node over TCP, by streams and bytes at once (without KVM)
    Pool,
    /// Time from process start to running vCPUs, by size of the guest and strategy
    Sizes,
    /// Memory of one more machine of a function, by where its read-only pages are
    Shared,
    /// All of these
    All,
}

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// How often.
    pub runs: usize,
    /// With less data each time: to see whether it works, rather than to compare.
    pub quick: bool,
}

impl Part {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Part::Start => "start",
            Part::Boot => "boot",
            Part::Api => "api",
            Part::Memory => "memory",
            Part::Offload => "offload",
            Part::Block => "block",
            Part::Vsock => "vsock",
            Part::Mechanisms => "mechanisms",
            Part::Plan => "plan",
            Part::Fetch => "fetch",
            Part::Pool => "pool",
            Part::Sizes => "sizes",
            Part::Shared => "shared",
            Part::All => "all",
        }
    }

    /// The parts that it consists of.
    pub fn each(self) -> Vec<Part> {
        match self {
            Part::All => {
                let parts = Part::value_variants().iter().copied();
                parts.filter(|part| *part != Part::All).collect()
            }
            one => vec![one],
        }
    }

    /// Measures it. Files of guests are made in `folder`.
    pub fn run(self, effort: Effort, folder: &Path, recorder: &mut Recorder) -> Result<()> {
        match self {
            Part::Start => start::run(effort, folder, recorder),
            Part::Boot => boot::run(effort, recorder),
            Part::Api => api::run(effort, folder, recorder),
            Part::Memory => memory::run(effort, folder, recorder),
            Part::Offload => offload::run(effort, folder, recorder),
            Part::Block => block::run(effort, folder, recorder),
            Part::Vsock => vsock::run(effort, recorder),
            Part::Mechanisms => mechanisms::run(effort, recorder),
            Part::Plan => plan::run(effort, folder, recorder),
            Part::Fetch => fetch::run(effort, folder, recorder),
            Part::Pool => pool::run(effort, recorder),
            Part::Sizes => sizes::run(effort, folder, recorder),
            Part::Shared => shared::run(effort, folder, recorder),
            Part::All => self.each().iter().try_for_each(|p| p.run(effort, folder, recorder)),
        }
    }
}

/// Nothing that is asked of a guest takes longer, even in the lab.
const LONGEST_ANSWER: Duration = Duration::from_secs(300);

/// A connection to the guest's agent that does not wait for ever if the guest hangs.
fn agent(vm: &mut Vm) -> Result<Client<UnixStream>> {
    let stream = vm.agent().into_inner();
    stream.set_read_timeout(Some(LONGEST_ANSWER))?;
    Ok(Client::new(stream))
}

/// Waits until the monitor reports that the agent is ready, without asking the guest: a request
/// would be part of what is measured. The machine must have a boot timer.
fn wait_until_ready(vm: &mut Vm) -> Result<()> {
    let deadline = Instant::now() + varve_tests::vm::PATIENCE;
    // The line may be seen before all of it is written.
    let told = |line: &str| line.contains("agent ready after") && line.ends_with(" ms");
    while !vm.stderr().lines().any(told) {
        let late = Instant::now() > deadline;
        if late || !vm.runs() {
            let what = if late { "the agent is not ready" } else { "the monitor ended early" };
            bail!("{what}\n{}\n{}", vm.stderr(), vm.console());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}
