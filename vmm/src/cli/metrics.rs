//! `varve metrics`: what has been counted, in Prometheus' text format.

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde_json::Value;

use super::out::out;
use crate::api::client;
use crate::metrics::{file, prometheus};

/// Shown below the options.
pub const EXAMPLES: &str = "\
Examples:
  Counters of a running machine since its start:
    varve metrics --api-sock /run/firecracker.socket

  Sums of the lines of a metrics file:
    varve metrics /tmp/metrics.json";

/// Print a machine's counters in Prometheus' text format.
#[derive(Debug, Args)]
pub struct MetricsArgs {
    /// Metrics file of --metrics-path or PUT /metrics; its lines are added up
    #[arg(value_name = "FILE", required_unless_present = "api_sock")]
    file: Option<PathBuf>,

    /// API socket of a running machine
    #[arg(long, value_name = "PATH", conflicts_with = "file")]
    api_sock: Option<PathBuf>,
}

/// Prints the metrics.
pub fn main(args: MetricsArgs) -> Result<ExitCode, Box<dyn Error>> {
    let totals = match (&args.api_sock, &args.file) {
        (Some(path), _) => match client::request(path, "GET", "/metrics", &Value::Null)? {
            Value::Object(totals) => totals,
            _ => return Err(format!("API socket {path:?} gave no metrics").into()),
        },
        (None, Some(path)) => file::read(path)?,
        (None, None) => return Err("name a file or an API socket".into()),
    };
    out!("{}", prometheus::render(&totals));
    Ok(ExitCode::SUCCESS)
}
