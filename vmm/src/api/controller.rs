//! What each request does: paths and bodies to calls on the monitor, errors to status codes.

use std::path::PathBuf;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use super::balloon;
use super::http::{Method, Request, Response};
use crate::error::VmmError;
use crate::monitor::{Monitor, RunState};
use crate::snapshot::flat::{self, Extent};

/// Why a request is refused.
pub enum Refusal {
    /// The body or the time is wrong.
    BadRequest(String),
    /// Something failed.
    Failed(VmmError),
}

impl From<VmmError> for Refusal {
    fn from(error: VmmError) -> Refusal {
        Refusal::Failed(error)
    }
}

/// What becomes of a request.
pub type Outcome = Result<Response, Refusal>;

/// Carries out one request.
pub fn handle(monitor: &mut Monitor, request: &Request) -> Response {
    let outcome = match (request.method, request.path.as_str()) {
        (Method::Get, "/") => Ok(describe(monitor)),
        (Method::Get, "/version") => {
            Ok(Response::ok(&json!({ "firecracker_version": env!("CARGO_PKG_VERSION") })))
        }
        (Method::Patch, "/vm") => patch_vm(monitor, request),
        (Method::Get, "/memory") => describe_memory(monitor),
        (Method::Put, "/snapshot/create") => create_snapshot(monitor, request),
        (method, path) => balloon::route(monitor, request).unwrap_or_else(|| {
            let method = format!("{method:?}").to_uppercase();
            Err(Refusal::BadRequest(format!(
                "Invalid request method and/or path: {method} {path}."
            )))
        }),
    };
    match outcome {
        Ok(response) => response,
        Err(Refusal::BadRequest(message)) => Response::fault(400, message),
        Err(Refusal::Failed(error)) => Response::fault(400, crate::error::chain(&error)),
    }
}

/// The body of a request.
pub fn body<T: DeserializeOwned>(request: &Request) -> Result<T, Refusal> {
    serde_json::from_slice(&request.body).map_err(|e| {
        Refusal::BadRequest(format!(
            "An error occurred when deserializing the json body of a request: {e}."
        ))
    })
}

fn describe(monitor: &Monitor) -> Response {
    let state = match monitor.state() {
        RunState::NotStarted => "Not started",
        RunState::Running => "Running",
        RunState::Paused => "Paused",
    };
    Response::ok(&json!({
        "app_name": "varve",
        "id": "anonymous-instance",
        "state": state,
        "vmm_version": env!("CARGO_PKG_VERSION"),
    }))
}

/// How memory was restored, and what has happened to it since.
fn describe_memory(monitor: &Monitor) -> Outcome {
    started(monitor)?;
    let Some(restore) = monitor.machine()?.restored().and_then(|r| r.planned()) else {
        return Ok(Response::ok(&json!({ "strategy": null })));
    };
    Ok(Response::ok(&json!({
        "strategy": restore.plan().strategy,
        "plan": restore.plan().summary(),
        "counters": restore.counters(),
        "census": restore.census().ok(),
    })))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct VmPatch {
    state: VmState,
}

#[derive(Deserialize)]
enum VmState {
    Paused,
    Resumed,
}

/// Refuses what needs a machine while there is none.
pub fn started(monitor: &Monitor) -> Result<(), Refusal> {
    match monitor.state() {
        RunState::NotStarted => Err(Refusal::BadRequest(
            "The requested operation is not supported before starting the microVM.".into(),
        )),
        _ => Ok(()),
    }
}

fn patch_vm(monitor: &mut Monitor, request: &Request) -> Outcome {
    let VmPatch { state } = body(request)?;
    started(monitor)?;
    match state {
        VmState::Paused => monitor.pause()?,
        VmState::Resumed => monitor.resume()?,
    }
    Ok(Response::no_content())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CreateSnapshot {
    snapshot_path: PathBuf,
    mem_file_path: PathBuf,
    #[serde(default)]
    snapshot_type: SnapshotType,
}

#[derive(Default, Deserialize)]
enum SnapshotType {
    #[default]
    Full,
    Diff,
}

fn create_snapshot(monitor: &mut Monitor, request: &Request) -> Outcome {
    let CreateSnapshot { snapshot_path, mem_file_path, snapshot_type } = body(request)?;
    started(monitor)?;
    if monitor.state() != RunState::Paused {
        return Err(Refusal::BadRequest(
            "Create snapshot error: the microVM must be paused first.".into(),
        ));
    }
    let extent = match snapshot_type {
        SnapshotType::Full => Extent::Full,
        SnapshotType::Diff => Extent::Diff,
    };
    flat::create(monitor, extent, &snapshot_path, &mem_file_path)?;
    Ok(Response::no_content())
}
