//! `varve snapshot create` and `diff`: a snapshot of a running machine, all of it or what changed.

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};
use varve_snapshot::{MEMORY_FILE, STATE_FILE};

use super::trim::trim;
use crate::api::client;

/// Options of both.
#[derive(Debug, Args)]
pub struct CreateArgs {
    /// Control socket of the machine (its --api-sock)
    #[arg(long, value_name = "PATH")]
    api_sock: PathBuf,

    /// First get the guest's free pages back, so that they are zero in the snapshot (needs a balloon
    /// with hinting for large free blocks, with statistics for single pages: --balloon
    /// hinting,stats=1)
    #[arg(long)]
    trim: bool,

    /// Leave the machine paused
    #[arg(long)]
    keep_paused: bool,

    /// Folder for the snapshot; a snapshot that is there already is replaced
    dir: PathBuf,
}

/// Carries the command out; `extent` is the API's word for how much of memory is wanted.
pub fn main(args: &CreateArgs, extent: &str) -> Result<ExitCode, Box<dyn Error>> {
    // The machine has its own idea of relative paths.
    let dir = std::path::absolute(&args.dir)?;
    let call = |method, target, body: Value| client::request(&args.api_sock, method, target, &body);
    if args.trim {
        trim(&args.api_sock)?;
    }
    call("PATCH", "/vm", json!({ "state": "Paused" }))?;
    let body = json!({
        "snapshot_type": extent,
        "snapshot_path": dir.join(STATE_FILE),
        "mem_file_path": dir.join(MEMORY_FILE),
    });
    let created = call("PUT", "/snapshot/create", body);
    if !args.keep_paused {
        // Also when the snapshot failed: the machine goes on as if nothing had been.
        call("PATCH", "/vm", json!({ "state": "Resumed" }))?;
    }
    created?;
    Ok(ExitCode::SUCCESS)
}
