//! `varve snapshot merge`: a diff snapshot laid over its base makes a full one.

use crate::cli::out::outln;
use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use varve_snapshot::{LocalFiles, MEMORY_FILE, STATE_FILE, Staging, StateFile, stage_merge};

/// Options of `varve snapshot merge`.
#[derive(Debug, Args)]
pub struct MergeArgs {
    /// Folder of the base: a full snapshot
    base: PathBuf,

    /// Folder of the diff, made of the same machine since the base
    diff: PathBuf,

    /// Folder for the merged snapshot [default: the base's, which is replaced]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Merges. Both files of the result appear together.
pub fn main(args: &MergeArgs) -> Result<ExitCode, Box<dyn Error>> {
    let mut state = StateFile::read(&args.diff.join(STATE_FILE))?;
    let out = args.out.as_ref().unwrap_or(&args.base);
    let mut staging = Staging::new(&LocalFiles);
    let memory = staging.create(&out.join(MEMORY_FILE))?;
    let base = StateFile::read(&args.base.join(STATE_FILE))?.memory_file;
    let base = args.base.join(base.as_deref().unwrap_or(MEMORY_FILE));
    let diff = args.diff.join(state.memory_file.as_deref().unwrap_or(MEMORY_FILE));
    let report = stage_merge(&mut staging, memory, &base, &diff, Some(&state))?;
    state.dirty = None;
    state.memory_file = Some(MEMORY_FILE.into());
    let at = staging.create(&out.join(STATE_FILE))?;
    staging.put(at, &state.to_bytes()?, 0)?;
    staging.commit()?;
    if args.json {
        outln!("{}", serde_json::to_string(&report)?);
    } else {
        outln!(
            "{}: {} pages, {} of them from the diff",
            out.display(),
            report.pages,
            report.from_diff
        );
    }
    Ok(ExitCode::SUCCESS)
}
