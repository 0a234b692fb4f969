//! `varve-bench`: measures, shows a table, saves a report.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use varve_benches::parts::{Effort, Part};
use varve_benches::recorder::Recorder;
use varve_benches::replay::command::ReplayArgs;
use varve_benches::replay::once;
use varve_benches::report::{Report, SCHEMA};
use varve_benches::{environment, table};
use varve_tests::images::root;

/// Measures varve on this machine's KVM, or in the lab
#[derive(Debug, Parser)]
#[command(name = "varve-bench", version, args_conflicts_with_subcommands = true)]
#[command(after_help = "\
Images come from 'make images'; the monitor is the varve beside this program, or VARVE_BIN.
Figures are medians of several runs. What the lab distorts: docs/benchmarks.md.

Examples:
  make bench                                        # builds all, measures all, here or in the lab
  target/release/varve-bench boot --runs 10         # where KVM works
  VARVE_LAB_OPTS='--mem 3072 --rw target/bench' tests/run target/release/varve-bench vsock
  target/release/varve-bench plan                   # without KVM, as mechanisms and replay
  target/release/varve-bench replay --strategy lazy,reap,tiered,template --cache warm,cold")]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    /// What to measure
    #[arg(value_enum, default_value = "all")]
    part: Part,
    #[command(flatten)]
    how: How,
}

#[derive(Debug, clap::Args)]
struct How {
    /// How often everything is measured
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
    runs: Option<u16>,
    /// Where the report goes [default: target/bench/DATE-PART.json]
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Two runs, and less data in each
    #[arg(long)]
    quick: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Replay recorded accesses in plain processes, without KVM: the host's share of a restore
    Replay {
        #[command(flatten)]
        args: Box<ReplayArgs>,
        #[command(flatten)]
        how: How,
    },
    /// One run of a replay
    #[command(name = once::COMMAND, hide = true)]
    Once {
        /// As JSON
        conditions: String,
    },
}

const RUNS: u16 = 5;
const QUICK_RUNS: u16 = 2;

fn main() -> Result<()> {
    let cli = Cli::parse();
    match cli.command {
        None => measure(cli.how, cli.part.name(), |effort, recorder, save| {
            let folder = environment::memory_folder()?;
            for part in cli.part.each() {
                part.run(effort, &folder, recorder)
                    .with_context(|| format!("measuring {}", part.name()))?;
                // After each part: what is done stays, whatever becomes of the rest.
                save(recorder)?;
            }
            Ok(())
        }),
        Some(Command::Replay { args, how }) => {
            measure(how, "replay", |effort, recorder, _| args.run(effort.runs, recorder))
        }
        Some(Command::Once { conditions }) => once::main(&conditions),
    }
}

/// Saves what is measured so far.
type Save<'a> = &'a mut dyn FnMut(&Recorder) -> Result<()>;

/// Measures, shows a table, saves a report.
fn measure(
    how: How,
    name: &str,
    what: impl FnOnce(Effort, &mut Recorder, Save) -> Result<()>,
) -> Result<()> {
    let runs = how.runs.unwrap_or(if how.quick { QUICK_RUNS } else { RUNS });
    let effort = Effort { runs: runs.into(), quick: how.quick };
    let mut report = Report {
        schema: SCHEMA,
        date: environment::date(),
        command: std::env::args_os().map(|a| a.to_string_lossy().into_owned()).collect(),
        revision: environment::revision(),
        monitor: environment::monitor()?,
        machine: environment::machine()?,
        figures: Vec::new(),
    };
    let path = how.json.unwrap_or_else(|| {
        let date = report.date.replace([':', '-'], "");
        root().join(format!("target/bench/{date}-{name}.json"))
    });
    let mut recorder = Recorder::default();
    let mut save = |recorder: &Recorder| {
        report.figures = recorder.figures();
        report.save(&path)
    };
    what(effort, &mut recorder, &mut save)?;
    save(&recorder)?;
    print!("{}", table::render(&report));
    println!("\nsaved as {}", path.display());
    Ok(())
}
