//! virtio-net on a pair of packet sockets in place of a tap: the test holds the other end, so it
//! decides when the wire is full and counts every frame. Needs no privileges.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use super::*;
use crate::limiter::BucketConfig;
use crate::virtio::DeviceHandle;

/// Bytes of a frame with its header.
const FRAME: usize = 200;

/// A guest on one end, and the other end.
fn wired(rx: LimiterConfig, tx: LimiterConfig) -> (Rig, OwnedFd) {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let (near, far) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
    let config = NetConfig { rx_limiter: rx, tx_limiter: tx, ..config("wire") };
    let tap = Tap::watched(File::from(near)).unwrap();
    let rig = Rig::with_features(Box::new(Net::on(tap, config).unwrap()), |f| f & !EVENT_IDX);
    (rig, far)
}

/// Frame number `n`.
fn frame(n: u16) -> Vec<u8> {
    let mut bytes = vec![0; HEADER];
    bytes.extend(n.to_le_bytes());
    bytes.resize(FRAME, n as u8);
    bytes
}

/// The guest queues frames `numbers` and rings once.
fn queue(rig: &mut Rig, numbers: std::ops::Range<u16>) {
    for n in numbers {
        let at = OUT + u64::from(n) * FRAME as u64;
        rig.put(at, &frame(n));
        rig.push(TX, &[(at, FRAME as u32, false)]);
    }
    rig.notify(TX);
}

/// Numbers of the frames that came out at the far end.
fn arrived(far: &OwnedFd) -> Vec<u16> {
    let mut numbers = Vec::new();
    let mut bytes = [0; 2 * FRAME];
    while let Ok((len, _)) = rustix::net::recv(far, &mut bytes, RecvFlags::empty()) {
        let n = u16::from_le_bytes([bytes[HEADER], bytes[HEADER + 1]]);
        assert_eq!(bytes[..len], frame(n));
        numbers.push(n);
    }
    numbers
}

fn bucket(size: u64, refill_time: u64) -> LimiterConfig {
    let bucket = BucketConfig { size, one_time_burst: None, refill_time };
    LimiterConfig { bandwidth: None, ops: Some(bucket) }
}

fn bytes(size: u64, refill_time: u64) -> LimiterConfig {
    let LimiterConfig { bandwidth, ops } = bucket(size, refill_time);
    LimiterConfig { bandwidth: ops, ops: bandwidth }
}

const NONE: LimiterConfig = LimiterConfig { bandwidth: None, ops: None };

#[test]
fn a_full_wire_holds_frames_back_and_loses_none() {
    let (mut rig, far) = wired(NONE, NONE);
    let (mut sent, mut seen, mut rounds) = (0, Vec::new(), 0);
    // More than the ring and the socket hold together, several times.
    while sent < 2000 {
        queue(&mut rig, sent..sent + 100);
        sent += 100;
        let used = rig.used(TX).len();
        if used < 100 {
            rounds += 1;
            let mut left = 100 - used;
            while left > 0 {
                let came = arrived(&far);
                assert!(!came.is_empty(), "{left} frames wait for a wire that is empty");
                seen.extend(came);
                rig.wait(1000);
                rig.run();
                left -= rig.used(TX).len();
            }
        }
    }
    assert!(rounds > 1, "the wire was never full");
    seen.extend(arrived(&far));
    assert_eq!(seen, (0..2000).collect::<Vec<_>>());
}

#[test]
fn what_the_guest_sends_is_limited() {
    for limits in [bucket(4, 120), bytes(4 * FRAME as u64, 120)] {
        let (mut rig, far) = wired(NONE, limits);
        let start = Instant::now();
        queue(&mut rig, 0..10);
        let mut seen = arrived(&far);
        assert!((4..10).contains(&seen.len()), "at once: {seen:?}");
        let mut events = 0;
        while seen.len() < 10 {
            assert!(start.elapsed() < Duration::from_secs(10), "{seen:?}");
            events += rig.wait(1000);
            seen.extend(arrived(&far));
        }
        // Four at once, then one each 30 ms.
        assert!(start.elapsed() >= Duration::from_millis(179), "{:?}", start.elapsed());
        assert_eq!(seen, (0..10).collect::<Vec<_>>());
        assert!(events <= 14, "{events} events for 6 waits, and room on the wire");
        assert_eq!(rig.used(TX).len(), 10);
    }
}

#[test]
fn what_the_guest_receives_is_limited_and_the_rest_waits_in_the_tap() {
    for limits in [bucket(4, 120), bytes(4 * FRAME as u64, 120)] {
        let (mut rig, far) = wired(limits, NONE);
        offer(&mut rig, 100, 2048);
        let start = Instant::now();
        for n in 0..10 {
            rustix::net::send(&far, &frame(n), SendFlags::empty()).unwrap();
        }
        rig.wait(1000);
        rig.run();
        let number = |frame: Frame| u16::from_le_bytes([frame.bytes[0], frame.bytes[1]]);
        let mut seen: Vec<u16> = received(&mut rig, 2048).into_iter().map(number).collect();
        assert!((4..10).contains(&seen.len()), "at once: {seen:?}");
        let mut events = 0;
        while seen.len() < 10 {
            assert!(start.elapsed() < Duration::from_secs(10), "{seen:?}");
            events += rig.wait(1000);
            seen.extend(received(&mut rig, 2048).into_iter().map(number));
        }
        // Four at once, of bytes perhaps one more, then one each 30 ms.
        assert!(start.elapsed() >= Duration::from_millis(149), "{:?}", start.elapsed());
        assert_eq!(seen, (0..10).collect::<Vec<_>>());
        assert!(events <= 20, "{events} events for 6 waits");
    }
}

#[test]
fn limits_of_both_ways_change_at_once() {
    const NEVER: u64 = 3_600_000;
    let (mut rig, far) = wired(bucket(1, NEVER), bucket(1, NEVER));
    offer(&mut rig, 100, 2048);
    queue(&mut rig, 0..5);
    for n in 0..5 {
        rustix::net::send(&far, &frame(n), SendFlags::empty()).unwrap();
    }
    rig.wait(1000);
    rig.run();
    assert_eq!((arrived(&far), received(&mut rig, 2048).len()), (vec![0], 1));
    let net = DeviceHandle::<Net>::new(rig.transport.clone()).unwrap();
    net.with(|net, _| net.update_limiters(NONE, bucket(3, NEVER)));
    rig.wait(1000);
    rig.run();
    assert_eq!((arrived(&far), received(&mut rig, 2048).len()), (vec![1, 2, 3], 0));
    net.with(|net, _| net.update_limiters(bucket(0, 0), NONE));
    rig.wait(1000);
    rig.run();
    assert_eq!((arrived(&far), received(&mut rig, 2048).len()), (vec![], 4));
}
