//! What the demo and the benchmarks share: figures, their statistics, reports, and the parts that
//! measure.
//!
//! [`replay`] restores guest memory in plain processes, without KVM.
//!
//! A part ([`parts`]) records values of *series* into a [`recorder::Recorder`]; a series is a name
//! with labels (`kernel=bzImage`), so a comparison adds labels, not structure. [`report`] is what is
//! saved, [`table`] what is shown.

pub mod calibrate;
pub mod compare;
pub mod demo;
pub mod environment;
pub mod mechanisms;
pub mod outside;
pub mod parts;
pub mod plot;
pub mod prepare;
pub mod progress;
pub mod recorder;
pub mod replay;
pub mod report;
pub mod session;
pub mod settle;
pub mod smaps;
pub mod stats;
pub mod summary;
pub mod table;
pub mod tune;
pub mod turns;

/// How a program of this package ends: what failed goes to standard error, in a line.
pub fn end(program: &str, done: anyhow::Result<()>) -> std::process::ExitCode {
    match done {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{program}: error: {error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}
