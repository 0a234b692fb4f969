//! `varve pool serve`: a memory node, until a signal ends it.

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;

use clap::Args;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use varve_pool::{Keys, Node, NodeConfig};

use crate::config::parse_size;

/// Options of `varve pool serve`.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// Address to listen at; port 0 picks a free port
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:7421")]
    listen: String,

    /// File of tenants and keys: lines of a name and 64 hexadecimal digits, readable only by its
    /// owner
    #[arg(long, value_name = "FILE")]
    keys: PathBuf,

    /// Memory limit for images
    #[arg(long, value_name = "SIZE", value_parser = parse_size, default_value = "1G")]
    memory: u64,

    /// Memory limit per tenant [default: --memory divided by the number of tenants]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    tenant_memory: Option<u64>,

    /// Folder that keeps images across restarts [default: memory only]
    #[arg(long, value_name = "DIR")]
    store: Option<PathBuf>,
}

/// Serves until SIGINT, SIGTERM or SIGHUP.
pub fn main(args: &ServeArgs) -> Result<ExitCode, Box<dyn Error>> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
    let node = Node::start(NodeConfig {
        listen: args.listen.clone(),
        keys: Keys::read(&args.keys)?,
        limit: args.memory,
        tenant_limit: args.tenant_memory,
        store: args.store.clone(),
    })?;
    let stop = node.stop()?;
    thread::Builder::new().name("signals".into()).spawn(move || {
        signals.forever().next();
        stop.stop();
    })?;
    // Scripts wait for this line, and read the port from it.
    eprintln!("varve: pool node listens at {}", node.address()?);
    node.run();
    Ok(ExitCode::SUCCESS)
}
