//! `varve restore`: a machine from a snapshot, for one invocation or many.

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::Args;
use varve_memory_tiers::HugePages;

use super::session::{self, SessionArgs};
use crate::snapshot::choices::Choices;
use crate::snapshot::restore::{Source, Wanted};
use crate::words::word;

/// Shown below the options.
pub const EXAMPLES: &str = "\
Examples:
  Restore a guest and let it go on, on this terminal:
    varve restore snapshots/json

  Restore, call a function twice with different inputs, print answers, times and counters, end:
    varve restore snapshots/json --strategy tiered --invoke 'json 7' --invoke 'json 8' --json

  A second copy of the machine beside the first one:
    varve restore snapshots/json --vsock /tmp/b.sock --drive rootfs=copy.ext4

  Cold pages from the memory of other hosts (varve pool --help):
    varve restore snapshots/json --pool-keys pool.keys --invoke 'json 7'

  The same by a process of their own (varve pager --help):
    varve restore snapshots/json --pager /run/json.sock --invoke 'json 7'";

/// Options of `varve restore`.
#[derive(Debug, Args)]
pub struct RestoreArgs {
    /// Folder of the snapshot
    snapshot: PathBuf,

    #[command(flatten)]
    choices: Choices,

    /// Pages of guest memory: 4 KiB (off), transparent huge pages, or from the 2 MiB pool [default: as
    /// the snapshot's machine]
    #[arg(long, value_name = "off|transparent|2M", value_parser = word::<HugePages>)]
    huge_pages: Option<HugePages>,

    /// Keep track of written pages, so that diff snapshots can be made, even if the snapshot's machine
    /// did not
    #[arg(long)]
    track_dirty_pages: bool,

    /// Let the guest's clock go on by the time that has passed since the snapshot
    #[arg(long)]
    clock_realtime: bool,

    #[command(flatten)]
    session: SessionArgs,
}

/// Restores the guest and waits for its end.
pub fn main(args: RestoreArgs, start: Instant) -> Result<ExitCode, Box<dyn Error>> {
    let wanted = Wanted {
        source: Source::Folder(args.snapshot),
        choices: args.choices,
        huge_pages: args.huge_pages,
        record: None,
        overrides: args.session.overrides(),
        track_dirty_pages: args.track_dirty_pages.then_some(true),
        clock_realtime: args.clock_realtime,
    };
    session::run(&args.session, wanted, start)
}
