//! `varve snapshot merge`: a diff snapshot laid over its base makes a full one.

use crate::cli::out::outln;
use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use varve_snapshot::{LocalFiles, merge};

/// Options of `varve snapshot merge`.
#[derive(Debug, Args)]
pub struct MergeArgs {
    /// Folder of the base snapshot of the diff
    base: PathBuf,

    /// Folder of the diff
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
    let out = args.out.as_ref().unwrap_or(&args.base);
    let report = merge(&LocalFiles, &args.base, &args.diff, out)?;
    if !report.tied {
        eprintln!(
            "varve: {} does not say which snapshot it was made since (an older varve made it): \
             whether {} is that one was not checked",
            args.diff.display(),
            args.base.display()
        );
    }
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
