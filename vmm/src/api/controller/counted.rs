//! Which counters a request adds to.

use crate::api::http::Method;
use crate::api::request::{Action, SnapshotType, VmState};
use crate::metrics::{Latencies, Metrics};
use varve_devices::metrics::Count;

/// Counts requests, and those of them that are refused; for paths that Firecracker counts.
pub struct Endpoint<'m> {
    requests: &'m Count,
    /// None for those that only read.
    refused: Option<&'m Count>,
}

impl Endpoint<'_> {
    /// Counts a request that came.
    pub fn came(&self) {
        self.requests.inc();
    }

    /// Counts its refusal.
    pub fn was_refused(&self) {
        self.refused.into_iter().for_each(Count::inc);
    }
}

/// What counts requests to `path`.
pub fn endpoint<'m>(metrics: &'m Metrics, method: Method, path: &str) -> Option<Endpoint<'m>> {
    let segment = path.trim_start_matches('/').split('/').next().unwrap_or_default();
    let both = |requests, refused| Some(Endpoint { requests, refused: Some(refused) });
    let only = |requests| Some(Endpoint { requests, refused: None });
    let (get, put, patch) = (&metrics.get_requests, &metrics.put_requests, &metrics.patch_requests);
    match (method, segment) {
        (Method::Get, "") => only(&get.instance_info_count),
        (Method::Get, "machine-config") => only(&get.machine_cfg_count),
        (Method::Get, "mmds") => only(&get.mmds_count),
        (Method::Get, "version") => only(&get.vmm_version_count),
        (Method::Get, "hotplug") => only(&get.hotplug_memory_count),
        (Method::Put, "actions") => both(&put.actions_count, &put.actions_fails),
        (Method::Put, "boot-source") => both(&put.boot_source_count, &put.boot_source_fails),
        (Method::Put, "drives") => both(&put.drive_count, &put.drive_fails),
        (Method::Put, "logger") => both(&put.logger_count, &put.logger_fails),
        (Method::Put, "machine-config") => both(&put.machine_cfg_count, &put.machine_cfg_fails),
        (Method::Put, "cpu-config") => both(&put.cpu_cfg_count, &put.cpu_cfg_fails),
        (Method::Put, "metrics") => both(&put.metrics_count, &put.metrics_fails),
        (Method::Put, "network-interfaces") => both(&put.network_count, &put.network_fails),
        (Method::Put, "mmds") => both(&put.mmds_count, &put.mmds_fails),
        (Method::Put, "vsock") => both(&put.vsock_count, &put.vsock_fails),
        (Method::Put, "pmem") => both(&put.pmem_count, &put.pmem_fails),
        (Method::Put, "serial") => both(&put.serial_count, &put.serial_fails),
        (Method::Put, "hotplug") => both(&put.hotplug_memory_count, &put.hotplug_memory_fails),
        (Method::Patch, "drives") => both(&patch.drive_count, &patch.drive_fails),
        (Method::Patch, "network-interfaces") => both(&patch.network_count, &patch.network_fails),
        (Method::Patch, "machine-config") => {
            both(&patch.machine_cfg_count, &patch.machine_cfg_fails)
        }
        (Method::Patch, "mmds") => both(&patch.mmds_count, &patch.mmds_fails),
        (Method::Patch, "hotplug") => {
            both(&patch.hotplug_memory_count, &patch.hotplug_memory_fails)
        }
        _ => None,
    }
}

/// Where it is kept how long `action` took, from the request to the answer.
pub fn latency<'m>(latencies: &'m Latencies, action: &Action) -> Option<&'m Count> {
    match action {
        Action::SetVmState(VmState::Paused) => Some(&latencies.pause_vm),
        Action::SetVmState(VmState::Resumed) => Some(&latencies.resume_vm),
        Action::CreateSnapshot(create) => Some(match create.snapshot_type {
            SnapshotType::Full => &latencies.full_create_snapshot,
            SnapshotType::Diff => &latencies.diff_create_snapshot,
        }),
        Action::LoadSnapshot(_) => Some(&latencies.load_snapshot),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::request::ROUTES;

    /// Paths that Firecracker does not count.
    const UNCOUNTED: &[&str] =
        &["balloon", "entropy", "memory", "metrics", "snapshot", "trace", "vm", "version", "pmem"];

    #[test]
    fn each_route_has_counters_of_its_own() {
        let metrics = Metrics::default();
        let mut counted = 0;
        for route in ROUTES {
            match endpoint(&metrics, route.method, route.path) {
                Some(endpoint) => {
                    endpoint.came();
                    endpoint.was_refused();
                    counted += 1;
                }
                None => {
                    let segment = route.path.split('/').nth(1).unwrap();
                    assert!(UNCOUNTED.contains(&segment), "{:?} {}", route.method, route.path);
                }
            }
        }
        let totals = metrics.totals();
        let sum = |group: &str| -> u64 {
            let fields = totals[group].as_object().unwrap();
            let requests = fields.iter().filter(|(name, _)| name.ends_with("_count"));
            requests.map(|(_, n)| n.as_u64().unwrap()).sum()
        };
        let groups = ["get_api_requests", "put_api_requests", "patch_api_requests"];
        assert_eq!(groups.map(sum).iter().sum::<u64>(), counted);
        assert_eq!(totals["put_api_requests"]["drive_fails"], 1);
        assert_eq!(totals["put_api_requests"]["mmds_count"], 2, "/mmds and /mmds/config");
    }
}
