//! `varve snapshot create`: a snapshot of a running machine.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::{Value, json};
use varve_snapshot::{MEMORY_FILE, STATE_FILE};

use crate::api::client;

/// Options of `varve snapshot create`.
#[derive(Debug, Args)]
pub struct CreateArgs {
    /// Control socket of the machine (its --api-sock)
    #[arg(long, value_name = "PATH")]
    api_sock: PathBuf,

    /// Only the pages written since the last snapshot (of a machine with --track-dirty-pages); merge
    /// it into its base before it is restored
    #[arg(long)]
    diff: bool,

    /// First have the guest name its free pages, so that they are zero in the snapshot (needs a
    /// balloon with hinting: --balloon hinting)
    #[arg(long)]
    trim: bool,

    /// Leave the machine paused
    #[arg(long)]
    keep_paused: bool,

    /// Folder for the snapshot; a snapshot that is there already is replaced
    dir: PathBuf,
}

/// Carries the command out.
pub fn main(args: &CreateArgs) -> Result<ExitCode, Box<dyn Error>> {
    // The machine has its own idea of relative paths.
    let dir = std::path::absolute(&args.dir)?;
    let call = |method, target, body: Value| client::request(&args.api_sock, method, target, &body);
    if args.trim {
        trim(&args.api_sock)?;
    }
    call("PATCH", "/vm", json!({ "state": "Paused" }))?;
    let body = json!({
        "snapshot_type": if args.diff { "Diff" } else { "Full" },
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

/// How long a guest may take to go through its free pages.
const TRIM_PATIENCE: Duration = Duration::from_secs(60);
/// `host_cmd` of a round of hints that is over (virtio 1.2, 5.5.6.5: VIRTIO_BALLOON_CMD_ID_DONE).
const DONE: u64 = 1;

/// One round of free page hinting, from its start to the guest's last hint.
fn trim(socket: &Path) -> Result<(), Box<dyn Error>> {
    let start = json!({ "acknowledge_on_stop": true });
    client::request(socket, "PATCH", "/balloon/hinting/start", &start)
        .map_err(|e| format!("--trim: {e}"))?;
    let deadline = Instant::now() + TRIM_PATIENCE;
    loop {
        let status = client::request(socket, "GET", "/balloon/hinting/status", &Value::Null)?;
        if status["host_cmd"].as_u64() == Some(DONE) {
            return Ok(());
        }
        if Instant::now() >= deadline {
            client::request(socket, "PATCH", "/balloon/hinting/stop", &Value::Null)?;
            return Err("--trim: the guest does not finish naming its free pages".into());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
