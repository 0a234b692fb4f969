//! `varve-bench`: measures, shows a table, saves a report.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use varve_benches::compare::command::CompareArgs;
use varve_benches::environment;
use varve_benches::parts::{Effort, Part};
use varve_benches::replay::command::ReplayArgs;
use varve_benches::replay::once;
use varve_benches::report::{Report, save};
use varve_benches::session::Session;
use varve_benches::summary::{self, page};
use varve_benches::tune::TuneArgs;

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
  target/release/varve-bench replay --strategy lazy,reap,tiered,template --cache warm,cold
  make bench BENCH='compare --quick'                # restore methods: varve-bench compare --help")]
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
    /// Compare restore methods: functions, page cache cold and warm, inputs, machines at once
    #[command(after_help = COMPARE_EXAMPLES)]
    Compare {
        #[command(flatten)]
        args: Box<CompareArgs>,
        #[command(flatten)]
        how: How,
    },
    /// Try options of tiering and restoring on a function by replays, and print the best
    Tune {
        #[command(flatten)]
        args: Box<TuneArgs>,
        #[command(flatten)]
        how: How,
    },
    /// Make summary and page of reports that were saved, side by side
    Report {
        /// Reports (JSON), such as one from the lab and one of replays outside of it
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
        /// Where the page goes
        #[arg(long, value_name = "FILE", default_value = "target/bench/report.html")]
        html: PathBuf,
        /// Where the summary goes
        #[arg(long, value_name = "FILE", default_value = "target/bench/report.md")]
        markdown: PathBuf,
    },
    /// One run of a replay
    #[command(name = once::COMMAND, hide = true)]
    Once {
        /// As JSON
        conditions: String,
    },
}

const COMPARE_EXAMPLES: &str = "\
Examples:
  Everything, which takes hours in the lab; what was cut short goes on from its report:
    make bench
    make bench BENCH='compare --resume target/bench/20261126T110000Z-compare.json'

  Three functions, one machine at a time, by a new input:
    make bench BENCH='compare --quick --vms 1 --input new'

  One function, where KVM works, beside Firecracker:
    target/release/varve-bench compare --function json --monitor firecracker=/usr/bin/firecracker

  Keep the snapshots that the lab made, replay them on this machine, and show both:
    make bench BENCH='compare --ways machine --keep target/bench/snapshots --json target/bench/lab.json'
    target/release/varve-bench compare --ways replay,latency,shapes --folder target/bench/snapshots --json here.json
    target/release/varve-bench report target/bench/lab.json here.json";

const RUNS: u16 = 5;
const QUICK_RUNS: u16 = 2;

fn main() -> ExitCode {
    varve_benches::end("varve-bench", run(Cli::parse()))
}

fn run(cli: Cli) -> Result<()> {
    match cli.command {
        None => {
            let mut session = Session::begin(cli.part.name(), cli.how.json.clone())?;
            let folder = environment::memory_folder()?;
            for part in cli.part.each() {
                part.run(cli.how.effort(), &folder, &mut session.recorder)
                    .with_context(|| format!("measuring {}", part.name()))?;
                session.save()?;
            }
            session.show()
        }
        Some(Command::Compare { args, how }) => {
            let mut session = match &args.resume {
                Some(path) => Session::resume(path)?,
                None => Session::begin("compare", how.json.clone())?,
            };
            args.run(how.effort(), &mut session)?;
            let (report, path) = session.end()?;
            let html = args.html.clone().unwrap_or_else(|| path.with_extension("html"));
            let markdown = args.markdown.clone().unwrap_or_else(|| path.with_extension("md"));
            write(&[report], &html, &markdown)?;
            println!("saved as {}", path.display());
            Ok(())
        }
        Some(Command::Report { files, html, markdown }) => {
            let reports = files.iter().map(|f| Report::load(f)).collect::<Result<Vec<_>>>()?;
            write(&reports, &html, &markdown)
        }
        Some(Command::Tune { args, how }) => {
            let mut session = Session::begin("tune", how.json.clone())?;
            args.run(how.effort().runs, &mut session)
        }
        Some(Command::Replay { args, how }) => {
            let mut session = Session::begin("replay", how.json.clone())?;
            args.run(how.effort().runs, &mut session)?;
            session.show()
        }
        Some(Command::Once { conditions }) => once::main(&conditions),
    }
}

impl How {
    fn effort(&self) -> Effort {
        let runs = self.runs.unwrap_or(if self.quick { QUICK_RUNS } else { RUNS });
        Effort { runs: runs.into(), quick: self.quick }
    }
}

/// The summary, shown as well, and the page.
fn write(reports: &[Report], html: &Path, markdown: &Path) -> Result<()> {
    let summary = summary::render(reports);
    print!("{summary}");
    save(markdown, &summary)?;
    save(html, &page::render(reports))?;
    println!("\nThe same: {}\nWith plots: {}", markdown.display(), html.display());
    Ok(())
}
