//! What streams do when both sides behave.

use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::super::credit;
use super::super::packet::{Key, op, shutdown};
use super::guest::{Guest, ended, read_all};

#[test]
fn a_host_program_calls_the_guest() {
    let mut guest = Guest::new();
    let (key, mut socket) = guest.host_calls(52);
    assert!(key.host_port >= 1 << 30);
    socket.write_all(b"from the host").unwrap();
    guest.work();
    assert_eq!(guest.streams[&key].received, b"from the host");
    assert_eq!(guest.send_data(key, b"from the guest"), 14);
    assert_eq!(read_all(&mut socket), b"from the guest");
    guest.close(key);
    assert!(ended(&mut socket) && guest.streams[&key].reset);
}

#[test]
fn a_host_program_is_refused() {
    let mut guest = Guest::new();
    let mut socket = UnixStream::connect(guest.uds()).unwrap();
    socket.write_all(b"CONNECT 52\n").unwrap();
    socket.set_nonblocking(true).unwrap();
    guest.work();
    assert!(ended(&mut socket));
}

#[test]
fn the_guest_calls_a_host_program() {
    let mut guest = Guest::with_features(|offered| offered & !(1 << 29));
    let listener = guest.host_listens(8080);
    let (key, mut socket) = guest.guest_calls(&listener, 8080, 1000);
    guest.send_data(key, b"from the guest");
    socket.write_all(b"from the host").unwrap();
    guest.work();
    assert_eq!(guest.streams[&key].received, b"from the host");
    assert_eq!(read_all(&mut socket), b"from the guest");
    drop(socket);
    guest.work();
    assert_eq!(guest.streams[&key].shut, shutdown::BOTH);
    // The guest confirms; the port can be used again.
    guest.send(key, op::RST, 0);
    let (key, mut socket) = guest.guest_calls(&listener, 8080, 1000);
    guest.send_data(key, b"again");
    assert_eq!(read_all(&mut socket), b"again");
}

#[test]
fn the_guest_is_refused() {
    let mut guest = Guest::new();
    let key = Key { host_port: 8080, guest_port: 1000 };
    guest.send(key, op::REQUEST, 0);
    // Nobody is there; a socket without a listener; a file.
    let path = guest.dir.path().join("v.sock_8080");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    guest.send(key, op::REQUEST, 0);
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "").unwrap();
    guest.send(key, op::REQUEST, 0);
    let packets = guest.take();
    assert!(!packets.is_empty());
    for (header, _) in packets {
        assert_eq!((header.op, header.src_port, header.dst_port), (op::RST, 8080, 1000));
    }
}

#[test]
fn a_slow_guest_holds_its_stream_back_only() {
    let mut guest = Guest::new();
    guest.consumes = false;
    guest.buffer = 10_000;
    let (slow, mut to_slow) = guest.host_calls(1);
    let (other, mut to_other) = guest.host_calls(2);
    let data: Vec<u8> = (0..30_000u32).map(|i| (i / 7) as u8).collect();
    to_slow.write_all(&data).unwrap();
    guest.work();
    assert_eq!(guest.streams[&slow].received, data[..10_000]);
    assert_eq!(guest.streams[&slow].credit_requests, 1, "asked once, then waits");
    to_other.write_all(b"passes").unwrap();
    guest.work();
    assert_eq!(guest.streams[&other].received, b"passes");
    for end in [20_000, 30_000] {
        guest.consume(slow);
        guest.work();
        assert_eq!(guest.streams[&slow].received, data[..end]);
    }
}

#[test]
fn a_slow_host_program_holds_the_guest_back() {
    let mut guest = Guest::new();
    let (key, mut socket) = guest.host_calls(1);
    let data: Vec<u8> = (0..2_000_000u32).map(|i| (i / 251) as u8).collect();
    let mut sent = 0;
    loop {
        let n = guest.send_data(key, &data[sent..]);
        guest.work();
        if n == 0 {
            break;
        }
        sent += n;
    }
    assert!(sent > credit::BUFFER as usize && sent < data.len(), "{sent}");
    let mut got = Vec::new();
    while got.len() < data.len() {
        got.extend(read_all(&mut socket));
        guest.work();
        sent += guest.send_data(key, &data[sent..]);
    }
    assert!(got == data);
    assert!(guest.streams[&key].credit_updates > 0);
    assert!(!guest.streams[&key].reset);
}

#[test]
fn sixteen_streams_flow_both_ways_at_once() {
    const EACH: usize = 1 << 20;
    let byte = |stream: usize, way: usize, at: usize| (at / 3 * 7 + at + 31 * stream + way) as u8;
    let pattern = |stream, way| (0..EACH).map(|at| byte(stream, way, at)).collect::<Vec<u8>>();
    let mut guest = Guest::new();
    let listener = guest.host_listens(9);
    let mut streams: Vec<_> = (0..16)
        .map(|i| match i % 2 {
            0 => guest.host_calls(100 + i),
            _ => guest.guest_calls(&listener, 9, 200 + i),
        })
        .enumerate()
        .map(|(i, (key, socket))| (key, socket, pattern(i, 0), pattern(i, 1), 0, 0, Vec::new()))
        .collect();
    let mut rounds = 0;
    loop {
        let mut done = true;
        let mut least = EACH;
        let mut most = 0;
        for (key, socket, to_guest, to_host, written, sent, got) in &mut streams {
            while *written < EACH {
                match socket.write(&to_guest[*written..]) {
                    Ok(n) => *written += n,
                    Err(_) => break,
                }
            }
            *sent += guest.send_data(*key, &to_host[*sent..]);
            got.extend(read_all(socket));
            let received = guest.streams[&*key].received.len();
            done &= received == EACH && got.len() == EACH;
            (least, most) = (least.min(received), most.max(received));
        }
        if done {
            break;
        }
        assert!(most - least <= EACH / 2, "one stream starves: {least} of {most}");
        guest.work();
        rounds += 1;
        assert!(rounds < 10_000, "stuck");
    }
    for (key, _, to_guest, to_host, .., got) in &streams {
        assert!(guest.streams[key].received == *to_guest && got == to_host);
    }
}

#[test]
fn each_way_closes_by_itself() {
    let mut guest = Guest::new();
    // The host ends first, and still gets the answer.
    let (key, mut socket) = guest.host_calls(1);
    socket.write_all(b"question").unwrap();
    socket.shutdown(Shutdown::Write).unwrap();
    guest.work();
    let stream = &guest.streams[&key];
    assert_eq!((&stream.received[..], stream.shut), (&b"question"[..], shutdown::SEND));
    guest.send_data(key, b"answer");
    assert_eq!(read_all(&mut socket), b"answer");
    guest.close(key);
    assert!(guest.streams[&key].reset && ended(&mut socket));
    // The guest ends first.
    let (key, mut socket) = guest.host_calls(2);
    guest.send_data(key, b"question");
    guest.send(key, op::SHUTDOWN, shutdown::SEND);
    assert_eq!(read_all(&mut socket), b"question");
    assert!(ended(&mut socket));
    socket.write_all(b"answer").unwrap();
    guest.work();
    assert_eq!(guest.streams[&key].received, b"answer");
    assert!(!guest.streams[&key].reset);
    drop(socket);
    guest.work();
    assert_eq!(guest.streams[&key].shut, shutdown::BOTH);
    // The guest will not receive any more.
    let (key, mut socket) = guest.host_calls(3);
    guest.send(key, op::SHUTDOWN, shutdown::RCV);
    assert_eq!(socket.write(b"x").unwrap_err().kind(), std::io::ErrorKind::BrokenPipe);
    guest.send_data(key, b"still talks");
    assert_eq!(read_all(&mut socket), b"still talks");
}

#[test]
fn a_caller_may_say_all_at_once_and_close_its_way() {
    let mut guest = Guest::new();
    guest.listens.push(5);
    let mut socket = UnixStream::connect(guest.uds()).unwrap();
    socket.write_all(b"CONNECT 5\nhello").unwrap();
    socket.shutdown(Shutdown::Write).unwrap();
    socket.set_nonblocking(true).unwrap();
    guest.work();
    let (key, stream) = guest.streams.iter().next().unwrap();
    assert_eq!((&stream.received[..], stream.shut), (&b"hello"[..], shutdown::SEND));
    assert_eq!(read_all(&mut socket), format!("OK {}\n", key.host_port).as_bytes());
}

#[test]
fn what_was_sent_before_a_close_arrives() {
    let mut guest = Guest::new();
    // The host program writes much and is gone at once.
    guest.consumes = false;
    guest.buffer = 10_000;
    let (key, mut socket) = guest.host_calls(1);
    let data = vec![7; 50_000];
    socket.write_all(&data).unwrap();
    drop(socket);
    guest.work();
    while guest.streams[&key].received.len() < data.len() {
        let before = guest.streams[&key].received.len();
        assert_eq!(guest.streams[&key].shut & shutdown::SEND, 0);
        guest.consume(key);
        guest.work();
        assert!(guest.streams[&key].received.len() > before);
    }
    // Its end is seen once the guest has room again.
    guest.consume(key);
    guest.work();
    assert_eq!(guest.streams[&key].shut, shutdown::BOTH);
    // The guest writes until nothing more goes, and closes; the host program reads late.
    let (key, mut socket) = guest.host_calls(2);
    let mut sent = 0;
    loop {
        let n = guest.send_data(key, &[9; 65536]);
        guest.work();
        sent += n;
        if n == 0 {
            break;
        }
    }
    guest.close(key);
    assert!(!guest.streams[&key].reset, "not confirmed while bytes wait");
    let mut got = 0;
    while !guest.streams[&key].reset {
        got += read_all(&mut socket).len();
        guest.work();
    }
    got += read_all(&mut socket).len();
    assert_eq!(got, sent);
}

#[test]
fn reset_cuts_both_ways() {
    let mut guest = Guest::new();
    let (key, mut socket) = guest.host_calls(1);
    guest.send(key, op::RST, 0);
    assert!(ended(&mut socket));
    assert!(socket.write(b"x").is_err());
    guest.work();
    assert!(!guest.streams[&key].reset, "an RST is not answered");
}

#[test]
fn a_guest_that_does_not_answer_is_given_up() {
    let mut guest = Guest::new();
    let (closed, socket) = guest.host_calls(1);
    drop(socket);
    let mut caller = UnixStream::connect(guest.uds()).unwrap();
    caller.write_all(b"CONNECT 99\n").unwrap();
    caller.set_nonblocking(true).unwrap();
    let requests = guest.take();
    assert!(requests.iter().any(|(h, _)| h.op == op::REQUEST && h.dst_port == 99));
    let start = Instant::now();
    while !ended(&mut caller) || !guest.streams[&closed].reset {
        assert!(start.elapsed() < Duration::from_secs(10));
        guest.rig.wait(100);
        for (header, _) in guest.take() {
            assert_eq!(header.op, op::RST);
            if header.dst_port == 1 {
                guest.streams.get_mut(&closed).unwrap().reset = true;
            }
        }
    }
    assert!(start.elapsed() > Duration::from_secs(1));
}
