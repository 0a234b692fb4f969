//! Drives: what a guest writes is in the image, what is in the image is what it reads.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;
use varve_agent::client::Error;
use varve_agent::pattern;
use varve_agent::protocol::{Block, BlockDevice, Direction, How, Request, Transfer};
use varve_skip::skipped;
use varve_tests::disk::FailingDisk;
use varve_tests::{Ended, Vm};

const MIB: u64 = 1 << 20;

/// Makes an image of the pattern of `seed`.
fn pattern_image(path: &Path, bytes: u64, seed: u64) {
    let mut data = vec![0; usize::try_from(bytes).unwrap()];
    pattern::fill(seed, 0, &mut data);
    fs::write(path, data).unwrap();
}

/// Makes an image of zeros.
fn zero_image(path: &Path, bytes: u64) {
    File::create(path).unwrap().set_len(bytes).unwrap();
}

/// Checksum of a part of an image, as the host reads it.
fn checksum(path: &Path, offset: u64, bytes: u64) -> u32 {
    let mut data = vec![0; usize::try_from(bytes).unwrap()];
    File::open(path).unwrap().read_exact_at(&mut data, offset).unwrap();
    crc32fast::hash(&data)
}

fn drive(path: &Path, mode: &str) -> String {
    format!("{}{mode}", path.display())
}

fn device(name: &str, bytes: u64, read_only: bool, serial: &str) -> BlockDevice {
    BlockDevice { name: name.into(), bytes, read_only, serial: Some(serial.into()) }
}

fn power_off(mut vm: Vm) -> (Ended, tempfile::TempDir) {
    vm.power(How::Poweroff);
    let (end, dir) = vm.wait_and_keep();
    assert_eq!(end.code, Some(0), "{end:?}");
    (end, dir)
}

/// What the guest wrote and the host cannot keep is in no snapshot that says so.
#[test]
fn a_snapshot_fails_where_writes_are_lost() {
    let dir = tempfile::tempdir().unwrap();
    zero_image(&dir.path().join("drive"), 4 * MIB);
    let disk = match FailingDisk::holding(dir.path(), 64) {
        Ok(disk) => disk,
        Err(why) => return skipped("disk", "a disk that fails", &why.to_string()),
    };
    let mut vm = Vm::builder().option("--drive", disk.path().join("drive")).controlled().start();
    // Not by the agent, which flushes.
    vm.sh("dd if=/dev/urandom of=/dev/vda bs=64k count=16 2>&1");
    disk.fail();
    vm.control("PATCH", "/vm", &json!({ "state": "Paused" }));
    let (state, memory) = (dir.path().join("state"), dir.path().join("memory"));
    let body = json!({ "snapshot_path": state, "mem_file_path": memory });
    let message = vm.refused("PUT", "/snapshot/create", &body);
    assert!(message.contains("may be lost"), "{message}");
    assert!(!state.exists() && !memory.exists());
}

/// A relative path counts from the monitor's folder, which is the tests'.
#[test]
fn an_image_is_replaced_by_one_of_a_relative_path() {
    let builder = Vm::builder();
    let image = |name: &str| builder.dir().join(name);
    let (old, new) = (image("old"), image("new"));
    zero_image(&old, MIB);
    zero_image(&new, 2 * MIB);
    let mut vm = builder.option("--drive", old).controlled().start();
    // Its driver has the drive.
    vm.info();
    let root = "../".repeat(std::env::current_dir().unwrap().components().count() - 1);
    let path = format!("{root}{}", new.display().to_string().trim_start_matches('/'));
    vm.control("PATCH", "/drives/drive0", &json!({ "drive_id": "drive0", "path_on_host": path }));
    assert_eq!(vm.info().block, [device("vda", 2 * MIB, false, "drive0")]);
}

#[test]
fn three_drives_in_order_each_with_its_own_data() {
    // Sizes that are no multiple of a page: the last sectors must be there, and no more.
    let sizes = [24 * MIB + 512, 8 * MIB, 3 * MIB + 3 * 512];
    let builder = Vm::builder();
    let image = |name: &str| builder.dir().join(name);
    let [empty, fixed, small]: [PathBuf; 3] = ["empty", "fixed", "small"].map(image);
    zero_image(&empty, sizes[0]);
    pattern_image(&fixed, sizes[1], 77);
    pattern_image(&small, sizes[2], 78);
    let mut vm = builder
        .option("--drive", &empty)
        .option("--drive", drive(&fixed, ":ro"))
        .option("--drive", drive(&small, ":rw"))
        .start();
    assert_eq!(
        vm.info().block,
        [
            device("vda", sizes[0], false, "drive0"),
            device("vdb", sizes[1], true, "drive1"),
            device("vdc", sizes[2], false, "drive2"),
        ]
    );

    whats_written_is_in_the_image(&mut vm, &empty, sizes[0]);
    a_read_only_drive_is_read_but_not_written(&mut vm, &fixed, sizes[1]);

    // The last sector of a drive whose size is odd, and nothing behind it.
    let last = sizes[2] - 512;
    let read = vm.block("vdc", Direction::Read, 0, sizes[2], 0).unwrap();
    assert_eq!(read.crc32, pattern::crc32(78, sizes[2]));
    vm.block("vdc", Direction::Write, last, 512, 79).unwrap();
    let behind = vm.block("vdc", Direction::Write, last + 512, 512, 80).unwrap_err();
    assert!(behind.to_string().contains("at 3147264"), "{behind}");
    assert_eq!(checksum(&small, last, 512), pattern::crc32(79, 512));
    assert_eq!(fs::metadata(&small).unwrap().len(), sizes[2]);

    let (end, _dir) = power_off(vm);
    assert!(!end.stderr.contains("drive"), "{}", end.stderr);
    // Nothing was lost or added by the end of the machine.
    assert_eq!(checksum(&empty, MIB, 16 * MIB), pattern::crc32(5, 16 * MIB));
    assert_eq!(checksum(&fixed, 0, sizes[1]), pattern::crc32(77, sizes[1]));
    assert_eq!(checksum(&small, 0, last), pattern::crc32(78, last));
}

fn whats_written_is_in_the_image(vm: &mut Vm, image: &Path, size: u64) {
    let counters = |vm: &mut Vm| -> Vec<u64> {
        let text = vm.sh("cat /sys/block/vda/stat");
        text.split_whitespace().map(|word| word.parse().unwrap()).collect()
    };
    let before = counters(vm);
    let bytes = 16 * MIB;
    let expected = pattern::crc32(5, bytes);
    let written = vm.block("vda", Direction::Write, MIB, bytes, 5).unwrap();
    assert_eq!((written.bytes, written.crc32), (bytes, expected));
    // It was flushed, so the host has it while the machine runs.
    assert_eq!(checksum(image, MIB, bytes), expected);
    let read = vm.block("vda", Direction::Read, MIB, bytes, 0).unwrap();
    assert_eq!((read.bytes, read.crc32), (bytes, expected));
    let after = counters(vm);

    // Nothing beside it was touched.
    let zeros = |bytes: u64| crc32fast::hash(&vec![0; usize::try_from(bytes).unwrap()]);
    assert_eq!(checksum(image, 0, MIB), zeros(MIB));
    let rest = size - MIB - bytes;
    assert_eq!(checksum(image, MIB + bytes, rest), zeros(rest));

    // Documentation/block/stat.rst: requests and sectors read are fields 1 and 3, written 5 and 7,
    // flushes 16 (all from 1).
    let grown = |field: usize| after[field - 1] - before[field - 1];
    assert_eq!((grown(3), grown(7)), (bytes / 512, bytes / 512));
    for (requests, sectors) in [(grown(1), grown(3)), (grown(5), grown(7))] {
        assert!(sectors / requests >= 256, "{requests} requests for {sectors} sectors");
    }
    assert!(grown(16) > 0, "no flush was sent: {after:?}");
    // All but two descriptors of the queue may carry data; a page of them each, if scattered.
    assert_eq!(vm.number("/sys/block/vda/queue/max_segments", ""), 254);
    assert_eq!(vm.sh("cat /sys/block/vda/queue/write_cache"), "write back\n");
}

fn a_read_only_drive_is_read_but_not_written(vm: &mut Vm, image: &Path, size: u64) {
    let expected = pattern::crc32(77, size);
    assert_eq!(vm.block("vdb", Direction::Read, 0, size, 0).unwrap().crc32, expected);
    let refused = vm.block("vdb", Direction::Write, 0, 4096, 1).unwrap_err().to_string();
    assert!(refused.contains("/dev/vdb") && refused.contains("not permitted"), "{refused}");
    assert_eq!(checksum(image, 0, size), expected);
    assert_eq!(vm.block("vdb", Direction::Read, 0, size, 0).unwrap().crc32, expected);
}

/// A file system that one machine makes, and that two others then use at once.
#[test]
fn a_file_system_outlives_its_machine_and_is_shared() {
    let place = tempfile::tempdir().unwrap();
    let image = place.path().join("shared");
    zero_image(&image, 16 * MIB);

    let mut maker = Vm::builder().option("--drive", &image).start();
    let made = maker
        .sh("mke2fs /dev/vda >/dev/null && mkdir -p /mnt && mount -t ext4 /dev/vda /mnt &&
         head -c 6000000 /dev/urandom >/mnt/data && sync /mnt/data && sha256sum </mnt/data");
    // Not unmounted: what was synced must be there even so.
    power_off(maker);

    let before = checksum(&image, 0, 16 * MIB);
    let reader = || Vm::builder().option("--drive", drive(&image, ":ro")).start();
    let mut readers = [reader(), reader()];
    for vm in &mut readers {
        let found = vm.sh(
            "mkdir -p /mnt && mount -t ext4 -o ro,noload /dev/vda /mnt && sha256sum </mnt/data",
        );
        assert_eq!(found, made);
        vm.sh("! dd if=/dev/zero of=/dev/vda bs=4096 count=1 conv=fsync");
    }
    for vm in readers {
        power_off(vm);
    }
    assert_eq!(checksum(&image, 0, 16 * MIB), before);
}

/// What is written at once to the drive of the monitor that is killed.
const PART: u64 = MIB / 2;

/// The monitor is killed while the guest writes: all that a flush was answered for is there.
#[test]
fn a_killed_monitor_leaves_what_was_flushed() {
    let place = tempfile::tempdir().unwrap();
    let image = place.path().join("image");
    zero_image(&image, 64 * MIB);
    let mut vm = Vm::builder().option("--drive", &image).start();
    vm.info();
    let mut agent = vm.agent();
    // Half MiBs, each with its number as seed, round and round until the monitor is gone.
    let mut write = |number: u64| -> Result<Transfer, Error> {
        let (device, direction) = ("vda".to_owned(), Direction::Write);
        let (offset, bytes) = (number % 128 * PART, PART);
        agent.call(&Request::Block(Block { device, direction, offset, bytes, seed: number }))
    };
    for number in 0..40 {
        write(number).unwrap();
    }
    let flushed = std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(100));
            vm.signal("KILL");
        });
        (40..).find(|&number| write(number).is_err()).unwrap()
    });
    let end = vm.wait();
    assert_eq!(end.signal, Some(9), "{end:?}");

    let mut again = Vm::builder().option("--drive", &image).start();
    for number in flushed.saturating_sub(127)..flushed {
        let offset = number % 128 * PART;
        let expected = pattern::crc32(number, PART);
        assert_eq!(checksum(&image, offset, PART), expected, "write {number} of {flushed}");
        let read = again.block("vda", Direction::Read, offset, PART, 0).unwrap();
        assert_eq!(read.crc32, expected, "write {number} of {flushed}");
    }
    again.block("vda", Direction::Write, 0, 4096, 1).unwrap();
    power_off(again);
}
