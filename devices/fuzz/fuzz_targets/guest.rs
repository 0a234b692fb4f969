//! A guest with a TCP of its own, of the simplest kind, on the cable of the metadata service. It
//! speaks properly, or as badly as it is told to. Tests and fuzz targets use it.
#![allow(dead_code, clippy::unwrap_used, reason = "each user takes a part of it")]

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use varve_devices::mmds::{Mmds, MmdsConfig, Stack};

pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
pub const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
pub const STATION_MAC: [u8; 6] = [6, 1, 0x23, 0x45, 0x67, 1];
const GUEST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

pub const FIN: u8 = 1;
pub const SYN: u8 = 2;
pub const RST: u8 = 4;
pub const PSH: u8 = 8;
pub const ACK: u8 = 16;

/// The guest's end of a connection.
#[derive(Clone, Debug, Default)]
pub struct Line {
    pub port: u16,
    pub seq: u32,
    pub ack: u32,
    pub received: Vec<u8>,
    /// The station has sent all it had to.
    pub ended: bool,
    /// The station knows nothing of it.
    pub reset: bool,
    pub accepted: bool,
}

/// A guest with the lines that it has opened.
pub struct Guest {
    pub stack: Stack,
    pub now: Duration,
    pub lines: Vec<Line>,
    /// Frames that came from the station.
    pub frames: usize,
}

pub fn config(version: &str) -> MmdsConfig {
    let text = format!(r#"{{"network_interfaces": ["eth0"], "version": "{version}"}}"#);
    serde_json::from_str(&text).unwrap()
}

/// A service with the document `{"latest": {"id": "i-7", "long": "xxx…"}}`.
pub fn mmds(long: usize) -> Arc<Mmds> {
    let mmds = Mmds::new(1 << 20, Arc::default()).unwrap();
    mmds.put(serde_json::json!({"latest": {"id": "i-7", "long": "x".repeat(long)}})).unwrap();
    Arc::new(mmds)
}

impl Guest {
    pub fn new(mmds: Arc<Mmds>, version: &str, mtu: Option<u16>) -> Guest {
        let stack = Stack::new(mmds, &config(version), mtu, 1);
        Guest { stack, now: Duration::from_secs(5), lines: Vec::new(), frames: 0 }
    }

    /// Sends a frame as the network device hands it over.
    pub fn send(&mut self, frame: &[u8]) {
        let wanted = self.stack.wants(&frame[..frame.len().min(42)]);
        if wanted {
            self.stack.receive(frame, self.now);
        }
    }

    /// Opens a line, and waits for an answer of any kind.
    pub fn open(&mut self, port: u16) -> usize {
        self.lines.push(Line { port, seq: 0xffff_fff0, ..Line::default() });
        let line = self.lines.len() - 1;
        self.segment(line, SYN, b"");
        self.lines[line].seq = self.lines[line].seq.wrapping_add(1);
        self.take_all();
        line
    }

    /// Sends text on a line.
    pub fn say(&mut self, line: usize, text: &str) {
        for part in text.as_bytes().chunks(1000) {
            self.segment(line, ACK | PSH, part);
            let line = &mut self.lines[line];
            line.seq = line.seq.wrapping_add(part.len() as u32);
            self.take_all();
        }
    }

    /// Has no more to say on a line.
    pub fn finish(&mut self, line: usize) {
        self.segment(line, ACK | FIN, b"");
        self.lines[line].seq = self.lines[line].seq.wrapping_add(1);
        self.take_all();
    }

    /// One request on a line of its own; the answer, if there is one.
    pub fn ask(&mut self, port: u16, request: &str) -> String {
        let line = self.open(port);
        self.say(line, request);
        let answer = String::from_utf8(std::mem::take(&mut self.lines[line].received)).unwrap();
        self.finish(line);
        answer
    }

    /// Sends a segment with the numbers of `line` as they are.
    pub fn segment(&mut self, line: usize, flags: u8, payload: &[u8]) {
        let Line { port, seq, ack, .. } = self.lines[line];
        let ack = if flags & ACK != 0 { ack } else { 0 };
        self.send(&tcp(port, seq, ack, flags, 64_000, payload));
    }

    /// Takes and answers all frames of the station.
    pub fn take_all(&mut self) {
        while let Some(frame) = self.stack.next(self.now) {
            self.frames += 1;
            self.take(&frame);
        }
    }

    /// Lets time pass, to the timer's next tick at most.
    pub fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(due) = self.stack.poll_at(self.now).filter(|&due| due <= end) {
            self.now = due.max(self.now + Duration::from_millis(1));
            self.stack.poll(self.now);
            self.take_all();
        }
        self.now = self.now.max(end);
        self.stack.poll(self.now);
        self.take_all();
    }

    fn take(&mut self, frame: &[u8]) {
        assert!(frame.len() <= 1514 && frame[6..12] == STATION_MAC);
        match u16::from_be_bytes([frame[12], frame[13]]) {
            0x0806 => {
                // A question for the guest's address: the answer goes back.
                if frame[20..22] == [0, 1] {
                    assert_eq!(frame[28..32], ADDRESS.octets());
                    let asked = Ipv4Addr::new(frame[38], frame[39], frame[40], frame[41]);
                    self.send(&arp(2, asked));
                }
            }
            0x0800 => self.take_packet(&frame[14..]),
            other => panic!("a frame of type {other:#x}"),
        }
    }

    fn take_packet(&mut self, packet: &[u8]) {
        assert_eq!(checksum(0, &packet[..20]), 0, "checksum of the IP header");
        assert_eq!(packet[12..16], ADDRESS.octets());
        let len = usize::from(u16::from_be_bytes([packet[2], packet[3]]));
        let segment = &packet[20..len];
        if packet[9] != 6 {
            return;
        }
        let pseudo = [&packet[12..20], &[0, 6], &(segment.len() as u16).to_be_bytes()].concat();
        assert_eq!(checksum(sum(&pseudo), segment), 0, "checksum of the segment");
        let word = |at: usize| u32::from_be_bytes(segment[at..at + 4].try_into().unwrap());
        let port = u16::from_be_bytes([segment[2], segment[3]]);
        let (seq, flags) = (word(4), segment[13]);
        let data = &segment[usize::from(segment[12] >> 4) * 4..];
        let Some(index) = self.lines.iter().rposition(|line| line.port == port) else { return };
        let line = &mut self.lines[index];
        if flags & RST != 0 {
            line.reset = true;
            return;
        }
        if flags & SYN != 0 {
            line.ack = seq.wrapping_add(1);
            line.accepted = true;
        } else if seq == line.ack && !line.ended {
            line.received.extend_from_slice(data);
            line.ack = seq.wrapping_add(data.len() as u32);
            line.ended = flags & FIN != 0;
            line.ack = line.ack.wrapping_add(line.ended.into());
        }
        if !data.is_empty() || flags & (SYN | FIN) != 0 {
            self.segment(index, ACK, b"");
        }
    }
}

/// A TCP segment of the guest in a frame. Checksums are left to the device.
pub fn tcp(port: u16, seq: u32, ack: u32, flags: u8, window: u16, payload: &[u8]) -> Vec<u8> {
    let mut segment = port.to_be_bytes().to_vec();
    segment.extend(80u16.to_be_bytes());
    segment.extend(seq.to_be_bytes());
    segment.extend(ack.to_be_bytes());
    segment.extend([5 << 4, flags]);
    segment.extend(window.to_be_bytes());
    segment.extend([0; 4]);
    segment.extend(payload);
    ipv4(6, &segment)
}

/// An IPv4 packet to the station in a frame to the guest's gateway.
pub fn ipv4(protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x45, 0];
    packet.extend((20 + payload.len() as u16).to_be_bytes());
    packet.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
    packet.extend(GUEST.octets());
    packet.extend(ADDRESS.octets());
    packet.extend(payload);
    [&[2, 0, 0, 0, 0, 1][..], &GUEST_MAC, &[8, 0], &packet].concat()
}

/// An ARP message of the guest: 1 asks who the station is, 2 tells it who `sender` is.
pub fn arp(operation: u8, sender: Ipv4Addr) -> Vec<u8> {
    let fixed = [0, 1, 8, 0, 6, 4, 0, operation];
    let ends = [&GUEST_MAC[..], &sender.octets(), &[0; 6], &ADDRESS.octets()].concat();
    [&[0xff; 6][..], &GUEST_MAC, &[8, 6], &fixed, &ends].concat()
}

fn sum(bytes: &[u8]) -> u32 {
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
    bytes.chunks(2).map(word).sum()
}

/// The Internet checksum (RFC 1071) of `bytes` behind what was summed before.
fn checksum(before: u32, bytes: &[u8]) -> u16 {
    let mut sum = before + sum(bytes);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// Does what `script` says, badly spoken for the most part, and then asks properly once more: that
/// has to be answered.
pub fn misbehave(script: &[u8]) {
    let mut guest = Guest::new(mmds(3000), "V1", None);
    let mut script = script.iter().copied();
    while let Some(step) = script.next() {
        let mut byte = || script.next().unwrap_or(0);
        let near = |base: u32, byte: u8| match byte {
            0..0x80 => base,
            0xff => base ^ 0x8000_0000,
            byte => base.wrapping_add_signed(i32::from(byte) - 0xc0),
        };
        match step % 8 {
            0 => drop(guest.open(1024 + u16::from(byte() % 64))),
            1 => {
                let len = usize::from(byte() % 16);
                let mut frame = vec![0; 42];
                frame[12..14].copy_from_slice(&[8, if step & 8 == 0 { 0 } else { 6 }]);
                frame[30..34].copy_from_slice(&ADDRESS.octets());
                frame.extend((0..len).map(|_| byte()));
                if step & 8 != 0 {
                    frame[38..42].copy_from_slice(&ADDRESS.octets());
                }
                (14..30).for_each(|at| frame[at] = byte());
                guest.send(&frame);
            }
            2 => {
                let frame = ipv4(byte(), &[byte(), byte(), byte(), byte(), byte()]);
                guest.send(&frame[..frame.len() - usize::from(byte() % 30)]);
            }
            3 if !guest.lines.is_empty() => {
                let line = guest.lines[usize::from(byte()) % guest.lines.len()].clone();
                let (seq, ack) = (near(line.seq, byte()), near(line.ack, byte()));
                let (flags, window) = (byte(), u16::from(byte()) * 257);
                let payload: Vec<u8> = (0..usize::from(byte()) * 5).map(|n| n as u8).collect();
                let mut frame = tcp(line.port, seq, ack, flags, window, &payload);
                // Options, and what they lie over.
                let words = byte();
                frame[46] = words.max(0x40);
                let at = 54.min(frame.len() - 1);
                frame[at] = byte();
                guest.send(&frame);
            }
            4 if !guest.lines.is_empty() => {
                let line = usize::from(byte()) % guest.lines.len();
                let texts = [
                    "GET /latest/long HTTP/1.1\r\n\r\n",
                    "PUT /latest/api/token HTTP/1.1\r\nX-metadata-token-ttl-seconds: 9\r\n\r\n",
                    "GET / HTTP/1.0\r\n\r\n",
                    "\u{1}\u{2}\r\n\r\n",
                    "GET /latest",
                    "PUT / HTTP/1.1\r\nContent-Length: 900\r\n\r\n",
                ];
                let text = texts[usize::from(byte()) % texts.len()];
                match step & 8 {
                    0 => guest.say(line, text),
                    // Acknowledges nothing that comes back.
                    _ => guest.segment(line, ACK, text.as_bytes()),
                }
            }
            5 => drop(guest.stack.next(guest.now)),
            6 => guest.pass(Duration::from_millis(u64::from(byte()) * 100)),
            7 if !guest.lines.is_empty() => {
                let line = usize::from(byte()) % guest.lines.len();
                match step & 24 {
                    0 => guest.finish(line),
                    8 => guest.segment(line, RST | ACK, b""),
                    16 => guest.stack.reset(),
                    _ => guest.take_all(),
                }
            }
            _ => {}
        }
    }
    guest.take_all();
    guest.pass(Duration::from_secs(100));
    guest.lines.clear();
    let answer = guest.ask(60_000, "GET /latest/id HTTP/1.1\r\n\r\n");
    assert!(answer.ends_with("\r\n\r\ni-7"), "{answer:?}");
}
