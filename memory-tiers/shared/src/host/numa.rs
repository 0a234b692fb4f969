//! NUMA nodes, and what firmware says of their memory (HMAT).

use std::path::Path;

use serde::Serialize;

use super::{names, number, text};

/// A node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Node {
    /// Its number.
    pub node: u32,
    /// Its processors, as a list of ranges; none of memory that is only memory, as CXL's is.
    pub cpus: Option<String>,
    /// Its memory.
    pub bytes: u64,
    /// What of it is free.
    pub free: u64,
    /// Of a read by the nearest processors.
    pub read_latency_ns: Option<u64>,
    /// Of writes.
    pub write_latency_ns: Option<u64>,
    /// Of reads, in MB/s.
    pub read_bandwidth_mb: Option<u64>,
    /// Of writes, in MB/s.
    pub write_bandwidth_mb: Option<u64>,
}

pub(super) fn nodes(dir: &Path) -> Vec<Node> {
    let all = names(dir).into_iter();
    all.filter_map(|(name, path)| node(name.strip_prefix("node")?.parse().ok()?, &path)).collect()
}

fn node(node: u32, path: &Path) -> Option<Node> {
    let meminfo = text(&path.join("meminfo"))?;
    let bytes = |what: &str| {
        let line = meminfo.lines().find(|line| line.contains(what))?;
        let number = line.split_once(what)?.1.trim().trim_end_matches("kB").trim();
        Some(number.parse::<u64>().ok()? << 10)
    };
    // Class 0 is access by any initiator, 1 by processors only.
    let access = |name| number(&path.join("access0/initiators").join(name));
    Some(Node {
        node,
        cpus: text(&path.join("cpulist")).filter(|list| !list.is_empty()),
        bytes: bytes("MemTotal:").unwrap_or(0),
        free: bytes("MemFree:").unwrap_or(0),
        read_latency_ns: access("read_latency"),
        write_latency_ns: access("write_latency"),
        read_bandwidth_mb: access("read_bandwidth"),
        write_bandwidth_mb: access("write_bandwidth"),
    })
}
