//! Stores by themselves: what is put is there once, who uses it is seen, and nothing that nobody uses
//! stays. A file in memory stands for a device: it is mapped shared, too.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use varve_memory_tiers::{ImageInfo, ImageResolver, Tier};
use varve_shared::{
    Attached, Device, Freed, Held, Key, Places, Published, Store, Uri, gc, open, publish, revoke,
    status,
};
use varve_snapshot::{
    Backing, ChunkDigests, ChunkFault, ChunkTable, Compression, Digest, Image, ImageEntry, ImageId,
    ImageReader, LocalFiles, MANIFEST_FILE, Manifest, ManifestReader, PageRange, SnapshotError,
};

const PAGES: u64 = 40;
const MIB: u64 = 1 << 20;

/// The folder of a snapshot that is nothing but an image `ro`, all of whose bytes are `fill`.
fn snapshot(dir: &Path, name: &str, fill: u8) -> PathBuf {
    let dir = dir.join(name);
    fs::create_dir(&dir).unwrap();
    let bytes = vec![fill; PAGES as usize * 4096];
    fs::write(dir.join("ro"), &bytes).unwrap();
    let entry = ImageEntry {
        name: "ro".into(),
        file: "ro".into(),
        pages: PAGES,
        bytes: bytes.len() as u64,
        chunk_pages: 16,
        compression: Compression::None,
        shared: false,
        digest: Some(Digest::of(&bytes)),
    };
    let chunks = ChunkTable::Plain(bytes.chunks(65536).map(crc32c::crc32c).collect());
    let digests = Some(ChunkDigests::of_chunks(&bytes, 65536));
    let manifest = Manifest {
        vmm_version: "0".into(),
        state: None,
        parent: None,
        memory: vec![PageRange::new(0, PAGES * 4096).unwrap()],
        images: vec![Image { entry, chunks, digests }],
        layouts: Vec::new(),
        recorded: None,
    };
    manifest.write(&LocalFiles, &dir.join(MANIFEST_FILE)).unwrap();
    dir
}

fn published(dir: &Path, to: &Uri) {
    let snapshot = ManifestReader::open(dir).unwrap();
    publish(&snapshot, &snapshot.images()[0], to, |_| {}).unwrap();
}

/// What a restore of the snapshot would use, if not its own file.
fn found(dir: &Path) -> (Published, Option<ImageInfo>) {
    let snapshot = ManifestReader::open(dir).unwrap();
    let published = Published::attach(&snapshot).unwrap();
    let local = ImageInfo {
        name: "ro".into(),
        tier: Tier::Local,
        pages: PAGES,
        mappable: true,
        guest_layout: false,
        chunk_pages: 16,
    };
    let info = published.info(&snapshot.images()[0], &local);
    (published, info)
}

fn names(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir).unwrap();
    let mut names: Vec<_> = names.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn an_image_is_there_once_for_all_that_use_it() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (snapshot(dir.path(), "a", 1), snapshot(dir.path(), "b", 1));
    let store = dir.path().join("store");
    let uri: Uri = format!("file:{}", store.display()).parse().unwrap();
    published(&a, &uri);
    published(&b, &uri);
    published(&b, &uri);
    let all = status(&uri).unwrap();
    assert_eq!((all.len(), all[0].snapshots.len(), all[0].held.users), (1, 2, 0));

    let (machine, info) = found(&a);
    assert_eq!(info.map(|i| (i.tier, i.mappable)), Some((Tier::Local, true)));
    let entry = ManifestReader::open(&a).unwrap().images()[0].clone();
    let file = machine.file(&entry).unwrap().unwrap();
    assert_eq!(status(&uri).unwrap()[0].held.users, 1);
    // The first to go leaves it to the other, who leaves it to the machine.
    assert_eq!(revoke(&a, &[]).unwrap()[0].snapshots, 1);
    assert!(found(&a).1.is_none() && found(&b).1.is_some());
    let last = revoke(&b, &["ro".into()]).unwrap();
    assert!(matches!(&last[0].freed, Freed::InUse(by) if by.contains('1')), "{last:?}");
    assert_eq!(gc(&uri).unwrap().in_use.len(), 1);
    // Published again while it waits, it is not copied again.
    published(&a, &uri);
    assert_eq!(status(&uri).unwrap().len(), 1);
    revoke(&a, &[]).unwrap();
    drop(machine);
    assert_eq!(gc(&uri).unwrap().in_use.len(), 1, "what was handed on is in use as well");
    drop(file);
    assert_eq!(gc(&uri).unwrap().freed.len(), 1);
    assert_eq!(names(&store), ["lock"]);
}

#[test]
fn snapshots_that_are_gone_or_went_elsewhere_use_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let [one, other] = ["one", "other"]
        .map(|name| format!("file:{}", dir.path().join(name).display()).parse::<Uri>().unwrap());
    let (a, b) = (snapshot(dir.path(), "a", 1), snapshot(dir.path(), "b", 2));
    published(&a, &one);
    published(&b, &one);
    published(&b, &other);
    assert_eq!(status(&one).unwrap().len(), 1, "publishing elsewhere lets go");
    fs::remove_dir_all(&a).unwrap();
    let done = gc(&one).unwrap();
    assert_eq!((done.freed.len(), done.forgotten), (1, vec![a]));
    // One that was interrupted, and left files.
    let mut places = Places::read(&b).unwrap();
    places.images.get_mut("ro").unwrap().complete = false;
    places.write(&b).unwrap();
    fs::write(dir.path().join("other/.varve-tmp-1-0-x"), "half").unwrap();
    assert!(found(&b).1.is_none());
    let done = gc(&other).unwrap();
    assert_eq!((done.freed.len(), done.cleaned), (1, 1));
    assert_eq!(names(&dir.path().join("other")), ["lock"]);
}

/// A file that cannot be looked at may be there: it is not taken for absent, and nothing is done.
#[test]
fn an_image_that_cannot_be_looked_at_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let a = snapshot(dir.path(), "a", 1);
    let store = dir.path().join("store");
    let uri: Uri = format!("file:{}", store.display()).parse().unwrap();
    published(&a, &uri);
    let manifest = ManifestReader::open(&a).unwrap();
    let entry = &manifest.images()[0];
    let key = Places::read(&a).unwrap().images["ro"].key();
    for state in ["image", "retired"] {
        let path = store.join(format!("{}.{state}", key.digest));
        let _ = fs::rename(&path, dir.path().join("kept"));
        std::os::unix::fs::symlink(&path, &path).unwrap();
        let refused = publish(&manifest, entry, &uri, |_| {}).unwrap_err();
        let text = varve_snapshot::chain(&refused);
        assert!(
            text.contains(&key.digest.to_string()) && text.contains("symbolic links"),
            "{text}"
        );
        if state == "image" {
            let store = open(&uri).unwrap();
            assert!(store.retire(&key).is_err() && store.attach(&key).is_err());
        }
        fs::remove_file(&path).unwrap();
    }
    fs::rename(dir.path().join("kept"), store.join(format!("{}.image", key.digest))).unwrap();
    assert!(found(&a).1.is_none(), "the publication did not end");
    published(&a, &uri);
    assert!(found(&a).1.is_some());
}

/// Nothing would notice wrong pages where they are mapped.
#[test]
fn a_snapshot_that_was_made_anew_has_its_own_image() {
    let dir = tempfile::tempdir().unwrap();
    let uri: Uri = format!("file:{}", dir.path().join("store").display()).parse().unwrap();
    let a = snapshot(dir.path(), "a", 1);
    published(&a, &uri);
    let places = fs::read(Places::path(&a)).unwrap();
    fs::remove_dir_all(&a).unwrap();
    let a = snapshot(dir.path(), "a", 2);
    fs::write(Places::path(&a), places).unwrap();
    assert!(found(&a).1.is_none());
    published(&a, &uri);
    assert!(found(&a).1.is_some());
    assert_eq!(status(&uri).unwrap().len(), 1);
}

/// A device of 16 MiB that two hosts share; the first owns it.
struct Shared {
    dir: tempfile::TempDir,
}

impl Shared {
    fn new() -> Shared {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        File::create(dir.path().join("device")).unwrap().set_len(16 * MIB).unwrap();
        Shared { dir }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("device")
    }

    fn host(&self, host: usize) -> Device {
        let state = self.dir.path().join(format!("state{host}"));
        Device::over(&self.path(), 16 * MIB, host, &state)
    }

    fn image(&self, len: u64, fill: u8) -> (Key, File) {
        let bytes = vec![fill; len as usize];
        let path = self.dir.path().join(format!("image{fill}"));
        fs::write(&path, &bytes).unwrap();
        (Key { digest: Digest::of(&bytes), bytes: len }, File::open(path).unwrap())
    }
}

fn attach(device: &Device, key: &Key) -> Option<Attached> {
    device.attach(key).unwrap()
}

#[test]
fn a_device_is_shared_by_hosts() {
    let shared = Shared::new();
    let (owner, other) = (shared.host(0), shared.host(1));
    let error = owner.list().unwrap_err().to_string();
    assert!(error.contains("varve tier init"), "{error}");
    owner.init(false).unwrap();
    assert!(owner.init(false).unwrap_err().to_string().contains("--force"));

    let (a, file_a) = shared.image(3 * MIB, 1);
    let (b, file_b) = shared.image(5 * MIB, 2);
    let mut told = 0;
    owner.put(&a, &file_a, &mut |bytes| told = bytes).unwrap();
    owner.put(&a, &file_a, &mut |_| panic!("it is there")).unwrap();
    owner.put(&b, &file_b, &mut |_| {}).unwrap();
    assert_eq!((told, owner.list().unwrap().len()), (3 * MIB, 2));
    let error = other.put(&shared.image(MIB, 3).0, &file_a, &mut |_| {}).unwrap_err().to_string();
    assert!(error.contains("host 0 owns it"), "{error}");
    // 4 MiB of tables, 4 and 6 MiB of images: 2 are left.
    let (c, file_c) = shared.image(3 * MIB, 4);
    let error = owner.put(&c, &file_c, &mut |_| {}).unwrap_err().to_string();
    assert!(error.contains("no 4 MiB in one piece"), "{error}");

    let Some(Attached::Device(image)) = attach(&other, &a) else { panic!("it is there") };
    let mut page = [0; 4096];
    image.read_exact_at(&mut page, 3 * MIB - 4096).unwrap();
    assert_eq!(page, [1; 4096]);
    assert!(image.read_exact_at(&mut page, 3 * MIB - 4095).is_err());
    // It is used on another host, which the owner sees by the lease.
    owner.retire(&a).unwrap();
    assert_eq!(owner.free(&a).unwrap(), Freed::InUse("host 1".into()));
    assert!(attach(&other, &a).is_none() && attach(&owner, &a).is_none());
    assert_eq!(other.clean().unwrap(), 0, "its machine still runs");
    drop(image);
    assert_eq!(owner.free(&a).unwrap(), Freed::InUse("host 1".into()));
    assert_eq!(other.clean().unwrap(), 1);
    assert_eq!(owner.free(&a).unwrap(), Freed::Yes);
    // Its room goes to the next, in another epoch.
    owner.put(&c, &file_c, &mut |_| {}).unwrap();
    let held: Vec<Held> = owner.list().unwrap().into_iter().filter(|h| h.key == c).collect();
    assert_eq!(held[0].epoch, Some(2));
    // A host that died does not come back to clean up.
    drop(attach(&other, &c));
    owner.retire(&c).unwrap();
    assert_eq!(owner.fence(1).unwrap(), 1);
    assert_eq!(owner.free(&c).unwrap(), Freed::Yes);
}

#[test]
fn what_is_damaged_on_a_device_is_not_used() {
    let shared = Shared::new();
    let owner = shared.host(0);
    owner.init(false).unwrap();
    let (a, file) = shared.image(3 * MIB, 1);
    owner.put(&a, &file, &mut |_| {}).unwrap();
    let device = File::options().write(true).open(shared.path()).unwrap();
    device.write_all_at(&[9], 4 * MIB + 12345).unwrap();
    let error = owner.attach(&a).unwrap_err().to_string();
    assert!(error.contains("not what was published"), "{error}");
    // A publisher that was killed half-way: state `writing` in the first slot.
    device.write_all_at(&[1], (64 << 10) + 128).unwrap();
    assert_eq!(owner.list().unwrap(), []);
    assert_eq!(owner.clean().unwrap(), 2, "the lease of who looked, and the slot");
    owner.put(&a, &file, &mut |_| {}).unwrap();
    assert!(attach(&owner, &a).is_some());
}

#[test]
fn a_device_is_a_device() {
    let dir = tempfile::tempdir().unwrap();
    let open =
        |path: &str| open(&format!("devdax:{path}").parse().unwrap()).err().unwrap().to_string();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    assert!(open(file.to_str().unwrap()).contains("no device"));
    assert!(open("/dev/null").contains("no DAX device"));
}

/// Adds the polynomial of CRC-32C to bytes: their checksum stays the same.
fn add_polynomial(bytes: &mut [u8]) {
    let terms = std::iter::once(1).chain((0..32).rev().map(|n| 0x1edc_6f41u32 >> n & 1));
    for (term, at) in terms.zip(0..) {
        bytes[at / 8] ^= (term as u8) << (at % 8);
    }
}

/// The device's own checksum finds damage; what another host wrote on purpose is found by the manifest.
#[test]
fn bytes_on_a_device_are_proven_by_the_manifest() {
    let (shared, dir) = (Shared::new(), tempfile::tempdir().unwrap());
    let owner = shared.host(0);
    owner.init(false).unwrap();
    let snapshot = ManifestReader::open(&snapshot(dir.path(), "a", 7)).unwrap();
    let image = snapshot.image_table(ImageId(0)).unwrap();
    let file = File::open(dir.path().join("a/ro")).unwrap();
    let key = Key { digest: image.entry.digest.unwrap(), bytes: image.entry.bytes };
    owner.put(&key, &file, &mut |_| {}).unwrap();
    let (device, at) =
        (File::options().read(true).write(true).open(shared.path()).unwrap(), 4 * MIB);
    let mut bytes = vec![0; key.bytes as usize];
    FileExt::read_exact_at(&device, &mut bytes, at).unwrap();
    let before = crc32c::crc32c(&bytes);
    add_polynomial(&mut bytes[70_000..]);
    assert_eq!(crc32c::crc32c(&bytes), before);
    device.write_all_at(&bytes, at).unwrap();
    let Some(Attached::Device(memory)) = attach(&owner, &key) else { panic!("it is there") };
    let reader = ImageReader::over(image, "devdax:test", memory);
    reader.read_pages(0, &mut [0; 65536]).unwrap();
    let error = reader.read_pages(17, &mut [0; 4096]).unwrap_err();
    let damaged = matches!(&error, SnapshotError::Chunk { cause: ChunkFault::Digest { .. }, .. });
    assert!(damaged && error.to_string().contains("page 16"), "{error}");
}
