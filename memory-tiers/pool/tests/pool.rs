//! Nodes in threads, clients beside them: what is published comes back, or an error says why not.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::{KEY, OTHER, Running, acme, keys, proved, tenant};
use varve_memory_tiers::{BackingStore, ImageInfo, PageSource, Tier};
use varve_pool::client::{NodeClient, Patience, Transport};
use varve_pool::sealed::{Handshake, Sealed};
use varve_pool::wire::{self, Answer, Request};
use varve_pool::{BackingStoreConfig, Key, Place, Places, PoolBackingStore, PoolSource, Wanted};
use varve_pool::{forget, publish};
use varve_snapshot::{ChunkDigests, Compression, Image, ImageEntry};

const PAGES: u64 = 5000;
/// What they take in a node: two shards of 8 MiB, and one in whole pages of 2 MiB.
const IN_MEMORY: u64 = 20 << 20;
/// Page `n` holds its number, and 8 KiB chunks have their checksums.
fn image(dir: &Path) -> Image {
    let mut bytes = Vec::new();
    for page in 0..PAGES {
        bytes.extend((0..512u64).flat_map(|word| (page * 1000 + word).to_le_bytes()));
    }
    std::fs::write(dir.join("cold"), &bytes).unwrap();
    let crcs = bytes.chunks(8192).map(crc32c::crc32c).collect();
    let entry = ImageEntry {
        name: "cold".into(),
        file: "cold".into(),
        pages: PAGES,
        bytes: bytes.len() as u64,
        chunk_pages: 2,
        compression: Compression::None,
        shared: false,
        digest: None,
    };
    let digests = Some(ChunkDigests::of_chunks(&bytes, 8192));
    Image { entry, chunks: varve_snapshot::ChunkTable::Plain(crcs), digests }
}

fn info() -> ImageInfo {
    ImageInfo {
        name: "cold".into(),
        tier: Tier::Remote,
        pages: PAGES,
        mappable: false,
        guest_layout: false,
        chunk_pages: 2,
    }
}

fn publish_to(dir: &Path, nodes: &[&Running], copies: usize) -> Result<Place, String> {
    let nodes = nodes.iter().map(|n| n.address.clone()).collect();
    publish_at(dir, nodes, copies)
}

fn publish_at(dir: &Path, nodes: Vec<String>, copies: usize) -> Result<Place, String> {
    let (tenant, key) = acme();
    let wanted = Wanted { nodes, copies, tenant, key };
    let mut told = 0;
    let place = publish(dir, "cold", &dir.join("cold"), &wanted, |bytes| told = bytes);
    let place = place.map_err(|e| format!("{e}: {:?}", std::error::Error::source(&e)))?;
    assert_eq!(told, PAGES * 4096);
    Ok(place)
}

fn check(source: &PoolSource, first: u64, count: u64) {
    let mut buffer = vec![0; (count * 4096) as usize];
    source.read(first, &mut buffer).unwrap();
    for (page, at) in buffer.chunks(4096).zip(first..) {
        let words = (0..512u64).flat_map(|word| (at * 1000 + word).to_le_bytes());
        assert!(page.iter().copied().eq(words), "page {at} is another");
    }
}

fn source(image: &Image, place: &Place) -> PoolSource {
    PoolSource::open(image, info(), place, &keys(), Transport::Auto).unwrap()
}

#[test]
fn what_is_published_comes_back_from_several_nodes() {
    let dir = tempfile::tempdir().unwrap();
    let image = image(dir.path());
    let nodes = [Running::new(None), Running::new(None), Running::new(None)];
    let place = publish_to(dir.path(), &[&nodes[0], &nodes[1], &nodes[2]], 2).unwrap();
    assert_eq!(Places::read(dir.path()).unwrap().images["cold"], place);
    assert_eq!((place.shards.len(), place.copies()), (3, 2));
    let source = source(&image, &place);
    check(&source, 0, PAGES);
    // Across the end of a shard, and in the middle of a chunk.
    check(&source, 2047, 2);
    check(&source, PAGES - 1, 1);
    assert!(source.read(PAGES, &mut [0; 4096]).is_err());

    let kept: u64 = nodes.iter().map(|n| n.client().status().unwrap().bytes).sum();
    assert_eq!(kept, 2 * PAGES * 4096);
    let reads: u64 = nodes.iter().map(|n| n.client().status().unwrap().reads).sum();
    assert!(reads > 3);

    // Again, elsewhere: the nodes that have it no longer are free of it.
    let place = publish_to(dir.path(), &[&nodes[0]], 1).unwrap();
    assert_eq!(nodes[0].client().status().unwrap().bytes, PAGES * 4096);
    assert_eq!(nodes[1].client().status().unwrap().used, 0);
    assert!(forget(dir.path(), "cold", &acme().1).unwrap());
    assert!(!forget(dir.path(), "cold", &acme().1).unwrap());
    assert_eq!(nodes[0].client().status().unwrap().used, 0);
    let late = PoolSource::open(&image, info(), &place, &keys(), Transport::Auto).unwrap();
    let late = late.trying_for(Duration::from_millis(50));
    let error = late.read(7, &mut [0; 4096]).unwrap_err().to_string();
    assert!(error.contains("is not here") && error.contains(&nodes[0].address), "{error}");
}

/// Nothing would prove what nodes send.
#[test]
fn an_image_without_digests_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut image = image(dir.path());
    let node = Running::new(None);
    let place = publish_to(dir.path(), &[&node], 1).unwrap();
    image.digests = None;
    let error = PoolSource::open(&image, info(), &place, &keys(), Transport::Auto).unwrap_err();
    let error = error.to_string();
    assert!(error.contains("image cold") && error.contains("tier the snapshot again"), "{error}");
}

#[test]
fn strangers_and_other_tenants_get_nothing() {
    let dir = tempfile::tempdir().unwrap();
    image(dir.path());
    let node = Running::new(None);
    let place = publish_to(dir.path(), &[&node], 1).unwrap();
    let object = place.shards[0].object.0;
    let other = Key::from_hex(OTHER).unwrap();
    for (name, key) in [("acme", other.clone()), ("nobody", other.clone())] {
        let error = NodeClient::new(&node.address, tenant(name), key).status().unwrap_err();
        assert!(error.to_string().contains("not known here"), "{error}");
    }
    let other = NodeClient::new(&node.address, tenant("other"), other);
    assert_eq!(other.status().unwrap().objects, 0);
    let error = other.read(object, 0, &mut [0; 16]).unwrap_err();
    assert!(error.to_string().contains("is not here"), "{error}");
    other.forget(place.publication.0).unwrap();
    node.client().read(object, 0, &mut [0; 16]).unwrap();
    // A node that has not the key is found out too.
    let fake = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = fake.local_addr().unwrap().to_string();
    let thread = thread::spawn(move || {
        let (mut stream, _) = fake.accept().unwrap();
        wire::send_magic(&mut stream).unwrap();
        wire::receive_magic(&mut stream).unwrap();
        let _: wire::Introduction = wire::receive(&mut stream).unwrap();
        wire::send(&mut stream, &wire::Reception::Welcome { reply: vec![9; 48] }).unwrap();
    });
    let (tenant, key) = acme();
    let error = NodeClient::new(address, tenant, key).status().unwrap_err();
    assert!(error.to_string().contains("has not the tenant's key"), "{error}");
    thread.join().unwrap();
}

#[test]
fn bad_requests_cost_their_connection_or_less() {
    let dir = tempfile::tempdir().unwrap();
    image(dir.path());
    let node = Running::at("127.0.0.1:0", None, IN_MEMORY + 4096);
    let place = publish_to(dir.path(), &[&node], 1).unwrap();
    let object = place.shards[0].object.0;
    let client = node.client();
    for (offset, len) in [(u64::MAX, 16), (8 << 20, 1), ((8 << 20) - 8, 16)] {
        let mut buffer = vec![0; len];
        let error = client.read(object, offset, &mut buffer).unwrap_err();
        assert!(error.to_string().contains("of an object of"), "{error}");
    }
    let mut putting = client.begin().unwrap();
    let error = putting.put([7; 32], &[1, 2, 3]).unwrap_err();
    assert!(error.to_string().contains("not the object that was named"), "{error}");
    let error = putting.put([7; 32], &[0; 5000]).unwrap_err();
    assert!(error.to_string().contains("exceed its limit"), "{error}");
    let mut noise = TcpStream::connect(&node.address).unwrap();
    noise.write_all(&[0xff; 4096]).unwrap();
    let _ = noise.read_to_end(&mut Vec::new());
    client.read(object, 0, &mut [0; 16]).unwrap();
    assert_eq!(client.status().unwrap().used, IN_MEMORY, "nothing of it stayed");
}

/// Their lists take memory that no limit of objects counts.
#[test]
fn publications_have_a_limit() {
    let node = Running::new(None);
    let mut stream = proved(&node.address);
    let object = varve_snapshot::Digest::of(b"one").0;
    wire::send(&mut stream, &Request::Put { object, len: 3 }).unwrap();
    assert_eq!(wire::receive::<Answer>(&mut stream).unwrap(), Answer::Send);
    stream.write_all(b"one").unwrap();
    assert_eq!(wire::receive::<Answer>(&mut stream).unwrap(), Answer::Done);
    let mut ask = |request: &Request| -> Answer {
        wire::send(&mut stream, request).unwrap();
        wire::receive(&mut stream).unwrap()
    };
    let objects = vec![object; 32_000];
    let mut publish =
        |n: u8| ask(&Request::Publish { publication: [n; 32], objects: objects.clone() });
    let done = (0..40).take_while(|&n| publish(n) == Answer::Done).count();
    assert_eq!(done, 32);
    let Answer::Refused { reason } = publish(32) else { panic!("no limit") };
    assert!(reason.contains("forget some"), "{reason}");
    // One that is there is replaced all the same.
    assert_eq!(publish(0), Answer::Done);
    assert_eq!(ask(&Request::Forget { publication: [1; 32] }), Answer::Done);
    assert_eq!(ask(&Request::Publish { publication: [32; 32], objects }), Answer::Done);
}

#[test]
fn what_was_not_published_goes_with_its_connection() {
    let store = tempfile::tempdir().unwrap();
    let node = Running::new(Some(store.path()));
    let client = node.client();
    let data = vec![5; 1 << 20];
    let name = varve_snapshot::Digest::of(&data).0;
    let files = || std::fs::read_dir(store.path().join("acme/objects")).unwrap().count();
    let mut putting = client.begin().unwrap();
    putting.put(name, &data).unwrap();
    assert_eq!((client.status().unwrap().used, files()), (1 << 20, 1));
    drop(putting);
    let until = Instant::now() + Duration::from_secs(10);
    while client.status().unwrap().used != 0 || files() != 0 {
        assert!(Instant::now() < until, "it stays, with {} files", files());
        thread::sleep(Duration::from_millis(5));
    }
    // Many small ones are not had for nothing.
    let mut putting = client.begin().unwrap();
    for byte in 0..3u8 {
        putting.put(varve_snapshot::Digest::of(&[byte]).0, &[byte]).unwrap();
    }
    assert_eq!(client.status().unwrap().used, 3 * 4096);
}

#[test]
fn a_node_that_starts_again_has_what_it_had() {
    let (dir, store) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let image = image(dir.path());
    let node = Running::new(Some(store.path()));
    let place = publish_to(dir.path(), &[&node], 1).unwrap();
    let source = source(&image, &place);
    check(&source, 0, 10);
    let address = node.address.clone();
    drop(node);
    // Garbage that nothing names, and an object that is not what its name says.
    let objects = store.path().join("acme/objects");
    std::fs::write(objects.join("77".repeat(32)), b"old").unwrap();
    let node = Running::at(&address, Some(store.path()), 1 << 30);
    check(&source, 0, PAGES);
    assert_eq!(std::fs::read_dir(&objects).unwrap().count(), 3, "the garbage is gone");
    drop(node);
    let damaged = objects.join(varve_snapshot::Digest(place.shards[1].object.0).to_string());
    let mut bytes = std::fs::read(&damaged).unwrap();
    bytes[100] ^= 1;
    std::fs::write(&damaged, bytes).unwrap();
    let node = Running::at(&address, Some(store.path()), 1 << 30);
    check(&source, 0, 2048);
    let source = source.trying_for(Duration::from_millis(50));
    assert!(source.read(2048, &mut [0; 4096]).is_err(), "a damaged object is not served");
    // Published again, it is whole again.
    publish_to(dir.path(), &[&node], 1).unwrap();
    check(&source, 0, PAGES);
}

/// What does not fit is not lost: a node that starts with its old limit has all again.
#[test]
fn a_node_that_starts_with_less_memory_keeps_its_files() {
    let (dir, store) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let image = image(dir.path());
    let node = Running::new(Some(store.path()));
    let place = publish_to(dir.path(), &[&node], 1).unwrap();
    let (source, address) = (source(&image, &place), node.address.clone());
    drop(node);
    let files = || std::fs::read_dir(store.path().join("acme/objects")).unwrap().count();
    let before = files();
    let node = Running::at(&address, Some(store.path()), 8 << 20);
    check(&source, 0, 10);
    // A connection that ends has what nobody holds removed.
    let client = node.client();
    let mut publishing = client.begin().unwrap();
    publishing.put(varve_snapshot::Digest::of(b"old").0, b"old").unwrap_err();
    drop(publishing);
    assert_eq!(files(), before);
    drop(node);
    let node = Running::at(&address, Some(store.path()), 1 << 30);
    check(&source, 0, PAGES);
    drop(node);
    // Forgotten, what could not be loaded goes too.
    let node = Running::at(&address, Some(store.path()), 8 << 20);
    node.client().forget(place.publication.0).unwrap();
    assert_eq!(files(), 0);
}

/// Passes bytes on to a node; what the node says can be held back or damaged.
struct Meddler {
    address: String,
    silent: Arc<AtomicBool>,
    damaging: Arc<AtomicBool>,
}

impl Meddler {
    fn before(node: &Running) -> Meddler {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (silent, damaging) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let meddler = Meddler { address, silent: silent.clone(), damaging };
        let (node, damaging) = (node.address.clone(), meddler.damaging.clone());
        thread::spawn(move || {
            for client in listener.incoming() {
                let client = client.unwrap();
                let Ok(node) = TcpStream::connect(&node) else { continue };
                let (mut to, mut from) = (node.try_clone().unwrap(), client.try_clone().unwrap());
                thread::spawn(move || std::io::copy(&mut from, &mut to));
                let (silent, damaging) = (silent.clone(), damaging.clone());
                thread::spawn(move || meddle(node, client, &silent, &damaging));
            }
        });
        meddler
    }
}

fn meddle(mut from: TcpStream, mut to: TcpStream, silent: &AtomicBool, damaging: &AtomicBool) {
    let mut buffer = [0; 1 << 16];
    while let Ok(n @ 1..) = from.read(&mut buffer) {
        while silent.load(Ordering::Relaxed) {
            thread::sleep(Duration::from_millis(5));
        }
        // Bulk only: what introduces the two is short.
        if n > 1024 && damaging.load(Ordering::Relaxed) {
            add_polynomial(&mut buffer[n - 64..n]);
        }
        if to.write_all(&buffer[..n]).is_err() {
            return;
        }
    }
}

/// Adds the polynomial of CRC-32C to bytes: their checksum stays the same.
fn add_polynomial(bytes: &mut [u8]) {
    let terms = std::iter::once(1).chain((0..32).rev().map(|n| 0x1edc_6f41u32 >> n & 1));
    for (term, at) in terms.zip(0..) {
        bytes[at / 8] ^= (term as u8) << (at % 8);
    }
}

#[test]
fn a_second_copy_serves_when_the_first_is_dead_silent_or_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let image = image(dir.path());
    let (one, two) = (Running::new(None), Running::new(None));
    let meddler = Meddler::before(&one);
    let nodes = vec![meddler.address.clone(), two.address.clone()];
    let mut place = publish_at(dir.path(), nodes, 2).unwrap();
    // The one that will fail is asked first.
    place.shards.iter_mut().for_each(|s| s.nodes = vec![0, 1]);
    let source = source(&image, &place);
    check(&source, 0, 8);
    meddler.damaging.store(true, Ordering::Relaxed);
    check(&source, 0, 64);
    meddler.damaging.store(false, Ordering::Relaxed);
    meddler.silent.store(true, Ordering::Relaxed);
    // One that does not know yet that the first node failed.
    let source = self::source(&image, &place);
    let began = Instant::now();
    check(&source, 100, 2);
    let first = began.elapsed();
    check(&source, 200, 2);
    assert!(first >= Duration::from_secs(1), "it was waited for");
    assert!(began.elapsed() < first * 2, "and then rested");
    drop(one);
    check(&source, 0, PAGES);
    drop(two);
    let source = source.trying_for(Duration::from_millis(100));
    let error = source.read(3, &mut [0; 4096]).unwrap_err().to_string();
    assert!(error.contains("page 2") || error.contains("no copy has it"), "{error}");
}

#[test]
fn an_interrupted_publication_is_finished_or_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let image = image(dir.path());
    let node = Running::new(None);
    // The second node is not there.
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let error = publish_at(dir.path(), vec![node.address.clone(), gone], 1).unwrap_err();
    assert!(error.contains("cannot connect"), "{error}");
    let place = Places::read(dir.path()).unwrap().images["cold"].clone();
    let error =
        PoolSource::open(&image, info(), &place, &keys(), Transport::Auto).unwrap_err().to_string();
    assert!(error.contains("interrupted"), "{error}");
    let place = publish_to(dir.path(), &[&node], 1).unwrap();
    check(&source(&image, &place), 0, 4);
    assert_eq!(node.client().status().unwrap().publications, 1);
}

#[test]
fn a_silent_listener_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (tenant, key) = acme();
    let short = Duration::from_millis(50);
    let client = NodeClient::new(listener.local_addr().unwrap().to_string(), tenant, key)
        .with_patience(Patience { connect: short, answer: short });
    assert!(client.status().is_err());
    assert!(client.is_resting());
}

#[test]
fn hostile_frames_from_a_node_are_errors() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let thread = thread::spawn(move || {
        for answer in [Answer::Done, Answer::Data { len: u32::MAX }, Answer::Send] {
            let mut stream = welcome(listener.accept().unwrap().0);
            let _: Request = wire::receive(&mut stream).unwrap();
            wire::send(&mut stream, &answer).unwrap();
        }
    });
    let (tenant, key) = acme();
    let client = NodeClient::new(address, tenant, key);
    for _ in 0..3 {
        let error = client.read([1; 32], 0, &mut [0; 64]).unwrap_err();
        assert!(error.to_string().contains("it answered"), "{error}");
    }
    thread.join().unwrap();
}

/// A node that has the key, and lies.
#[test]
fn a_node_that_sends_other_pages_is_found_out() {
    let dir = tempfile::tempdir().unwrap();
    let image = image(dir.path());
    let node = Running::new(None);
    let mut place = publish_to(dir.path(), &[&node], 1).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    place.nodes = vec![listener.local_addr().unwrap().to_string()];
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = welcome(stream.unwrap());
            while let Ok(request) = wire::receive(&mut stream) {
                let Request::Read { len, .. } = request else { break };
                let mut bytes = vec![7; len as usize];
                wire::send(&mut stream, &Answer::Data { len }).unwrap();
                add_polynomial(&mut bytes);
                stream.write_all(&bytes).unwrap();
            }
        }
    });
    let source = source(&image, &place).trying_for(Duration::from_millis(100));
    let error = source.read(3, &mut [0; 4096]).unwrap_err().to_string();
    assert!(error.contains(&place.nodes[0]), "{error}");
}

/// The node's side of an introduction.
fn welcome(mut stream: TcpStream) -> Sealed {
    let key = Key::from_hex(KEY).unwrap();
    wire::send_magic(&mut stream).unwrap();
    wire::receive_magic(&mut stream).unwrap();
    let them: wire::Introduction = wire::receive(&mut stream).unwrap();
    let (handshake, reply) = Handshake::answer(&them.tenant, &key, &them.opening).unwrap();
    wire::send(&mut stream, &wire::Reception::Welcome { reply }).unwrap();
    handshake.prove(stream, Instant::now() + Duration::from_secs(60)).unwrap()
}

/// Gives pages to nodes for a machine.
fn backing_store(nodes: &[&Running], copies: usize) -> Result<PoolBackingStore, String> {
    depot_at(nodes.iter().map(|n| n.address.clone()).collect(), copies)
}

fn depot_at(nodes: Vec<String>, copies: usize) -> Result<PoolBackingStore, String> {
    let (tenant, key) = acme();
    let config = BackingStoreConfig { nodes, copies, tenant, key, transport: Transport::Auto };
    let store = PoolBackingStore::new(config).map_err(|e| e.to_string())?;
    Ok(store.trying_for(Duration::from_millis(200)))
}

/// Pages of a parcel.
fn pages(seed: u64, count: u64) -> Vec<u8> {
    (0..count * 512).flat_map(|word| (word * 31 + seed).to_le_bytes()).collect()
}

fn until_used(node: &Running, bytes: u64) {
    let until = Instant::now() + Duration::from_secs(10);
    while node.client().status().unwrap().used != bytes {
        assert!(Instant::now() < until, "{:?}", node.client().status());
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn what_a_machine_gives_away_comes_back_and_goes_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let nodes = [Running::new(Some(folder.path())), Running::new(None), Running::new(None)];
    let store = backing_store(&[&nodes[0], &nodes[1], &nodes[2]], 2).unwrap();
    let parcels: Vec<u64> = (0..9).map(|seed| store.put(&pages(seed, 64)).unwrap()).collect();
    store.confirm().unwrap();
    let used = || nodes.iter().map(|n| n.client().status().unwrap().used).sum::<u64>();
    assert_eq!(used(), 9 * 2 * 64 * 4096);
    let files = std::fs::read_dir(folder.path().join("acme/objects")).unwrap().count();
    assert_eq!(files, 0, "none of it is on a disk");
    let mut buffer = vec![0; 16 * 4096];
    for (&parcel, seed) in parcels.iter().zip(0..) {
        store.read(parcel, 48, &mut buffer).unwrap();
        assert_eq!(buffer, pages(seed, 64)[48 * 4096..]);
    }
    // Equal ones are one, until the last of them is freed.
    let twin = store.put(&pages(3, 64)).unwrap();
    store.free(&[parcels[3]]);
    assert_eq!(used(), 9 * 2 * 64 * 4096);
    store.read(twin, 48, &mut buffer).unwrap();
    assert!(store.read(parcels[3], 48, &mut buffer).is_err());
    store.free(&[twin, parcels[4]]);
    assert_eq!(used(), 7 * 2 * 64 * 4096);
    let again = store.put(&pages(3, 64)).unwrap();
    store.read(again, 48, &mut buffer).unwrap();
    // However the machine ends, its connections do, and nothing of it stays.
    drop(store);
    nodes.iter().for_each(|node| until_used(node, 0));
}

#[test]
fn pages_given_away_come_from_the_second_copy_or_not_at_all() {
    let (one, two) = (Running::new(None), Running::new(None));
    let meddler = Meddler::before(&one);
    let store = depot_at(vec![meddler.address.clone(), two.address.clone()], 2).unwrap();
    let parcel = store.put(&pages(1, 64)).unwrap();
    store.confirm().unwrap();
    let mut buffer = vec![0; 64 * 4096];
    meddler.damaging.store(true, Ordering::Relaxed);
    for _ in 0..4 {
        store.read(parcel, 0, &mut buffer).unwrap();
        assert_eq!(buffer, pages(1, 64));
    }
    drop(two);
    let error = store.read(parcel, 0, &mut buffer).unwrap_err().to_string();
    assert!(error.contains("on their way") && error.contains(&meddler.address), "{error}");
    meddler.damaging.store(false, Ordering::Relaxed);
    store.read(parcel, 0, &mut buffer).unwrap();
    drop(one);
    assert!(store.confirm().is_err());
    let error = store.read(parcel, 0, &mut buffer).unwrap_err().to_string();
    assert!(error.contains("no copy has it"), "{error}");
}

#[test]
fn a_node_that_is_full_or_gone_takes_no_pages_and_keeps_none() {
    let (one, two) = (Running::new(None), Running::at("127.0.0.1:0", None, 100 * 4096));
    assert!(backing_store(&[&one], 2).unwrap_err().contains("--copies 2 needs 2 nodes"));
    let both = backing_store(&[&one, &two], 2).unwrap();
    let first = both.put(&pages(1, 64)).unwrap();
    let error = both.put(&pages(2, 64)).unwrap_err().to_string();
    assert!(error.contains("exceed its limit") && error.contains(&two.address), "{error}");
    // A refusal is no failure: what is there stays, and no copy of the other does.
    both.confirm().unwrap();
    until_used(&one, 64 * 4096);
    both.free(&[first]);
    until_used(&two, 0);
    let again = both.put(&pages(2, 64)).unwrap();
    both.read(again, 0, &mut vec![0; 4096]).unwrap();
    let address = two.address.clone();
    drop(two);
    let error = both.put(&pages(3, 64)).unwrap_err().to_string();
    assert!(error.contains(&address), "{error}");
    // Back again, it has nothing, and takes new ones.
    let two = Running::at(&address, None, 1 << 30);
    let parcel = both.put(&pages(4, 64)).unwrap();
    both.confirm().unwrap();
    drop(one);
    both.read(parcel, 0, &mut vec![0; 4096]).unwrap();
    assert_eq!(two.client().status().unwrap().objects, 1);
}
