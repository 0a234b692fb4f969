//! Sides that are proved and slow: neither a client nor a node keeps the other for longer than one
//! request may take, however many pieces its bytes come in.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use common::{Running, acme, proved};
use rustix::process::{Resource, Rlimit, setrlimit};
use varve_pool::client::{NodeClient, Transport};
use varve_pool::sealed::Sealed;
use varve_snapshot::Digest;

/// Far more than a request may take, far less than what is sent would take.
const LONG: Duration = Duration::from_secs(90);

/// Sends the length of a long record, then a byte of it each second; whether the node ended all
/// connections in time.
fn drip(connections: &[&Sealed]) -> bool {
    let mut living: Vec<TcpStream> = connections
        .iter()
        .map(|sealed| {
            let mut stream = sealed.tcp().try_clone().unwrap();
            stream.write_all(&60_000u16.to_le_bytes()).unwrap();
            stream.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
            stream
        })
        .collect();
    let began = Instant::now();
    while !living.is_empty() && began.elapsed() < LONG {
        living.retain_mut(|stream| {
            let ended = match stream.read(&mut [0]) {
                Ok(n) => n == 0,
                Err(e) => e.kind() != std::io::ErrorKind::WouldBlock,
            };
            !ended && stream.write_all(&[0]).is_ok()
        });
        thread::sleep(Duration::from_secs(1));
    }
    living.is_empty()
}

/// Also the connections that a tenant has beyond its limit go: they are counted nowhere else.
#[test]
fn requests_end_and_so_do_connections_beyond_the_limit() {
    // Few connections for each tenant: descriptors are few.
    let few = Some(400);
    setrlimit(Resource::Nofile, Rlimit { current: few, maximum: few }).unwrap();
    let node = Running::new(None);
    let all: Vec<Sealed> = (0..40).map(|_| proved(&node.address)).collect();
    let (within, beyond) = all.split_at(20);
    assert!(drip(&beyond.iter().collect::<Vec<_>>()), "connections beyond the limit stay");
    assert!(drip(&within.iter().collect::<Vec<_>>()), "a request goes on for ever");
    node.client().status().unwrap();
}

/// A proxy that passes bytes on; to the client, once told, a byte each second.
fn slow_way_to(node: &str, slow: Arc<AtomicBool>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let node = node.to_owned();
    thread::spawn(move || {
        for client in listener.incoming() {
            let (mut client, Ok(mut node)) = (client.unwrap(), TcpStream::connect(&node)) else {
                return;
            };
            let (mut from, mut to) = (client.try_clone().unwrap(), node.try_clone().unwrap());
            thread::spawn(move || std::io::copy(&mut from, &mut to));
            let slow = slow.clone();
            thread::spawn(move || {
                let mut buffer = vec![0; 1 << 16];
                while let Ok(n @ 1..) = node.read(&mut buffer) {
                    let piece = if slow.load(Ordering::Relaxed) { 1 } else { n };
                    for bytes in buffer[..n].chunks(piece) {
                        if client.write_all(bytes).is_err() {
                            return;
                        }
                        if piece < n {
                            thread::sleep(Duration::from_secs(1));
                        }
                    }
                }
            });
        }
    });
    address
}

#[test]
fn a_node_that_sends_a_byte_now_and_then_is_given_up() {
    let node = Running::new(None);
    let slow = Arc::new(AtomicBool::new(false));
    let (tenant, key) = acme();
    let way = slow_way_to(&node.address, slow.clone());
    let client = NodeClient::new(way, tenant, key).by(Transport::Tcp);
    let bytes: Vec<u8> = (0..65536u32).map(|n| (n / 7) as u8).collect();
    let object = Digest::of(&bytes).0;
    let (done, told) = mpsc::channel();
    thread::spawn(move || {
        let mut holding = client.begin_to_hold().unwrap();
        client.hold(&mut holding, object, &bytes).unwrap();
        client.read(object, 0, &mut vec![0; 4096]).unwrap();
        slow.store(true, Ordering::Relaxed);
        // On the connection that stands, then on a new one.
        let outcomes = [(); 2].map(|()| client.read(object, 0, &mut vec![0; 65536]).is_err());
        done.send(outcomes).unwrap();
    });
    let outcomes = told.recv_timeout(LONG).expect("the client waits for ever");
    assert_eq!(outcomes, [true, true]);
}
