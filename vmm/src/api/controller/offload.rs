//! Idle pages that go to other hosts: varve's own.

use serde_json::json;

use super::{Monitor, Outcome, Response};
use crate::api::error::ApiError;
use crate::machine::offload_request::OffloadRequest;

/// Begins; what becomes of it is told by [`describe`].
pub fn begin(monitor: &mut Monitor, request: OffloadRequest) -> Outcome {
    monitor.offload(request).map_err(ApiError::Offload)?;
    Ok(Response::no_content())
}

pub fn recall(monitor: &Monitor) -> Outcome {
    monitor.machine()?.recall();
    Ok(Response::no_content())
}

pub fn describe(monitor: &Monitor) -> Outcome {
    Ok(Response::ok(&json!(monitor.machine()?.offload_report())))
}
