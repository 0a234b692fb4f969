//! What this host has that could hold images, read from the kernel's files.

mod dax;
mod huge;
mod numa;

use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;

pub use dax::{DaxDevice, DaxMount};
pub use huge::HugePool;
pub use numa::Node;

/// All of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Host {
    /// NUMA nodes.
    pub nodes: Vec<Node>,
    /// Devices that can be mapped as they are.
    pub dax_devices: Vec<DaxDevice>,
    /// File systems that map their device.
    pub dax_mounts: Vec<DaxMount>,
    /// Pools of huge pages.
    pub huge_pages: Vec<HugePool>,
}

impl Host {
    /// This host.
    pub fn look() -> Host {
        Host::at(Path::new("/"))
    }

    /// The host whose `/sys` and `/proc` are below `root`.
    pub fn at(root: &Path) -> Host {
        Host {
            nodes: numa::nodes(&root.join("sys/devices/system/node")),
            dax_devices: dax::devices(&root.join("sys/bus/dax/devices")),
            dax_mounts: dax::mounts(&root.join("proc/self/mounts")),
            huge_pages: huge::pools(&root.join("sys/kernel/mm/hugepages")),
        }
    }
}

/// Free memory of a NUMA node in bytes; none if there is no such node, or the message lists no memory.
pub(crate) fn node_free(node: u32) -> Option<u64> {
    let nodes = numa::nodes(Path::new("/sys/devices/system/node"));
    nodes.into_iter().find(|n| n.node == node && n.bytes > 0).map(|n| n.free)
}

/// A file's text without the blanks around it.
fn text(path: &Path) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

fn number(path: &Path) -> Option<u64> {
    text(path)?.parse().ok()
}

/// Names in a folder, in order of the number in them.
fn names(dir: &Path) -> Vec<(String, PathBuf)> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<_> =
        entries.map(|e| (e.file_name().to_string_lossy().into_owned(), e.path())).collect();
    names.sort_by_key(|(name, _)| {
        let digits: String = name.chars().filter(char::is_ascii_digit).collect();
        (digits.parse::<u64>().unwrap_or(0), name.clone())
    });
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_described() {
        let dir = tempfile::tempdir().unwrap();
        let put = |path: &str, text: &str| {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let node = "sys/devices/system/node/";
        put(&format!("{node}node0/cpulist"), "0-3\n");
        put(&format!("{node}node0/meminfo"), "Node 0 MemTotal: 1024 kB\nNode 0 MemFree: 512 kB\n");
        put(&format!("{node}node1/cpulist"), "\n");
        put(&format!("{node}node1/meminfo"), "Node 1 MemTotal: 2048 kB\nNode 1 MemFree: 1 kB\n");
        let access = "node1/access0/initiators";
        put(&format!("{node}{access}/read_latency"), "250\n");
        put(&format!("{node}{access}/read_bandwidth"), "51200\n");
        let dax = "sys/bus/dax/devices/dax0.0/";
        put(&format!("{dax}size"), "134217728\n");
        put(&format!("{dax}align"), "2097152\n");
        put(&format!("{dax}target_node"), "1\n");
        put(
            "proc/self/mounts",
            "/dev/pmem0 /mnt/a\\040b ext4 rw,dax=always 0 0\ntmpfs /tmp tmpfs rw 0 0\n",
        );
        let huge = "sys/kernel/mm/hugepages/hugepages-2048kB/";
        put(&format!("{huge}nr_hugepages"), "8\n");
        put(&format!("{huge}free_hugepages"), "3\n");

        let host = Host::at(dir.path());
        assert_eq!(host.nodes.len(), 2);
        assert!(host.nodes[0].cpus.is_some() && host.nodes[1].cpus.is_none());
        assert_eq!((host.nodes[1].bytes, host.nodes[1].free), (2 << 20, 1 << 10));
        assert_eq!(host.nodes[1].read_latency_ns, Some(250));
        assert_eq!(host.nodes[1].read_bandwidth_mb, Some(51200));
        assert_eq!(host.nodes[0].read_latency_ns, None);
        assert_eq!(host.dax_devices[0].bytes, 128 << 20);
        assert_eq!(host.dax_devices[0].target_node, Some(1));
        assert_eq!(host.dax_mounts[0].dir, Path::new("/mnt/a b"));
        assert_eq!(host.dax_mounts.len(), 1);
        assert_eq!(host.huge_pages, [HugePool { page_bytes: 2 << 20, pages: 8, free: 3 }]);
        assert_eq!(Host::at(&dir.path().join("none")), Host::default());
    }
}
