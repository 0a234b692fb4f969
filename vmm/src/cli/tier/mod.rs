//! `varve tier`: images in memory that machines of a host, or hosts, share.

mod devices;
mod images;
mod tune;

use std::error::Error;
use std::process::ExitCode;

use clap::Subcommand;

/// Shown below the commands.
pub const EXAMPLES: &str = "\
Where images can be kept:
  file:DIR                plain files, in the page cache while they are used
  numa:NODE[:DIR]         files in memory (tmpfs) of a NUMA node, such as CXL memory without CPUs
  dax:DIR                 files on a file system that is mounted with -o dax
  devdax:/dev/daxX.Y      a device that is mapped as it is; with ,host=N one that hosts share

Examples:
  Show memory of this host that can keep images:
    varve tier devices

  Publish read-only pages to CXL memory; each restore maps them there:
    varve tier publish snapshots/json --to numa:1
    varve restore snapshots/json --strategy tiered --tune read_only=mapped --invoke 'json 7'

  Show users, revoke images, free unused ones:
    varve tier status numa:1
    varve tier revoke snapshots/json
    varve tier gc numa:1";

/// What to do with tiers.
#[derive(Debug, Subcommand)]
pub enum TierCommand {
    /// Show memory of this host that can keep images, and what is missing
    Devices(devices::DevicesArgs),
    /// Format a device as a store; its content is lost
    Init(images::InitArgs),
    /// Publish images of a snapshot to a store
    Publish(images::PublishArgs),
    /// Show where a snapshot's images are published
    List(images::ListArgs),
    /// Show images and users of stores
    Status(images::StatusArgs),
    /// Revoke published images of a snapshot
    Revoke(images::RevokeArgs),
    /// Free images without users, and remains of killed processes
    Gc(images::GcArgs),
    /// Find the tiering and restore options that suit a function, by replays
    #[command(disable_help_flag = true)]
    Tune(tune::TuneArgs),
}

/// Carries the command out.
pub fn main(command: TierCommand) -> Result<ExitCode, Box<dyn Error>> {
    match command {
        TierCommand::Devices(args) => devices::main(&args),
        TierCommand::Init(args) => images::init(&args),
        TierCommand::Publish(args) => images::publish(&args),
        TierCommand::List(args) => images::list(&args),
        TierCommand::Status(args) => images::status(&args),
        TierCommand::Revoke(args) => images::revoke(&args),
        TierCommand::Gc(args) => images::gc(&args),
        TierCommand::Tune(args) => tune::main(&args),
    }
}
