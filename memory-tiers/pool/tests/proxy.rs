//! A proxy that changes what goes over the wire, in either direction: pages that come are right, or an
//! error names node and page.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use common::{Running, acme, keys};
use varve_memory_tiers::{BackingStore, ImageInfo, PageSource, Tier};
use varve_pool::client::Transport;
use varve_pool::{BackingStoreConfig, PoolBackingStore, PoolSource, Wanted, publish, wire};
use varve_snapshot::{ChunkDigests, ChunkTable, Compression, Image, ImageEntry};

const PAGES: u64 = 512;
const CHUNK: usize = 65536;

/// What the proxy does to the bytes of one direction.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Deed {
    Nothing,
    FlipBit,
    /// Keeps every CRC-32C.
    AddPolynomial,
    SendTwice,
    Swap,
    CutShort,
    /// A whole frame of a request, or of an answer, before what is sent.
    Inject,
}

const DEEDS: [Deed; 7] = [
    Deed::Nothing,
    Deed::FlipBit,
    Deed::AddPolynomial,
    Deed::SendTwice,
    Deed::Swap,
    Deed::CutShort,
    Deed::Inject,
];

/// Index of the deed for bytes to the node, and of that for bytes to the client.
type Deeds = Arc<[AtomicUsize; 2]>;

struct Proxy {
    address: String,
    deeds: Deeds,
}

impl Proxy {
    fn before(node: &Running) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let deeds: Deeds = Arc::default();
        let (node, of_thread) = (node.address.clone(), deeds.clone());
        thread::spawn(move || {
            for client in listener.incoming() {
                let (Ok(client), Ok(node)) = (client, TcpStream::connect(&node)) else { continue };
                let ends = [(&client, &node), (&node, &client)];
                for (way, (from, to)) in ends.into_iter().enumerate() {
                    let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    let deeds = of_thread.clone();
                    thread::spawn(move || pass(from, to, &deeds[way]));
                }
            }
        });
        Proxy { address, deeds }
    }

    fn does(&self, way: usize, deed: usize) {
        self.deeds[1 - way].store(0, Ordering::Relaxed);
        self.deeds[way].store(deed, Ordering::Relaxed);
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, deed: &AtomicUsize) {
    let mut buffer = vec![0; 1 << 16];
    while let Ok(n @ 1..) = from.read(&mut buffer) {
        let bytes = &mut buffer[..n];
        let deed = DEEDS[deed.load(Ordering::Relaxed)];
        // Not every piece: what comes before the bytes of pages goes through now and then.
        let large = n > 600;
        match deed {
            Deed::FlipBit => bytes[n / 2] ^= 4,
            Deed::AddPolynomial if large => add_polynomial(&mut bytes[n / 2..]),
            Deed::Swap if large => bytes.rotate_left(n / 2),
            Deed::Inject => {
                let mut frame = Vec::new();
                wire::send(&mut frame, &wire::Request::Status).unwrap();
                if to.write_all(&frame).is_err() {
                    break;
                }
            }
            _ => {}
        }
        let len = if deed == Deed::CutShort { n / 2 } else { n };
        let twice = if deed == Deed::SendTwice { 2 } else { 1 };
        if (0..twice).any(|_| to.write_all(&bytes[..len]).is_err()) || len < n {
            break;
        }
    }
    let _ = to.shutdown(std::net::Shutdown::Both);
    let _ = from.shutdown(std::net::Shutdown::Both);
}

/// Adds the polynomial of CRC-32C to bytes: their checksum stays the same.
fn add_polynomial(bytes: &mut [u8]) {
    let terms = std::iter::once(1).chain((0..32).rev().map(|n| 0x1edc_6f41u32 >> n & 1));
    for (term, at) in terms.zip(0..) {
        bytes[at / 8] ^= (term as u8) << (at % 8);
    }
}

fn content() -> Vec<u8> {
    (0..PAGES * 512).flat_map(|word| (word * 0x9e37_79b9 + 1).to_le_bytes()).collect()
}

#[test]
fn pages_of_an_image_are_right_or_refused() {
    let (dir, bytes) = (tempfile::tempdir().unwrap(), content());
    let path = dir.path().join("cold");
    std::fs::write(&path, &bytes).unwrap();
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
    let chunks = ChunkTable::Plain(bytes.chunks(CHUNK).map(crc32c::crc32c).collect());
    let digests = Some(ChunkDigests::of_chunks(&bytes, CHUNK));
    let image = Image { entry, chunks, digests };
    let info = ImageInfo {
        name: "cold".into(),
        tier: Tier::Remote,
        pages: PAGES,
        mappable: false,
        guest_layout: false,
        chunk_pages: 16,
    };
    let node = Running::new(None);
    let proxy = Proxy::before(&node);
    let (tenant, key) = acme();
    let wanted = Wanted { nodes: vec![proxy.address.clone()], copies: 1, tenant, key };
    let place = publish(dir.path(), "cold", &path, &wanted, |_| {}).unwrap();
    for way in 0..2 {
        for (number, deed) in DEEDS.iter().enumerate() {
            // Once on connections that stand, once on new ones.
            let open = || {
                let keys = keys();
                let source = PoolSource::open(&image, info.clone(), &place, &keys, Transport::Tcp);
                source.unwrap().trying_for(Duration::from_millis(10))
            };
            proxy.does(way, 0);
            let standing = open();
            standing.read(0, &mut vec![0; CHUNK]).unwrap();
            proxy.does(way, number);
            for source in [standing, open()] {
                let mut found = vec![0; CHUNK];
                match source.read(32, &mut found) {
                    Ok(()) => assert!(found == bytes[2 * CHUNK..3 * CHUNK], "{deed:?} {way}"),
                    Err(e) => {
                        let e = e.to_string();
                        assert!(
                            e.contains(&proxy.address) && e.contains("page 32"),
                            "{deed:?}: {e}"
                        );
                        assert!(*deed != Deed::Nothing, "{e}");
                    }
                }
            }
        }
    }
}

#[test]
fn pages_of_a_machine_are_right_or_refused() {
    let bytes = &content()[..64 * 4096];
    let node = Running::new(None);
    let proxy = Proxy::before(&node);
    for way in 0..2 {
        for (number, deed) in DEEDS.iter().enumerate() {
            let (tenant, key) = acme();
            let nodes = vec![proxy.address.clone()];
            let config =
                BackingStoreConfig { nodes, copies: 1, tenant, key, transport: Transport::Tcp };
            let store =
                PoolBackingStore::new(config).unwrap().trying_for(Duration::from_millis(10));
            proxy.does(way, 0);
            let parcel = store.put(bytes).unwrap();
            proxy.does(way, number);
            let mut found = vec![0; CHUNK];
            match store.read(parcel, 16, &mut found) {
                Ok(()) => assert!(found == bytes[CHUNK..2 * CHUNK], "{deed:?} {way}"),
                Err(e) => {
                    assert!(
                        *deed != Deed::Nothing && e.to_string().contains(&proxy.address),
                        "{e}"
                    );
                }
            }
            proxy.does(way, 0);
        }
    }
}
