//! Log and metrics. They belong to the process, not to the machine.

use serde_json::Value;

use super::{Monitor, Outcome, Response};
use crate::api::error::ApiError;
use crate::logger::{self, LoggerConfig};
use crate::metrics::MetricsConfig;

pub fn logger(monitor: &Monitor, config: LoggerConfig) -> Outcome {
    logger::configure(&config, &monitor.id().to_string())?;
    Ok(Response::no_content())
}

pub fn metrics(monitor: &Monitor, config: MetricsConfig) -> Outcome {
    monitor.metrics().configure(&config, &monitor.id().to_string())?;
    Ok(Response::no_content())
}

/// Firecracker answers so too where there is no file.
pub fn flush(monitor: &Monitor) -> Outcome {
    monitor.metrics().flush().map_err(ApiError::from)?;
    Ok(Response::no_content())
}

/// All counts from the start of the process on; a line of the file is left as it is.
pub fn totals(monitor: &Monitor) -> Outcome {
    Ok(Response::ok(&Value::Object(monitor.metrics().totals_now())))
}
