//! `varve-demo`: shows the whole life of a function, and compares the restore strategies.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, ensure};
use clap::Parser;
use varve_benches::demo::columns::Row;
use varve_benches::demo::life::{Options, live};
use varve_benches::demo::{QUICK_STRATEGIES, STRATEGIES, boot, page};
use varve_benches::environment;
use varve_benches::report::{Host, save};
use varve_tests::images::root;

/// Shows the whole life of a function on this machine's KVM, or in the lab
#[derive(Debug, Parser)]
#[command(name = "varve-demo", version)]
#[command(after_help = "\
Images come from 'make images'; the monitor is the varve beside this program, or VARVE_BIN.
What the columns mean: docs/demo.md.

Examples:
  make demo                                             # builds all, here or in the lab
  make demo DEMO='--function pagerank --function json'
  target/release/varve-demo --quick                     # where KVM works")]
struct Cli {
    /// The function whose life is shown (repeat for more)
    #[arg(long = "function", value_name = "NAME", default_value = "json")]
    functions: Vec<String>,
    /// How often each strategy restores; the run in the middle is shown
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=100))]
    runs: Option<u16>,
    /// Three strategies, one run each
    #[arg(long)]
    quick: bool,
    /// Where snapshots are made, and removed at the end [default: the folder for temporary files]
    #[arg(long, value_name = "DIR")]
    folder: Option<PathBuf>,
    /// Where the page goes [default: target/demo/report.html]
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

const RUNS: u16 = 3;

fn main() -> ExitCode {
    varve_benches::end("varve-demo", run(Cli::parse()))
}

fn run(cli: Cli) -> Result<()> {
    let options = Options {
        strategies: if cli.quick { QUICK_STRATEGIES.to_vec() } else { STRATEGIES.to_vec() },
        runs: cli.runs.unwrap_or(if cli.quick { 1 } else { RUNS }).into(),
        folder: cli.folder.unwrap_or_else(std::env::temp_dir),
    };
    let path = cli.html.unwrap_or_else(|| root().join("target/demo/report.html"));
    let facts = facts()?;
    for fact in &facts {
        println!("{fact}");
    }
    println!();
    boot::show()?;
    let mut lives = Vec::new();
    for function in &cli.functions {
        lives.push(live(function, &options)?);
        // After each: what was found stays, whatever becomes of the rest.
        save(&path, &page::render(&facts, &lives))?;
    }
    println!("\nThe same with plots and memory maps: {}", path.display());
    let trimming = lives.iter().flat_map(|life| &life.trimming).map(|saved| &saved.row);
    let right = lives.iter().flat_map(|life| &life.rows).chain(trimming).all(Row::is_right);
    ensure!(right, "a restored machine gave another answer than the original one");
    Ok(())
}

/// Where and with what the demo runs.
fn facts() -> Result<Vec<String>> {
    let (monitor, machine) = (environment::monitor()?, environment::machine()?);
    let revision = environment::revision().unwrap_or_else(|| "no revision".into());
    let mut facts = vec![
        format!("{}, {revision}, {}", monitor.version, environment::date()),
        format!(
            "{} CPU(s), {:?}, {} MiB, Linux {}",
            machine.cpus, machine.cpu, machine.memory_mib, machine.kernel
        ),
    ];
    if machine.host == Host::Lab {
        facts.push("In the lab: times are of an emulated host; compare, do not quote".into());
    }
    Ok(facts)
}
