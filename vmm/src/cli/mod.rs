//! The command line: flags to a configuration, errors to exit codes.
//!
//! Without a command, varve takes the place of the `firecracker` binary (`firecracker`).
//!
//! | exit code | meaning |
//! | --- | --- |
//! | 0 | the guest powered off or reset, or SIGINT or SIGTERM ended the machine |
//! | 1 | the machine could not be started or the monitor failed |
//! | 2 | the command line is wrong |
//! | 3 | the guest crashed (kernel panic, or something that KVM cannot emulate) |
//! | 4 | KVM failed |
//! | 5 | a page of guest memory could not be had from its tier |
//! | 148 | a thread made a system call that its seccomp filter forbids, as Firecracker's |
//! | 149, 150, 151, 154, 156, 157 | SIGBUS, SIGSEGV, SIGXFSZ, SIGXCPU, SIGHUP, SIGILL, as Firecracker's |
//! | 152 | without a command: a setting that cannot be, as Firecracker's |
//! | 153 | without a command: the command line is wrong, as Firecracker's |

mod agent;
mod firecracker;
mod invoker;
mod keyval;
mod memory;
mod metrics;
mod observe;
mod out;
mod pager;
mod pool;
mod restore;
mod run;
mod seccomp;
mod session;
mod snapshot;
mod tier;
mod trace;

use std::process::ExitCode;
use std::time::Instant;

use clap::parser::ValueSource;
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::stdio::last_words;
use firecracker::FirecrackerArgs;

/// A microVM monitor: one process runs one Linux guest on KVM.
///
/// Without a command it replaces the firecracker binary: API requests or a configuration file
/// describe and start the machine.
#[derive(Debug, Parser)]
#[command(name = "varve", disable_version_flag = true)]
#[command(override_usage = "varve [OPTIONS] COMMAND\n       varve [FIRECRACKER'S OPTIONS]")]
#[command(after_help = "Exit codes: 0 the guest ended by itself or by a signal to varve, 1 varve \
                        failed, 2 wrong usage, 3 the guest crashed, 4 KVM failed, 5 guest \
                        memory is lost, 148 a forbidden system call, 149 to 157 other signals (docs/firecracker.md). Without a command: 152 a setting that cannot be, 153 \
                        wrong usage.")]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    /// Messages on standard error: off, error, warn, info, debug or trace
    #[arg(long, global = true, default_value = "warn", value_name = "LEVEL", value_parser = level)]
    log_level: log::LevelFilter,
    #[command(flatten)]
    firecracker: FirecrackerArgs,
}

// Each process pays for options that are made: only those of the command that is given are.
#[derive(Debug, Subcommand)]
#[command(defer = true)]
enum Command {
    /// Boot a guest and run it until it ends
    #[command(after_help = run::EXAMPLES)]
    Run(Box<run::RunArgs>),
    /// Restore a guest from a snapshot and resume it
    #[command(after_help = restore::EXAMPLES)]
    Restore(Box<restore::RestoreArgs>),
    /// Create, record, tier, check and merge snapshots
    #[command(subcommand)]
    Snapshot(snapshot::SnapshotCommand),
    /// Analyse recorded traces
    #[command(subcommand)]
    Trace(trace::TraceCommand),
    /// Print a machine's counters in Prometheus' text format
    #[command(after_help = metrics::EXAMPLES)]
    Metrics(metrics::MetricsArgs),
    /// Serve page faults of other processes' machines (Firecracker's UFFD protocol)
    #[command(after_help = pager::EXAMPLES)]
    Pager(pager::PagerArgs),
    /// Serve and use a pool: snapshot images in the memory of other hosts
    #[command(subcommand, after_help = pool::EXAMPLES)]
    Pool(pool::PoolCommand),
    /// Manage images in memory that machines and hosts share
    #[command(subcommand, after_help = tier::EXAMPLES)]
    Tier(tier::TierCommand),
    /// Offload idle pages of a running machine to other hosts
    #[command(subcommand, after_help = memory::EXAMPLES)]
    Memory(memory::MemoryCommand),
}

/// Parses the process's arguments, does what they say, and returns the exit code. `start` is when
/// the process began.
pub fn main(start: Instant) -> ExitCode {
    let cli = match parse() {
        Ok(cli) => cli,
        Err(e) => {
            let _ = e.print();
            return if e.use_stderr() { usage_code() } else { ExitCode::SUCCESS };
        }
    };
    crate::logger::init(cli.log_level);
    say_panics();
    let result = match cli.command {
        Some(Command::Run(args)) => run::main(*args, start),
        Some(Command::Restore(args)) => restore::main(*args, start),
        Some(Command::Snapshot(command)) => snapshot::main(command, start),
        Some(Command::Trace(command)) => trace::main(command),
        Some(Command::Metrics(args)) => metrics::main(args),
        Some(Command::Pager(args)) => pager::main(&args),
        Some(Command::Pool(command)) => pool::main(command),
        Some(Command::Tier(command)) => tier::main(command),
        Some(Command::Memory(command)) => memory::main(command),
        None => firecracker::main(cli.firecracker, start),
    };
    result.unwrap_or_else(|e| {
        let error = crate::error::chain(&*e);
        last_words(&format!("varve: error: {error}"));
        // Whoever started the process in the background sees nothing but the log.
        if crate::logger::is_configured() {
            log::error!("varve ends with an error: {error}");
        }
        ExitCode::from(1)
    })
}

/// A panic is said on standard error without waiting for room there, so that it ends the process.
fn say_panics() {
    std::panic::set_hook(Box::new(|info| {
        let backtrace = std::backtrace::Backtrace::capture();
        let backtrace = match backtrace.status() {
            std::backtrace::BacktraceStatus::Captured => format!("\n{backtrace}"),
            _ => String::new(),
        };
        let thread = std::thread::current();
        let name = thread.name().unwrap_or("-");
        last_words(&format!("varve: thread {name:?}: {info}{backtrace}"));
    }));
}

fn parse() -> Result<Cli, clap::Error> {
    let mut command = Cli::command();
    let matches = command.try_get_matches_from_mut(std::env::args_os())?;
    if let Some(name) = matches.subcommand_name() {
        // Firecracker's options belong to no command, but a jailer puts its own in front of any.
        let jailers = ["id", "start_time_us", "start_time_cpu_us", "parent_cpu_time_us"];
        let flags = FirecrackerArgs::augment_args(clap::Command::new("firecracker"));
        let given = |id: &str| matches.value_source(id) == Some(ValueSource::CommandLine);
        let wrong = |id: &str| given(id) && !jailers.contains(&id);
        if let Some(flag) = flags.get_arguments().find(|flag| wrong(flag.get_id().as_str())) {
            let flag = flag.get_long().unwrap_or_default();
            let message = format!("'--{flag}' in front of '{name}' has no meaning");
            return Err(command.error(clap::error::ErrorKind::ArgumentConflict, message));
        }
    }
    Cli::from_arg_matches(&matches)
}

/// Exit code for a command line that is wrong: Firecracker's for a command line like Firecracker's.
fn usage_code() -> ExitCode {
    let first = std::env::args().nth(1).unwrap_or_default();
    let ours = !first.starts_with('-') || first.starts_with("--log-level");
    ExitCode::from(if ours { 2 } else { firecracker::WRONG_USAGE })
}

fn level(text: &str) -> Result<log::LevelFilter, String> {
    text.parse().map_err(|_| "one of off, error, warn, info, debug and trace".into())
}
