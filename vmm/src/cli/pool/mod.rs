//! `varve pool`: memory nodes, and the images that they keep.

mod images;
mod serve;

use std::error::Error;
use std::path::Path;
use std::process::ExitCode;

use clap::Subcommand;
use varve_pool::{Key, Keys, Tenant};

/// Shown below the commands.
pub const EXAMPLES: &str = "\
Examples:
  Make a key for a tenant; nodes, publishers and restores need it:
    (umask 077; echo acme $(openssl rand -hex 32) > pool.keys)

  Run a memory node with 32 GiB, whose images survive a restart:
    varve pool serve --listen 10.0.0.1:7421 --keys pool.keys --memory 32G --store /srv/pool

  Publish cold pages to two of three nodes each, and restore from them:
    varve pool publish snap --to 10.0.0.1:7421,10.0.0.2:7421,10.0.0.3:7421 --copies 2 \\
               --keys pool.keys
    varve restore snap --pool-keys pool.keys";

/// What to do with a pool.
#[derive(Debug, Subcommand)]
pub enum PoolCommand {
    /// Run a memory node: keep images and serve their pages
    Serve(serve::ServeArgs),
    /// Publish images of a snapshot to nodes
    Publish(images::PublishArgs),
    /// Remove a snapshot's images from the nodes
    Forget(images::ForgetArgs),
    /// Show the images and memory use of nodes
    Status(images::StatusArgs),
}

/// Carries the command out.
pub fn main(command: PoolCommand) -> Result<ExitCode, Box<dyn Error>> {
    match command {
        PoolCommand::Serve(args) => serve::main(&args),
        PoolCommand::Publish(args) => images::publish(&args),
        PoolCommand::Forget(args) => images::forget(&args),
        PoolCommand::Status(args) => images::status(&args),
    }
}

/// The tenant that is meant and its key: the one of that name, or the only one.
fn tenant(keys: &Path, name: Option<&str>) -> Result<(Tenant, Key), Box<dyn Error>> {
    let name = name.map(|name| Tenant::try_from(name.to_owned())).transpose()?;
    Ok(Keys::choose(keys, name.as_ref())?)
}
