//! `varve pager`: cold pages of tiered machines and all of flat ones' memory come from a process that
//! alone reaches the pool; what one machine had fetched comes at once to the next.
#![allow(clippy::unwrap_used)]

use std::os::unix::fs::chown;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use varve_agent::protocol::{Action, How};
use varve_snapshot::STATE_FILE;
use varve_tests::jail::{Jail, OWNER};
use varve_tests::services::{RDMA_ADDRESS, Service, key_file, published};
use varve_tests::{Restoring, Vm};

fn restored(dir: &Path, pager: &Service, options: &str) -> Vm {
    let restoring = Restoring::from(dir).options("--json --pager").arg(&pager.place);
    restoring.options(options).start()
}

/// A counter of the pager's cache.
fn cache(pager: &mut Service, name: &str) -> u64 {
    pager.counters()["cache"][name].as_u64().unwrap()
}

/// Gives free pages back and takes them again.
fn breathe(vm: &mut Vm) {
    for (mib, counter) in [(16, "balloon_inflate"), (0, "balloon_deflate")] {
        vm.control("PATCH", "/balloon", &json!({ "amount_mib": mib }));
        let deadline = Instant::now() + Duration::from_secs(60);
        while vm.number("/proc/vmstat", counter) < 16 << 8 {
            assert!(Instant::now() < deadline, "{counter} stands still");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

#[test]
fn machines_without_a_network_live_on_memory_of_other_hosts() {
    let dir = tempfile::Builder::new().prefix("varve-pager").tempdir().unwrap();
    let (keys, snapshot) = (key_file(dir.path()), dir.path().join("snapshot"));
    let mut nodes = [(); 2].map(|()| Service::node(RDMA_ADDRESS, &keys));
    published(&snapshot, &keys, &nodes);
    let socket = dir.path().join("pager");
    let options = ["--pool-keys", keys.to_str().unwrap()];
    // A jail has a socket of its own.
    let jail = Jail::new("paged");
    jail.place(&snapshot, "snapshot");
    let inside = jail.root().join("pager");
    let both = ["--listen", inside.to_str().unwrap(), "--snapshot", snapshot.to_str().unwrap()];
    let mut pager = Service::pager(&socket, &snapshot, &[&options[..], &both].concat());
    // Its line is the second.
    while !inside.exists() {
        std::thread::sleep(Duration::from_millis(5));
    }
    chown(&inside, Some(OWNER.0), Some(OWNER.1)).unwrap();

    // Two machines at once, by different strategies.
    let mut first = restored(&snapshot, &pager, "--strategy tiered");
    first.memory_by(1, "hot", Action::Verify, 0);
    first.memory_by(1, "cold", Action::Rewrite, 5);
    let fetched = cache(&mut pager, "fetched");
    assert!(fetched >= 64, "4 MiB by 64 KiB: {fetched}");
    let mut second = restored(&snapshot, &pager, "--strategy template");
    second.memory_by(1, "cold", Action::Verify, 0);
    let counters = pager.counters();
    assert_eq!(counters["machines"]["now"], 2, "{counters}");
    assert!(counters["cache"]["hits"].as_u64().unwrap() >= 64, "{counters}");
    let more = counters["cache"]["fetched"].as_u64().unwrap() - fetched;
    assert!(more < 32, "{more} chunks were fetched that the first did not need: {counters}");

    // What a balloon gives back is zero when it comes again, on all layers.
    breathe(&mut first);
    first.memory_by(1, "cold", Action::Verify, 0);
    first.memory_by(1, "hot", Action::Verify, 0);
    let report = first.end_with_report();
    assert_eq!(report["counters"]["strategy"], "tiered");
    let asked = report["counters"]["faults"].as_object().unwrap();
    assert!(asked.values().all(|by| by["read"] == 0 && by["write"] == 0), "{report}");

    // Stopped for a while, it is waited for: by a machine that is another user's, without a network.
    pager.signal(rustix::process::Signal::STOP);
    let pid = pager.pid();
    let going_on = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_secs(2));
        rustix::process::kill_process(pid, rustix::process::Signal::CONT).unwrap();
    });
    let monitor = "restore /snapshot --api-sock /api.sock --vsock /v.sock --strategy tiered \
                   --pager /pager";
    let command = jail.command("", monitor);
    let mut third = jail.start(command);
    third.memory_by(1, "cold", Action::Verify, 0);
    going_on.join().unwrap();
    third.power(How::Poweroff);
    let end = third.wait();
    assert_eq!(end.code, Some(0), "{end:?}");

    // Ended, its machines end.
    pager.kill();
    let end = second.wait();
    assert_eq!(end.code, Some(5), "{end:?}");
    assert!(end.stderr.contains("has ended; missing pages have no source"), "{end:?}");

    // All of memory, as for Firecracker's machines; then there is no pool any more.
    let mut pager = Service::pager(&socket, &snapshot, &options);
    let vm = Vm::unconfigured("");
    let body = json!({
        "snapshot_path": snapshot.join(STATE_FILE),
        "mem_backend": { "backend_type": "Uffd", "backend_path": socket },
        "vsock_override": { "uds_path": vm.uds() },
        "resume_vm": true,
    });
    vm.control("PUT", "/snapshot/load", &body);
    let mut vm = vm;
    assert_eq!(vm.control("GET", "/memory", &Value::Null)["strategy"], "uffd");
    vm.memory_by(1, "hot", Action::Verify, 0);
    breathe(&mut vm);
    nodes.iter_mut().for_each(Service::kill);
    let ask = std::thread::spawn(move || {
        // The guest's agent is not heard of again.
        let asked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            vm.memory_by(1, "cold", Action::Verify, 0);
        }));
        assert!(asked.is_err(), "pages came from nowhere");
        vm.wait()
    });
    let end = ask.join().unwrap();
    assert_eq!(end.code, Some(5), "{end:?}");
    for part in
        ["failed: cannot read guest pages", "from remote image cold", nodes[1].place.as_str()]
    {
        assert!(end.stderr.contains(part), "{end:?}");
    }
    assert_eq!(pager.counters()["machines"]["lost"], 1);
    pager.end();
}
