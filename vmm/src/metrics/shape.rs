//! The whole tree of metrics: which groups there are, whatever machine it is.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};

use serde::Serialize;
use serde_json::{Value, json};
use varve_devices::metrics::{
    BalloonMetrics, BlockMetrics, Count, EntropyMetrics, I8042Metrics, NetMetrics, UartMetrics,
    VsockMetrics,
};

use super::Metrics;
use super::groups::{MemoryHotplug, Pmem};
use super::tree::{Tree, aggregate};

/// What the devices of the machine count.
#[derive(Debug, Default)]
pub struct DeviceMetrics {
    /// Drives, by id.
    pub block: BTreeMap<String, Arc<BlockMetrics>>,
    /// Network interfaces, by id.
    pub net: BTreeMap<String, Arc<NetMetrics>>,
    /// The vsock device.
    pub vsock: Arc<VsockMetrics>,
    /// The balloon.
    pub balloon: Arc<BalloonMetrics>,
    /// The source of random numbers.
    pub entropy: Arc<EntropyMetrics>,
    /// The serial port.
    pub uart: Arc<UartMetrics>,
    /// The keyboard controller.
    pub i8042: Arc<I8042Metrics>,
    /// How often each interrupt line was raised.
    pub lines: Vec<Arc<Count>>,
}

impl Metrics {
    /// All numbers now, counted from the start of the process.
    pub fn totals(&self) -> Tree {
        let devices = self.devices.read().unwrap_or_else(PoisonError::into_inner);
        self.signals.count();
        let mut tree = Tree::new();
        let mut add = |name: &str, group: Value| drop(tree.insert(name.into(), group));
        add("api_server", value(&self.api_server));
        add("balloon", value(&*devices.balloon));
        for (name, group) in each("block", &devices.block) {
            add(&name, group);
        }
        add("deprecated_api", value(&self.deprecated_api));
        add("entropy", value(&*devices.entropy));
        add("get_api_requests", value(&self.get_requests));
        add("i8042", value(&*devices.i8042));
        // Interrupts here are lines; nothing is configured anew while the machine runs.
        let triggers: u64 = devices.lines.iter().map(|line| line.get()).sum();
        add("interrupts", json!({ "triggers": triggers, "config_updates": 0 }));
        add("latencies_us", value(&self.latencies));
        add("logger", both(value(&self.flushes), value(crate::logger::counts())));
        add("memory_hotplug", value(&MemoryHotplug::default()));
        add("mmds", value(&*self.mmds));
        for (name, group) in each("net", &devices.net) {
            add(&name, group);
        }
        add("patch_api_requests", value(&self.patch_requests));
        add("pmem", value(&Pmem::default()));
        add("put_api_requests", value(&self.put_requests));
        let restore = self.restore.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(counters) = restore.as_ref().and_then(|counters| counters()) {
            add("restore", value(&counters));
        }
        add("seccomp", value(&self.seccomp));
        add("signals", value(&self.signals));
        add("uart", value(&*devices.uart));
        add("vcpu", value(&*self.vcpu));
        add("vmm", value(&self.vmm));
        add("vsock", value(&*devices.vsock));
        tree
    }
}

/// The groups of all devices of a kind, and their sum.
fn each<M: Serialize + Default>(
    kind: &str,
    devices: &BTreeMap<String, Arc<M>>,
) -> Vec<(String, Value)> {
    let mut groups: Vec<_> =
        devices.iter().map(|(id, metrics)| (format!("{kind}_{id}"), value(&**metrics))).collect();
    let sum = aggregate(value(&M::default()), groups.iter().map(|(_, group)| group));
    groups.push((kind.into(), sum));
    groups
}

fn value(group: &impl Serialize) -> Value {
    // Structs of numbers: nothing in them can fail.
    serde_json::to_value(group).unwrap_or_default()
}

fn both(one: Value, other: Value) -> Value {
    match (one, other) {
        (Value::Object(mut one), Value::Object(other)) => {
            one.extend(other);
            one.into()
        }
        (one, _) => one,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drives_have_groups_and_a_sum() {
        let metrics = Metrics::default();
        let drives = [Arc::<BlockMetrics>::default(), Arc::default()];
        for (id, drive) in ["a", "b"].iter().zip(&drives) {
            metrics.devices().block.insert((*id).into(), drive.clone());
        }
        drives[0].read_bytes.add(512);
        drives[1].read_bytes.add(1024);
        let totals = metrics.totals();
        assert_eq!(totals["block_a"]["read_bytes"], 512);
        assert_eq!(totals["block_b"]["read_bytes"], 1024);
        assert_eq!(totals["block"]["read_bytes"], 1536);
        assert_eq!(totals["block"].as_object().unwrap().len(), 20);
        assert!(!totals.contains_key("restore"), "this machine booted");
    }
}
