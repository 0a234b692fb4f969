//! `/balloon`: size, statistics and free page hinting, with Firecracker's paths and bodies.

use serde::Deserialize;
use serde_json::json;
use varve_devices::virtio::balloon::BalloonHandle;

use super::controller::{Outcome, Refusal, body, started};
use super::http::{Method, Request, Response};
use crate::monitor::Monitor;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Size {
    amount_mib: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Interval {
    stats_polling_interval_s: u16,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StartHinting {
    #[serde(default = "yes")]
    acknowledge_on_stop: bool,
}

fn yes() -> bool {
    true
}

fn refuse(error: impl std::error::Error) -> Refusal {
    Refusal::BadRequest(crate::error::chain(&error))
}

fn handle(monitor: &Monitor) -> Result<&BalloonHandle, Refusal> {
    started(monitor)?;
    let handle = monitor.machine()?.balloon();
    handle.ok_or_else(|| Refusal::BadRequest("The machine has no balloon device.".into()))
}

/// Carries out a request below `/balloon`; `None` if there is no such path.
pub fn route(monitor: &Monitor, request: &Request) -> Option<Outcome> {
    let outcome = match (request.method, request.path.as_str()) {
        (Method::Get, "/balloon") => describe(monitor),
        (Method::Patch, "/balloon") => resize(monitor, request),
        (Method::Get, "/balloon/statistics") => statistics(monitor),
        (Method::Patch, "/balloon/statistics") => interval(monitor, request),
        (Method::Patch, "/balloon/hinting/start") => start_hinting(monitor, request),
        (Method::Get, "/balloon/hinting/status") => hinting_status(monitor),
        (Method::Patch, "/balloon/hinting/stop") => stop_hinting(monitor),
        _ => return None,
    };
    Some(outcome)
}

fn describe(monitor: &Monitor) -> Outcome {
    let balloon = handle(monitor)?;
    let config = monitor.config()?.balloon.clone().unwrap_or_default();
    Ok(Response::ok(&json!({
        "amount_mib": balloon.target(),
        "deflate_on_oom": config.deflate_on_oom,
        "stats_polling_interval_s": balloon.stats_interval(),
        "free_page_hinting": config.free_page_hinting,
        "free_page_reporting": config.free_page_reporting,
    })))
}

fn resize(monitor: &Monitor, request: &Request) -> Outcome {
    let Size { amount_mib } = body(request)?;
    let balloon = handle(monitor)?;
    let memory_mib = monitor.config()?.memory >> 20;
    if u64::from(amount_mib) > memory_mib {
        let message = format!("The balloon cannot hold {amount_mib} of {memory_mib} MiB.");
        return Err(Refusal::BadRequest(message));
    }
    balloon.set_target(amount_mib).map_err(refuse)?;
    Ok(Response::no_content())
}

fn statistics(monitor: &Monitor) -> Outcome {
    let balloon = handle(monitor)?;
    let stats = balloon.stats().map_err(refuse)?;
    Ok(Response::ok(&json!(stats)))
}

fn interval(monitor: &Monitor, request: &Request) -> Outcome {
    let Interval { stats_polling_interval_s } = body(request)?;
    handle(monitor)?.set_stats_interval(stats_polling_interval_s).map_err(refuse)?;
    Ok(Response::no_content())
}

fn start_hinting(monitor: &Monitor, request: &Request) -> Outcome {
    let acknowledge = match request.body.is_empty() {
        true => true,
        false => body::<StartHinting>(request)?.acknowledge_on_stop,
    };
    handle(monitor)?.start_hinting(acknowledge).map_err(refuse)?;
    Ok(Response::no_content())
}

fn hinting_status(monitor: &Monitor) -> Outcome {
    let status = handle(monitor)?.hinting_status().map_err(refuse)?;
    Ok(Response::ok(&json!({ "host_cmd": status.host_cmd, "guest_cmd": status.guest_cmd })))
}

fn stop_hinting(monitor: &Monitor) -> Outcome {
    handle(monitor)?.stop_hinting().map_err(refuse)?;
    Ok(Response::no_content())
}
