//! The byte-addressable tier: images on a NUMA node without processors, on a DAX file system and on a DAX
//! device of the kernel's, used by real machines, beside cold pages from files and from a pool.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use serde_json::Value;
use varve_agent::protocol::Action;
use varve_shared::{Attached, Places, Uri, open};
use varve_snapshot::{Backing, Digest};
use varve_tests::images::varve;
use varve_tests::services::{RDMA_ADDRESS, Service, key_file};
use varve_tests::snapshots::tier;
use varve_tests::{Restoring, Vm, command};

/// Regions of the guest's memory, by what the recorded run does to them, and their MiB.
const REGIONS: [(&str, u64); 3] = [("read", 2), ("written", 1), ("cold", 2)];
const MACHINES: usize = 10;
const PATIENCE: Duration = Duration::from_secs(120);

/// A tiered snapshot, made once; the caller gets a copy of its own.
fn snapshot(dir: &Path) -> PathBuf {
    static MADE: OnceLock<tempfile::TempDir> = OnceLock::new();
    let made = MADE.get_or_init(|| {
        let dir = tempfile::Builder::new().prefix("varve-tiers").tempdir().unwrap();
        let mut vm = Vm::builder().option("--memory", "96M").controlled().start();
        for (seed, (name, mib)) in (1..).zip(REGIONS) {
            vm.memory(name, Action::Allocate, mib, 0);
            vm.memory_by(1, name, Action::Fill, seed);
        }
        vm.snapshot("", dir.path());
        drop(vm);
        let trace = dir.path().join("trace");
        let mut vm = Restoring::recording(dir.path(), &trace).options("--json").start();
        vm.memory_by(1, "read", Action::Verify, 0);
        vm.memory_by(1, "written", Action::Rewrite, 9);
        vm.end_with_report();
        tier(dir.path(), &[&trace], "");
        dir
    });
    let to = dir.join("snapshot");
    fs::create_dir(&to).unwrap();
    for entry in fs::read_dir(made.path()).unwrap() {
        let path = entry.unwrap().path();
        // Whole images are not needed, but the raw memory file's holes would be filled.
        let copied = Command::new("cp").args(["--sparse=always"]).arg(&path).arg(&to).status();
        assert!(copied.unwrap().success());
    }
    to
}

fn folder() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("varve-tiers").tempdir().unwrap()
}

/// Runs `varve tier`, and returns what it printed.
fn run(args: &[&str]) -> String {
    let end = command::run(["tier"].iter().chain(args));
    assert_eq!((end.code, end.stderr.as_str()), (Some(0), ""), "{args:?}: {end:?}");
    end.console
}

fn json(args: &[&str]) -> Value {
    serde_json::from_str(&run(&[args, &["--json"]].concat())).unwrap()
}

fn publish(snapshot: &Path, to: &str) {
    run(&["publish", snapshot.to_str().unwrap(), "--to", to]);
}

/// What the lab has, as stores.
fn stores(dir: &Path) -> [String; 4] {
    let device = format!("devdax:{},state={}/devdax", lab("LAB_DEVDAX"), dir.display());
    let init = command::run(["tier", "init", "--force", &device]);
    assert_eq!(init.code, Some(0), "{init:?}");
    [
        format!("file:{}/file", dir.display()),
        format!("numa:{}:{}", lab("LAB_CXL_NODE"), memory_folder().display()),
        format!("dax:{}/tier", lab("LAB_DAX")),
        device,
    ]
}

fn memory_folder() -> PathBuf {
    PathBuf::from("/dev/shm/varve-tiers-test")
}

fn lab(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: VARVE_LAB_OPTS_TIERS"))
}

/// Content of the store's `ro` image of a snapshot, by its hash, as it is there now.
fn content(snapshot: &Path) -> (Digest, Digest) {
    let place = Places::read(snapshot).unwrap().images["ro"].clone();
    let mut bytes = vec![0; place.bytes as usize];
    match open(&place.at).unwrap().attach(&place.key()).unwrap().unwrap() {
        Attached::File(file) => file.read_exact_at(&mut bytes, 0).unwrap(),
        Attached::Device(memory) => memory.read_exact_at(&mut bytes, 0).unwrap(),
    }
    (Digest::of(&bytes), place.digest)
}

/// A figure of all mappings of a process whose file's name ends so, in KiB.
fn smaps(pid: u32, file: &str, field: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap();
    let mut inside = false;
    let mut sum = 0;
    for line in text.lines() {
        let first = line.split(' ').next().unwrap_or_default();
        if !first.ends_with(':') {
            inside = line.contains(file);
        } else if inside && first.trim_end_matches(':') == field {
            sum += line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap();
        }
    }
    sum
}

/// Pages of a process's mappings of a file, by node: those that are the file's, and private copies.
fn pages_by_node(pid: u32, file: &str) -> (Vec<(String, u64)>, u64) {
    let text = fs::read_to_string(format!("/proc/{pid}/numa_maps")).unwrap();
    let mut nodes: Vec<(String, u64)> = Vec::new();
    let mut anonymous = 0;
    for line in text.lines().filter(|line| line.contains(file)) {
        for word in line.split(' ') {
            let Some((name, value)) = word.split_once('=') else { continue };
            let Ok(count) = value.parse::<u64>() else { continue };
            match name {
                "anon" => anonymous += count,
                "N0" | "N1" => match nodes.iter_mut().find(|n| n.0 == name) {
                    Some(node) => node.1 += count,
                    None => nodes.push((name.into(), count)),
                },
                _ => {}
            }
        }
    }
    (nodes, anonymous)
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn a_node_without_processors_holds_what_ten_machines_share() {
    let dir = folder();
    let snapshot = snapshot(dir.path());
    let store = stores(dir.path())[1].clone();
    publish(&snapshot, &store);
    let pages = Places::read(&snapshot).unwrap().images["ro"].bytes / 4096;
    // Nothing but the store has it now.
    let local = varve_snapshot::ManifestReader::open(&snapshot).unwrap();
    let local = local.named("ro").unwrap().path(&snapshot);
    fs::remove_file(local).unwrap();

    let image = ".image";
    let way = "--strategy tiered --tune read_only=mapped";
    let start = |more: &str| Restoring::from(&snapshot).options(way).options(more).start();
    let mut machines: Vec<Vm> = (1..MACHINES).map(|_| start("--paused")).collect();
    machines.push(start(""));
    machines.iter_mut().for_each(Vm::wait_for_api);
    let pids: Vec<u32> = machines.iter().map(Vm::pid).collect();
    until("all have all of it present", || {
        pids.iter().all(|&pid| smaps(pid, image, "Rss") >= pages * 4 * 9 / 10)
    });
    // Of the one that runs, some pages are its own by now.
    let (mut shared, mut own) = (0, 0);
    for &pid in &pids {
        shared += smaps(pid, image, "Pss") - smaps(pid, image, "Anonymous");
        own += smaps(pid, image, "Anonymous");
    }
    println!("{pages} pages: {MACHINES} machines share {shared} KiB and have {own} KiB of copies");
    assert!(shared <= pages * 4 * 11 / 10, "{shared} KiB for {} KiB", pages * 4);
    let paused = pids[0];
    let (nodes, copies) = pages_by_node(paused, image);
    assert_eq!((nodes.len(), nodes[0].0.as_str(), copies), (1, "N1", 0), "{nodes:?}");

    // What is predicted to be only read is written: private copies, in local memory.
    let running = machines.last_mut().unwrap();
    running.memory_by(1, "read", Action::Rewrite, 5);
    running.memory_by(1, "read", Action::Verify, 0);
    let (nodes, copies) = pages_by_node(running.pid(), image);
    let local = nodes.iter().find(|n| n.0 == "N0").map_or(0, |n| n.1);
    assert!(copies >= 400 && local >= copies, "{copies} copies, {nodes:?}");
    let (found, published) = content(&snapshot);
    assert_eq!(found, published, "a guest's writes reached the store");
    let resumed = &mut machines[0];
    resumed.control("PATCH", "/vm", &serde_json::json!({ "state": "Resumed" }));
    resumed.memory_by(1, "read", Action::Verify, 0);

    // It is taken back while it is used, and freed when the last user has been killed.
    let images = json(&["status", &store]);
    assert_eq!(images[0]["machines"], MACHINES, "{images}");
    let said = run(&["revoke", snapshot.to_str().unwrap()]);
    assert!(said.contains("still use it"), "{said}");
    let collected = json(&["gc", &store]);
    assert_eq!(collected[0]["in_use"].as_array().unwrap().len(), 1, "{collected}");
    resumed.memory_by(1, "read", Action::Verify, 0);
    for &pid in &pids {
        let pid = rustix::process::Pid::from_raw(pid as i32).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    }
    drop(machines);
    let collected = json(&["gc", &store]);
    assert_eq!(collected[0]["freed"].as_array().unwrap().len(), 1, "{collected}");
    assert_eq!(names(&memory_folder()), ["lock"]);
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Where cold pages come from: options of a restore, and the tier that its report then names.
/// A new source is a line here.
fn cold_sources(keys: &Path, pager: &Service) -> [(String, &'static str); 4] {
    let keys = keys.display();
    [
        ("--cold paged".into(), "local"),
        (format!("--pool-keys {keys} --tune pool_transport=tcp"), "remote"),
        (format!("--pool-keys {keys} --tune pool_transport=rdma"), "remote"),
        // The machine knows of its own file only.
        (format!("--pager {}", pager.place), "local"),
    ]
}

#[test]
fn each_pair_of_sources_is_right() {
    let dir = folder();
    let snapshot = snapshot(dir.path());
    let keys = key_file(dir.path());
    let node = Service::node(RDMA_ADDRESS, &keys);
    let (to, path) = (node.place.as_str(), snapshot.to_str().unwrap());
    let end = command::run(["pool", "publish", path, "--to", to, "--keys", keys.to_str().unwrap()]);
    assert_eq!(end.code, Some(0), "{end:?}");
    let by = ["--pool-keys", keys.to_str().unwrap()];
    let mut pager = Service::pager(&dir.path().join("pager"), &snapshot, &by);
    for store in stores(dir.path()) {
        publish(&snapshot, &store);
        for (cold, cold_tier) in cold_sources(&keys, &pager) {
            let start = Instant::now();
            let way = "--json --strategy tiered --tune read_only=mapped";
            let mut vm = Restoring::from(&snapshot).options(way).options(&cold).start();
            for (name, _) in REGIONS {
                vm.memory_by(1, name, Action::Verify, 0);
            }
            vm.memory_by(1, "read", Action::Rewrite, 7);
            vm.memory_by(1, "cold", Action::Rewrite, 7);
            for (name, _) in REGIONS {
                vm.memory_by(1, name, Action::Verify, 0);
            }
            let report = vm.end_with_report();
            let sources = report["counters"]["sources"].as_array().unwrap();
            let tier_of = |image| {
                let source = sources.iter().find(|s| s["image"] == image);
                source.map(|s| s["tier"].as_str().unwrap().to_owned()).unwrap_or_default()
            };
            let wanted = if store.starts_with("file:") { "local" } else { "cxl" };
            assert_eq!((tier_of("ro").as_str(), tier_of("cold").as_str()), (wanted, cold_tier));
            let (found, published) = content(&snapshot);
            assert_eq!(found, published, "{store}: a guest's writes reached the store");
            println!("{store} and {cold}: right, after {:.1?}", start.elapsed());
        }
    }
    let counters = pager.counters();
    assert!(
        counters["cache"]["hits"].as_u64() > counters["cache"]["fetched"].as_u64(),
        "{counters}"
    );
    // Each publication let go of the one before.
    for store in &stores(dir.path())[..3] {
        assert_eq!(json(&["status", store]), serde_json::json!([]), "{store}");
    }
}

/// A publisher is killed at its start, when it has said what it will do, soon after that, or when it is
/// through: a collection leaves nothing half-way.
#[test]
fn what_is_killed_leaves_nothing() {
    let dir = folder();
    let snapshot = snapshot(dir.path());
    let path = snapshot.to_str().unwrap();
    let place = || Places::read(&snapshot).unwrap().images.remove("ro");
    let complete = || place().is_some_and(|p| p.complete);
    for store in stores(dir.path()) {
        let uri: Uri = store.parse().unwrap();
        for moment in ["start", "said", "soon", "later", "complete"] {
            let mut publisher = Command::new(varve())
                .args(["tier", "publish", path, "--to", &store])
                .stdout(Stdio::null())
                .spawn()
                .unwrap();
            if moment != "start" {
                until(moment, || place().is_some_and(|p| p.complete || moment != "complete"));
            }
            let pause = if moment == "soon" { 10 } else { 40 };
            if ["soon", "later"].contains(&moment) {
                std::thread::sleep(Duration::from_millis(pause));
            }
            publisher.kill().unwrap();
            publisher.wait().unwrap();
            let complete = complete();
            run(&["gc", &store]);
            let left = varve_shared::status(&uri).unwrap();
            println!("{store}: killed at {moment}, complete: {complete}");
            assert_eq!(left.len(), usize::from(complete), "{left:?}");
            // Whatever came of it, it can be published, and taken back.
            if moment == "later" {
                publish(&snapshot, &store);
                assert_eq!(varve_shared::status(&uri).unwrap().len(), 1);
            }
            run(&["revoke", path]);
            run(&["gc", &store]);
            assert_eq!(varve_shared::status(&uri).unwrap(), []);
        }
    }
    assert_eq!(names(&memory_folder()), ["lock"]);
}

#[test]
fn an_image_that_is_gone_comes_from_the_snapshot() {
    let dir = folder();
    let snapshot = snapshot(dir.path());
    let store = format!("file:{}/store", dir.path().display());
    publish(&snapshot, &store);
    for entry in fs::read_dir(dir.path().join("store")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "image") {
            fs::remove_file(path).unwrap();
        }
    }
    let way = "--strategy tiered --tune read_only=mapped";
    let mut vm = Restoring::from(&snapshot).options(way).start();
    vm.memory_by(1, "read", Action::Verify, 0);
    assert!(vm.stderr().contains("gone or revoked"), "{}", vm.stderr());
    drop(vm);
    let mut vm = Restoring::from(&snapshot).options(way).options("--tune local_files=true").start();
    vm.memory_by(1, "read", Action::Verify, 0);
    assert_eq!(vm.stderr(), "");
    drop(vm);
    let images = varve_snapshot::ManifestReader::open(&snapshot).unwrap();
    let local = images.named("ro").unwrap().path(&snapshot);
    fs::remove_file(local).unwrap();
    let end = Restoring::from(&snapshot).options(way).arg("--invoke").arg("hello 1").end();
    assert_eq!(end.code, Some(1), "{end:?}");
    assert!(end.stderr.contains("gone or revoked") && end.stderr.contains("ro"), "{}", end.stderr);
}

#[test]
fn the_host_is_described() {
    let found = json(&["devices"]);
    let node = found["nodes"].as_array().unwrap().iter().find(|n| n["node"] == 1).unwrap();
    assert_eq!((&node["cpus"], &node["read_latency_ns"]), (&Value::Null, &250.into()), "{node}");
    assert_eq!(found["dax_mounts"][0]["dir"], lab("LAB_DAX"));
    assert_eq!(found["dax_devices"][0]["path"], lab("LAB_DEVDAX"));
    assert_eq!(found["dax_devices"][0]["align"], 2 << 20);
    assert!(found["rdma"].as_array().unwrap().iter().any(|p| p.as_str().unwrap().contains("rxe0")));
    assert!(found["kvm"]["pre_fault_memory"].is_boolean(), "{}", found["kvm"]);

    // A folder that is not what it is said to be.
    let dir = folder();
    let snapshot = snapshot(dir.path());
    for (to, word) in [
        (format!("dax:{}/x", dir.path().display()), "-o dax"),
        (format!("numa:1:{}", lab("LAB_DAX")), "tmpfs"),
        ("numa:7".into(), "no NUMA node 7"),
        (format!("devdax:{}/manifest", snapshot.display()), "no device"),
    ] {
        let end = command::run(["tier", "publish", snapshot.to_str().unwrap(), "--to", &to]);
        assert_eq!(end.code, Some(1), "{end:?}");
        assert!(end.stderr.contains(word), "{}", end.stderr);
    }
}
