//! A network between guest and host over a tap: small packets, large ones and streams, both ways.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use varve_agent::pattern;
use varve_agent::protocol::{How, Interface};
use varve_skip::skipped;
use varve_tests::network::{enter_private, ip, ping};
use varve_tests::{Restoring, Vm};

const HOST: &str = "172.31.0.1";
const GUEST: Ipv4Addr = Ipv4Addr::new(172, 31, 0, 2);
const MAC: &str = "06:00:ac:1f:00:02";
const MTU: u32 = 1400;
/// What is sent each way as a stream, in bytes; not a whole number of anything.
const BYTES: u64 = (24 << 20) + 12_345;

/// The bits of `/sys/class/net/eth0/device/features` (virtio 1.2, 5.1.3) that let one side leave
/// checksums and segmentation to the other.
const OFFLOADS: [(&str, usize); 8] = [
    ("CSUM", 0),
    ("GUEST_CSUM", 1),
    ("MTU", 3),
    ("MAC", 5),
    ("GUEST_TSO4", 7),
    ("HOST_TSO4", 11),
    ("MRG_RXBUF", 15),
    ("VERSION_1", 32),
];

#[test]
fn guest_and_host_reach_each_other() {
    if let Err(reason) = enter_private() {
        return skipped("net", "guest_and_host_reach_each_other", &reason);
    }
    ip("link set lo up");
    ip("tuntap add dev vmtap mode tap");
    ip(&format!("addr add {HOST}/24 dev vmtap"));
    ip(&format!("link set vmtap mtu {MTU} up"));
    let mut vm = Vm::builder()
        .option("--net", format!("tap=vmtap,mac={MAC},mtu={MTU}"))
        .cmdline(&format!("varve.ip={GUEST}/24,{HOST}"))
        .start();

    let found = vm.info().net.into_iter().find(|interface| interface.name == "eth0");
    let expected = Interface { name: "eth0".into(), mac: MAC.into(), mtu: MTU, state: "up".into() };
    assert_eq!(found, Some(expected));
    let features = vm.sh("cat /sys/class/net/eth0/device/features");
    for (name, bit) in OFFLOADS {
        assert_eq!(features.as_bytes()[bit], b'1', "{name} is not in {features}");
    }

    // Alone, in fragments, and one after the other.
    for size in [56, 20_000] {
        ping(GUEST, 5, size);
        let said = vm.sh(&format!("ping -c 3 -i 0.2 -s {size} -W 10 {HOST}"));
        assert!(said.contains("3 packets received, 0% packet loss"), "{said}");
    }

    from_the_guest(&mut vm);
    to_the_guest(&mut vm);
    ten_at_once(&mut vm);
    an_interface_that_goes_down_and_comes_back(&mut vm);

    for side in ["rx", "tx"] {
        for what in ["errors", "crc_errors", "frame_errors"] {
            let file = format!("/sys/class/net/eth0/statistics/{side}_{what}");
            let text = vm.sh(&format!("cat {file} 2>/dev/null || echo 0"));
            assert_eq!(text, "0\n", "{file}");
        }
    }
    power_off(vm);
    // A tap that was there before is still there.
    ip("link show vmtap");
}

/// A tap that is not there is made, and goes with the machine; two do not share one.
#[test]
fn a_tap_of_the_machines_own() {
    if let Err(reason) = enter_private() {
        return skipped("net", "a_tap_of_the_machines_own", &reason);
    }
    let mut vm = Vm::builder()
        .option("--net", "tap=own0")
        .cmdline(&format!("varve.ip={GUEST}/24,{HOST}"))
        .start();
    // The guest makes up its address, since none is offered.
    let interfaces = vm.info().net;
    let found = interfaces.iter().find(|interface| interface.name == "eth0").unwrap();
    assert_eq!(found.mtu, 1500);
    assert!(u8::from_str_radix(&found.mac[..2], 16).unwrap() & 3 == 2, "{found:?}");

    ip(&format!("addr add {HOST}/24 dev own0"));
    ip("link set own0 up");
    ping(GUEST, 3, 1000);
    let second = Vm::builder().option("--net", "tap=own0").start().wait();
    assert_eq!(second.code, Some(1), "{second:?}");
    assert!(second.stderr.contains("own0") && second.stderr.contains("use"), "{second:?}");
    ping(GUEST, 1, 1000);

    power_off(vm);
    let left = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
    assert!(left.contains("lo:") && !left.contains("own0"), "{left}");
}

/// Two copies of a machine, each on a tap of its own, with a snapshot taken while a stream is on its way.
#[test]
fn restored_machines_on_taps_of_their_own() {
    if let Err(reason) = enter_private() {
        return skipped("net", "restored_machines_on_taps_of_their_own", &reason);
    }
    let dir = tempfile::Builder::new().prefix("varve-snapshot").tempdir().unwrap();
    let mut vm = Vm::builder()
        .option("--memory", "96M")
        .option("--net", format!("tap=first,mac={MAC}"))
        .cmdline(&format!("varve.ip={GUEST}/24,{HOST}"))
        .controlled()
        .start();
    vm.info();
    // Only one tap has an address at any time, as all copies have the same one on the other side.
    let reach = |tap: &str| {
        ip(&format!("addr add {HOST}/24 dev {tap}"));
        ip(&format!("link set {tap} up"));
        ping(GUEST, 2, 1000);
    };
    reach("first");
    // Frames go both ways all the time.
    let bytes = 3_000_001;
    let listener = TcpListener::bind((HOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    vm.sh(&format!(
        "head -c {bytes} /dev/urandom >/tmp/out
         {{ sleep 1; nc {HOST} {port}; }} </tmp/out >/dev/null 2>&1 &"
    ));
    let sum = crc32(&mut vm, "/tmp/out");
    let mut stream = accept(&listener);
    let mut data = vec![0; 100_000];
    stream.read_exact(&mut data).unwrap();
    vm.snapshot("", dir.path());
    stream.read_to_end(&mut data).unwrap();
    assert_eq!(data.len(), bytes);
    assert_eq!(format!("{:08x}", crc32fast::hash(&data)), sum);
    power_off(vm);

    let restore = |tap: &str| {
        let restoring = Restoring::from(dir.path()).arg("--net").arg(format!("net0={tap}"));
        let mut vm = restoring.start();
        vm.info();
        vm
    };
    let (mut second, mut third) = (restore("second"), restore("third"));
    for (vm, tap, other) in [(&mut second, "second", "third"), (&mut third, "third", "second")] {
        ip(&format!("addr flush dev {other}"));
        reach(tap);
        // The guest's own way out, in the copy that this tap belongs to.
        let listener = TcpListener::bind((HOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        vm.sh(&format!("{{ nc {HOST} {port}; }} </tmp/out >/dev/null 2>&1 &"));
        let mut data = Vec::new();
        accept(&listener).read_to_end(&mut data).unwrap();
        assert_eq!(format!("{:08x}", crc32fast::hash(&data)), sum, "{tap}");
    }
    let third_too = Restoring::from(dir.path()).arg("--net").arg("net0=third").end();
    assert_eq!(third_too.code, Some(1), "{third_too:?}");
    assert!(third_too.stderr.contains("third"), "{third_too:?}");
}

fn power_off(mut vm: Vm) {
    vm.power(How::Poweroff);
    let end = vm.wait();
    assert_eq!(end.code, Some(0), "{end:?}");
}

/// The guest makes a file from the bytes of its own and sends it; both compute the checksum.
fn from_the_guest(vm: &mut Vm) {
    let before = traffic(vm, "tx");
    let listener = TcpListener::bind((HOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let receiver = thread::spawn(move || {
        let mut stream = accept(&listener);
        let mut data = Vec::new();
        stream.read_to_end(&mut data).unwrap();
        data
    });
    vm.sh(&format!("head -c {BYTES} /dev/urandom >/tmp/out && nc {HOST} {port} </tmp/out"));
    let data = receiver.join().unwrap();
    assert_eq!(data.len() as u64, BYTES);
    assert_eq!(format!("{:08x}", crc32fast::hash(&data)), crc32(vm, "/tmp/out"));
    vm.sh("rm /tmp/out");
    large("sent", before, traffic(vm, "tx"));
}

/// The host sends the pattern to a server in the guest.
fn to_the_guest(vm: &mut Vm) {
    let before = traffic(vm, "rx");
    let listening = "grep -q ':1388 0*:0000 0A' /proc/net/tcp /proc/net/tcp6";
    // It leaves, and the file is whole, when the host has closed.
    vm.sh(&format!(
        "nc -l -p 5000 </dev/null >/tmp/in 2>&1 & \
         for i in $(seq 100); do {listening} && exit 0; usleep 100000; done; exit 1"
    ));
    let mut stream = TcpStream::connect((GUEST, 5000)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut data = vec![0; usize::try_from(BYTES).unwrap()];
    pattern::fill(3, 0, &mut data);
    stream.write_all(&data).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let deadline = Instant::now() + PATIENCE;
    while vm.sh("stat -c %s /tmp/in").trim() != BYTES.to_string() {
        assert!(Instant::now() < deadline, "the guest does not have it all");
        thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(crc32(vm, "/tmp/in"), format!("{:08x}", pattern::crc32(3, BYTES)));
    large("received", before, traffic(vm, "rx"));
}

/// Streams in both directions beside each other: none disturbs another.
fn ten_at_once(vm: &mut Vm) {
    let bytes = 1_000_003;
    let listener = TcpListener::bind((HOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let host = thread::spawn(move || {
        let serve = |mut stream: TcpStream| {
            thread::spawn(move || {
                let mut data = vec![0; bytes];
                stream.read_exact(&mut data).unwrap();
                stream.write_all(&data).unwrap();
            })
        };
        let servers: Vec<_> = (0..10).map(|_| serve(accept(&listener))).collect();
        servers.into_iter().for_each(|server| server.join().unwrap());
    });
    // What comes back is what went out.
    vm.sh(&format!(
        "for i in $(seq 10); do
             head -c {bytes} /dev/urandom >/tmp/out$i
             {{ nc {HOST} {port} </tmp/out$i >/tmp/back$i; }} &
         done
         wait
         for i in $(seq 10); do cmp /tmp/out$i /tmp/back$i || exit 1; done
         rm /tmp/out* /tmp/back*"
    ));
    host.join().unwrap();
}

/// The driver stops its queues' use and starts it again.
fn an_interface_that_goes_down_and_comes_back(vm: &mut Vm) {
    vm.sh("ip link set eth0 down && ip link set eth0 up");
    ping(GUEST, 3, 1000);
    ip("link set vmtap down");
    vm.sh(&format!("! ping -c 1 -W 1 {HOST}"));
    ip("link set vmtap up");
    vm.sh(&format!("ping -c 3 -i 0.2 -W 10 {HOST}"));
}

/// Long enough for any transfer under emulation.
const PATIENCE: Duration = Duration::from_secs(60);

fn accept(listener: &TcpListener) -> TcpStream {
    let stream = listener.accept().unwrap().0;
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Checksum of a file in the guest.
fn crc32(vm: &mut Vm, file: &str) -> String {
    vm.sh(&format!("crc32 {file}")).split_whitespace().next().unwrap().to_owned()
}

/// Bytes and packets that the guest's interface has sent or received.
fn traffic(vm: &mut Vm, side: &str) -> (u64, u64) {
    let mut counter =
        |what| vm.number(&format!("/sys/class/net/eth0/statistics/{side}_{what}"), "");
    (counter("bytes"), counter("packets"))
}

/// Asserts that packets were larger than the cable's: that segments were left to the other side.
fn large(what: &str, before: (u64, u64), after: (u64, u64)) {
    let (bytes, packets) = (after.0 - before.0, after.1 - before.1);
    let average = bytes / packets;
    assert!(average > 2 * u64::from(MTU), "{packets} packets {what} for {bytes} bytes");
}
