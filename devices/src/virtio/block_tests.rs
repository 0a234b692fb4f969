//! virtio-block against a driver in guest memory and a real file.

use super::*;
use crate::virtio::testing::{BUFFERS, Rig};
use std::io::Write;

const STATUS: u64 = BUFFERS + 0x8_0000;

fn image(sectors: usize) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    let data: Vec<u8> = (0..sectors * 512).map(|i| (i / 512 + i) as u8).collect();
    file.write_all(&data).unwrap();
    file
}

fn config(file: &tempfile::NamedTempFile, read_only: bool) -> BlockConfig {
    BlockConfig { id: "root".into(), path: file.path().into(), read_only, flush: true }
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
    Block::new(config(&a, false)).unwrap().restore(1, &saved).unwrap();
    let refused = Block::new(config(&b, false)).unwrap().restore(1, &saved).unwrap_err();
    assert!(refused.to_string().contains("had 8 sectors"), "{refused}");
    assert!(Block::new(config(&a, true)).unwrap().restore(1, &saved).is_err());
}

#[test]
fn bad_images_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let open = |path: &Path| {
        Block::new(BlockConfig { id: "x".into(), path: path.into(), read_only: true, flush: true })
            .err()
            .expect("refused")
    };
    assert!(matches!(open(dir.path()), BlockError::NotAFile(_)));
    assert!(matches!(open(&dir.path().join("none")), BlockError::Open { .. }));
    let small = dir.path().join("small");
    std::fs::write(&small, [0; 511]).unwrap();
    assert!(matches!(open(&small), BlockError::TooSmall { len: 511, .. }));
}
