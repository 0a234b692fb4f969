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
  varve restore snapshots/json
  varve restore snapshots/json --invoke 'json 7' --json
  varve restore snapshots/json --vsock b.sock --drive rootfs=b.ext4";

/// Restore a guest from a snapshot and resume it.
#[derive(Debug, Args)]
pub struct RestoreArgs {
    /// Folder of the snapshot
    snapshot: PathBuf,

    #[command(flatten)]
    choices: Choices,

    /// Guest memory of off, transparent or 2M pages [default: as saved]
    #[arg(long, value_name = "KIND", value_parser = word::<HugePages>)]
    huge_pages: Option<HugePages>,

    /// Track written pages, for diff snapshots
    #[arg(long)]
    track_dirty_pages: bool,

    /// Advance the guest's clock by the time since the snapshot
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
