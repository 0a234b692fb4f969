//! `varve tier devices`: what this host has, what each is good for here, and what is missing.

use std::error::Error;
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;
use serde_json::json;
use varve_shared::host::Host;

use crate::cli::out::{human, outln};
use crate::error::chain;
use crate::kvm;

/// Options of `varve tier devices`.
#[derive(Debug, Args)]
pub struct DevicesArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Something that is there, or that is not.
#[derive(Debug, Serialize)]
struct Finding {
    what: String,
    there: bool,
    /// What it is good for, or how it can be had.
    text: String,
}

fn there(what: String, text: &str) -> Finding {
    Finding { what, there: true, text: text.into() }
}

fn missing(what: &str, text: &str) -> Finding {
    Finding { what: what.into(), there: false, text: text.into() }
}

/// Looks and tells.
pub fn main(args: &DevicesArgs) -> Result<ExitCode, Box<dyn Error>> {
    let host = Host::look();
    let rdma: Vec<_> = varve_rdma::ports().iter().map(|port| port_of(port.info())).collect();
    let kvm = kvm::options().map_err(|e| chain(&e));
    let userfaultfd = varve_memory_tiers::can_watch().map_err(|e| chain(&e));
    let mut findings = memory(&host);
    findings.extend(others(&rdma, &kvm, &userfaultfd));
    if args.json {
        let options = kvm.as_ref().map_or_else(
            |error| json!({ "error": error }),
            |options| options.iter().map(|(name, has)| (*name, json!(has))).collect(),
        );
        let shown = json!({
            "nodes": host.nodes, "dax_devices": host.dax_devices, "dax_mounts": host.dax_mounts,
            "huge_pages": host.huge_pages, "rdma": rdma, "kvm": options,
            "userfaultfd": userfaultfd.is_ok(), "findings": findings,
        });
        outln!("{}", serde_json::to_string_pretty(&shown)?);
        return Ok(ExitCode::SUCCESS);
    }
    for Finding { what, there, text } in findings {
        outln!("{} {what}\n    {text}", if there { "+" } else { "-" });
    }
    Ok(ExitCode::SUCCESS)
}

/// Memory that can keep images.
fn memory(host: &Host) -> Vec<Finding> {
    let mut found = Vec::new();
    for node in host.nodes.iter().filter(|n| n.cpus.is_none() && n.bytes > 0) {
        let figure = |name, value: Option<u64>, unit| {
            value.map_or(String::new(), |v| format!(", {name} {v} {unit}"))
        };
        let what = format!(
            "NUMA node {} without processors: {} free of {}{}{}",
            node.node,
            human(node.free),
            human(node.bytes),
            figure("reads take", node.read_latency_ns, "ns"),
            figure("at most", node.read_bandwidth_mb, "MB/s")
        );
        let text = format!("keeps images that machines map in place: --to numa:{}", node.node);
        found.push(there(what, &text));
    }
    if found.is_empty() {
        found.push(missing(
            "no NUMA node without processors",
            "CXL memory is one when it is online as system RAM: daxctl reconfigure-device \
             --mode=system-ram daxX.Y",
        ));
    }
    for mount in &host.dax_mounts {
        let what = format!(
            "{} on {}, {} with {}",
            mount.dir.display(),
            mount.device,
            mount.kind,
            mount.option
        );
        let text =
            format!("keeps images that machines map in place: --to dax:{}", mount.dir.display());
        found.push(there(what, &text));
    }
    if host.dax_mounts.is_empty() {
        found.push(missing(
            "no file system that is mounted with -o dax",
            "persistent memory, or CXL memory as such, can have one: ndctl create-namespace \
             --mode=fsdax, mkfs.ext4 -b 4096, mount -o dax=always",
        ));
    }
    for device in &host.dax_devices {
        let driver = device.driver.as_deref().unwrap_or("no driver");
        let what = format!("{} ({driver}): {}", device.path.display(), human(device.bytes));
        let path = device.path.display();
        found.push(match driver {
            "device_dax" => there(
                what,
                &format!(
                    "keeps images that restores copy from, also of several hosts: varve tier init \
                     devdax:{path}; as system RAM, or with a file system, they could be mapped"
                ),
            ),
            "kmem" => there(what, "is the memory of a NUMA node; see there"),
            _ => missing(&what, "it needs its driver: modprobe device_dax"),
        });
    }
    if host.dax_devices.is_empty() {
        let cure = "ndctl create-namespace --mode=devdax, or cxl create-region, makes one of \
                    memory that is there";
        found.push(missing("no device-DAX device", cure));
    }
    found
}

/// What else restores use.
fn others(
    rdma: &[String],
    kvm: &Result<Vec<(&'static str, bool)>, String>,
    userfaultfd: &Result<(), String>,
) -> Vec<Finding> {
    let mut found = Vec::new();
    for pool in Host::look().huge_pages {
        let size = human(pool.page_bytes);
        match pool.pages {
            0 => found.push(missing(
                &format!("no huge pages of {size}"),
                "pool nodes and --huge-pages 2M use those of 2 MiB: sysctl vm.nr_hugepages=N",
            )),
            pages => found.push(there(
                format!("{pages} huge pages of {size}, {} of them free", pool.free),
                "those of 2 MiB are for pool nodes and --huge-pages 2M",
            )),
        }
    }
    for port in rdma {
        found.push(there(
            format!("RDMA port {port}"),
            "fetches pages from a pool by one-sided reads",
        ));
    }
    if rdma.is_empty() {
        let cure = "a pool is reached by TCP; rdma link add rxe0 type rxe netdev NAME makes a \
                    software one (soft-RoCE)";
        found.push(missing("no RDMA port", cure));
    }
    match kvm {
        Err(error) => found.push(missing("no KVM", error)),
        Ok(options) => {
            for (name, has) in options {
                let use_of = match *name {
                    "pre_fault_memory" => "fills second-level page tables ahead of the guest",
                    "disable_exits" => "recordings tell reads from writes exactly",
                    _ => continue,
                };
                found.push(match has {
                    true => there(format!("KVM: {name}"), use_of),
                    false => missing(
                        &format!("KVM without {name}"),
                        &format!("it {use_of}; a newer kernel has it"),
                    ),
                });
            }
        }
    }
    found.push(match userfaultfd {
        Ok(()) => there(
            "userfaultfd".into(),
            "pages that are asked for: a pool, --cold paged, reap, recordings",
        ),
        Err(error) => missing("no userfaultfd", error),
    });
    found
}

fn port_of(port: &varve_rdma::PortInfo) -> String {
    let state = if port.active { "up" } else { "down" };
    format!("{} {} at {}, {state}", port.device, port.port, port.address)
}
