//! What a monitor is and has.

use serde_json::json;

use super::{Monitor, Outcome, Response, RunState};
use crate::config::firecracker::FullConfig;
use crate::faults::CpuTime;
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

/// What memory is made of, how it was restored, and what has happened to it since: varve's own.
pub fn memory(monitor: &Monitor) -> Outcome {
    let machine = monitor.machine()?;
    let (ram, restored) = (machine.ram(), machine.restored());
    let planned = restored.and_then(|r| r.planned());
    let vcpu_faults = machine.vcpu_faults()?;
    let recording = restored.and_then(|r| r.recording()).map(|recording| {
        let (pages, written) = recording.seen().unzip();
        json!({
            "by": recording.record().by,
            "trace_path": recording.record().trace_path,
            "goes_on": recording.goes_on(),
            "pages": pages,
            "written": written,
        })
    });
    Ok(Response::ok(&json!({
        "strategy": restored.map(|r| r.method()),
        "bytes": ram.size(),
        "huge_pages": ram.huge_pages(),
        "mappings": ram.mappings().ok(),
        "plan": planned.map(|restore| restore.plan().summary()),
        "counters": planned.map(|restore| restore.counters()),
        "census": planned.and_then(|restore| restore.census().ok()),
        "recording": recording,
        "cpu": CpuTime::now(&vcpu_faults),
        "vcpu_faults": vcpu_faults,
        "clock_is_stable": machine.clock_is_stable()?,
        "offload": machine.offload_report(),
    })))
}
