//! `varve tier tune`: what the benchmarks measure by replays, under the name where it is looked for.

use std::error::Error;
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use clap::Args;

const PROGRAM: &str = "varve-bench";

/// Options of `varve-bench tune`.
#[derive(Debug, Args)]
pub struct TuneArgs {
    /// Snapshot, traces and options; --help shows them
    #[arg(value_name = "ARGS", trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<OsString>,
}

/// Becomes `varve-bench tune`: the one that is beside this program, or in the search path.
pub fn main(args: &TuneArgs) -> Result<ExitCode, Box<dyn Error>> {
    let beside = std::env::current_exe().ok().map(|own| own.with_file_name(PROGRAM));
    let program = beside.filter(|path| path.exists()).unwrap_or_else(|| PathBuf::from(PROGRAM));
    let failed = Command::new(&program).arg("tune").args(&args.args).exec();
    Err(format!(
        "cannot start {}: {failed}; it measures by replays, and is built by 'cargo build --release \
         -p varve-benches'",
        program.display()
    )
    .into())
}
