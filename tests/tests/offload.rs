//! Idle pages of a running guest on other hosts: they leave the monitor's memory, come back as they were,
//! and are lost to nobody in silence.
#![allow(clippy::unwrap_used)]

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use varve_agent::protocol::{Action, Memory, MemoryReply, Request};
use varve_pool::client::NodeClient;
use varve_pool::{Key, Tenant};
use varve_tests::services::{KEY, RDMA_ADDRESS, Service, key_file};
use varve_tests::{Ended, Restoring, Vm, VmBuilder, command, snapshots};

/// Pages of a MiB.
const MIB: u64 = 256;

/// A machine, nodes, and what is asked of them.
struct Scene {
    dir: tempfile::TempDir,
    keys: PathBuf,
    nodes: Vec<Service>,
}

impl Scene {
    fn new(nodes: usize, memory: &str) -> Scene {
        let dir = tempfile::Builder::new().prefix("varve-offload").tempdir().unwrap();
        let keys = key_file(dir.path());
        let nodes = (0..nodes)
            .map(|_| Service::node_with(&format!("{RDMA_ADDRESS}:0"), &keys, &["--memory", memory]))
            .collect();
        Scene { dir, keys, nodes }
    }

    /// Offloads, and waits for its end.
    fn offload(&self, vm: &Vm, options: &str) -> Ended {
        let to: Vec<_> = self.nodes.iter().map(|node| node.place.as_str()).collect();
        let mut args: Vec<OsString> =
            ["memory", "offload", "--json", "--to"].map(Into::into).into();
        args.extend([to.join(",").into(), "--copies".into(), to.len().to_string().into()]);
        args.extend(["--keys".into(), self.keys.clone().into()]);
        args.extend(["--api-sock".into(), vm.api().into()]);
        args.extend(options.split_whitespace().map(OsString::from));
        command::run(args)
    }

    /// The same, which must go well; what became of the pages.
    fn offloaded(&self, vm: &Vm, options: &str) -> Value {
        let end = self.offload(vm, options);
        assert_eq!((end.code, end.stderr.as_str()), (Some(0), ""), "{end:?}\n{}", vm.stderr());
        serde_json::from_str(&end.console).unwrap()
    }

    /// Bytes that a node keeps.
    fn used(&self, node: usize) -> u64 {
        let tenant = Tenant::try_from("acme".to_owned()).unwrap();
        let client = NodeClient::new(&self.nodes[node].place, tenant, Key::from_hex(KEY).unwrap());
        client.status().unwrap().used
    }
}

fn pages(report: &Value, name: &str) -> u64 {
    report[name].as_u64().unwrap()
}

fn report(vm: &Vm) -> Value {
    vm.control("GET", "/memory/offload", &Value::Null)
}

/// Waits for something to become true.
fn until(what: &str, mut is: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(90);
    while !is() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn builder(memory: &str) -> VmBuilder {
    Vm::builder().option("--memory", memory).arg("--allow-pool").controlled()
}

fn fill(vm: &mut Vm, name: &str, mib: u64, seed: u64) {
    vm.memory(name, Action::Allocate, mib, 0);
    vm.memory(name, Action::Fill, 0, seed);
}

#[test]
fn idle_pages_leave_and_come_back_as_they_were() {
    let scene = Scene::new(2, "1G");
    let balloon = "size=0,reporting";
    let mut vm = builder("160M").option("--vcpus", "4").option("--balloon", balloon).start();
    fill(&mut vm, "a", 8, 1);
    fill(&mut vm, "b", 24, 2);
    let before = vm.resident_kib();
    let out = pages(&scene.offloaded(&vm, "--idle-ms 300"), "out");
    assert!(out > 22 * MIB, "{out} pages are out");
    let after = vm.resident_kib();
    assert!(after + 20 * 1024 < before, "{before} KiB were resident, and {after} are");
    assert!(scene.used(0) > 22 << 20 && scene.used(0) == scene.used(1));
    vm.memory_by(4, "a", Action::Verify, 0);
    let now = report(&vm);
    assert!(pages(&now, "fetched") >= 8 * MIB && pages(&now, "faults") < pages(&now, "fetched"));

    // Four vCPUs check and write, over and over, while all is taken out and comes back.
    let mut client = vm.agent();
    let writer = std::thread::spawn(move || {
        for seed in 10..12 {
            let (name, action, threads) = ("a".into(), Action::Rewrite, Some(4));
            let request = Request::Memory(Memory { name, action, mib: None, seed, threads });
            client.call::<MemoryReply>(&request).unwrap();
        }
    });
    let mut rounds = 0;
    while !writer.is_finished() || rounds < 2 {
        scene.offloaded(&vm, "--idle-ms 0");
        rounds += 1;
    }
    writer.join().unwrap();
    vm.memory_by(4, "a", Action::Verify, 0);

    // What the guest gives back is zero when it comes again, and no node keeps it.
    scene.offloaded(&vm, "--idle-ms 100");
    let kept = scene.used(0);
    vm.memory("b", Action::Free, 0, 0);
    // The driver reports whole blocks of 2 MiB and more: how many there are is the guest's affair.
    until("pages given back", || pages(&report(&vm), "discarded") > 4 * MIB);
    until("parcels freed", || scene.used(0) < kept - (2 << 20));
    vm.memory("c", Action::Allocate, 24, 0);
    vm.memory("c", Action::Verify, 0, 0);

    // All of it comes back on demand, and nothing is left elsewhere.
    let end = command::run([
        "memory".as_ref(),
        "recall".as_ref(),
        "--api-sock".as_ref(),
        vm.api().as_os_str(),
    ]);
    assert_eq!(end.code, Some(0), "{end:?}");
    assert_eq!(pages(&report(&vm), "out"), 0);
    until("parcels freed", || scene.used(0) == 0 && scene.used(1) == 0);
    vm.memory_by(4, "a", Action::Verify, 0);

    // A monitor that is killed leaves nothing.
    scene.offloaded(&vm, "--idle-ms 100");
    assert!(scene.used(1) > 0);
    vm.signal("KILL");
    until("nodes are empty", || scene.used(0) == 0 && scene.used(1) == 0);
}

#[test]
fn snapshots_hold_what_is_out_and_restored_machines_offload() {
    let mut scene = Scene::new(2, "1G");
    let (snapshot, diff) = (scene.dir.path().join("snapshot"), scene.dir.path().join("diff"));
    let mut vm = builder("96M").arg("--track-dirty-pages").start();
    fill(&mut vm, "a", 8, 1);
    fill(&mut vm, "b", 8, 2);
    scene.offloaded(&vm, "--idle-ms 200");
    vm.snapshot("", &snapshot);
    // What goes and comes is not written by that.
    scene.offloaded(&vm, "--idle-ms 200");
    vm.memory("b", Action::Rewrite, 0, 3);
    scene.offloaded(&vm, "--idle-ms 200");
    let end = vm.diff(&diff);
    assert_eq!(end.code, Some(0), "{end:?}");
    let shown = snapshots::snapshot(["inspect".as_ref(), "--json".as_ref(), diff.as_os_str()]);
    let shown: Value = serde_json::from_str(&shown).unwrap();
    let written = blocks(&diff);
    assert!(written < 15 << 20, "{written} bytes of a diff: {shown}");
    drop(vm);
    snapshots::snapshot(["merge".as_ref(), snapshot.as_os_str(), diff.as_os_str()]);

    // A file is mapped here; what was written are private copies.
    let restoring =
        Restoring::from(&snapshot).options("--strategy lazy --console off --allow-pool");
    let mut vm = restoring.start();
    vm.memory("a", Action::Verify, 0, 0);
    vm.memory("b", Action::Rewrite, 0, 4);
    let now = scene.offloaded(&vm, "--idle-ms 200");
    assert!(pages(&now, "out") > 6 * MIB && pages(&now, "clean") > 6 * MIB, "{now}");
    vm.memory("b", Action::Rewrite, 0, 5);
    scene.offloaded(&vm, "--idle-ms 200");

    // One of two nodes dies, and then the other.
    scene.nodes[0].kill();
    vm.memory("b", Action::Rewrite, 0, 6);
    vm.memory("a", Action::Verify, 0, 0);
    recall(&vm);
    scene.nodes.remove(0);
    let mut client = vm.agent();
    scene.offloaded(&vm, "--idle-ms 200");
    scene.nodes[0].kill();
    let ask = std::thread::spawn(move || {
        let (name, action, threads) = ("b".into(), Action::Verify, None);
        let request = Request::Memory(Memory { name, action, mib: None, seed: 0, threads });
        client.call::<MemoryReply>(&request).is_err()
    });
    let end = vm.wait();
    assert_eq!(end.code, Some(5), "{end:?}");
    assert!(end.stderr.contains("cannot read back offloaded guest pages"), "{}", end.stderr);
    assert!(end.stderr.contains(&scene.nodes[0].place), "{}", end.stderr);
    assert!(ask.join().unwrap(), "nothing wrong is said to be right");
}

fn recall(vm: &Vm) {
    vm.control("PUT", "/memory/recall", &Value::Null);
    until("all is back", || report(vm)["phase"] == "idle");
    assert_eq!(pages(&report(vm), "out"), 0, "{}", report(vm));
}

fn blocks(dir: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let files = std::fs::read_dir(dir).unwrap();
    files.map(|file| file.unwrap().metadata().unwrap().blocks() * 512).sum()
}

#[test]
fn what_nodes_do_not_take_stays() {
    let mut scene = Scene::new(1, "4M");
    let mut vm = builder("96M").start();
    fill(&mut vm, "a", 8, 1);
    let end = scene.offload(&vm, "--idle-ms 100");
    assert_eq!(end.code, Some(1), "{end:?}");
    assert!(end.stderr.contains("exceed its limit of 4194304"), "{end:?}");
    assert!(end.stderr.contains(&scene.nodes[0].place), "{end:?}");
    let now = report(&vm);
    assert_eq!((pages(&now, "out"), pages(&now, "set_aside")), (0, 0), "{now}");
    assert!(pages(&now, "refused") > 8 * MIB, "{now}");
    vm.memory("a", Action::Verify, 0, 0);
    assert_eq!(scene.used(0), 0);
    // A little fits. While the machine is paused, too.
    vm.control("PATCH", "/vm", &json!({ "state": "Paused" }));
    let now = scene.offloaded(&vm, "--idle-ms 0 --max-mib 2");
    assert!((MIB..=2 * MIB).contains(&pages(&now, "out")), "{now}");
    vm.control("PATCH", "/vm", &json!({ "state": "Resumed" }));
    vm.memory("a", Action::Rewrite, 0, 2);
    recall(&vm);
    scene.nodes[0].kill();
    let end = scene.offload(&vm, "--idle-ms 0 --no-wait");
    assert_eq!(end.code, Some(0), "{end:?}");
    until("the node is found dead", || report(&vm)["error"].is_string());
    let said = report(&vm)["error"].to_string();
    assert!(said.contains(&scene.nodes[0].place), "{said}");
    drop(vm);

    // Without leave to reach a pool; and memory that others look after.
    let vm = Vm::builder().option("--memory", "96M").controlled();
    let mut vm = vm.start();
    vm.agent();
    let end = scene.offload(&vm, "");
    assert!(end.stderr.contains("start it with --allow-pool"), "{end:?}");
    let snapshot = scene.dir.path().join("snapshot");
    vm.snapshot("", &snapshot);
    drop(vm);
    let trace = scene.dir.path().join("trace");
    let mut vm = Restoring::recording(&snapshot, &trace).options("--allow-pool").start();
    vm.wait_for_api();
    let end = scene.offload(&vm, "");
    assert!(end.stderr.contains("is recorded"), "{end:?}");
}
