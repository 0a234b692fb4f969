//! The table of routes.

use serde::de::DeserializeOwned;

use super::{Action, ActionBody, RequestError, Vm};
use crate::api::http::{Method, Request};
use crate::config::firecracker::drive::{Drive, DriveUpdate};
use crate::config::firecracker::machine_config::MachineConfigUpdate;
use crate::config::firecracker::network_interface::{NetworkInterface, NetworkInterfaceUpdate};

/// A method, a path and what they ask for.
pub struct Route {
    /// Method.
    pub method: Method,
    /// Path; its last segment may be a name in braces, as in `/drives/{drive_id}`.
    pub path: &'static str,
    /// Whether it has a body; none: it may have one.
    pub body: Option<bool>,
    parse: fn(&Parts) -> Result<Action, RequestError>,
}

/// What the table's functions see of a request.
struct Parts<'a> {
    /// The path's name, if the route has one; checked.
    id: &'a str,
    body: &'a [u8],
}

impl Parts<'_> {
    fn body<T: DeserializeOwned>(&self) -> Result<T, RequestError> {
        Ok(serde_json::from_slice(self.body)?)
    }

    /// The body, or its default where there is none.
    fn body_or_default<T: DeserializeOwned + Default>(&self) -> Result<T, RequestError> {
        if self.body.is_empty() { Ok(T::default()) } else { self.body() }
    }
}

type Parse = fn(&Parts) -> Result<Action, RequestError>;

const fn get(path: &'static str, parse: Parse) -> Route {
    Route { method: Method::Get, path, body: Some(false), parse }
}

const fn put(path: &'static str, parse: Parse) -> Route {
    Route { method: Method::Put, path, body: Some(true), parse }
}

const fn patch(path: &'static str, parse: Parse) -> Route {
    Route { method: Method::Patch, path, body: Some(true), parse }
}

/// Every request that there is.
pub static ROUTES: &[Route] = &[
    get("/", |_| Ok(Action::DescribeInstance)),
    put("/actions", |r| Ok(r.body::<ActionBody>()?.into())),
    get("/balloon", |_| Ok(Action::DescribeBalloon)),
    put("/balloon", |r| Ok(Action::SetBalloon(r.body()?))),
    patch("/balloon", |r| Ok(Action::UpdateBalloon(r.body()?))),
    get("/balloon/statistics", |_| Ok(Action::DescribeBalloonStats)),
    patch("/balloon/statistics", |r| Ok(Action::UpdateBalloonStats(r.body()?))),
    Route {
        body: None,
        ..patch("/balloon/hinting/start", |r| Ok(Action::StartHinting(r.body_or_default()?)))
    },
    get("/balloon/hinting/status", |_| Ok(Action::DescribeHinting)),
    Route { body: None, ..patch("/balloon/hinting/stop", |_| Ok(Action::StopHinting)) },
    put("/boot-source", |r| Ok(Action::SetBootSource(r.body()?))),
    put("/cpu-config", |r| Ok(Action::SetCpuConfig(r.body()?))),
    put("/drives/{drive_id}", put_drive),
    patch("/drives/{drive_id}", patch_drive),
    put("/entropy", |r| Ok(Action::SetEntropy(r.body()?))),
    get("/hotplug/memory", |_| Ok(Action::Unsupported("/hotplug/memory"))),
    put("/hotplug/memory", |_| Ok(Action::Unsupported("/hotplug/memory"))),
    patch("/hotplug/memory", |_| Ok(Action::Unsupported("/hotplug/memory"))),
    put("/logger", |r| Ok(Action::SetLogger(r.body()?))),
    get("/machine-config", |_| Ok(Action::DescribeMachine)),
    put("/machine-config", |r| Ok(Action::SetMachine(r.body()?))),
    patch("/machine-config", patch_machine),
    // varve's own: how memory was restored, and what has happened to it since.
    get("/memory", |_| Ok(Action::DescribeMemory)),
    // varve's own: idle pages go to other hosts, and come back.
    get("/memory/offload", |_| Ok(Action::DescribeOffload)),
    put("/memory/offload", |r| Ok(Action::Offload(r.body()?))),
    Route { body: None, ..put("/memory/recall", |_| Ok(Action::Recall)) },
    // varve's own: all counts since the process started.
    get("/metrics", |_| Ok(Action::DescribeMetrics)),
    put("/metrics", |r| Ok(Action::SetMetrics(r.body()?))),
    get("/mmds", |_| Ok(Action::GetMmds)),
    put("/mmds", |r| Ok(Action::PutMmds(r.body()?))),
    patch("/mmds", |r| Ok(Action::PatchMmds(r.body()?))),
    put("/mmds/config", |r| Ok(Action::SetMmdsConfig(r.body()?))),
    put("/network-interfaces/{iface_id}", put_net),
    patch("/network-interfaces/{iface_id}", patch_net),
    put("/pmem/{id}", |_| Ok(Action::Unsupported("/pmem"))),
    patch("/pmem/{id}", |_| Ok(Action::Unsupported("/pmem"))),
    put("/serial", |r| Ok(Action::SetSerial(r.body()?))),
    put("/snapshot/create", |r| Ok(Action::CreateSnapshot(r.body()?))),
    put("/snapshot/load", |r| Ok(Action::LoadSnapshot(Box::new(r.body()?)))),
    // varve's own: marks in a recording, and its end.
    put("/trace", |r| Ok(Action::Trace(r.body()?))),
    get("/version", |_| Ok(Action::DescribeVersion)),
    patch("/vm", |r| Ok(Action::SetVmState(r.body::<Vm>()?.state))),
    get("/vm/config", |_| Ok(Action::DescribeConfig)),
    put("/vsock", |r| Ok(Action::SetVsock(r.body()?))),
];

fn put_drive(r: &Parts) -> Result<Action, RequestError> {
    let drive: Drive = r.body()?;
    if drive.drive_id != r.id {
        return Err(RequestError::OtherDrive);
    }
    Ok(Action::SetDrive(drive))
}

fn patch_drive(r: &Parts) -> Result<Action, RequestError> {
    let update: DriveUpdate = r.body()?;
    if update.drive_id != r.id {
        return Err(RequestError::OtherDrive);
    }
    Ok(Action::UpdateDrive(update))
}

fn put_net(r: &Parts) -> Result<Action, RequestError> {
    let net: NetworkInterface = r.body()?;
    if net.iface_id != r.id {
        return Err(RequestError::OtherInterface { path: r.id.into(), body: net.iface_id });
    }
    Ok(Action::SetNet(net))
}

fn patch_net(r: &Parts) -> Result<Action, RequestError> {
    let update: NetworkInterfaceUpdate = r.body()?;
    if update.iface_id != r.id {
        return Err(RequestError::OtherInterface { path: r.id.into(), body: update.iface_id });
    }
    Ok(Action::UpdateNet(update))
}

fn patch_machine(r: &Parts) -> Result<Action, RequestError> {
    let update: MachineConfigUpdate = r.body()?;
    if update == MachineConfigUpdate::default() {
        return Err(RequestError::Empty(Method::Patch));
    }
    Ok(Action::UpdateMachine(update))
}

/// What a request asks for.
pub fn parse(request: &Request) -> Result<Action, RequestError> {
    let method = request.method;
    let words: Vec<&str> = request.path.trim_start_matches('/').split_terminator('/').collect();
    let found = || {
        let routes = ROUTES.iter().filter(|route| route.method == method);
        routes.filter_map(|route| matched(route.path, &words).map(|found| (route, found)))
    };
    // As Firecracker, which takes no notice of segments behind those that it looks at.
    let found = found()
        .find(|(_, found)| !found.more)
        .or_else(|| found().find(|(route, _)| !branches(route)))
        .map(|(route, found)| (route, found.id));
    let body = match found {
        Some((route, _)) => route.body,
        None => Some(method != Method::Get),
    };
    match (body, request.body.is_empty(), method) {
        (Some(false), false, _) => return Err(RequestError::GetWithBody),
        (Some(true), true, Method::Put | Method::Patch) => return Err(RequestError::Empty(method)),
        _ => {}
    }
    let (route, id) = found.ok_or_else(|| RequestError::Path {
        method,
        path: request.path.trim_start_matches('/').into(),
    })?;
    let id = id.map(checked_id).transpose()?.unwrap_or_default();
    (route.parse)(&Parts { id, body: &request.body })
}

/// What a path has of a template.
struct Matched<'a> {
    /// The name in it, empty if it is missing; none if the template has none.
    id: Option<&'a str>,
    /// Segments follow that the template has not.
    more: bool,
}

/// Compares the segments of a path with a template.
fn matched<'a>(template: &str, path: &[&'a str]) -> Option<Matched<'a>> {
    let mut path = path.iter().copied();
    let mut id = None;
    for word in template.trim_start_matches('/').split_terminator('/') {
        match path.next() {
            given if word.starts_with('{') => id = Some(given.unwrap_or_default()),
            given if given == Some(word) => {}
            _ => return None,
        }
    }
    Some(Matched { id, more: path.next().is_some() })
}

/// Whether other routes of this method lie behind it, so that what follows has a meaning.
fn branches(route: &Route) -> bool {
    let behind = |other: &Route| {
        let rest = other.path.strip_prefix(route.path.trim_end_matches('/'));
        other.path != route.path && rest.is_some_and(|rest| rest.starts_with('/'))
    };
    ROUTES.iter().any(|other| other.method == route.method && behind(other))
}

fn checked_id(id: &str) -> Result<&str, RequestError> {
    if id.is_empty() {
        return Err(RequestError::NoId);
    }
    if !id.chars().all(|c| c == '_' || c.is_alphanumeric()) {
        return Err(RequestError::BadId);
    }
    Ok(id)
}
