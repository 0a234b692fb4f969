//! The `varve` command.

use std::process::ExitCode;
use std::time::Instant;

fn main() -> ExitCode {
    varve_vmm::cli::main(Instant::now())
}
