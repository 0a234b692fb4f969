//! The command line of the `firecracker` binary, which varve takes when it is given no command.

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use varve_devices::boot_timer::INIT_REACHED;
use varve_snapshot::StateFile;

use super::out::outln;
use crate::api::MAX_BODY;
use crate::config::firecracker::{self, Resources};
use crate::config::{ConfigError, Console};
use crate::error::VmmError;
use crate::instance::{FIRECRACKER_VERSION, InstanceId};
use crate::monitor::Monitor;

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

    /// Configuration file of a machine, which is started at once
    #[arg(long, value_name = "FILE")]
    pub config_file: Option<PathBuf>,

    /// No API socket
    #[arg(long, requires = "config_file")]
    pub no_api: bool,

    /// Name of the machine: 1 to 64 letters, digits and hyphens
    #[arg(long, value_name = "ID", default_value_t)]
    pub id: InstanceId,

    /// File or pipe for log messages
    #[arg(long, value_name = "PATH")]
    pub log_path: Option<PathBuf>,

    /// Least severe level of log messages: Off, Error, Warning, Info, Debug, Trace
    #[arg(long, value_name = "LEVEL")]
    pub level: Option<String>,

    /// Write the level into each log message
    #[arg(long)]
    pub show_level: bool,

    /// Write the place in the source into each log message
    #[arg(long)]
    pub show_log_origin: bool,

    /// Only log messages of this module
    #[arg(long, value_name = "PATH")]
    pub module: Option<String>,

    /// File or pipe for metrics
    #[arg(long, value_name = "PATH")]
    pub metrics_path: Option<PathBuf>,

    /// JSON file with the contents of the metadata service
    #[arg(long, value_name = "FILE")]
    pub metadata: Option<PathBuf>,

    /// Give the guest a boot timer, and log how long its init took to start
    #[arg(long)]
    pub boot_timer: bool,

    /// When the process was started: microseconds since 1970
    #[arg(long, value_name = "MICROSECONDS")]
    pub start_time_us: Option<u64>,

    /// CPU time of the process when it was started, in microseconds
    #[arg(long, value_name = "MICROSECONDS")]
    pub start_time_cpu_us: Option<u64>,

    /// CPU time of the parent process, in microseconds
    #[arg(long, value_name = "MICROSECONDS")]
    pub parent_cpu_time_us: Option<u64>,

    /// File with seccomp filters of one's own
    #[arg(long, value_name = "FILE", conflicts_with = "no_seccomp")]
    pub seccomp_filter: Option<PathBuf>,

    /// No seccomp filters
    #[arg(long)]
    pub no_seccomp: bool,

    /// Longest body of an API request, in bytes
    #[arg(long, value_name = "BYTES", default_value_t = MAX_BODY)]
    pub http_api_max_payload_size: usize,

    /// Largest contents of the metadata service, in bytes [default: that of API requests]
    #[arg(long, value_name = "BYTES")]
    pub mmds_size_limit: Option<usize>,

    /// Print the version of the snapshot format
    #[arg(long)]
    pub snapshot_version: bool,

    /// Print the format version of a snapshot's state file
    #[arg(long, value_name = "FILE")]
    pub describe_snapshot: Option<PathBuf>,

    /// Print which Firecracker this stands in for, and varve's own version
    #[arg(long, short = 'V')]
    pub version: bool,

    /// Put devices on a PCI bus: not supported
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
    if let Some(level) = &args.level
        && !set_level(level)
    {
        let levels = "Off, Error, Warning, Info, Debug and Trace";
        eprintln!("varve: error: '--level {level}': not a level; {levels} are");
        return Ok(ExitCode::from(WRONG_SETTING));
    }
    run(&args, start)
}

fn run(args: &FirecrackerArgs, start: Instant) -> Result<ExitCode, Box<dyn Error>> {
    let mut monitor = Monitor::new(args.id.clone(), start, Arc::new(report_boot_time))?;
    let mut resources = Resources { boot_timer: args.boot_timer, ..Resources::default() };
    resources.console = Console::Stdio;
    if !args.no_api {
        monitor.listen(&args.api_sock, args.http_api_max_payload_size)?;
    }
    match &args.config_file {
        None => monitor.set_defaults(resources),
        Some(path) => {
            firecracker::read(path, &mut resources)?;
            let missing = || ConfigError::field("boot-source", "missing");
            let config = resources.to_config().ok_or_else(missing).map_err(VmmError::from)?;
            monitor.boot(config, start)?;
        }
    }
    let end = monitor.run(|_| Ok(()))?;
    drop(monitor);
    eprintln!("varve: {end}");
    Ok(ExitCode::from(end.exit_code()))
}

impl FirecrackerArgs {
    /// The first flag that means something this build cannot do.
    fn unsupported(&self) -> Option<&'static str> {
        let given = [
            ("--enable-pci", self.enable_pci),
            ("--log-path", self.log_path.is_some()),
            ("--show-level", self.show_level),
            ("--show-log-origin", self.show_log_origin),
            ("--module", self.module.is_some()),
            ("--metrics-path", self.metrics_path.is_some()),
            ("--metadata", self.metadata.is_some()),
            ("--mmds-size-limit", self.mmds_size_limit.is_some()),
            ("--seccomp-filter", self.seccomp_filter.is_some()),
        ];
        given.into_iter().find(|(_, given)| *given).map(|(flag, _)| flag)
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

fn set_level(text: &str) -> bool {
    let level = match text.to_ascii_lowercase().as_str() {
        "warning" => Some(log::LevelFilter::Warn),
        other => other.parse().ok(),
    };
    level.map(log::set_max_level).is_some()
}

/// One line as Firecracker logs it. The CPU time is the process's, from its beginning.
fn report_boot_time(mark: u8, time: Duration) {
    if mark == INIT_REACHED {
        log::info!("Guest-boot-time = {:>6} us {} ms", time.as_micros(), time.as_millis());
    }
}
