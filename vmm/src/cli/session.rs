//! What a restored machine does in this process: options of `varve restore` and `varve snapshot
//! record` that are about the session and not about memory, calls of functions, and the report.

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use rustix::time::ClockId;
use serde::Serialize;
use varve_memory_tiers::{Census, Counters};

use super::agent::Invocation;
use super::invoker::{Invoked, Invoker};
use super::observe::ObserveArgs;
use super::run::parse_console;
use super::seccomp::SeccompArgs;
use crate::api;
use crate::cli::out::outln;
use crate::config::{Console, MAX_BODY};
use crate::end::End;
use crate::error::{VmmError, chain};
use crate::faults::{CpuTime, VcpuFaults, nanos};
use crate::instance::InstanceId;
use crate::monitor::Monitor;
use crate::seccomp::Tasks;
use crate::snapshot::restore::{Overrides, Wanted};
use crate::stdio::last_words;

/// Options about the session.
#[derive(Debug, Args)]
pub struct SessionArgs {
    /// Call 'FUNCTION SEED [JSON]' of the guest's agent, then end (repeatable)
    #[arg(long = "invoke", value_name = "CALL", value_parser = Invocation::parse)]
    pub calls: Vec<Invocation>,

    /// Print times, answers and counters as JSON at the end
    #[arg(long)]
    json: bool,

    /// Other unix socket for the vsock device
    #[arg(long, value_name = "PATH")]
    vsock: Option<PathBuf>,

    /// Other image for a drive (repeatable)
    #[arg(long = "drive", value_name = "ID=FILE", value_parser = parse_pair)]
    drives: Vec<(String, String)>,

    /// Other tap for a network interface (repeatable)
    #[arg(long = "net", value_name = "ID=TAP", value_parser = parse_pair)]
    nets: Vec<(String, String)>,

    /// Serial console: stdio, file=PATH or off [default: stdio]
    #[arg(long, value_name = "WHERE", value_parser = parse_console)]
    console: Option<Console>,

    /// Unix socket of the API, with Firecracker's paths
    #[arg(long, value_name = "PATH")]
    api_sock: Option<PathBuf>,

    /// Keep the guest paused until an API request resumes it
    #[arg(long, requires = "api_sock", conflicts_with = "calls")]
    paused: bool,

    #[command(flatten)]
    seccomp: SeccompArgs,

    #[command(flatten)]
    observe: ObserveArgs,
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Report {
    /// The method that was used, never `auto`; or `record`.
    strategy: &'static str,
    /// Milliseconds from the process's start until the vCPUs ran.
    resumed_ms: f64,
    /// Milliseconds from the process's start to the first answer.
    first_answer_ms: Option<f64>,
    invocations: Vec<Invoked>,
    /// Pages that a recording saw touched, and among them written.
    recorded: Option<(u64, u64)>,
    counters: Option<Counters>,
    census: Option<Census>,
    vcpu_faults: VcpuFaults,
    cpu: CpuTime,
    /// Whether the guest read its clock without system calls.
    clock_is_stable: bool,
    /// When the process began to work, by the host's CLOCK_MONOTONIC, in nanoseconds: whoever started it
    /// tells from this what came before.
    began_ns: u64,
    end: String,
}

impl SessionArgs {
    /// What belongs to this host.
    pub fn overrides(&self) -> Overrides {
        let quiet = self.json || !self.calls.is_empty();
        let console = if quiet { Console::Off } else { Console::Stdio };
        Overrides {
            vsock: self.vsock.clone(),
            drives: self.drives.iter().map(|(id, path)| (id.clone(), path.into())).collect(),
            nets: self.nets.clone(),
            console: self.console.clone().unwrap_or(console),
            console_limiter: None,
        }
    }
}

/// Restores the guest, lets it answer the calls, waits for its end and reports.
pub fn run(args: &SessionArgs, wanted: Wanted, start: Instant) -> Result<ExitCode, Box<dyn Error>> {
    let api = args.api_sock.is_some();
    let pool = wanted.choices.pool_keys.is_some();
    args.seccomp.enter(Tasks { api, saves: api || wanted.record.is_some(), pool })?;
    let mut monitor = Monitor::new(InstanceId::default(), start, Arc::new(|_, _| {}))?;
    args.observe.observe()?.begin(monitor.id(), monitor.metrics())?;
    if let Some(path) = &args.api_sock {
        api::listen(&mut monitor, path, MAX_BODY)?;
    }
    monitor.restore(wanted)?;
    if !args.paused {
        monitor.resume()?;
    }
    let resumed = start.elapsed();
    let invoker = start_calls(&mut monitor, args.calls.clone(), start)?;

    let mut invoked = Vec::new();
    let mut failed = None;
    let end = monitor.run(|monitor| {
        if let Some(outcome) = invoker.as_ref().and_then(|i| i.take()) {
            match outcome {
                Ok(answers) => invoked = answers,
                Err(error) => failed = Some(error),
            }
            monitor.end().announce(End::Done);
        }
        Ok(())
    })?;
    if let Some(error) = failed {
        return Err(error.into());
    }
    monitor.pause()?;
    let recorded = monitor.save_trace()?;
    let report = report(&monitor, start, resumed, invoked, recorded, &end)?;
    drop(monitor);
    if args.json {
        outln!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        for call in &report.invocations {
            let Invoked { function, seed, checksum, took_ms, answered_at_ms, .. } = call;
            outln!(
                "{function} {seed}: {checksum} in {took_ms:.1} ms, {answered_at_ms:.1} ms after \
                 the process started"
            );
        }
        last_words(&format!("varve: {end}"));
    }
    Ok(ExitCode::from(end.exit_code()))
}

fn start_calls(
    monitor: &mut Monitor,
    calls: Vec<Invocation>,
    start: Instant,
) -> Result<Option<Arc<Invoker>>, Box<dyn Error>> {
    if calls.is_empty() {
        return Ok(None);
    }
    let vsock = monitor.config()?.vsock.as_ref();
    let uds = vsock.ok_or("--invoke: the snapshot's machine has no vsock")?.uds_path.clone();
    let recording = monitor.machine()?.restored().and_then(|r| r.recording()).cloned();
    let mark = move |call: &Invocation| match &recording {
        Some(recording) => {
            let label = format!("{} {}", call.function, call.seed);
            recording.mark(&label).map_err(|e| chain(&e))
        }
        None => Ok(()),
    };
    let invoker = Invoker::start(uds, calls, start, mark)?;
    monitor.subscribe(invoker.clone());
    Ok(Some(invoker))
}

/// Figures are taken with the guest standing still.
fn report(
    monitor: &Monitor,
    start: Instant,
    resumed: Duration,
    invocations: Vec<Invoked>,
    recorded: Option<(u64, u64)>,
    end: &End,
) -> Result<Report, Box<dyn Error>> {
    let restored = monitor.machine()?.restored().ok_or(VmmError::NoMachine)?;
    let planned = restored.planned();
    let vcpu_faults = monitor.machine()?.vcpu_faults()?;
    Ok(Report {
        strategy: restored.method(),
        resumed_ms: resumed.as_secs_f64() * 1e3,
        first_answer_ms: invocations.first().map(|i| i.answered_at_ms),
        invocations,
        recorded,
        counters: planned.map(|r| r.counters()),
        census: planned.and_then(|r| r.census().ok()),
        cpu: CpuTime::now(&vcpu_faults),
        vcpu_faults,
        clock_is_stable: monitor.machine()?.clock_is_stable()?,
        began_ns: nanos(ClockId::Monotonic).saturating_sub(start.elapsed().as_nanos() as u64),
        end: end.to_string(),
    })
}

fn parse_pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((id, value)) if !id.is_empty() && !value.is_empty() => Ok((id.into(), value.into())),
        _ => Err("write ID=VALUE".into()),
    }
}
