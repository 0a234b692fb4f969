//! The command line: flags to a configuration, errors to exit codes.
//!
//! | exit code | meaning |
//! | --- | --- |
//! | 0 | the guest powered off or reset, or SIGINT, SIGTERM or SIGHUP ended the machine |
//! | 1 | the machine could not be started or the monitor failed |
//! | 2 | the command line is wrong |
//! | 3 | the guest crashed (kernel panic, or something that KVM cannot emulate) |
//! | 4 | KVM failed |
//! | 5 | a page of guest memory could not be had from its tier |

mod agent;
mod invoker;
mod keyval;
mod out;
mod pool;
mod restore;
mod run;
mod snapshot;

use std::process::ExitCode;
use std::time::Instant;

use clap::{Parser, Subcommand};

/// A microVM monitor: one process runs one Linux guest on KVM.
#[derive(Debug, Parser)]
#[command(name = "varve", version, about, propagate_version = true)]
#[command(after_help = "Exit codes: 0 the guest ended by itself or by a signal to varve, 1 varve \
                        failed, 2 wrong usage, 3 the guest crashed, 4 KVM failed, 5 guest \
                        memory is lost.")]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// How much to report on standard error: off, error, warn, info, debug, trace
    #[arg(long, global = true, default_value = "warn", value_name = "LEVEL", value_parser = level)]
    log_level: log::LevelFilter,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Boot a guest and run it until it ends
    #[command(after_help = run::EXAMPLES)]
    Run(Box<run::RunArgs>),
    /// Restore a guest from a snapshot and let it go on
    #[command(after_help = restore::EXAMPLES)]
    Restore(Box<restore::RestoreArgs>),
    /// Make snapshots and work on them
    #[command(subcommand)]
    Snapshot(snapshot::SnapshotCommand),
    /// Keep images in the memory of other hosts
    #[command(subcommand, after_help = pool::EXAMPLES)]
    Pool(pool::PoolCommand),
}

/// Parses the process's arguments, does what they say, and returns the exit code. `start` is when
/// the process began.
pub fn main(start: Instant) -> ExitCode {
    let cli = Cli::parse();
    crate::logger::init(cli.log_level);
    let result = match cli.command {
        Command::Run(args) => run::main(*args, start),
        Command::Restore(args) => restore::main(*args, start),
        Command::Snapshot(command) => snapshot::main(command),
        Command::Pool(command) => pool::main(command),
    };
    result.unwrap_or_else(|e| {
        eprintln!("varve: error: {}", crate::error::chain(&*e));
        ExitCode::from(1)
    })
}

fn level(text: &str) -> Result<log::LevelFilter, String> {
    text.parse().map_err(|_| "one of off, error, warn, info, debug and trace".into())
}
