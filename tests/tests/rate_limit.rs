//! Limits of drives, interfaces and the console, changed while a guest runs into them; another image
//! in a drive; Ctrl-Alt-Del.
//!
//! What a limit lets pass is counted where it can be. Times have a lower bound that is exact, and is
//! four times what the same work took without a limit.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use varve_agent::pattern;
use varve_agent::protocol::{Block, Direction, Io, IoReply, Request, Transfer};
use varve_tests::Vm;
use varve_tests::images::image;
use varve_tests::network::ip;
use varve_tests::vm::{CMDLINE, PATIENCE};

const MIB: u64 = 1 << 20;
/// An hour: what is empty stays so.
const NEVER: u64 = 3_600_000;
/// What the console may print before it is cut off, in bytes.
const CONSOLE: u64 = 3000;

fn pattern_image(path: &Path, bytes: u64, seed: u64) {
    let mut data = vec![0; usize::try_from(bytes).unwrap()];
    pattern::fill(seed, 0, &mut data);
    fs::write(path, data).unwrap();
}

fn bucket(size: u64, refill_time: u64) -> Value {
    json!({ "size": size, "refill_time": refill_time })
}

/// Sets limits of the drive.
fn limit(vm: &Vm, limits: Value) {
    let body = json!({ "drive_id": "data", "rate_limiter": limits });
    vm.control("PATCH", "/drives/data", &body);
}

/// Reads the beginning of the drive and checks it; returns how long that took.
fn read(vm: &mut Vm, bytes: u64, seed: u64) -> Duration {
    let start = Instant::now();
    let read = vm.block("vda", Direction::Read, 0, bytes, 0).unwrap();
    let time = start.elapsed();
    assert_eq!(read.crc32, pattern::crc32(seed, bytes));
    time
}

/// Waits until `holds`, or fails.
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn limits_hold_change_and_end() {
    let builder = Vm::builder().controlled();
    let place = |name: &str| builder.dir().join(name);
    let [first, second, output] = ["first", "second", "serial"].map(place);
    pattern_image(&first, 16 * MIB, 1);
    pattern_image(&second, 12 * MIB, 2);
    let tap = format!("vt{}", std::process::id());
    let config = json!({
        "boot-source": {
            "kernel_image_path": image("vmlinux"),
            "initrd_path": image("initramfs-tools.cpio"),
            "boot_args": CMDLINE,
        },
        "drives": [{"drive_id": "data", "path_on_host": first, "is_root_device": false}],
        "network-interfaces": [{"iface_id": "eth0", "host_dev_name": tap,
                                "tx_rate_limiter": {"ops": bucket(10, NEVER)}}],
        "vsock": {"guest_cid": 3, "uds_path": place("v.sock")},
        "serial": {"serial_out_path": output, "rate_limiter": bucket(CONSOLE, NEVER)},
    });
    let mut vm = builder.config_file(config).start();
    assert_eq!(vm.info().block[0].bytes, 16 * MIB);

    a_drive_is_limited(&mut vm);
    a_limit_changes_while_requests_wait_for_it(&mut vm);
    another_image_is_put_in(&mut vm, &first, &second);
    what_the_guest_sends_is_counted(&mut vm, &tap);

    // More than the console may print: it is cut off, and the guest does not notice.
    vm.sh("dd if=/dev/zero bs=1000 count=20 2>/dev/null | tr '\\0' x >/dev/console");
    let printed = fs::metadata(&output).unwrap().len();
    assert!((CONSOLE..CONSOLE + 100).contains(&printed), "{printed} bytes");
    assert!(vm.stderr().contains("the rest is dropped"), "{}", vm.stderr());
    assert_eq!(vm.console(), "", "nothing goes to standard output");

    // The keyboard is one that Linux knows, and it restarts by it.
    let keyboard =
        vm.sh("cat /sys/bus/serio/devices/*/description; ls /sys/bus/serio/drivers/atkbd");
    assert!(keyboard.contains("i8042 KBD port") && keyboard.contains("serio0"), "{keyboard}");
    assert!(!keyboard.contains("AUX"), "there is no mouse: {keyboard}");
    vm.control("PUT", "/actions", &json!({ "action_type": "SendCtrlAltDel" }));
    let end = vm.wait();
    assert_eq!(end.code, Some(0), "{end:?}");
}

/// A refill time for work of four buckets, of which the first is full: with it the work takes three
/// of these, four times as long as without a limit, and 600 ms at least.
fn refill_for(unlimited: Duration) -> u64 {
    (unlimited.as_millis() as u64 * 4).div_ceil(3).max(200)
}

fn a_drive_is_limited(vm: &mut Vm) {
    read(vm, 4 * MIB, 1);
    let unlimited = read(vm, 4 * MIB, 1);
    let refill = refill_for(unlimited);
    limit(vm, json!({ "bandwidth": bucket(MIB, refill) }));
    let limited = read(vm, 4 * MIB, 1);
    assert!(limited >= Duration::from_millis(3 * refill), "{limited:?}, {unlimited:?} before");
    assert!(limited < PATIENCE / 2, "{limited:?}");
    let config = vm.control("GET", "/vm/config", &Value::Null);
    let told = &config["drives"][0]["rate_limiter"];
    assert_eq!((&told["bandwidth"]["size"], &told["ops"]), (&MIB.into(), &Value::Null));

    // Requests, whatever their size.
    let io = Io {
        device: "vda".into(),
        direction: Direction::Read,
        request_bytes: 4096,
        requests: 40,
        span: MIB,
        random: false,
        seed: 0,
    };
    let run = |vm: &mut Vm| -> Duration {
        let start = Instant::now();
        let reply: IoReply = vm.agent().call(&Request::Io(io.clone())).unwrap();
        assert_eq!(reply.bytes, 40 * 4096);
        start.elapsed()
    };
    limit(vm, json!({ "bandwidth": bucket(0, 0) }));
    let unlimited = run(vm);
    let refill = refill_for(unlimited);
    limit(vm, json!({ "ops": bucket(10, refill) }));
    let limited = run(vm);
    assert!(limited >= Duration::from_millis(3 * refill), "{limited:?}, {unlimited:?} before");
    limit(vm, json!({ "ops": bucket(0, 0) }));
}

fn a_limit_changes_while_requests_wait_for_it(vm: &mut Vm) {
    // Sectors that the guest has read: field 3 of Documentation/block/stat.rst.
    let sectors = |vm: &mut Vm| -> u64 {
        vm.sh("cat /sys/block/vda/stat").split_whitespace().nth(2).unwrap().parse().unwrap()
    };
    let before = sectors(vm);
    limit(vm, json!({ "bandwidth": bucket(MIB, NEVER) }));
    let mut agent = vm.agent();
    let reader = std::thread::spawn(move || -> Transfer {
        let (device, direction) = ("vda".to_owned(), Direction::Read);
        let block = Block { device, direction, offset: 0, bytes: 8 * MIB, seed: 0 };
        agent.call(&Request::Block(block)).unwrap()
    });
    eventually("some of it passes", || sectors(vm) > before);
    std::thread::sleep(Duration::from_millis(500));
    // The guest is well, only its drive is slow.
    let passed = (sectors(vm) - before) * 512;
    assert!(passed <= MIB && !reader.is_finished(), "{passed} bytes passed a limit of 1 MiB");
    // A larger bucket, which is full: some more passes, not all.
    limit(vm, json!({ "bandwidth": bucket(2 * MIB, NEVER) }));
    eventually("more of it passes", || (sectors(vm) - before) * 512 > MIB);
    std::thread::sleep(Duration::from_millis(300));
    let passed = (sectors(vm) - before) * 512;
    assert!(passed <= 3 * MIB && !reader.is_finished(), "{passed} bytes passed limits of 3 MiB");
    limit(vm, json!({ "bandwidth": bucket(0, 0) }));
    let read = reader.join().unwrap();
    assert_eq!(read.crc32, pattern::crc32(1, 8 * MIB));
}

fn another_image_is_put_in(vm: &mut Vm, first: &Path, second: &Path) {
    let body = |path: &Path| json!({ "drive_id": "data", "path_on_host": path });
    let missing = body(Path::new("/nonexistent/image"));
    let message = vm.refused("PATCH", "/drives/data", &missing);
    assert!(message.contains("/nonexistent/image"), "{message}");
    let message = vm.refused("PATCH", "/drives/nosuch", &json!({ "drive_id": "nosuch" }));
    assert!(message.contains("nosuch"), "{message}");
    read(vm, MIB, 1);

    // A placeholder: a drive of no sectors, until an image is put in.
    let placeholder = second.with_file_name("placeholder");
    fs::write(&placeholder, "").unwrap();
    vm.control("PATCH", "/drives/data", &body(&placeholder));
    eventually("the guest sees no sectors", || vm.info().block[0].bytes == 0);
    vm.control("PATCH", "/drives/data", &body(second));
    eventually("the guest sees the new size", || vm.info().block[0].bytes == 12 * MIB);
    read(vm, 12 * MIB, 2);
    let config = vm.control("GET", "/vm/config", &Value::Null);
    assert_eq!(config["drives"][0]["path_on_host"], second.to_str().unwrap());
    // Both are what they were.
    assert_eq!(fs::metadata(first).unwrap().len(), 16 * MIB);
    vm.block("vda", Direction::Write, MIB, 4096, 9).unwrap();
    let written = &fs::read(second).unwrap()[MIB as usize..][..4096];
    assert_eq!(crc32fast::hash(written), pattern::crc32(9, 4096));
    assert_eq!(crc32fast::hash(&fs::read(first).unwrap()), pattern::crc32(1, 16 * MIB));
}

fn what_the_guest_sends_is_counted(vm: &mut Vm, tap: &str) {
    ip(&format!("link set {tap} up"));
    let sent = || -> u64 {
        let counter = format!("/sys/class/net/{tap}/statistics/rx_packets");
        fs::read_to_string(counter).unwrap().trim().parse().unwrap()
    };
    // To all, so that there is nobody to be found first.
    vm.sh("ip link set eth0 up && ip addr add 10.9.0.2/24 broadcast 10.9.0.255 dev eth0");
    vm.sh("(for n in $(seq 30); do ping -c 1 -W 1 10.9.0.255 & done) >/dev/null 2>&1 </dev/null");
    eventually("ten frames pass", || sent() >= 10);
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(sent(), 10, "a limit of ten frames an hour");
    let body = json!({ "iface_id": "eth0", "tx_rate_limiter": { "ops": bucket(0, 0) } });
    vm.control("PATCH", "/network-interfaces/eth0", &body);
    eventually("all frames pass", || sent() >= 30);
}
