//! A guest's end of the device: a driver with real buffers and a small vsock stack on top.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use super::super::packet::{HEADER_LEN, HOST_CID, Header, Key, TYPE_STREAM, op, shutdown};
use super::super::{Vsock, VsockConfig};
use crate::virtio::testing::{BUFFERS, Rig};

pub const CID: u32 = 3;
/// Payload of one receive buffer, as Linux has it.
pub const RX_DATA: u32 = 4096;
const RX_SLOT: u64 = 0x1100;
const TX_SLOT: u64 = BUFFERS + 0x14_0000;
const EVENT_SLOT: u64 = TX_SLOT + 0x10_0000;

/// What the guest knows of one stream.
#[derive(Default)]
pub struct Stream {
    pub opened: bool,
    pub reset: bool,
    pub shut: u32,
    pub received: Vec<u8>,
    pub credit_requests: u32,
    pub credit_updates: u32,
    pub sent: u32,
    peer_buffer: u32,
    peer_forwarded: u32,
    /// What the guest's program has consumed of `received`.
    pub consumed: u32,
    pub buffer: u32,
}

impl Stream {
    pub fn room(&self) -> usize {
        self.peer_buffer.saturating_sub(self.sent.wrapping_sub(self.peer_forwarded)) as usize
    }
}

pub struct Guest {
    pub rig: Rig,
    pub dir: tempfile::TempDir,
    pub streams: HashMap<Key, Stream>,
    /// The guest's programs read what comes at once.
    pub consumes: bool,
    /// Guest ports on which programs listen.
    pub listens: Vec<u32>,
    pub buffer: u32,
    pub rx_next: u16,
    pub event_next: u64,
}

impl Guest {
    pub fn new() -> Guest {
        Guest::with_features(|offered| offered)
    }

    pub fn with_features(pick: impl Fn(u64) -> u64) -> Guest {
        let dir = tempfile::tempdir().unwrap();
        let mut guest =
            Guest::on(Rig::with_features(Box::new(device(&dir.path().join("v.sock"))), pick), dir);
        guest.give_buffers(256);
        guest.give_event_buffers(4);
        guest
    }

    /// A guest on a rig, with no buffers given.
    pub fn on(rig: Rig, dir: tempfile::TempDir) -> Guest {
        let streams = HashMap::new();
        let (consumes, listens, buffer) = (true, Vec::new(), 256 << 10);
        Guest { rig, dir, streams, consumes, listens, buffer, rx_next: 0, event_next: 0 }
    }

    pub fn uds(&self) -> PathBuf {
        self.dir.path().join("v.sock")
    }

    /// A host program that serves `port`.
    pub fn host_listens(&self, port: u32) -> UnixListener {
        UnixListener::bind(self.dir.path().join(format!("v.sock_{port}"))).unwrap()
    }

    pub fn give_buffers(&mut self, count: u16) {
        for _ in 0..count {
            let address = BUFFERS + u64::from(self.rx_next) * RX_SLOT;
            self.rig.push(0, &[(address, HEADER_LEN as u32 + RX_DATA, true)]);
            self.rx_next = (self.rx_next + 1) % 256;
        }
        self.rig.notify(0);
    }

    pub fn give_event_buffers(&mut self, count: u64) {
        for _ in 0..count {
            let address = EVENT_SLOT + 8 * self.event_next;
            self.rig.put(address, &[0xff; 4]);
            self.rig.push(2, &[(address, 4, true)]);
            self.event_next = (self.event_next + 1) % 64;
        }
        self.rig.notify(2);
    }

    /// How many events came, all of them transport resets. Their buffers are not given back.
    pub fn resets(&mut self) -> usize {
        self.rig.run();
        let used = self.rig.used(2);
        for &(head, len) in &used {
            let event = self.rig.get(EVENT_SLOT + 8 * u64::from(head), 4);
            assert_eq!((len, &event[..]), (4, &[0; 4][..]));
        }
        used.len()
    }

    /// A header of this guest on `key`, with the stream's credit.
    pub fn header(&self, key: Key, op: u16) -> Header {
        let (buf_alloc, fwd_cnt) =
            self.streams.get(&key).map_or((self.buffer, 0), |s| (s.buffer, s.consumed));
        Header {
            src_cid: CID.into(),
            dst_cid: HOST_CID,
            src_port: key.guest_port,
            dst_port: key.host_port,
            kind: TYPE_STREAM,
            op,
            buf_alloc,
            fwd_cnt,
            ..Header::default()
        }
    }

    /// Sends a packet as it is, whatever its header says.
    pub fn send_raw(&mut self, header: Header, data: &[u8]) {
        self.rig.put(TX_SLOT, &header.to_bytes());
        self.rig.put(TX_SLOT + HEADER_LEN as u64, data);
        let cut = HEADER_LEN as u32;
        // Header and data apart, as older drivers send them; both in one if there is no data.
        let bufs = [(TX_SLOT, cut, false), (TX_SLOT + u64::from(cut), data.len() as u32, false)];
        self.rig.push(1, if data.is_empty() { &bufs[..1] } else { &bufs });
        self.rig.notify(1);
        assert_eq!(self.rig.used(1).len(), 1, "a packet is handed back at once");
    }

    pub fn send(&mut self, key: Key, op: u16, flags: u32) {
        self.send_raw(Header { flags, ..self.header(key, op) }, &[]);
    }

    /// Sends data, as much as the credit allows; returns how much that was.
    pub fn send_data(&mut self, key: Key, data: &[u8]) -> usize {
        let n = data.len().min(self.streams[&key].room()).min(64 << 10);
        if n > 0 {
            let header = Header { len: n as u32, ..self.header(key, op::RW) };
            self.streams.get_mut(&key).unwrap().sent += n as u32;
            self.send_raw(header, &data[..n]);
        }
        n
    }

    /// Packets that came, raw; their buffers are given back.
    pub fn take(&mut self) -> Vec<(Header, Vec<u8>)> {
        self.rig.run();
        let used = self.rig.used(0);
        let packets = used.iter().map(|&(head, len)| {
            let at = BUFFERS + u64::from(head) * RX_SLOT;
            let header: [u8; HEADER_LEN] = self.rig.get(at, HEADER_LEN).try_into().unwrap();
            let header = Header::from_bytes(&header);
            assert_eq!(len, HEADER_LEN as u32 + header.len);
            assert_eq!((header.src_cid, header.dst_cid), (HOST_CID, CID.into()));
            (header, self.rig.get(at + HEADER_LEN as u64, header.len as usize))
        });
        let packets: Vec<_> = packets.collect();
        self.give_buffers(used.len() as u16);
        packets
    }

    /// Lets the stack work until the device has no more to say.
    pub fn work(&mut self) {
        loop {
            let packets = self.take();
            if packets.is_empty() {
                return;
            }
            packets.into_iter().for_each(|(header, data)| self.packet(header, data));
        }
    }

    /// Takes packets without a look at them until no more come.
    pub fn work_raw(&mut self) {
        while !self.take().is_empty() {}
    }

    /// Gives the used receive buffers back, wherever they are.
    pub fn give_some_back(&mut self) {
        self.rig.run();
        let used = self.rig.used(0).len();
        self.give_buffers(used.min(256) as u16);
    }

    fn packet(&mut self, header: Header, data: Vec<u8>) {
        let key = Key { host_port: header.src_port, guest_port: header.dst_port };
        let (listens, buffer) = (self.listens.contains(&key.guest_port), self.buffer);
        if header.op == op::REQUEST {
            if !listens {
                return self.send(key, op::RST, 0);
            }
            self.streams.insert(key, Stream { buffer, opened: true, ..Stream::default() });
            self.send(key, op::RESPONSE, 0);
        }
        let Some(stream) = self.streams.get_mut(&key) else {
            return assert_eq!(header.op, op::RST, "packet on an unknown stream: {header:?}");
        };
        (stream.peer_buffer, stream.peer_forwarded) = (header.buf_alloc, header.fwd_cnt);
        match header.op {
            op::REQUEST => {}
            op::RESPONSE => stream.opened = true,
            op::RST => stream.reset = true,
            op::SHUTDOWN => stream.shut |= header.flags,
            op::RW => {
                stream.received.extend(data);
                let unread = stream.received.len() as u32 - stream.consumed;
                assert!(unread <= stream.buffer, "the device sends more than it has credit for");
                if self.consumes && unread >= stream.buffer / 2 {
                    self.consume(key);
                }
            }
            op::CREDIT_UPDATE => stream.credit_updates += 1,
            op::CREDIT_REQUEST => {
                stream.credit_requests += 1;
                self.send(key, op::CREDIT_UPDATE, 0);
            }
            other => panic!("operation {other}"),
        }
    }

    /// The guest's program reads all that is there.
    pub fn consume(&mut self, key: Key) {
        let stream = self.streams.get_mut(&key).unwrap();
        stream.consumed = stream.received.len() as u32;
        self.send(key, op::CREDIT_UPDATE, 0);
    }

    /// A host program calls guest port `port`, which accepts.
    pub fn host_calls(&mut self, port: u32) -> (Key, UnixStream) {
        self.listens.push(port);
        let mut socket = UnixStream::connect(self.uds()).unwrap();
        socket.write_all(format!("CONNECT {port}\n").as_bytes()).unwrap();
        self.work();
        let mut line = Vec::new();
        while line.last() != Some(&b'\n') {
            let mut byte = [0];
            socket.read_exact(&mut byte).unwrap();
            line.extend(byte);
        }
        let line = String::from_utf8(line).unwrap();
        let host_port = line.strip_prefix("OK ").unwrap().trim_end().parse().unwrap();
        socket.set_nonblocking(true).unwrap();
        (Key { host_port, guest_port: port }, socket)
    }

    /// The guest calls `listener` on `host_port` from `guest_port`.
    pub fn guest_calls(
        &mut self,
        listener: &UnixListener,
        host_port: u32,
        guest_port: u32,
    ) -> (Key, UnixStream) {
        let key = Key { host_port, guest_port };
        self.streams.insert(key, Stream { buffer: self.buffer, ..Stream::default() });
        self.send(key, op::REQUEST, 0);
        self.work();
        assert!(self.streams[&key].opened);
        let socket = listener.accept().unwrap().0;
        socket.set_nonblocking(true).unwrap();
        (key, socket)
    }

    /// The guest's program closes the stream.
    pub fn close(&mut self, key: Key) {
        self.send(key, op::SHUTDOWN, shutdown::BOTH);
        self.work();
    }
}

pub fn device(path: &std::path::Path) -> Vsock {
    Vsock::new(VsockConfig { guest_cid: CID, uds_path: path.into() }).unwrap()
}

/// All that is in a socket right now.
pub fn read_all(socket: &mut UnixStream) -> Vec<u8> {
    let mut data = Vec::new();
    match socket.read_to_end(&mut data) {
        Ok(_) => {}
        Err(e) => assert_eq!(e.kind(), std::io::ErrorKind::WouldBlock),
    }
    data
}

/// Whether the other side of a non-blocking socket has ended, after reading nothing.
pub fn ended(socket: &mut UnixStream) -> bool {
    matches!(socket.read(&mut [0]), Ok(0))
}
