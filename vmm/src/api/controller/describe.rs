//! What a monitor is and has.

use serde_json::json;

use super::{Monitor, Outcome, Response, RunState};
use crate::config::firecracker::FullConfig;
use crate::instance::FIRECRACKER_VERSION;

pub fn instance(monitor: &Monitor) -> Outcome {
    let state = match monitor.state() {
        RunState::NotStarted => "Not started",
        RunState::Running => "Running",
        RunState::Paused => "Paused",
    };
    Ok(Response::ok(&json!({
        "app_name": "varve",
        "id": monitor.id().to_string(),
        "state": state,
        "vmm_version": env!("CARGO_PKG_VERSION"),
    })))
}

/// The version of the interface, and whose it is.
pub fn version() -> Outcome {
    Ok(Response::ok(&json!({
        "firecracker_version": FIRECRACKER_VERSION,
        "varve_version": env!("CARGO_PKG_VERSION"),
    })))
}

pub fn config(monitor: &Monitor) -> Outcome {
    Ok(Response::ok(&json!(FullConfig::from(monitor.resources().into_owned()))))
}

pub fn machine(monitor: &Monitor) -> Outcome {
    Ok(Response::ok(&json!(monitor.resources().machine)))
}

/// How memory was restored, and what has happened to it since.
pub fn memory(monitor: &Monitor) -> Outcome {
    let Some(restore) = monitor.machine()?.restored().and_then(|r| r.planned()) else {
        return Ok(Response::ok(&json!({ "strategy": null })));
    };
    Ok(Response::ok(&json!({
        "strategy": restore.plan().strategy,
        "plan": restore.plan().summary(),
        "counters": restore.counters(),
        "census": restore.census().ok(),
        "vcpu_faults": monitor.machine()?.vcpu_faults()?,
    })))
}
