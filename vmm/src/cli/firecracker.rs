//! The command line of the `firecracker` binary, which varve takes when it is given no command.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use rustix::time::ClockId;
use varve_devices::boot_timer::{AGENT_READY, INIT_REACHED};
use varve_devices::mmds::StoreError;
use varve_snapshot::StateFile;

use super::observe::ObserveArgs;
use super::out::outln;
use super::seccomp::SeccompArgs;
use crate::api;
use crate::config::MAX_BODY;
use crate::config::firecracker::{self, Resources};
use crate::config::{ConfigError, Console};
use crate::error::VmmError;
use crate::faults::nanos;
use crate::instance::{FIRECRACKER_VERSION, InstanceId};
use crate::metrics;
use crate::monitor::Monitor;
use crate::observe::Observe;
use crate::seccomp::Tasks;
use crate::stdio::last_words;

/// Exit code for a command line that is wrong.
pub const WRONG_USAGE: u8 = 153;
/// Exit code for a setting that cannot be.
const WRONG_SETTING: u8 = 152;

/// Firecracker's options.
#[derive(Debug, Args)]
#[command(next_help_heading = "Firecracker's options")]
pub struct FirecrackerArgs {
    /// Unix socket of the API
    #[arg(long, value_name = "PATH", default_value = "/run/firecracker.socket")]
    pub api_sock: PathBuf,

    /// Configuration file; the machine starts at once
    #[arg(long, value_name = "FILE")]
    pub config_file: Option<PathBuf>,

    /// No API socket
    #[arg(long, requires = "config_file")]
    pub no_api: bool,

    /// Name of the machine: 1 to 64 letters, digits and hyphens
    #[arg(long, value_name = "ID", default_value_t)]
    pub id: InstanceId,

    /// Log and metrics
    #[command(flatten)]
    pub observe: ObserveArgs,

    /// JSON file with the contents of the metadata service
    #[arg(long, value_name = "FILE")]
    pub metadata: Option<PathBuf>,

    /// Add a boot timer, and log when the guest's init starts
    #[arg(long)]
    pub boot_timer: bool,

    /// Start time of the process, in microseconds of CLOCK_MONOTONIC
    #[arg(long, value_name = "MICROSECONDS")]
    pub start_time_us: Option<u64>,

    /// CPU time of the process at its start, in microseconds
    #[arg(long, value_name = "MICROSECONDS")]
    pub start_time_cpu_us: Option<u64>,

    /// CPU time of the parent process, in microseconds
    #[arg(long, value_name = "MICROSECONDS")]
    pub parent_cpu_time_us: Option<u64>,

    #[command(flatten)]
    pub seccomp: SeccompArgs,

    /// Limit of an API request's body, in bytes
    #[arg(long, value_name = "BYTES", default_value_t = MAX_BODY)]
    pub http_api_max_payload_size: usize,

    /// Limit of the metadata service's data, in bytes [default: that of API requests]
    #[arg(long, value_name = "BYTES")]
    pub mmds_size_limit: Option<usize>,

    /// Print the version of the snapshot format
    #[arg(long)]
    pub snapshot_version: bool,

    /// Print the format version of a snapshot's state file
    #[arg(long, value_name = "FILE")]
    pub describe_snapshot: Option<PathBuf>,

    /// Print the Firecracker version that varve replaces, and varve's own
    #[arg(long, short = 'V')]
    pub version: bool,

    /// PCI bus: not supported
    #[arg(long)]
    pub enable_pci: bool,
}

/// Does what Firecracker does with these options.
pub fn main(args: FirecrackerArgs, start: Instant) -> Result<ExitCode, Box<dyn Error>> {
    if args.version {
        print_version();
        return Ok(ExitCode::SUCCESS);
    }
    if args.snapshot_version {
        print_format(StateFile::VERSION);
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(path) = &args.describe_snapshot {
        print_format(StateFile::version_of(path)?);
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(flag) = args.unsupported() {
        eprintln!("varve: error: '{flag}' is not supported by this version of varve; remove it");
        return Ok(ExitCode::from(WRONG_USAGE));
    }
    match args.observe.observe() {
        Ok(observe) => run(&args, observe, start),
        Err(e) => {
            let level = args.observe.level.as_deref().unwrap_or_default();
            eprintln!("varve: error: '--level {level}': {e}");
            Ok(ExitCode::from(WRONG_SETTING))
        }
    }
}

fn run(
    args: &FirecrackerArgs,
    observe: Observe,
    start: Instant,
) -> Result<ExitCode, Box<dyn Error>> {
    let api = !args.no_api;
    args.seccomp.enter(Tasks { api, saves: api, pool: false })?;
    let mut monitor = Monitor::new(args.id.clone(), start, Arc::new(report_boot_time))?;
    observe.begin(monitor.id(), monitor.metrics())?;
    let mut resources = Resources { boot_timer: args.boot_timer, ..Resources::default() };
    resources.console = Console::Stdio;
    if !args.no_api {
        api::listen(&mut monitor, &args.api_sock, args.http_api_max_payload_size)?;
    }
    args.report_start(&monitor.metrics().api_server);
    let limit = args.mmds_size_limit.unwrap_or(args.http_api_max_payload_size);
    monitor.mmds().set_limit(limit);
    if let Some(path) = &args.metadata {
        put_metadata(&monitor, path)?;
    }
    match &args.config_file {
        None => monitor.set_defaults(resources),
        Some(path) => {
            firecracker::read(path, &mut resources)?.begin(monitor.id(), monitor.metrics())?;
            let missing = || ConfigError::field("boot-source", "missing");
            let config = resources.to_config().ok_or_else(missing).map_err(VmmError::from)?;
            monitor.boot(config, start)?;
        }
    }
    let end = monitor.run(|_| Ok(()))?;
    monitor.save_trace()?;
    drop(monitor);
    last_words(&format!("varve: {end}"));
    Ok(ExitCode::from(end.exit_code()))
}

/// Gives the metadata service what the file at `path` says.
fn put_metadata(monitor: &Monitor, path: &Path) -> Result<(), ConfigError> {
    let bad =
        |e: &dyn std::fmt::Display| ConfigError::field("--metadata", format!("{path:?}: {e}"));
    let text = firecracker::text_of(path).map_err(|e| bad(&e))?;
    let document = serde_json::from_str(&text).map_err(|e| bad(&e))?;
    monitor.mmds().put(document).map_err(|e| match e {
        StoreError::TooLong => bad(&"more than --mmds-size-limit allows"),
        e => bad(&e),
    })
}

impl FirecrackerArgs {
    /// The first flag that means something this build cannot do.
    fn unsupported(&self) -> Option<&'static str> {
        let given = [("--enable-pci", self.enable_pci)];
        given.into_iter().find(|(_, given)| *given).map(|(flag, _)| flag)
    }

    /// How long it took until now, if whoever started the process said when that was.
    fn report_start(&self, metrics: &metrics::ApiServer) {
        let micros = |clock| nanos(clock) / 1000;
        if let Some(start) = self.start_time_us {
            let took = micros(ClockId::Monotonic).saturating_sub(start);
            metrics.process_startup_time_us.set(took);
        }
        if let Some(start) = self.start_time_cpu_us {
            let took = micros(ClockId::ProcessCPUTime).saturating_sub(start);
            let parent = self.parent_cpu_time_us.unwrap_or(0);
            metrics.process_startup_time_cpu_us.set(took.saturating_add(parent));
        }
    }
}

/// Tools such as Kata Containers read the first line, of two words, and compare the number; the rest
/// is for people.
fn print_version() {
    outln!(
        "Firecracker v{FIRECRACKER_VERSION}\n\nvarve {}, which takes Firecracker's place: the line above names the release whose \
         interface it speaks.",
        env!("CARGO_PKG_VERSION")
    );
}

/// As Firecracker prints it, with a third number that never counts.
fn print_format((major, minor): (u16, u16)) {
    outln!("v{major}.{minor}.0");
}

/// One line as Firecracker logs it. The CPU time is the process's, from its beginning.
fn report_boot_time(mark: u8, time: Duration) {
    match mark {
        INIT_REACHED => {
            log::info!("Guest-boot-time = {:>6} us {} ms", time.as_micros(), time.as_millis());
        }
        AGENT_READY => log::info!("the guest's agent is ready after {time:.3?}"),
        _ => {}
    }
}
