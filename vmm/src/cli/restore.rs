//! `varve restore`: a machine from a snapshot.

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use clap::Args;
use varve_memory_tiers::{Policy, Strategy};

use super::run::parse_console;
use crate::config::Console;
use crate::monitor::Monitor;
use crate::snapshot::restore::{Overrides, restore};

/// Options of `varve restore`.
#[derive(Debug, Args)]
pub struct RestoreArgs {
    /// Folder of the snapshot
    snapshot: PathBuf,

    /// How memory comes back: lazy, eager, reap, faasnap, tiered, template or auto
    #[arg(long, value_name = "NAME", default_value_t = Strategy::Auto)]
    strategy: Strategy,

    /// Another unix socket for the machine's vsock
    #[arg(long, value_name = "PATH")]
    vsock: Option<PathBuf>,

    /// Another image for the drive ID (repeat for more)
    #[arg(long = "drive", value_name = "ID=FILE", value_parser = parse_pair)]
    drives: Vec<(String, String)>,

    /// Another tap device for the network interface ID (repeat for more)
    #[arg(long = "net", value_name = "ID=TAP", value_parser = parse_pair)]
    nets: Vec<(String, String)>,

    /// Serial console: stdio, file=PATH (output only) or off
    #[arg(long, value_name = "WHERE", value_parser = parse_console, default_value = "stdio")]
    console: Console,

    /// Unix socket for control requests (pause, resume, snapshot), with Firecracker's paths
    #[arg(long, value_name = "PATH")]
    api_sock: Option<PathBuf>,

    /// Do not let the guest run until a control request says so
    #[arg(long, requires = "api_sock")]
    paused: bool,
}

/// Restores the guest and waits for its end.
pub fn main(args: RestoreArgs, start: Instant) -> Result<ExitCode, Box<dyn Error>> {
    let mut monitor = Monitor::new(start, Arc::new(|_, _| {}))?;
    if let Some(path) = &args.api_sock {
        monitor.listen(path)?;
    }
    let overrides = Overrides {
        vsock: args.vsock,
        drives: args.drives.into_iter().map(|(id, path)| (id, path.into())).collect(),
        nets: args.nets,
        console: args.console,
    };
    let policy = Policy::new(args.strategy);
    restore(&mut monitor, &args.snapshot, &policy, overrides)?;
    if !args.paused {
        monitor.resume()?;
    }
    let end = monitor.run(|_| Ok(()))?;
    drop(monitor);
    eprintln!("varve: {end}");
    Ok(ExitCode::from(end.exit_code()))
}

fn parse_pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((id, value)) if !id.is_empty() && !value.is_empty() => Ok((id.into(), value.into())),
        _ => Err("write ID=VALUE".into()),
    }
}
