//! The balloon: size, statistics and free page hinting.

use serde_json::json;
use varve_devices::virtio::balloon::{BalloonError as DeviceError, BalloonHandle};

use super::{Monitor, Outcome, Response};
use crate::api::error::ApiError;
use crate::config::firecracker::ResourceError;
use crate::config::firecracker::balloon::{
    BalloonError, BalloonStatsUpdate, BalloonUpdate, HintingStart,
};

fn refuse(error: DeviceError) -> ApiError {
    ApiError::BalloonUpdate(crate::error::chain(&error))
}

fn handle(monitor: &Monitor) -> Result<&BalloonHandle, ApiError> {
    let handle = monitor.machine()?.balloon();
    Ok(handle.ok_or(ResourceError::from(BalloonError::Missing))?)
}

pub fn describe(monitor: &Monitor) -> Outcome {
    let resources = monitor.resources();
    let balloon = resources.balloon.as_ref().ok_or(ResourceError::from(BalloonError::Missing))?;
    Ok(Response::ok(&json!(balloon)))
}

pub fn resize(monitor: &Monitor, update: BalloonUpdate) -> Outcome {
    let balloon = handle(monitor)?;
    if u64::from(update.amount_mib) > monitor.config()?.memory >> 20 {
        return Err(ApiError::BalloonUpdate(BalloonError::TooLarge.to_string()));
    }
    balloon.set_target(update.amount_mib).map_err(refuse)?;
    Ok(Response::no_content())
}

pub fn statistics(monitor: &Monitor) -> Outcome {
    Ok(Response::ok(&json!(handle(monitor)?.stats().map_err(refuse)?)))
}

pub fn interval(monitor: &Monitor, update: BalloonStatsUpdate) -> Outcome {
    let BalloonStatsUpdate { stats_polling_interval_s } = update;
    handle(monitor)?.set_stats_interval(stats_polling_interval_s).map_err(refuse)?;
    Ok(Response::no_content())
}

pub fn start_hinting(monitor: &Monitor, start: HintingStart) -> Outcome {
    handle(monitor)?.start_hinting(start.acknowledge_on_stop).map_err(refuse)?;
    Ok(Response::no_content())
}

pub fn hinting_status(monitor: &Monitor) -> Outcome {
    Ok(Response::ok(&json!(handle(monitor)?.hinting_status().map_err(refuse)?)))
}

pub fn stop_hinting(monitor: &Monitor) -> Outcome {
    handle(monitor)?.stop_hinting().map_err(refuse)?;
    Ok(Response::no_content())
}
