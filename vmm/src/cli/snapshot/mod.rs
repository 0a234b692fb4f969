//! `varve snapshot`: making snapshots and working on them.

mod create;
mod inspect;
mod merge;
pub mod predict;
mod record;
mod tier;
mod trim;

use std::error::Error;
use std::process::ExitCode;
use std::time::Instant;

use clap::Subcommand;

/// What to do with a snapshot.
#[derive(Debug, Subcommand)]
pub enum SnapshotCommand {
    /// Snapshot a running machine: its state and all of its memory
    Create(create::CreateArgs),
    /// Snapshot only the pages written since the last snapshot (needs --track-dirty-pages)
    Diff(create::CreateArgs),
    /// Restore a machine and record the pages that it reads and writes
    #[command(after_help = record::EXAMPLES)]
    Record(Box<record::RecordArgs>),
    /// Show a snapshot's metadata, page classes, images and memory map
    Inspect(inspect::InspectArgs),
    /// Verify every checksum and reference of a snapshot, and name each error
    Verify(inspect::VerifyArgs),
    /// Split memory into zero, read-only, read-write and cold pages by traces
    Tier(tier::TierArgs),
    /// Apply a diff snapshot to its base
    Merge(merge::MergeArgs),
}

/// Carries the command out; `start` is when the process began.
pub fn main(command: SnapshotCommand, start: Instant) -> Result<ExitCode, Box<dyn Error>> {
    match command {
        SnapshotCommand::Create(args) => create::main(&args, "Full"),
        SnapshotCommand::Diff(args) => create::main(&args, "Diff"),
        SnapshotCommand::Record(args) => record::main(*args, start),
        SnapshotCommand::Inspect(args) => inspect::main(&args),
        SnapshotCommand::Verify(args) => inspect::verify(&args),
        SnapshotCommand::Tier(args) => tier::main(&args),
        SnapshotCommand::Merge(args) => merge::main(&args),
    }
}
