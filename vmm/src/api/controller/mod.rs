//! Carrying requests out: when they are possible, what they do, and what is answered.

mod balloon;
mod configure;
mod counted;
mod describe;
mod instance;
mod load;
mod mmds;
mod observe;
mod offload;
mod update;

use std::time::Instant;

use super::error::ApiError;
use super::http::{Request, Response};
use super::request::{self, Action, When};
use crate::error::chain;
use crate::metrics;
use crate::monitor::{Monitor, RunState};

/// Bytes of a body that are logged.
const MAX_SHOWN: usize = 4096;

/// What becomes of an action.
type Outcome = Result<Response, ApiError>;

/// Answers one request.
pub fn handle(monitor: &mut Monitor, request: &Request) -> Response {
    log::info!("The API server received {}.", describe(request));
    let start = Instant::now();
    let metrics = monitor.metrics().clone();
    let endpoint = counted::endpoint(&metrics, request.method, &request.path);
    endpoint.iter().for_each(counted::Endpoint::came);
    let mut deprecated = false;
    let outcome = request::parse(request).map_err(ApiError::from).and_then(|action| {
        deprecated = action.is_deprecated();
        if deprecated {
            metrics.deprecated_api.deprecated_http_api_calls.inc();
        }
        let latency = counted::latency(&metrics.latencies, &action);
        let response = carry_out(monitor, action)?;
        latency.into_iter().for_each(|latency| metrics::took(latency, start));
        Ok(response)
    });
    let response = outcome.unwrap_or_else(|e| {
        endpoint.iter().for_each(counted::Endpoint::was_refused);
        log::info!("{} {} is refused: {}", request.method.name(), request.path, chain(&e));
        Response::fault(e.status(), chain(&e))
    });
    Response { deprecated, ..response }
}

/// The request as it is logged: metadata of the guest may be secret, so its contents are left out.
fn describe(request: &Request) -> String {
    let Request { method, path, body } = request;
    let name = method.name();
    match body.is_empty() || path.starts_with("/mmds") {
        true => format!("a {name} request on {path:?}"),
        false => {
            // A client decides how long a body is, and how often it comes.
            let shown = body.get(..MAX_SHOWN).unwrap_or(body);
            let more = if shown.len() < body.len() { "…" } else { "" };
            let shown = String::from_utf8_lossy(shown);
            format!("a {name} request on {path:?} with body {shown:?}{more}")
        }
    }
}

fn carry_out(monitor: &mut Monitor, action: Action) -> Outcome {
    let started = monitor.state() != RunState::NotStarted;
    match action.when() {
        When::BeforeStart if started => return Err(ApiError::AfterStart),
        When::AfterStart if !started => return Err(ApiError::BeforeStart),
        _ => {}
    }
    match action {
        Action::DescribeInstance => describe::instance(monitor),
        Action::DescribeVersion => describe::version(),
        Action::DescribeConfig => describe::config(monitor),
        Action::DescribeMachine => describe::machine(monitor),
        Action::DescribeMemory => describe::memory(monitor),
        Action::DescribeBalloon => balloon::describe(monitor),
        Action::DescribeBalloonStats => balloon::statistics(monitor),
        Action::DescribeHinting => balloon::hinting_status(monitor),

        Action::SetBootSource(source) => configure::boot_source(monitor, source),
        Action::SetMachine(machine) => configure::machine(monitor, machine.into()),
        Action::UpdateMachine(update) => configure::machine(monitor, update),
        Action::SetCpuConfig(cpu) => configure::cpu(monitor, cpu),
        Action::SetDrive(drive) => configure::drive(monitor, drive),
        Action::SetNet(net) => configure::net(monitor, net),
        Action::SetMmdsConfig(config) => configure::mmds(monitor, config),
        Action::SetVsock(vsock) => configure::vsock(monitor, vsock),
        Action::SetEntropy(entropy) => configure::entropy(monitor, entropy),
        Action::SetSerial(serial) => configure::serial(monitor, serial),
        Action::SetBalloon(balloon) => configure::balloon(monitor, balloon),

        Action::UpdateDrive(update) => update::drive(monitor, update),
        Action::UpdateNet(update) => update::net(monitor, update),
        Action::UpdateBalloon(update) => balloon::resize(monitor, update),
        Action::UpdateBalloonStats(update) => balloon::interval(monitor, update),
        Action::StartHinting(start) => balloon::start_hinting(monitor, start),
        Action::StopHinting => balloon::stop_hinting(monitor),

        Action::GetMmds => mmds::get(monitor),
        Action::PutMmds(document) => mmds::put(monitor, document),
        Action::PatchMmds(patch) => mmds::patch(monitor, &patch),

        Action::StartInstance => instance::start(monitor),
        Action::SendCtrlAltDel => instance::ctrl_alt_del(monitor),
        Action::SetVmState(state) => instance::set_state(monitor, state),
        Action::CreateSnapshot(create) => instance::create_snapshot(monitor, create),
        Action::LoadSnapshot(load) => load::load(monitor, *load),
        Action::Trace(request) => load::trace(monitor, request),
        Action::Offload(request) => offload::begin(monitor, request),
        Action::Recall => offload::recall(monitor),
        Action::DescribeOffload => offload::describe(monitor),

        Action::SetLogger(config) => observe::logger(monitor, config),
        Action::SetMetrics(config) => observe::metrics(monitor, config),
        Action::FlushMetrics => observe::flush(monitor),
        Action::DescribeMetrics => observe::totals(monitor),

        Action::Unsupported(what) => unsupported(what),
    }
}

fn unsupported(what: &str) -> Outcome {
    Err(ApiError::NotSupported(format!("this version of varve has no {what}.")))
}
