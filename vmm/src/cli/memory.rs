//! `varve memory`: what becomes of a running machine's memory.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::out::{human, outln};
use crate::api::client;

/// Shown below the commands.
pub const EXAMPLES: &str = "\
Examples:
  Offload pages that were idle for two seconds to two of three nodes each (start the machine with
  --allow-pool; nodes: varve pool --help):
    varve memory offload --api-sock vm.sock --to 10.0.0.1:7421,10.0.0.2:7421,10.0.0.3:7421 \\
                 --copies 2 --keys pool.keys --idle-ms 2000

  Recall all of them, before nodes go away or a call that must not wait:
    varve memory recall --api-sock vm.sock

  Show how many are out, and how many came back:
    varve memory show --api-sock vm.sock";

/// Between two looks at what is under way.
const PERIOD: Duration = Duration::from_millis(50);
/// Bytes of a page.
const PAGE: u64 = 4096;

/// What to do with a machine's memory.
#[derive(Debug, Subcommand)]
pub enum MemoryCommand {
    /// Offload idle pages to other hosts; a touch brings them back
    Offload(OffloadArgs),
    /// Recall all offloaded pages
    Recall(RecallArgs),
    /// Show the number of offloaded pages, and the state of the last offload
    Show(MachineArgs),
}

/// Which machine is meant, and how it is told of.
#[derive(Debug, Args)]
pub struct MachineArgs {
    /// Control socket of the machine (its --api-sock)
    #[arg(long, value_name = "PATH")]
    api_sock: PathBuf,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Options of `varve memory offload`.
#[derive(Debug, Args)]
pub struct OffloadArgs {
    #[command(flatten)]
    machine: MachineArgs,

    /// Nodes, separated by commas; IP addresses, not host names
    #[arg(long, value_name = "ADDRESS:PORT,…", value_delimiter = ',', required = true)]
    to: Vec<String>,

    /// Number of nodes that keep each page; with 1, losing the node ends the machine
    #[arg(long, value_name = "N", default_value_t = 1)]
    copies: u32,

    /// File with the tenant's key
    #[arg(long, value_name = "FILE")]
    keys: PathBuf,

    /// The tenant, if the file has keys of several
    #[arg(long, value_name = "NAME")]
    tenant: Option<String>,

    /// Transport: RDMA where both sides have it (auto), tcp or rdma
    #[arg(long, value_name = "auto|tcp|rdma", default_value = "auto")]
    transport: String,

    /// Time without a touch, in ms, after which a page is idle
    #[arg(long, value_name = "MS", default_value_t = 1000)]
    idle_ms: u32,

    /// Limit of offloaded memory, in MiB [default: none]
    #[arg(long, value_name = "MIB")]
    max_mib: Option<u32>,

    /// Return before the offload is done
    #[arg(long)]
    no_wait: bool,
}

/// Options of `varve memory recall`.
#[derive(Debug, Args)]
pub struct RecallArgs {
    #[command(flatten)]
    machine: MachineArgs,

    /// Do not wait until it is done
    #[arg(long)]
    no_wait: bool,
}

/// Carries the command out.
pub fn main(command: MemoryCommand) -> Result<ExitCode, Box<dyn Error>> {
    match command {
        MemoryCommand::Offload(args) => {
            let body = json!({
                "to": args.to,
                "copies": args.copies,
                // The machine has its own idea of relative paths.
                "keys": std::path::absolute(&args.keys)?,
                "tenant": args.tenant,
                "transport": args.transport,
                "idle_ms": args.idle_ms,
                "max_mib": args.max_mib,
            });
            client::request(&args.machine.api_sock, "PUT", "/memory/offload", &body)?;
            finish(&args.machine, !args.no_wait)
        }
        MemoryCommand::Recall(args) => {
            client::request(&args.machine.api_sock, "PUT", "/memory/recall", &Value::Null)?;
            finish(&args.machine, !args.no_wait)
        }
        MemoryCommand::Show(machine) => {
            show(&machine, &report(&machine.api_sock)?)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn report(api_sock: &Path) -> Result<Value, Box<dyn Error>> {
    Ok(client::request(api_sock, "GET", "/memory/offload", &Value::Null)?)
}

/// Waits until it is done, and shows what became of it.
fn finish(machine: &MachineArgs, wait: bool) -> Result<ExitCode, Box<dyn Error>> {
    let mut now = report(&machine.api_sock)?;
    while wait && now["phase"] != "idle" {
        std::thread::sleep(PERIOD);
        now = report(&machine.api_sock)?;
    }
    show(machine, &now)?;
    match now["error"].as_str() {
        Some(error) if wait => Err(error.into()),
        _ => Ok(ExitCode::SUCCESS),
    }
}

fn show(machine: &MachineArgs, report: &Value) -> Result<(), Box<dyn Error>> {
    if machine.json {
        outln!("{}", serde_json::to_string_pretty(report)?);
        return Ok(());
    }
    let pages = |name: &str| report[name].as_u64().unwrap_or_default();
    let size = |name: &str| human(pages(name) * PAGE);
    outln!(
        "{}: {} out, {} set aside; of {} taken out {} were sent and {} touched before",
        report["phase"].as_str().unwrap_or("unknown"),
        size("out"),
        size("set_aside"),
        size("taken"),
        size("sent"),
        size("touched")
    );
    outln!(
        "{} came back by {} faults, {} recalled, {} given back by the guest, {} refused by nodes",
        size("fetched"),
        pages("faults"),
        size("recalled"),
        size("discarded"),
        size("refused")
    );
    Ok(())
}
