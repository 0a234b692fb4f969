//! Images in a pool: nodes in processes of their own, pages over TCP and by RDMA reads of a real
//! device of the kernel (soft-RoCE), whose own counters say so.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use varve_memory_tiers::{ImageInfo, PageSource, Tier};
use varve_pool::client::Transport;
use varve_pool::{Key, Keys, Place, PoolSource, Wanted, publish};
use varve_snapshot::{ChunkTable, Compression, Image, ImageEntry};
use varve_tests::images::varve;

/// The lab's soft-RoCE device is at this address.
const ADDRESS: &str = "10.78.0.1";
const KEY: &str = "3333333333333333333333333333333333333333333333333333333333333333";
const PAGES: u64 = 3000;

/// A memory node in a process.
struct Node {
    process: Child,
    address: String,
}

impl Node {
    fn start(keys: &Path) -> Node {
        let mut process = Command::new(varve())
            .args(["pool", "serve", "--listen", &format!("{ADDRESS}:0"), "--keys"])
            .arg(keys)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(process.stderr.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().rsplit(' ').next().unwrap().to_owned();
        assert!(address.starts_with(ADDRESS), "{line}");
        Node { process, address }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn key_file(dir: &Path) -> PathBuf {
    let path = dir.join("keys");
    fs::write(&path, format!("acme {KEY}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    path
}

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
    Image { entry, chunks: ChunkTable::Plain(crcs) }
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
    let mut node = Node::start(&keys);
    let wanted = Wanted {
        nodes: vec![node.address.clone()],
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
    node.process.kill().unwrap();
    node.process.wait().unwrap();
    let late = by_rdma.trying_for(std::time::Duration::from_millis(100));
    let error = late.read(5, &mut [0; 4096]).unwrap_err().to_string();
    assert!(error.contains(&node.address), "{error}");
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
