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
    /// Snapshot a running machine: state and memory, in a folder
    Create(create::CreateArgs),
    /// The same of only the pages written since the last snapshot, to be merged into it (of a machine
    /// with --track-dirty-pages)
    Diff(create::CreateArgs),
    /// Restore a machine and record which pages are touched
    #[command(after_help = record::EXAMPLES)]
    Record(Box<record::RecordArgs>),
    /// Show what a snapshot says: metadata, classes, images, the memory map
    Inspect(inspect::InspectArgs),
    /// Check everything in a snapshot, and name what is wrong
    Verify(inspect::VerifyArgs),
    /// Split a snapshot's memory into zero, read-only, read-write and cold pages by recorded traces
    Tier(tier::TierArgs),
    /// Lay a diff snapshot over its base
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
