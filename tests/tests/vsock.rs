//! Streams between host programs and the guest, opened by either side.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use varve_agent::client::{Client, Error, connect_vsock};
use varve_agent::frame::write_line;
use varve_agent::protocol::{Connect, ConnectReply, How, Request, Stream, Transfer};
use varve_agent::{CONTROL_PORT, STREAM_PORT, pattern};
use varve_tests::Vm;

const MIB: u64 = 1 << 20;
/// Long enough for any transfer under emulation.
const PATIENCE: Duration = Duration::from_secs(120);

#[test]
fn streams_both_ways() {
    let mut vm = Vm::builder().start();
    assert_eq!(vm.info().cid, Some(3));
    let descriptors = vm.descriptors();

    from_the_host(&vm, 1, 64 * MIB);
    from_the_guest(&vm, 1, 8 * MIB);
    // Both kinds beside each other: 64 MiB each way over sixteen streams.
    thread::scope(|scope| {
        scope.spawn(|| from_the_host(&vm, 8, 4 * MIB));
        scope.spawn(|| from_the_guest(&vm, 8, 4 * MIB));
    });
    one_way(&vm);
    each_side_closes_by_itself(&vm);
    a_stream_that_is_not_read_holds_up_no_other(&vm);
    nobody_listens(&vm);
    many_short_streams(&vm);

    // Nothing of all that is left but the listening sockets. The monitor closes a stream when the
    // guest has confirmed it, a moment later.
    for _ in 0..100 {
        if vm.descriptors() <= descriptors {
            break;
        }
        thread::sleep(Duration::from_millis(50));
    }
    assert!(vm.descriptors() <= descriptors, "{} and {descriptors}", vm.descriptors());

    let uds = vm.uds();
    assert!(uds.exists());
    vm.power(How::Poweroff);
    let (end, _dir) = vm.wait_and_keep();
    assert_eq!(end.code, Some(0), "{end:?}");
    assert!(!uds.exists());
    assert_eq!(end.stderr, "varve: guest power-off\n");
}

/// A stream to the agent's stream port, with what is to happen on it.
fn stream(vm: &Vm, header: &Stream) -> UnixStream {
    let mut stream = connect_vsock(&vm.uds(), STREAM_PORT).unwrap();
    patient(&stream);
    write_line(&mut stream, header).unwrap();
    stream
}

fn patient(stream: &UnixStream) {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
}

/// Where the guest's streams to a port of the host arrive.
fn host_port(vm: &Vm, port: u32) -> PathBuf {
    let mut path = vm.uds().into_os_string();
    path.push(format!("_{port}"));
    path.into()
}

fn send(stream: &mut impl Write, seed: u64, bytes: u64) {
    let mut buffer = vec![0; 64 << 10];
    for offset in (0..bytes).step_by(buffer.len()) {
        let part = (bytes - offset).min(buffer.len() as u64) as usize;
        pattern::fill(seed, offset, &mut buffer[..part]);
        stream.write_all(&buffer[..part]).unwrap();
    }
}

/// Reads to the end and asserts that it was the pattern.
fn expect(stream: &mut impl Read, seed: u64, bytes: u64) {
    let mut hasher = crc32fast::Hasher::new();
    let mut buffer = vec![0; 64 << 10];
    let mut count = 0;
    loop {
        match stream.read(&mut buffer).unwrap() {
            0 => break,
            n => {
                hasher.update(&buffer[..n]);
                count += n as u64;
            }
        }
    }
    assert_eq!((count, hasher.finalize()), (bytes, pattern::crc32(seed, bytes)), "seed {seed}");
}

/// The host opens streams, and the guest returns what it gets.
fn from_the_host(vm: &Vm, streams: u64, bytes: u64) {
    thread::scope(|scope| {
        for seed in 100..100 + streams {
            scope.spawn(move || {
                let mut stream = stream(vm, &Stream::Echo { bytes: None });
                let mut sender = stream.try_clone().unwrap();
                let sending = thread::spawn(move || {
                    send(&mut sender, seed, bytes);
                    sender.shutdown(Shutdown::Write).unwrap();
                });
                expect(&mut stream, seed, bytes);
                sending.join().unwrap();
            });
        }
    });
}

/// The guest opens streams, and the host returns what it gets.
fn from_the_guest(vm: &Vm, streams: u64, bytes: u64) {
    let port = 6000;
    let path = host_port(vm, port);
    let listener = UnixListener::bind(&path).unwrap();
    thread::scope(|scope| {
        scope.spawn(move || {
            for _ in 0..streams {
                let stream = listener.accept().unwrap().0;
                patient(&stream);
                thread::spawn(move || {
                    io::copy(&mut stream.try_clone().unwrap(), &mut &stream).unwrap();
                });
            }
        });
        for seed in 200..200 + streams {
            scope.spawn(move || {
                let control = connect_vsock(&vm.uds(), CONTROL_PORT).unwrap();
                patient(&control);
                let request = Request::Connect(Connect { port, bytes, seed });
                let reply: ConnectReply = Client::new(control).call(&request).unwrap();
                let crc32 = pattern::crc32(seed, bytes);
                let expected = ConnectReply { bytes, sent_crc32: crc32, received_crc32: crc32 };
                assert_eq!(reply, expected);
            });
        }
    });
    std::fs::remove_file(path).unwrap();
}

/// Odd amounts in one direction only.
fn one_way(vm: &Vm) {
    for bytes in [0, 1, 4095, 65_537, 3 * MIB + 7] {
        let mut sink = stream(vm, &Stream::Sink { bytes });
        send(&mut sink, 9, bytes);
        let reply: Transfer = Client::new(sink).answer().unwrap();
        assert_eq!((reply.bytes, reply.crc32), (bytes, pattern::crc32(9, bytes)));
        expect(&mut stream(vm, &Stream::Source { bytes, seed: 8 }), 8, bytes);
    }
}

/// The end of data in one direction leaves the other open.
fn each_side_closes_by_itself(vm: &Vm) {
    // The host is through; the guest still answers, more than any buffer on the way holds.
    let mut echo = stream(vm, &Stream::Echo { bytes: None });
    let mut sender = echo.try_clone().unwrap();
    let sending = thread::spawn(move || {
        send(&mut sender, 11, 2 * MIB);
        sender.shutdown(Shutdown::Write).unwrap();
    });
    thread::sleep(Duration::from_millis(500));
    expect(&mut echo, 11, 2 * MIB);
    sending.join().unwrap();

    // The guest closes while the host has not read: what it sent still arrives, then the end.
    let mut source = stream(vm, &Stream::Source { bytes: 100_000, seed: 12 });
    thread::sleep(Duration::from_millis(500));
    expect(&mut source, 12, 100_000);
    // And nothing takes what is sent after that.
    let refused = (0..1000).find_map(|_| {
        thread::sleep(Duration::from_millis(5));
        source.write_all(&[0; 1000]).err()
    });
    assert_eq!(refused.unwrap().kind(), io::ErrorKind::BrokenPipe);
}

fn a_stream_that_is_not_read_holds_up_no_other(vm: &Vm) {
    let mut waiting: Vec<UnixStream> =
        (0..4).map(|seed| stream(vm, &Stream::Source { bytes: 2 * MIB, seed })).collect();
    from_the_host(vm, 2, MIB);
    from_the_guest(vm, 2, MIB);
    for (seed, stream) in (0..).zip(&mut waiting) {
        expect(stream, seed, 2 * MIB);
    }
}

fn nobody_listens(vm: &Vm) {
    for port in [1, 7777, u32::MAX - 1] {
        let refused = connect_vsock(&vm.uds(), port).unwrap_err();
        assert!(
            matches!(&refused, Error::Refused { answer, .. } if answer.is_empty()),
            "{refused}"
        );
    }
    // No such line: no answer either.
    let mut bad = UnixStream::connect(vm.uds()).unwrap();
    patient(&bad);
    bad.write_all(b"HELLO 1024\n").unwrap();
    // It hangs up on what it has not read to the end, which a unix socket calls a reset.
    match bad.read(&mut [0; 16]) {
        Ok(count) => assert_eq!(count, 0),
        Err(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset),
    }

    let control = connect_vsock(&vm.uds(), CONTROL_PORT).unwrap();
    patient(&control);
    let request = Request::Connect(Connect { port: 6001, bytes: 1, seed: 0 });
    let refused = Client::new(control).call::<ConnectReply>(&request).unwrap_err().to_string();
    assert!(refused.contains("cannot connect to port 6001: Connection reset by peer"), "{refused}");
}

/// What a stream takes is given back: the machine's descriptors are counted afterwards.
fn many_short_streams(vm: &Vm) {
    for seed in 0..100 {
        expect(&mut stream(vm, &Stream::Source { bytes: 100, seed }), seed, 100);
    }
}
