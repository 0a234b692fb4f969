//! virtio-block against a driver in guest memory and a real file.

use super::*;
use crate::bus::BusDevice;
use crate::limiter::BucketConfig;
use crate::virtio::DeviceHandle;
use crate::virtio::testing::{BUFFERS, INDIRECT, Rig};
use std::io::Write;
use std::time::{Duration, Instant};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
};

const STATUS: u64 = BUFFERS + 0x8_0000;

fn image(sectors: usize) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    let data: Vec<u8> = (0..sectors * 512).map(|i| (i / 512 + i) as u8).collect();
    file.write_all(&data).unwrap();
    file
}

fn config(file: &tempfile::NamedTempFile, read_only: bool) -> BlockConfig {
    BlockConfig {
        id: "root".into(),
        path: file.path().into(),
        read_only,
        flush: true,
        limiter: LimiterConfig::default(),
        apart: false,
    }
}

fn rig(file: &tempfile::NamedTempFile, read_only: bool) -> Rig {
    Rig::new(Box::new(Block::new(config(file, read_only)).unwrap()))
}

fn header(rig: &Rig, kind: u32, sector: u64) -> (u64, u32, bool) {
    rig.put(BUFFERS, &kind.to_le_bytes());
    rig.put(BUFFERS + 8, &sector.to_le_bytes());
    rig.put(STATUS, &[0xaa]);
    (BUFFERS, 16, false)
}

/// The image outlives its name: the device holds it open.
fn device() -> Option<Box<dyn VirtioDevice>> {
    Some(Box::new(Block::new(config(&image(64), false)).unwrap()))
}

crate::virtio::conformance::device_conformance!(device);

#[test]
fn reads_through_several_descriptors() {
    let file = image(8);
    let mut rig = rig(&file, false);
    let h = header(&rig, VIRTIO_BLK_T_IN, 2);
    let data = BUFFERS + 0x1000;
    rig.push(0, &[h, (data, 100, true), (data + 100, 924, true), (STATUS, 1, true)]);
    rig.notify(0);
    assert_eq!(rig.used(0), [(0, 1025)]);
    assert_eq!(rig.get(STATUS, 1), [0]);
    let expected = std::fs::read(file.path()).unwrap();
    assert_eq!(rig.get(data, 1024), expected[1024..2048]);
    assert!(rig.interrupts() > 0);
}

#[test]
fn writes_flushes_and_names_itself() {
    let file = image(8);
    let mut rig = rig(&file, false);
    let data = BUFFERS + 0x1000;
    rig.put(data, &[7; 512]);
    let h = header(&rig, VIRTIO_BLK_T_OUT, 7);
    rig.push(0, &[h, (data, 512, false), (STATUS, 1, true)]);
    rig.notify(0);
    assert_eq!((rig.used(0), rig.get(STATUS, 1)), (vec![(0, 1)], vec![0]));
    assert_eq!(std::fs::read(file.path()).unwrap()[7 * 512..], [7; 512]);

    let h = header(&rig, VIRTIO_BLK_T_FLUSH, 0);
    rig.push(0, &[h, (STATUS, 1, true)]);
    rig.notify(0);
    assert_eq!((rig.used(0), rig.get(STATUS, 1)), (vec![(3, 1)], vec![0]));

    let h = header(&rig, VIRTIO_BLK_T_GET_ID, 0);
    rig.push(0, &[h, (data, 20, true), (STATUS, 1, true)]);
    rig.notify(0);
    assert_eq!((rig.used(0), rig.get(STATUS, 1)), (vec![(5, 21)], vec![0]));
    assert_eq!(rig.get(data, 20), *b"root\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
}

#[test]
fn refuses_what_is_not_allowed() {
    let file = image(8);
    let before = std::fs::read(file.path()).unwrap();
    let mut read_only = rig(&file, true);
    let data = BUFFERS + 0x1000;
    let h = header(&read_only, VIRTIO_BLK_T_OUT, 0);
    read_only.push(0, &[h, (data, 512, false), (STATUS, 1, true)]);
    read_only.notify(0);
    assert_eq!(read_only.get(STATUS, 1), [VIRTIO_BLK_S_IOERR as u8]);

    let mut rig = rig(&file, false);
    let cases: &[(u32, u64, u32, u32)] = &[
        (VIRTIO_BLK_T_IN, 8, 512, VIRTIO_BLK_S_IOERR),
        (VIRTIO_BLK_T_IN, 7, 1024, VIRTIO_BLK_S_IOERR),
        (VIRTIO_BLK_T_IN, 0, 511, VIRTIO_BLK_S_IOERR),
        (VIRTIO_BLK_T_IN, u64::MAX, 512, VIRTIO_BLK_S_IOERR),
        (VIRTIO_BLK_T_IN, u64::MAX / 512, 512, VIRTIO_BLK_S_IOERR),
        (VIRTIO_BLK_T_GET_ID, 0, 19, VIRTIO_BLK_S_IOERR),
        (0xdead, 0, 512, VIRTIO_BLK_S_UNSUPP),
    ];
    for &(kind, sector, len, status) in cases {
        let h = header(&rig, kind, sector);
        rig.push(0, &[h, (data, len, true), (STATUS, 1, true)]);
        rig.notify(0);
        assert_eq!(rig.used(0).len(), 1);
        assert_eq!(rig.get(STATUS, 1), [status as u8], "{kind} at {sector}+{len}");
    }
    for (sector, len) in [(8, 512), (7, 1024), (0, 100), (u64::MAX - 1, 512)] {
        let h = header(&rig, VIRTIO_BLK_T_OUT, sector);
        rig.push(0, &[h, (data, len, false), (STATUS, 1, true)]);
        rig.notify(0);
        assert_eq!(rig.get(STATUS, 1), [VIRTIO_BLK_S_IOERR as u8]);
    }
    assert_eq!(std::fs::read(file.path()).unwrap(), before);
}

#[test]
fn a_file_cut_short_gives_an_error() {
    let file = image(8);
    let mut rig = rig(&file, false);
    file.as_file().set_len(512).unwrap();
    let h = header(&rig, VIRTIO_BLK_T_IN, 1);
    rig.push(0, &[h, (BUFFERS + 0x1000, 512, true), (STATUS, 1, true)]);
    rig.notify(0);
    assert_eq!(rig.get(STATUS, 1), [VIRTIO_BLK_S_IOERR as u8]);
}

#[test]
fn state_refuses_another_image() {
    let (a, b) = (image(8), image(9));
    let saved = Block::new(config(&a, false)).unwrap().save();
    Block::new(config(&a, false)).unwrap().restore(VERSION, &saved).unwrap();
    let refused = Block::new(config(&b, false)).unwrap().restore(VERSION, &saved).unwrap_err();
    assert!(refused.to_string().contains("had 8 sectors"), "{refused}");
    assert!(Block::new(config(&a, true)).unwrap().restore(VERSION, &saved).is_err());
    let old = state::encode(&BlockStateV1 { sectors: 8, read_only: false });
    Block::new(config(&a, false)).unwrap().restore(1, &old).unwrap();
    assert!(Block::new(config(&b, false)).unwrap().restore(1, &old).is_err());
}

#[test]
fn bad_images_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let open = |path: &Path| {
        Block::new(BlockConfig {
            id: "x".into(),
            path: path.into(),
            read_only: true,
            flush: true,
            limiter: LimiterConfig::default(),
            apart: false,
        })
        .err()
        .expect("refused")
    };
    assert!(matches!(open(dir.path()), BlockError::NotAFile(_)));
    assert!(matches!(open(&dir.path().join("none")), BlockError::Open { .. }));
}

#[test]
fn an_image_may_be_shorter_than_a_sector() {
    for len in [0, 511] {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(len).unwrap();
        let disk = Disk::open(file.path(), false).unwrap();
        assert_eq!(disk.sectors(), 0);
        assert!(disk.holds(0, 0) && !disk.holds(0, 512));
    }
}

fn limited(file: &tempfile::NamedTempFile, limiter: LimiterConfig) -> Box<Block> {
    Box::new(Block::new(BlockConfig { limiter, ..config(file, false) }).unwrap())
}

fn bucket(size: u64, refill_time: u64) -> Option<BucketConfig> {
    Some(BucketConfig { size, one_time_burst: None, refill_time })
}

fn bytes(size: u64, refill_time: u64) -> LimiterConfig {
    LimiterConfig { bandwidth: bucket(size, refill_time), ops: None }
}

fn ops(size: u64, refill_time: u64) -> LimiterConfig {
    LimiterConfig { bandwidth: None, ops: bucket(size, refill_time) }
}

/// A refill time that no test lives to see.
const NEVER: u64 = 3_600_000;

/// Asks for sector `n` as the `n`th request, and rings.
fn ask(rig: &mut Rig, sectors: std::ops::Range<u64>) {
    for n in sectors {
        let at = BUFFERS + 0x1000 * (n + 1);
        rig.put(at, &VIRTIO_BLK_T_IN.to_le_bytes());
        rig.put(at + 8, &n.to_le_bytes());
        rig.push(0, &[(at, 16, false), (at + 0x200, 512, true), (at + 0x400, 1, true)]);
    }
    rig.notify(0);
}

/// The requests of [`ask`] that were answered since the last call; each with its sector.
fn answered(rig: &mut Rig, file: &tempfile::NamedTempFile) -> Vec<u64> {
    let disk = std::fs::read(file.path()).unwrap();
    let used = rig.used(0);
    used.into_iter()
        .map(|(head, len)| {
            let n = u64::from(head / 3);
            let sector = n as usize * 512..(n as usize + 1) * 512;
            assert_eq!(
                (len, rig.get(BUFFERS + 0x1000 * (n + 1) + 0x200, 512)),
                (513, disk[sector].to_vec())
            );
            n
        })
        .collect()
}

fn handle(rig: &Rig) -> DeviceHandle<Block> {
    DeviceHandle::new(rig.transport.clone()).expect("a drive")
}

#[test]
fn a_limited_drive_answers_all_in_order_and_in_its_time() {
    for limits in [bytes(1024, 120), ops(2, 120)] {
        for without in [0, 1 << 29] {
            let file = image(16);
            let mut rig = Rig::with_features(limited(&file, limits), |f| f & !without);
            rig.interrupts();
            let start = Instant::now();
            ask(&mut rig, 0..3);
            ask(&mut rig, 3..6);
            let mut order = answered(&mut rig, &file);
            assert!((2..6).contains(&order.len()), "at once: {order:?}");
            let mut events = 0;
            while order.len() < 6 {
                assert!(start.elapsed() < Duration::from_secs(10), "{order:?}");
                events += rig.wait(1000);
                order.extend(answered(&mut rig, &file));
            }
            // Two at once, then one each 60 ms.
            let time = start.elapsed();
            assert!(time >= Duration::from_millis(239), "{time:?}");
            assert_eq!(order, [0, 1, 2, 3, 4, 5]);
            assert!(events <= 6, "{events} events for 4 requests: the timer wakes, nothing else");
            assert!(rig.interrupts() > 0);
            // And the next one is notified again.
            rig.wait(70);
            ask(&mut rig, 6..7);
            assert_eq!(answered(&mut rig, &file), [6]);
        }
    }
}

#[test]
fn only_reads_and_writes_cost_bytes_and_large_ones_make_debt() {
    let file = image(16);
    let mut rig = Rig::new(limited(&file, bytes(600, NEVER)));
    for _ in 0..3 {
        let h = header(&rig, VIRTIO_BLK_T_FLUSH, 0);
        rig.push(0, &[h, (STATUS, 1, true)]);
        rig.notify(0);
        assert_eq!(rig.used(0).len(), 1);
    }
    let h = header(&rig, VIRTIO_BLK_T_IN, 0);
    rig.push(0, &[h, (BUFFERS + 0x1000, 4096, true), (STATUS, 1, true)]);
    rig.notify(0);
    assert_eq!(rig.used(0), [(6, 4097)], "larger than the bucket");
    let h = header(&rig, VIRTIO_BLK_T_IN, 0);
    rig.push(0, &[h, (BUFFERS + 0x1000, 512, true), (STATUS, 1, true)]);
    rig.notify(0);
    assert_eq!(rig.used(0), [], "and owed by the next");
    assert_eq!(rig.get(STATUS, 1), [0xaa]);
}

#[test]
fn limits_change_while_requests_wait_and_survive_resets_and_snapshots() {
    let file = image(16);
    let mut rig = Rig::new(limited(&file, ops(2, NEVER)));
    ask(&mut rig, 0..2);
    assert_eq!(answered(&mut rig, &file), [0, 1]);
    // A driver cannot shake them off.
    rig.configure(|f| f);
    ask(&mut rig, 0..5);
    assert!(answered(&mut rig, &file).is_empty());
    // Restored with what was left, which is nothing, and with the requests that wait.
    let mut rig = rig.restored(limited(&file, ops(2, NEVER)));
    rig.run();
    assert!(answered(&mut rig, &file).is_empty());
    handle(&rig).with(|block, _| block.update_limiter(ops(3, NEVER)));
    rig.wait(1000);
    assert_eq!(answered(&mut rig, &file), [0, 1, 2], "a new bucket is full");
    handle(&rig).with(|block, _| block.update_limiter(bytes(0, 0)));
    rig.wait(1000);
    assert!(answered(&mut rig, &file).is_empty(), "operations are still limited");
    handle(&rig).with(|block, _| block.update_limiter(ops(0, 0)));
    rig.wait(1000);
    assert_eq!(answered(&mut rig, &file), [3, 4]);
}

#[test]
fn another_image_is_put_in() {
    let (first, second) = (image(8), image(12));
    second.as_file().set_len(11 * 512 + 7).unwrap();
    let mut rig = rig(&first, false);
    let capacity = |rig: &Rig| u64::from(rig.read(0x100)) | u64::from(rig.read(0x104)) << 32;
    assert_eq!(capacity(&rig), 8);
    ask(&mut rig, 7..8);
    assert_eq!(rig.used(0).len(), 1);
    let (generation, _) = (rig.read(0xfc), rig.interrupts());
    let swap = |rig: &Rig, path: &Path| handle(rig).with(|b, io| b.replace_image(path, io));
    assert!(matches!(swap(&rig, Path::new("/nonexistent")), Err(BlockError::Open { .. })));
    assert!(matches!(swap(&rig, Path::new("/tmp")), Err(BlockError::Open { .. })), "a folder");
    assert_eq!((capacity(&rig), rig.read(0xfc), rig.interrupts()), (8, generation, 0));

    swap(&rig, second.path()).unwrap();
    assert_eq!(capacity(&rig), 11);
    assert_ne!(rig.read(0xfc), generation, "the configuration changed");
    assert_eq!((rig.read(0x60) & 2, rig.interrupts()), (2, 1), "and the driver is told");
    rig.put(BUFFERS + 0x1000, &[9; 512]);
    let h = header(&rig, VIRTIO_BLK_T_OUT, 10);
    rig.push(0, &[h, (BUFFERS + 0x1000, 512, false), (STATUS, 1, true)]);
    rig.notify(0);
    assert_eq!(rig.get(STATUS, 1), [0]);
    assert_eq!(std::fs::read(second.path()).unwrap()[10 * 512..11 * 512], [9; 512]);
    assert_eq!(std::fs::read(first.path()).unwrap(), std::fs::read(image(8).path()).unwrap());
    let other = Box::new(Block::new(config(&second, false)).unwrap());
    rig.restored(other);
}

#[test]
fn a_handle_is_of_its_own_type() {
    let file = image(8);
    let rig = rig(&file, false);
    assert!(DeviceHandle::<crate::virtio::rng::Rng>::new(rig.transport.clone()).is_none());
    handle(&rig).with(|_, _| ());
}

#[test]
fn what_happens_is_counted() {
    let file = image(8);
    let mut rig = rig(&file, false);
    let metrics = handle(&rig).with(|drive, _| drive.metrics());
    let data = BUFFERS + 0x1000;
    // Good, behind the end, unknown, and too short to have a status.
    for (kind, sector) in [(VIRTIO_BLK_T_IN, 2), (VIRTIO_BLK_T_IN, 8), (77, 0)] {
        let h = header(&rig, kind, sector);
        rig.push(0, &[h, (data, 1024, true), (STATUS, 1, true)]);
        rig.notify(0);
    }
    rig.push(0, &[(BUFFERS, 16, false)]);
    rig.notify(0);
    for (kind, len) in [(VIRTIO_BLK_T_OUT, 512), (VIRTIO_BLK_T_FLUSH, 0)] {
        let h = header(&rig, kind, 7);
        rig.push(0, &[h, (data, len.max(1), false), (STATUS, 1, true)][..]);
        rig.notify(0);
    }
    rig.notify(0);
    let m = &*metrics;
    assert_eq!([&m.read_count, &m.read_bytes].map(|n| n.get()), [1, 1024]);
    assert_eq!([&m.write_count, &m.write_bytes, &m.flush_count].map(|n| n.get()), [1, 512, 1]);
    assert_eq!(m.invalid_reqs_count.get(), 3);
    assert_eq!([&m.execute_fails, &m.event_fails, &m.cfg_fails].map(|n| n.get()), [0; 3]);
    assert_eq!(m.queue_event_count.get(), 7);
    assert_eq!(m.no_avail_buffer.get(), 1);
}

/// A guest that asks for the same megabytes again and again: legal requests are carried out, a few in
/// each turn.
#[test]
fn much_data_takes_many_turns() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(MAX_TRANSFER).unwrap();
    let mut rig = rig(&file, false);
    let header = header(&rig, VIRTIO_BLK_T_IN, 0);
    let data = vec![(BUFFERS + 0x1_0000, SIZE_MAX, true); SEG_MAX as usize];
    let chain = [&[header][..], &data, &[(STATUS, 1, true)]].concat();
    let table = rig.table(BUFFERS + 0x2_0000, &chain);
    for index in 0..16 {
        rig.descriptor(0, index, BUFFERS + 0x2_0000, table, INDIRECT, 0);
        rig.publish(0, index);
    }
    rig.notify(0);
    let written = MAX_TRANSFER as u32 + 1;
    assert_eq!(rig.used(0), (0..16).map(|index| (index, written)).collect::<Vec<_>>());
    let work = rig.transport.longest_turn();
    assert_eq!(work.bytes, MAX_TRANSFER, "a turn ends with the request that is enough");
    work.assert_bounded(MAX_TRANSFER);
}

#[test]
fn a_request_larger_than_the_device_allows_costs_nothing() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(4 << 30).unwrap();
    let block = Block::new(config(&file, false)).unwrap();
    let metrics = block.metrics();
    let mut rig = Rig::new(Box::new(block));
    for (kind, write) in [(VIRTIO_BLK_T_IN, true), (VIRTIO_BLK_T_OUT, false)] {
        let header = header(&rig, kind, 0);
        let data = vec![(BUFFERS + 0x1_0000, 1 << 20, write); SEG_MAX as usize];
        let chain = [&[header][..], &data, &[(STATUS, 1, true)]].concat();
        let table = rig.table(BUFFERS + 0x2_0000, &chain);
        rig.descriptor(0, 0, BUFFERS + 0x2_0000, table, INDIRECT, 0);
        rig.publish(0, 0);
        rig.notify(0);
        assert_eq!(rig.used(0), [(0, 1)]);
        assert_eq!(rig.get(STATUS, 1), [VIRTIO_BLK_S_IOERR as u8]);
    }
    assert_eq!(rig.transport.longest_turn().bytes, 0);
    assert_eq!(metrics.invalid_reqs_count.get(), 2);
    let mut sizes = [0; 8];
    rig.bus.read(0x108, &mut sizes);
    assert_eq!(sizes.as_chunks::<4>().0, [SIZE_MAX.to_le_bytes(), SEG_MAX.to_le_bytes()]);
}

/// A drive to which the guest wrote, and then the host fails to flush; with it the file that is good.
fn broken(file: &tempfile::NamedTempFile, flush: bool) -> (Rig, std::fs::File) {
    let mut rig =
        Rig::new(Box::new(Block::new(BlockConfig { flush, ..config(file, false) }).unwrap()));
    let h = header(&rig, VIRTIO_BLK_T_OUT, 7);
    rig.push(0, &[h, (BUFFERS + 0x1000, 512, false), (STATUS, 1, true)]);
    rig.notify(0);
    assert_eq!((rig.used(0).len(), rig.get(STATUS, 1)), (1, vec![0]));
    // fdatasync fails on what is no file.
    let (reader, _) = std::io::pipe().unwrap();
    let bad = std::os::fd::OwnedFd::from(reader).into();
    let good = handle(&rig).with(|block, _| block.disk.swap(bad));
    (rig, good)
}

fn flush(rig: &mut Rig) -> u8 {
    let h = header(rig, VIRTIO_BLK_T_FLUSH, 0);
    rig.push(0, &[h, (STATUS, 1, true)]);
    rig.notify(0);
    assert_eq!(rig.used(0).len(), 1);
    rig.get(STATUS, 1)[0]
}

/// Linux tells of lost writes once: whoever hears it first must not be the only one.
#[test]
fn lost_writes_fail_the_snapshot_and_the_guests_next_flush() {
    let file = image(8);
    let (mut rig, good) = broken(&file, true);
    let settle = |rig: &Rig| handle(rig).with(|block, _| block.settle());
    let error = settle(&rig).unwrap_err();
    assert!(matches!(&error, BlockError::Flush { path, .. } if path == file.path()), "{error}");
    // The host has told it, and would not do so again.
    drop(handle(&rig).with(|block, _| block.disk.swap(good)));
    assert!(settle(&rig).is_err(), "the guest does not know yet");
    assert_eq!(flush(&mut rig), VIRTIO_BLK_S_IOERR as u8);
    settle(&rig).unwrap();
    assert_eq!(flush(&mut rig), 0);

    // A guest without flush cannot be told.
    let (rig, good) = broken(&file, false);
    settle(&rig).unwrap_err();
    drop(handle(&rig).with(|block, _| block.disk.swap(good)));
    settle(&rig).unwrap();
}

#[test]
fn lost_writes_are_told_before_the_image_is_replaced() {
    let (file, other) = (image(8), image(8));
    let (mut rig, _good) = broken(&file, true);
    let replace = |rig: &Rig| handle(rig).with(|b, io| b.replace_image(other.path(), io));
    let error = replace(&rig).unwrap_err();
    assert!(matches!(&error, BlockError::Flush { path, .. } if path == file.path()), "{error}");
    replace(&rig).unwrap();
    assert_eq!(flush(&mut rig), VIRTIO_BLK_S_IOERR as u8, "what was written to the old one");
    assert_eq!(flush(&mut rig), 0);
    replace(&rig).unwrap();
}
