//! The machine as a whole: start, pause, resume, snapshots.

use std::time::Instant;

use super::{Monitor, Outcome, Response, RunState};
use crate::api::error::ApiError;
use crate::api::request::{CreateSnapshot, SnapshotType, VmState};
use crate::error::VmmError;
use crate::snapshot::flat::Extent;

pub fn start(monitor: &mut Monitor) -> Outcome {
    let config = monitor.resources().to_config().ok_or(ApiError::NoKernel)?;
    monitor.boot(config, Instant::now()).map_err(ApiError::Start)?;
    Ok(Response::no_content())
}

pub fn set_state(monitor: &mut Monitor, state: VmState) -> Outcome {
    match state {
        VmState::Paused => monitor.pause()?,
        VmState::Resumed => monitor.resume()?,
    }
    Ok(Response::no_content())
}

pub fn ctrl_alt_del(monitor: &Monitor) -> Outcome {
    monitor.machine()?.keyboard().ctrl_alt_del().map_err(VmmError::Keyboard)?;
    Ok(Response::no_content())
}

pub fn create_snapshot(monitor: &mut Monitor, create: CreateSnapshot) -> Outcome {
    if monitor.state() != RunState::Paused {
        return Err(ApiError::NotPaused);
    }
    let extent = match create.snapshot_type {
        SnapshotType::Full => Extent::Full,
        SnapshotType::Diff => Extent::Diff,
    };
    monitor
        .save(extent, &create.snapshot_path, &create.mem_file_path)
        .map_err(ApiError::CreateSnapshot)?;
    Ok(Response::no_content())
}
