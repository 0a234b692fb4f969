//! `varve snapshot record`: which pages a function touches, by a machine that is restored for that.

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::Args;
use varve_memory_tiers::HugePages;

use crate::cli::session::{self, SessionArgs};
use crate::machine::recording::{Record, RecordBy};
use crate::snapshot::choices::Choices;
use crate::snapshot::restore::{Source, Wanted};
use crate::words::word;

/// Shown below the options.
pub const EXAMPLES: &str = "\
Examples:
  Record three inputs, each as a run of its own:
    varve snapshot record snapshots/json --trace json.trace --invoke 'json 11' --invoke 'json 12' \
--invoke 'json 13'

  One more, into the same trace:
    varve snapshot record snapshots/json --trace json.trace --append --invoke 'json 14'";

/// Options of `varve snapshot record`.
#[derive(Debug, Args)]
pub struct RecordArgs {
    /// Folder of the snapshot, with its raw memory file
    snapshot: PathBuf,

    /// Trace file: order, access and invocation of each touched page
    #[arg(long, value_name = "FILE")]
    trace: PathBuf,

    /// faults: exact, in order; mincore or pagemap: sampled, cheaper
    #[arg(long, value_name = "faults|mincore|pagemap", value_parser = word::<RecordBy>,
          default_value = "faults")]
    by: RecordBy,

    /// Add to an existing trace file instead of replacing it
    #[arg(long)]
    append: bool,

    /// Number of times that all calls are made
    #[arg(long, value_name = "N", default_value_t = 1, requires = "calls",
          value_parser = clap::value_parser!(u16).range(1..=1000))]
    repeat: u16,

    #[command(flatten)]
    session: SessionArgs,
}

/// Restores the guest, records until its end, and writes the trace.
pub fn main(mut args: RecordArgs, start: Instant) -> Result<ExitCode, Box<dyn Error>> {
    let calls = std::iter::repeat_n(args.session.calls, args.repeat.into());
    args.session.calls = calls.flatten().collect();
    let wanted = Wanted {
        source: Source::Folder(args.snapshot),
        choices: Choices::default(),
        huge_pages: Some(HugePages::Off),
        record: Some(Record { trace_path: args.trace, by: args.by, append: args.append }),
        overrides: args.session.overrides(),
        track_dirty_pages: None,
        clock_realtime: false,
    };
    session::run(&args.session, wanted, start)
}
