//! virtio-net with a real tap: a guest in memory on one end, the host's kernel on the other.

use std::net::{Ipv4Addr, UdpSocket};
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;
use crate::virtio::testing::{BUFFERS, MEM, Rig};
use crate::virtio::transport::status;

mod detour;
mod host;
mod wire;
use host::{HOST, bring_up, in_namespace, take_down};

const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
const EVENT_IDX: u64 = 1 << 29;
const MERGE: u64 = 1 << VIRTIO_NET_F_MRG_RXBUF;
const SEGMENTS: u64 =
    1 << VIRTIO_NET_F_GUEST_TSO4 | 1 << VIRTIO_NET_F_GUEST_TSO6 | 1 << VIRTIO_NET_F_GUEST_UFO;
/// Where frames that the guest sends lie, above the receive buffers.
const OUT: u64 = BUFFERS + 0x20_0000;

fn config(tap: &str) -> NetConfig {
    NetConfig {
        id: "eth0".into(),
        tap: tap.into(),
        mac: Some(MAC),
        mtu: Some(1400),
        rx_limiter: LimiterConfig::default(),
        tx_limiter: LimiterConfig::default(),
    }
}

/// For the conformance tests: a new tap each time, never up.
fn device() -> Option<Box<dyn VirtioDevice>> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    let tap = format!("vt{:x}-{n:x}", std::process::id());
    match Net::new(config(&tap)) {
        Ok(net) => Some(Box::new(net)),
        Err(NetError::Tun(_) | NetError::Denied(_)) => None,
        Err(e) => panic!("{e}"),
    }
}

crate::virtio::conformance::device_conformance!(device);

/// A guest on a tap that is up, without the features `without`.
fn guest(mtu: u32, without: u64) -> Rig {
    let rig = Rig::with_features(Box::new(Net::new(config("tap0")).unwrap()), |f| f & !without);
    bring_up("tap0", mtu);
    rig
}

/// Offers `count` receive buffers of `len` bytes, each where its descriptor's index says.
fn offer(rig: &mut Rig, count: u64, len: u32) {
    for _ in 0..count {
        let available = rig.get(0x8002, 2);
        let next = u64::from(u16::from_le_bytes([available[0], available[1]]) % 256);
        rig.push(RX, &[(BUFFERS + next * u64::from(len), len, true)]);
    }
    rig.notify(RX);
}

fn send(rig: &mut Rig, header: [u8; HEADER], frame: &[u8]) {
    rig.put(OUT, &[&header[..], frame].concat());
    let (first, rest) = (20, (HEADER + frame.len()) as u32 - 20);
    rig.push(TX, &[(OUT, first, false), (OUT + u64::from(first), rest, false)]);
    rig.notify(TX);
    assert_eq!(rig.used(TX).len(), 1);
}

fn ethernet(to: [u8; 6], kind: u16, payload: &[u8]) -> Vec<u8> {
    [&to[..], &MAC, &kind.to_be_bytes(), payload].concat()
}

/// "Who has 10.0.0.1? Tell 10.0.0.2"
fn arp_request() -> Vec<u8> {
    let fixed = [0, 1, 8, 0, 6, 4, 0, 1];
    let parts = [&fixed[..], &MAC, &GUEST.octets(), &[0; 6], &HOST.octets()];
    ethernet([0xff; 6], 0x0806, &parts.concat())
}

/// One received frame: its header, its bytes, and the buffers that it took.
struct Frame {
    header: Vec<u8>,
    bytes: Vec<u8>,
    buffers: usize,
}

impl Frame {
    fn kind(&self) -> u16 {
        u16::from_be_bytes([self.bytes[12], self.bytes[13]])
    }
}

/// Frames received into buffers of `size` bytes that [`offer`] laid out.
fn received(rig: &mut Rig, size: u32) -> Vec<Frame> {
    let mut frames = Vec::new();
    let mut used = rig.used(RX).into_iter();
    while let Some((head, len)) = used.next() {
        let at = |head: u32| BUFFERS + u64::from(head % 256) * u64::from(size);
        let mut bytes = rig.get(at(head), len as usize);
        let buffers = usize::from(u16::from_le_bytes([bytes[10], bytes[11]]));
        for _ in 1..buffers {
            let (head, len) = used.next().expect("all buffers of a frame at once");
            bytes.extend(rig.get(at(head), len as usize));
        }
        let header = bytes.drain(..HEADER).collect();
        frames.push(Frame { header, bytes, buffers });
    }
    frames
}

/// Waits for frames of `kind`; others are left out.
fn wait_for(rig: &mut Rig, size: u32, kind: u16, count: usize) -> Vec<Frame> {
    let mut frames = Vec::new();
    for _ in 0..100 {
        frames.extend(received(rig, size).into_iter().filter(|f| f.kind() == kind));
        if frames.len() >= count {
            return frames;
        }
        rig.wait(100);
        rig.run();
    }
    panic!("{} of {count} frames came", frames.len());
}

/// The host's socket, once it knows the guest's address.
fn introduced(rig: &mut Rig, size: u32) -> UdpSocket {
    send(rig, [0; HEADER], &arp_request());
    assert_eq!(wait_for(rig, size, 0x0806, 1).len(), 1);
    let socket = UdpSocket::bind((HOST, 7)).unwrap();
    socket.connect((GUEST, 9)).unwrap();
    socket
}

const UDP: usize = 14 + 20 + 8;

fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|i| (i / 251 + i * 7 + seed) as u8).collect()
}

#[test]
fn the_host_answers_arp() {
    in_namespace(|| {
        for without in [0, EVENT_IDX, MERGE, SEGMENTS, MERGE | SEGMENTS, EVENT_IDX | MERGE] {
            let mut rig = guest(1500, without);
            offer(&mut rig, 100, 2048);
            send(&mut rig, [0; HEADER], &arp_request());
            let reply = wait_for(&mut rig, 2048, 0x0806, 1).remove(0);
            assert_eq!(reply.bytes[..6], MAC);
            assert_eq!(reply.bytes[20..22], [0, 2], "a reply");
            assert_eq!(reply.bytes[28..32], HOST.octets());
            assert_eq!(reply.bytes[38..42], GUEST.octets());
            assert_eq!((reply.buffers, &reply.header[..2]), (1, &[0u8, 0][..]));
            assert!(rig.interrupts() > 0);
        }
    });
}

#[test]
fn large_frames_are_merged_and_handed_over_whole() {
    in_namespace(|| {
        for without in [0, EVENT_IDX, SEGMENTS] {
            let mut rig = guest(65521, without);
            offer(&mut rig, 200, 1536);
            let socket = introduced(&mut rig, 1536);
            // The driver wants to hear of the third buffer from here, in the midst of the frame.
            let used = rig.get(0xa002, 2);
            let used = u16::from_le_bytes([used[0], used[1]]);
            rig.put(0x8000 + 4 + 2 * 256, &(used + 3).to_le_bytes());
            rig.interrupts();
            let data = pattern(60000, 1);
            socket.send(&data).unwrap();
            let frame = wait_for(&mut rig, 1536, 0x0800, 1).remove(0);
            assert_eq!(frame.buffers, (HEADER + UDP + data.len()).div_ceil(1536));
            assert!(frame.bytes[UDP..] == data, "content");
            assert!(rig.interrupts() > 0);
        }
    });
}

#[test]
fn frames_wait_for_buffers_without_a_spin() {
    in_namespace(|| {
        for without in [0, MERGE] {
            let mut rig = guest(1500, without);
            offer(&mut rig, 100, 2048);
            let socket = introduced(&mut rig, 2048);
            // More than there are buffers for, and then what shall come through whole.
            for _ in 0..150 {
                socket.send(&[1]).unwrap();
            }
            for n in 0..50 {
                socket.send(&pattern(1000, n)).unwrap();
            }
            rig.run();
            rig.wait(20);
            assert_eq!(rig.wait(20), 0, "no event without a new frame");
            let mut frames = received(&mut rig, 2048);
            let last = |f: &Frame| f.bytes.get(UDP..) == Some(&pattern(1000, 49)[..]);
            for _ in 0..10 {
                offer(&mut rig, 100, 2048);
                frames.extend(received(&mut rig, 2048));
                if frames.iter().any(last) {
                    break;
                }
            }
            let sent = |f: &&Frame| f.kind() == 0x0800 && f.bytes.len() == UDP + 1000;
            let sent: Vec<_> = frames.iter().filter(sent).collect();
            assert_eq!(sent.len(), 50);
            for (n, frame) in sent.iter().enumerate() {
                assert!(frame.bytes[UDP..] == pattern(1000, n), "frame {n}");
            }
        }
    });
}

#[test]
fn the_driver_is_asked_to_tell_of_the_next_buffer() {
    in_namespace(|| {
        let mut rig = guest(1500, 0);
        // Not enough for a frame of 64 KiB, so none is read yet.
        offer(&mut rig, 30, 2048);
        send(&mut rig, [0; HEADER], &arp_request());
        rig.wait(50);
        rig.run();
        assert_eq!(rig.used(RX), []);
        // `avail_event` behind the used ring: beyond all that were offered.
        assert_eq!(rig.get(0xa000 + 4 + 8 * 256, 2), [30, 0]);
        offer(&mut rig, 30, 2048);
        assert_eq!(wait_for(&mut rig, 2048, 0x0806, 1).len(), 1);
    });
}

#[test]
fn a_frame_too_large_for_its_buffer_is_dropped() {
    in_namespace(|| {
        let mut rig = guest(9000, MERGE | SEGMENTS);
        offer(&mut rig, 100, 1530);
        let socket = introduced(&mut rig, 1530);
        // The largest that fits is not cut; one byte more is.
        let fits = 1530 - HEADER - UDP;
        for len in [8000, fits + 1, fits] {
            socket.send(&pattern(len, len)).unwrap();
        }
        let frames = wait_for(&mut rig, 1530, 0x0800, 1);
        assert_eq!(frames.len(), 1);
        assert!(frames[0].bytes[UDP..] == pattern(fits, fits));
    });
}

#[test]
fn checksums_are_left_to_the_host() {
    in_namespace(|| {
        let mut rig = guest(1500, 0);
        offer(&mut rig, 100, 2048);
        let socket = introduced(&mut rig, 2048);
        let data = pattern(600, 3);
        let host_mac: [u8; 6] = {
            // From a frame that the host sent.
            socket.send(&[1]).unwrap();
            wait_for(&mut rig, 2048, 0x0800, 1)[0].bytes[6..12].try_into().unwrap()
        };
        let len = (8 + data.len()) as u16;
        // Ones' complement sum over the pseudo header, which is the driver's part (5.1.6.2).
        let words = |bytes: &[u8]| -> u32 {
            bytes.chunks(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]]))).sum()
        };
        let fold = |mut sum: u32| {
            while sum > 0xffff {
                sum = (sum & 0xffff) + (sum >> 16);
            }
            sum as u16
        };
        let pseudo = fold(words(&GUEST.octets()) + words(&HOST.octets()) + 17 + u32::from(len));
        let ports = [0, 9, 0, 7];
        let udp = [&ports[..], &len.to_be_bytes(), &pseudo.to_be_bytes(), &data].concat();
        let mut ip = vec![0x45, 0];
        ip.extend((20 + len).to_be_bytes());
        ip.extend([0, 0, 0, 0, 64, 17, 0, 0]);
        ip.extend(GUEST.octets());
        ip.extend(HOST.octets());
        let sum = !fold(words(&ip));
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
        ip.extend(&udp);
        let mut header = [0; HEADER];
        header[0] = 1; // NEEDS_CSUM
        header[6] = 34; // csum_start: the UDP header
        header[8] = 6; // csum_offset
        socket.set_read_timeout(Some(std::time::Duration::from_secs(10))).unwrap();
        let frame = ethernet(host_mac, 0x0800, &ip);
        // Without the flag the partial sum is simply wrong: the first one must not arrive.
        send(&mut rig, [0; HEADER], &frame);
        ip[20 + 8] ^= 0xff;
        send(&mut rig, header, &ethernet(host_mac, 0x0800, &ip));
        let mut got = vec![0; 2000];
        let n = socket.recv(&mut got).unwrap();
        assert!(got[..n] == ip[28..], "the second datagram");
    });
}

#[test]
fn malformed_frames_are_dropped_and_the_rest_goes_on() {
    in_namespace(|| {
        let mut rig = guest(1500, 0);
        offer(&mut rig, 100, 2048);
        for bufs in [
            &[(OUT, 0, false)][..],
            &[(OUT, 11, false)],
            &[(OUT, 25, false)],
            &[(OUT, 65563, false)],
            &[(OUT, 60, true)],
            &[(MEM - 8, 100, false)],
            &[(OUT, 100, false), (OUT, u32::MAX - 8, false)],
        ] {
            rig.push(TX, bufs);
            rig.notify(TX);
            assert_eq!(rig.used(TX).len(), 1, "{bufs:?}");
        }
        // A header that makes no sense to the kernel.
        send(&mut rig, [0xff; HEADER], &arp_request());
        take_down("tap0");
        send(&mut rig, [0; HEADER], &arp_request());
        bring_up("tap0", 1500);
        rig.used(RX);
        assert_eq!(rig.status() & status::DEVICE_NEEDS_RESET, 0);
        introduced(&mut rig, 2048);
    });
}

#[test]
fn malformed_receive_buffers_go_back_unused() {
    in_namespace(|| {
        for without in [0, MERGE] {
            let mut rig = guest(1500, without);
            let good = |n: u64| (BUFFERS + n * 2048, 2048, true);
            rig.push(RX, &[(BUFFERS, 11, true)]);
            rig.push(RX, &[good(1)]);
            rig.push(RX, &[(BUFFERS, 100, false)]);
            rig.push(RX, &[(BUFFERS, 100, false), (BUFFERS, 100, true)]);
            rig.push(RX, &[(MEM - 8, 100, true)]);
            for n in 6..80 {
                rig.push(RX, &[good(n)]);
            }
            rig.notify(RX);
            let mut unused = Vec::new();
            for _ in 0..100 {
                send(&mut rig, [0; HEADER], &arp_request());
                rig.wait(10);
                rig.run();
                unused.extend(rig.used(RX).into_iter().filter(|&(_, len)| len == 0));
                if unused.len() == 4 {
                    break;
                }
            }
            assert_eq!(unused, [(0, 0), (2, 0), (3, 0), (5, 0)]);
            assert_eq!(rig.status() & status::DEVICE_NEEDS_RESET, 0);
        }
    });
}

#[test]
fn every_set_of_offloads_is_taken_by_the_kernel() {
    let csum = bit(VIRTIO_NET_F_GUEST_CSUM);
    assert_eq!(offloads(!csum), 0);
    assert_eq!(offloads(csum), libc::TUN_F_CSUM);
    assert_eq!(offloads(u64::MAX), 0x01 | 0x02 | 0x04 | 0x10);
    in_namespace(move || {
        let net = Net::new(config("tap0")).unwrap();
        let guest = [VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_UFO];
        for set in 0..8 {
            let chosen = (0..3).filter(|n| set >> n & 1 != 0);
            let features = chosen.fold(csum, |bits, n| bits | bit(guest[n]));
            net.tap.set_offloads(offloads(features)).unwrap();
        }
        assert!(net.tap.set_offloads(libc::TUN_F_TSO4).is_err(), "segments without checksums");
    });
}

#[test]
fn what_cannot_be_attached_is_named() {
    for name in ["", "a name", "averyveryverylong", "a/b", "vt%d", ".."] {
        assert!(matches!(Net::new(config(name)), Err(NetError::Name(_))), "{name:?}");
    }
    let group = NetConfig { mac: Some([1, 0, 0x5e, 0, 0, 1]), ..config("tap0") };
    let refused = Net::new(group).err().expect("refused").to_string();
    assert!(refused.contains("01:00:5e:00:00:01"), "{refused}");
    let small = NetConfig { mtu: Some(67), ..config("tap0") };
    assert!(matches!(Net::new(small), Err(NetError::Mtu(67))));
    in_namespace(|| {
        let first = Net::new(config("tap0")).unwrap();
        assert!(matches!(Net::new(config("tap0")), Err(NetError::Busy(_))));
        assert!(matches!(Net::new(config("lo")), Err(NetError::NotATap(_))));
        drop(first);
        Net::new(config("tap0")).unwrap();
    });
}

#[test]
fn the_guest_sees_its_address_and_mtu() {
    in_namespace(|| {
        let net = Net::new(config("tap0")).unwrap();
        let mut space = [0xff; 12];
        net.read_config(0, &mut space);
        assert_eq!(space, [2, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0x78, 5]);
        assert_eq!(net.features() & 0x28, 0x28);
        let saved = net.save();
        drop(net);
        let plain = NetConfig { mac: None, mtu: None, ..config("tap0") };
        let mut other = Net::new(plain).unwrap();
        assert_eq!(other.features() & 0x28, 0);
        let refused = other.restore(VERSION, &saved).unwrap_err().to_string();
        assert!(refused.contains("eth0") && refused.contains("1400"), "{refused}");
    });
}
