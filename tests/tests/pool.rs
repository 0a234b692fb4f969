//! Images in a pool: nodes in processes of their own, pages over TCP and by RDMA reads of a real
//! device of the kernel (soft-RoCE), whose own counters say so.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use rustix::process::{Signal, kill_process};
use varve_agent::protocol::Action;
use varve_memory_tiers::{ImageInfo, PageSource, Tier};
use varve_pool::client::Transport;
use varve_pool::{Key, Keys, Place, PoolSource, Wanted, publish};
use varve_snapshot::{ChunkDigests, ChunkTable, Compression, Image, ImageEntry};
use varve_tests::services::{KEY, RDMA_ADDRESS, Service, key_file, published};
use varve_tests::{Restoring, Vm};

const PAGES: u64 = 3000;

fn image(dir: &Path) -> Image {
    let bytes: Vec<u8> =
        (0..PAGES * 512).flat_map(|word| (word * 0x9e37_79b9).to_le_bytes()).collect();
    fs::write(dir.join("cold"), &bytes).unwrap();
    let crcs = bytes.chunks(65536).map(crc32c::crc32c).collect();
    let entry = ImageEntry {
        name: "cold".into(),
        file: "cold".into(),
        pages: PAGES,
        bytes: bytes.len() as u64,
        chunk_pages: 16,
        compression: Compression::None,
        shared: false,
        digest: None,
    };
    let digests = Some(ChunkDigests::of_chunks(&bytes, 65536));
    Image { entry, chunks: ChunkTable::Plain(crcs), digests }
}

fn source(image: &Image, place: &Place, transport: Transport) -> PoolSource {
    let info = ImageInfo {
        name: "cold".into(),
        tier: Tier::Remote,
        pages: PAGES,
        mappable: false,
        guest_layout: false,
        chunk_pages: 16,
    };
    let keys = Keys::parse(&format!("acme {KEY}")).unwrap();
    PoolSource::open(image, info, place, &keys, transport).unwrap()
}

/// A counter of the device's port.
fn counter(name: &str) -> u64 {
    let path = format!("/sys/class/infiniband/rxe0/ports/1/hw_counters/{name}");
    fs::read_to_string(path).unwrap().trim().parse().unwrap()
}

fn check(source: &PoolSource, dir: &Path) {
    let expected = fs::read(dir.join("cold")).unwrap();
    let mut found = vec![0; expected.len()];
    source.read(0, &mut found).unwrap();
    assert!(found == expected, "other bytes came");
}

#[test]
fn reads_are_the_devices_own() {
    let dir = tempfile::tempdir().unwrap();
    let (keys, image) = (key_file(dir.path()), image(dir.path()));
    let mut node = Service::node(RDMA_ADDRESS, &keys);
    let wanted = Wanted {
        nodes: vec![node.place.clone()],
        copies: 1,
        tenant: "acme".to_owned().try_into().unwrap(),
        key: Key::from_hex(KEY).unwrap(),
    };
    let place = publish(dir.path(), "cold", &dir.path().join("cold"), &wanted, |_| {}).unwrap();

    let before = counter("rcvd_pkts");
    check(&source(&image, &place, Transport::Tcp), dir.path());
    assert_eq!(counter("rcvd_pkts"), before, "TCP is none of the device's");

    let by_rdma = source(&image, &place, Transport::Rdma);
    check(&by_rdma, dir.path());
    let packets = counter("rcvd_pkts") - before;
    // Requests and answers, which have at most 4 KiB each.
    assert!(packets > PAGES, "{packets} packets for {PAGES} pages");
    let chosen = source(&image, &place, Transport::Auto);
    check(&chosen, dir.path());
    assert!(counter("rcvd_pkts") - before > 2 * PAGES, "RDMA is what auto takes where it is");

    // The node dies: nothing wrong comes, and the error says where it was to come from.
    node.kill();
    let late = by_rdma.trying_for(Duration::from_millis(100));
    let error = late.read(5, &mut [0; 4096]).unwrap_err().to_string();
    assert!(error.contains(&node.place), "{error}");
}

fn restored(dir: &Path, keys: &Path, options: &str) -> Vm {
    let restoring = Restoring::from(dir).options("--json --strategy tiered --pool-keys").arg(keys);
    restoring.options(options).start()
}

/// Bytes of cold pages that came from afar.
fn fetched(report: &serde_json::Value) -> u64 {
    let sources = report["counters"]["sources"].as_array().unwrap();
    let cold = sources.iter().find(|s| s["image"] == "cold").unwrap();
    assert_eq!(cold["tier"], "remote");
    cold["bytes_read"].as_u64().unwrap()
}

#[test]
fn a_guest_runs_on_memory_of_other_hosts() {
    let dir = tempfile::Builder::new().prefix("varve-pool").tempdir().unwrap();
    let (keys, snapshot) = (key_file(dir.path()), dir.path().join("snapshot"));
    let mut nodes = [Service::node(RDMA_ADDRESS, &keys), Service::node(RDMA_ADDRESS, &keys)];
    published(&snapshot, &keys, &nodes);
    for transport in ["tcp", "rdma"] {
        let before = counter("rcvd_pkts");
        let mut vm = restored(&snapshot, &keys, &format!("--tune pool_transport={transport}"));
        vm.memory_by(1, "hot", Action::Verify, 0);
        vm.memory_by(1, "cold", Action::Rewrite, 5);
        vm.memory_by(1, "cold", Action::Verify, 0);
        assert!(fetched(&vm.end_with_report()) >= 4 << 20);
        assert_eq!(counter("rcvd_pkts") > before, transport == "rdma");
    }

    // One node dies under a running guest, which goes on; the other is stopped, and wakes up.
    let mut vm = restored(&snapshot, &keys, "");
    vm.memory_by(1, "hot", Action::Verify, 0);
    nodes[0].kill();
    nodes[1].signal(Signal::STOP);
    let stopped = std::thread::spawn({
        let pid = nodes[1].pid();
        move || {
            std::thread::sleep(Duration::from_secs(3));
            kill_process(pid, Signal::CONT).unwrap();
        }
    });
    vm.memory_by(1, "cold", Action::Verify, 0);
    stopped.join().unwrap();
    assert!(fetched(&vm.end_with_report()) >= 4 << 20);

    // None is left: the machine ends, and says which page it was, and why.
    nodes[1].kill();
    let restoring = Restoring::from(&snapshot).options("--strategy tiered --pool-keys").arg(&keys);
    let end = restoring.arg("--invoke").arg("hello 1").end();
    assert_eq!(end.code, Some(5), "{end:?}");
    assert!(end.stderr.contains("from remote image cold"), "{}", end.stderr);
    assert!(end.stderr.contains(&nodes[1].place), "{}", end.stderr);
}

#[test]
fn keys_are_looked_after() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("keys");
    fs::OpenOptions::new().create(true).append(true).mode(0o644).open(&path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    let end = varve_tests::command::run(["pool", "serve", "--keys", path.to_str().unwrap()]);
    assert_eq!(end.code, Some(1));
    assert!(end.stderr.contains("chmod 600"), "{}", end.stderr);
}
