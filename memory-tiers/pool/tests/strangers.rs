//! Clients that prove nothing: whatever they send, and however slowly, those with a key are served.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::Running;

/// More than a node keeps of those that prove nothing.
const STRANGERS: usize = 300;

#[test]
fn silent_strangers_keep_nobody_out() {
    let node = Running::new(None);
    let mut strangers: Vec<TcpStream> =
        (0..STRANGERS).map(|_| TcpStream::connect(&node.address).unwrap()).collect();
    node.client().status().unwrap();
    // The oldest had to go: after what the node says at once, its connection ends.
    let oldest = &mut strangers[0];
    oldest.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
    match oldest.read_to_end(&mut Vec::new()) {
        Ok(_) => {}
        Err(e) => assert_eq!(e.kind(), std::io::ErrorKind::ConnectionReset),
    }
    // Who was there first and is proved stays.
    let client = node.client();
    let mut holding = client.begin_to_hold().unwrap();
    strangers.extend((0..STRANGERS).map(|_| TcpStream::connect(&node.address).unwrap()));
    client.still_holds(&mut holding).unwrap();
}

#[test]
fn a_slow_introduction_has_one_deadline() {
    let node = Running::new(None);
    let mut slow = TcpStream::connect(&node.address).unwrap();
    let began = Instant::now();
    // A byte at a time of what a client says first.
    let mut to = slow.try_clone().unwrap();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let said = varve_pool::wire::MAGIC.into_iter().chain([200, 0, 0, 0]);
            for byte in said.chain(std::iter::repeat(0)) {
                if done.load(Ordering::Relaxed) || to.write_all(&[byte]).is_err() {
                    return;
                }
                thread::sleep(Duration::from_millis(500));
            }
        });
        slow.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let _ = slow.read_to_end(&mut Vec::new());
        done.store(true, Ordering::Relaxed);
    });
    assert!(began.elapsed() < Duration::from_secs(40), "{:?}", began.elapsed());
    node.client().status().unwrap();
}

#[test]
fn garbage_and_huge_claims_cost_their_connection() {
    let node = Running::new(None);
    let magic = varve_pool::wire::MAGIC;
    let claims = [vec![0xff; 4096], [&magic[..], &[0xff; 4]].concat(), magic.to_vec()];
    for said in claims {
        let mut stranger = TcpStream::connect(&node.address).unwrap();
        stranger.write_all(&said).unwrap();
        stranger.shutdown(std::net::Shutdown::Write).unwrap();
        stranger.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let mut answer = Vec::new();
        let _ = stranger.read_to_end(&mut answer);
        assert!(answer.len() < 200, "{} bytes for a stranger", answer.len());
        node.client().status().unwrap();
    }
}
