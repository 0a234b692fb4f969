//! `varve-bench`: measures, shows a table, saves a report.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Parser;
use varve_benches::parts::{Effort, Part};
use varve_benches::recorder::Recorder;
use varve_benches::report::{Report, SCHEMA};
use varve_benches::{environment, table};
use varve_tests::images::root;

/// Measures varve on this machine's KVM, or in the lab
#[derive(Debug, Parser)]
#[command(name = "varve-bench", version)]
#[command(after_help = "\
Images come from 'make images'; the monitor is the varve beside this program, or VARVE_BIN.
Figures are medians of several runs. What the lab distorts: docs/benchmarks.md.

Examples:
  make bench                                        # builds all, measures all, here or in the lab
  target/release/varve-bench boot --runs 10         # where KVM works
  VARVE_LAB_OPTS='--mem 3072 --rw target/bench' tests/run target/release/varve-bench vsock")]
struct Cli {
    /// What to measure
    #[arg(value_enum, default_value = "all")]
    part: Part,
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

const RUNS: u16 = 5;
const QUICK_RUNS: u16 = 2;

fn main() -> Result<()> {
    let cli = Cli::parse();
    let runs = cli.runs.unwrap_or(if cli.quick { QUICK_RUNS } else { RUNS });
    let effort = Effort { runs: runs.into(), quick: cli.quick };
    let mut report = Report {
        schema: SCHEMA,
        date: environment::date(),
        command: std::env::args_os().map(|a| a.to_string_lossy().into_owned()).collect(),
        revision: environment::revision(),
        monitor: environment::monitor()?,
        machine: environment::machine()?,
        figures: Vec::new(),
    };
    let path = cli.json.unwrap_or_else(|| {
        let date = report.date.replace([':', '-'], "");
        root().join(format!("target/bench/{date}-{}.json", cli.part.name()))
    });
    let folder = environment::memory_folder()?;
    let mut recorder = Recorder::default();
    for part in cli.part.each() {
        part.run(effort, &folder, &mut recorder)
            .with_context(|| format!("measuring {}", part.name()))?;
        // After each part: what is done stays, whatever becomes of the rest.
        report.figures = recorder.figures();
        report.save(&path)?;
    }
    print!("{}", table::render(&report));
    println!("\nsaved as {}", path.display());
    Ok(())
}
