//! Guests and host programs that break the rules.

use std::io::Write;
use std::os::unix::net::{UnixListener, UnixStream};

use proptest::prelude::*;

use super::super::credit::BUFFER;
use super::super::muxer::MAX_CONNECTIONS;
use super::super::packet::{Header, Key, TYPE_STREAM, op, shutdown};
use super::guest::{CID, Guest, device, ended, read_all};
use super::shared::Shared;
use crate::virtio::testing::{BUFFERS, Rig};

/// A guest, and a look into its device.
fn open_guest() -> (Guest, Shared) {
    let dir = tempfile::tempdir().unwrap();
    let shared = Shared::new(device(&dir.path().join("v.sock")));
    let mut guest = Guest::on(Rig::with_features(Box::new(shared.clone()), |f| f), dir);
    guest.give_buffers(256);
    guest.give_event_buffers(4);
    (guest, shared)
}

/// The operations of the packets that came.
fn ops(guest: &mut Guest) -> Vec<u16> {
    guest.take().iter().map(|(h, _)| h.op).collect()
}

#[test]
fn packets_to_nowhere() {
    let (mut guest, shared) = open_guest();
    let key = Key { host_port: 1, guest_port: 2 };
    let good = guest.header(key, op::RW);
    // Wrong addresses: not even an answer.
    for bad in [
        Header { src_cid: 2, ..good },
        Header { src_cid: u64::from(CID) | 1 << 32, ..good },
        Header { dst_cid: 3, ..good },
        Header { dst_cid: 2 | 1 << 32, ..good },
        Header { op: op::RST, ..good },
        Header { op: op::RST, kind: 7, ..good },
        Header { op: op::RST, len: 9, ..good },
    ] {
        guest.send_raw(bad, &[]);
        assert!(ops(&mut guest).is_empty(), "{bad:?}");
    }
    // Unknown connections, types and operations: an answer of the same type.
    for op in [op::RESPONSE, op::SHUTDOWN, op::RW, op::CREDIT_UPDATE, op::CREDIT_REQUEST, 0, 99] {
        for kind in [TYPE_STREAM, 2, 0] {
            guest.send_raw(Header { op, kind, ..good }, &[]);
            let packets = guest.take();
            assert_eq!(packets.len(), 1);
            let (answer, _) = &packets[0];
            assert_eq!((answer.op, answer.kind), (op::RST, kind));
            assert_eq!((answer.src_port, answer.dst_port), (1, 2));
        }
    }
    guest.send_raw(Header { op: op::REQUEST, kind: 2, ..good }, &[]);
    assert_eq!(ops(&mut guest), [op::RST]);
    assert_eq!(shared.holds(), [0; 5]);
}

/// Each of these ends the connection for both sides.
#[test]
fn packets_out_of_place() {
    type Attack = fn(&mut Guest, Key);
    let attacks: [Attack; 6] = [
        |g, k| g.send_raw(Header { len: 5, ..g.header(k, op::RW) }, b"four"),
        |g, k| g.send_raw(Header { len: u32::MAX, ..g.header(k, op::RW) }, &[]),
        |g, k| g.send(k, op::RESPONSE, 0),
        |g, k| g.send(k, 99, 0),
        |g, k| {
            g.send(k, op::SHUTDOWN, shutdown::SEND);
            g.send_raw(Header { len: 4, ..g.header(k, op::RW) }, b"late");
        },
        |g, k| {
            // Nobody reads at the other end: more than the credit piles up.
            for _ in 0..20 {
                g.send_raw(Header { len: 65536, ..g.header(k, op::RW) }, &[1; 65536]);
            }
        },
    ];
    for (i, attack) in attacks.into_iter().enumerate() {
        let (mut guest, shared) = open_guest();
        let (key, mut socket) = guest.host_calls(1);
        attack(&mut guest, key);
        assert_eq!(shared.holds()[0], 0, "attack {i}");
        assert!(ops(&mut guest).contains(&op::RST), "attack {i}");
        read_all(&mut socket);
        assert!(ended(&mut socket));
    }
}

#[test]
fn a_call_from_a_port_in_use_replaces_what_was_there() {
    let (mut guest, shared) = open_guest();
    let listener = guest.host_listens(5);
    let (key, mut first) = guest.guest_calls(&listener, 5, 6);
    let (again, mut second) = guest.guest_calls(&listener, 5, 6);
    assert!(key == again && ended(&mut first) && shared.holds()[0] == 1);
    guest.send_data(key, b"new");
    assert_eq!(read_all(&mut second), b"new");
    assert!(!guest.streams[&key].reset);
}

#[test]
fn credit_lies_stop_the_liar() {
    let (mut guest, _) = open_guest();
    let (key, mut socket) = guest.host_calls(1);
    let lie = Header { fwd_cnt: 12345, buf_alloc: 1000, ..guest.header(key, op::CREDIT_UPDATE) };
    guest.send_raw(lie, &[]);
    socket.write_all(&[0; 5000]).unwrap();
    assert_eq!(ops(&mut guest), [op::CREDIT_REQUEST]);
    for _ in 0..1000 {
        guest.send_raw(Header { buf_alloc: u32::MAX, ..lie }, &[]);
    }
    let packets = guest.take();
    assert!(packets.iter().all(|(h, _)| [op::RW, op::CREDIT_REQUEST].contains(&h.op)));
}

#[test]
fn buffers_and_packets_of_no_use_are_handed_back() {
    let dir = tempfile::tempdir().unwrap();
    let mut guest = Guest::on(Rig::new(Box::new(device(&dir.path().join("v.sock")))), dir);
    // Packets shorter than a header, with nothing to read, and out of memory.
    for bufs in [&[(BUFFERS, 43, false)][..], &[(BUFFERS, 100, true)], &[(1 << 40, 44, false)]] {
        guest.rig.push(1, bufs);
        guest.rig.notify(1);
        assert_eq!(guest.rig.used(1).len(), 1);
    }
    // Buffers without room, not writable, and out of memory; then a good one, cut in pieces.
    let at = BUFFERS + 0x1000;
    guest.rig.push(0, &[(at, 44, true)]);
    guest.rig.push(0, &[(at, 4096, false)]);
    guest.rig.push(0, &[(1 << 40, 4096, true)]);
    guest.rig.push(0, &[(at, 40, true), (at + 40, 5, true), (at + 45, 100, true)]);
    guest.send(Key { host_port: 1, guest_port: 2 }, op::RW, 0);
    let used: Vec<u32> = guest.rig.used(0).iter().map(|u| u.1).collect();
    assert_eq!(used, [0, 0, 0, 44]);
    let header = guest.rig.get(at, 44).try_into().unwrap();
    assert_eq!(Header::from_bytes(&header).op, op::RST);
}

#[test]
fn floods_are_bounded() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, rustix::process::Rlimit { current: limit.maximum, ..limit })
        .unwrap();
    let (mut guest, shared) = open_guest();
    let listener = guest.host_listens(5);
    for guest_port in 0..1100 {
        guest.send(Key { host_port: 5, guest_port }, op::REQUEST, 0);
    }
    assert_eq!(shared.holds()[0], MAX_CONNECTIONS);
    assert!(ops(&mut guest).iter().all(|&op| op == op::RESPONSE));
    assert!(ops(&mut guest).contains(&op::RST));
    let mut callers: Vec<UnixStream> =
        (0..1100).map(|_| UnixStream::connect(guest.uds()).unwrap()).collect();
    guest.rig.run();
    assert_eq!(shared.holds()[1], MAX_CONNECTIONS);
    // A caller that names a port now is turned away; the streams that are there live on.
    let caller = &mut callers[0];
    caller.write_all(b"CONNECT 1\n").unwrap();
    caller.set_nonblocking(true).unwrap();
    guest.rig.run();
    assert!(ended(caller));
    drop((callers, listener));
    guest.work_raw();
    assert_eq!(shared.holds()[1], 0, "callers that went away");
    // Refusals without buffers for them.
    let (mut guest, shared) = open_guest();
    guest.rig.configure(|f| f);
    for guest_port in 0..5000 {
        guest.send(Key { host_port: 5, guest_port }, op::RW, 0);
    }
    assert_eq!(shared.holds(), [0, 0, 0, 1024, 0]);
}

#[test]
fn greetings_that_are_none_are_hung_up_on() {
    let (mut guest, shared) = open_guest();
    for line in [&b"GET / HTTP/1.1\r\n"[..], b"CONNECT\n", b"CONNECT 99999999999\n", &[0; 4096]] {
        let mut socket = UnixStream::connect(guest.uds()).unwrap();
        socket.write_all(line).unwrap();
        socket.set_nonblocking(true).unwrap();
        guest.work();
        // A reset, if it had more to say.
        assert!(!matches!(std::io::Read::read(&mut socket, &mut [0]), Ok(1..)));
        assert!(socket.write(b"x").is_err());
    }
    // Half a line, and gone.
    let mut socket = UnixStream::connect(guest.uds()).unwrap();
    socket.write_all(b"CONN").unwrap();
    guest.rig.run();
    assert_eq!(shared.holds()[1], 1);
    drop(socket);
    guest.rig.run();
    assert_eq!(shared.holds(), [0; 5]);
}

#[test]
fn time_ends_callers_and_calls() {
    let (mut guest, shared) = open_guest();
    let mut silent = UnixStream::connect(guest.uds()).unwrap();
    let mut unanswered = UnixStream::connect(guest.uds()).unwrap();
    unanswered.write_all(b"CONNECT 1\n").unwrap();
    guest.rig.run();
    assert_eq!(shared.holds()[..2], [1, 1]);
    let expire_in = |seconds| {
        let at = std::time::Instant::now() + std::time::Duration::from_secs(seconds);
        shared.0.lock().unwrap().muxer.expire(at);
    };
    expire_in(3);
    assert_eq!(shared.holds()[..2], [0, 1]);
    expire_in(61);
    assert_eq!(shared.holds()[..2], [0, 0]);
    assert!(ended(&mut silent) && ended(&mut unanswered));
}

/// What a hostile guest and careless host programs do.
#[derive(Clone, Debug)]
enum Step {
    Packet { header: Header, data: usize },
    Chain { queue: usize, bufs: Vec<(u64, u32, bool)> },
    Listen(u32),
    Call(Vec<u8>),
    Write(usize, usize),
    Read(usize),
    Close(usize),
    Take,
    Reset,
}

fn header() -> impl Strategy<Value = Header> {
    let number = || prop_oneof![Just(0), 0u32..4096, Just(BUFFER), any::<u32>()];
    let cid = |good: u64| prop_oneof![9 => Just(good), 1 => any::<u64>()];
    let host_port = prop_oneof![0u32..3, (1u32 << 30)..(1 << 30) + 6];
    let addresses = (cid(CID.into()), cid(2), 0u32..4, host_port);
    let rest = (number(), prop_oneof![9 => Just(1u16), 1 => any::<u16>()], 0u16..9, 0u32..4);
    (addresses, rest, number(), number()).prop_map(|(a, r, buf_alloc, fwd_cnt)| Header {
        src_cid: a.0,
        dst_cid: a.1,
        src_port: a.2,
        dst_port: a.3,
        len: r.0,
        kind: r.1,
        op: r.2,
        flags: r.3,
        buf_alloc,
        fwd_cnt,
    })
}

fn step() -> impl Strategy<Value = Step> {
    let len = || prop_oneof![0usize..100, 0usize..100_000];
    let buf = (0u64..1 << 23, prop_oneof![0u32..100, any::<u32>()], any::<bool>());
    let call = prop_oneof![
        (0u32..4).prop_map(|p| format!("CONNECT {p}\n").into_bytes()),
        prop::collection::vec(any::<u8>(), 0..40),
    ];
    prop_oneof![
        10 => (header(), len(), any::<bool>()).prop_map(|(header, data, honest)| {
            let len = if honest { data as u32 } else { header.len };
            Step::Packet { header: Header { len, ..header }, data }
        }),
        1 => (0usize..3, prop::collection::vec(buf, 1..4))
            .prop_map(|(queue, bufs)| Step::Chain { queue, bufs }),
        1 => (0u32..3).prop_map(Step::Listen),
        3 => call.prop_map(Step::Call),
        4 => (any::<usize>(), len()).prop_map(|(i, n)| Step::Write(i, n)),
        3 => any::<usize>().prop_map(Step::Read),
        1 => any::<usize>().prop_map(Step::Close),
        4 => Just(Step::Take),
        1 => prop::bool::weighted(0.1).prop_map(|r| if r { Step::Reset } else { Step::Take }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 96, failure_persistence: None, ..ProptestConfig::default()
    })]

    /// Whatever happens: no panic, no spin (the rig sees to that), no growth, no broken queue.
    #[test]
    fn anything_is_survived(steps in prop::collection::vec(step(), 1..120)) {
        let (mut guest, shared) = open_guest();
        guest.rig.configure(|f| f);
        guest.rx_next = 0;
        guest.give_buffers(100);
        let mut listeners: Vec<UnixListener> = Vec::new();
        let (mut events, mut listens) = (0, Vec::new());
        let mut sockets: Vec<UnixStream> = Vec::new();
        for step in steps {
            match step {
                Step::Packet { header, data } => guest.send_raw(header, &vec![5; data]),
                // More chains than the queue has entries would be a broken queue.
                Step::Chain { queue: 2, .. } if events == 50 => {}
                Step::Chain { queue, bufs } => {
                    events += usize::from(queue == 2);
                    guest.rig.push(queue, &bufs);
                    guest.rig.notify(queue);
                    guest.rig.used(1);
                }
                Step::Listen(port) if !listens.contains(&port) => {
                    let listener = guest.host_listens(port);
                    listener.set_nonblocking(true).unwrap();
                    listeners.push(listener);
                    listens.push(port);
                }
                Step::Call(line) => {
                    let mut socket = UnixStream::connect(guest.uds()).unwrap();
                    socket.set_nonblocking(true).unwrap();
                    let _ = socket.write(&line);
                    sockets.push(socket);
                }
                Step::Write(i, n) if !sockets.is_empty() => {
                    let i = i % sockets.len();
                    let _ = sockets[i].write(&vec![6; n]);
                }
                Step::Read(i) if !sockets.is_empty() => {
                    let i = i % sockets.len();
                    let _ = std::io::Read::read(&mut sockets[i], &mut [0; 70_000]);
                }
                Step::Close(i) if !sockets.is_empty() => {
                    let i = i % sockets.len();
                    sockets.remove(i);
                }
                Step::Take => guest.give_some_back(),
                Step::Reset => {
                    guest.rig.configure(|f| f);
                    (guest.rx_next, events) = (0, 0);
                    prop_assert_eq!(shared.holds(), [0; 5]);
                    guest.give_buffers(100);
                }
                _ => {}
            }
            guest.rig.run();
            for listener in &listeners {
                while let Ok((socket, _)) = listener.accept() {
                    socket.set_nonblocking(true).unwrap();
                    sockets.push(socket);
                }
            }
            let [connections, callers, line, resets, waiting] = shared.holds();
            prop_assert!(connections + callers <= 1100 && line <= connections && resets <= 1024);
            prop_assert!(waiting <= connections * BUFFER as usize);
            prop_assert_eq!(guest.rig.status() & 64, 0, "no broken queue");
        }
        // All of it ends with the reset.
        guest.rig.configure(|f| f);
        prop_assert_eq!(shared.holds(), [0; 5]);
    }
}
