//! A network of a test's own, and what a host does in it.
//!
//! UNSAFETY: a thread moves to another network namespace by a call that rustix calls unsafe.
#![allow(unsafe_code)]

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, ipproto, recv, sendto,
    socket_with,
};
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// Moves this thread, with the threads and processes that it starts from now on, to a new network
/// namespace that has nothing but `lo`. Tells why if that is not allowed, or if there are no taps.
pub fn enter_private() -> Result<(), String> {
    if let Err(error) = std::fs::File::open("/dev/net/tun") {
        return Err(format!("/dev/net/tun: {error}"));
    }
    // SAFETY: the unsafe case is that of descriptor tables, which stay shared here.
    match unsafe { unshare_unsafe(UnshareFlags::NEWNET) } {
        Ok(()) => Ok(()),
        Err(Errno::PERM) => Err("a network namespace needs CAP_SYS_ADMIN".into()),
        Err(error) => panic!("no network namespace: {error}"),
    }
}

/// Runs `ip` with these arguments, separated by blanks.
///
/// # Panics
///
/// If it fails.
pub fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split(' ')).output();
    let output = output.expect("the package iproute2 is needed");
    assert!(output.status.success(), "ip {arguments}: {output:?}");
}

/// Sends ICMP echo requests of `size` bytes of data, one after the other, and compares each answer.
///
/// # Panics
///
/// If an answer does not come within ten seconds.
pub fn ping(target: Ipv4Addr, count: u16, size: usize) {
    let socket = socket_with(
        AddressFamily::INET,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        Some(ipproto::ICMP),
    )
    .unwrap();
    let own = (std::process::id() & 0xffff) as u16;
    for number in 1..=count {
        // RFC 792: type, code, checksum, identifier, sequence number, data.
        let mut message = vec![8, 0, 0, 0];
        message.extend(own.to_be_bytes());
        message.extend(number.to_be_bytes());
        message.extend((0..size).map(|index| (index % 251) as u8));
        let sum = checksum(&message);
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        let to = SocketAddr::V4(SocketAddrV4::new(target, 0));
        assert_eq!(sendto(&socket, &message, SendFlags::empty(), &to), Ok(message.len()));

        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let time = Timespec::try_from(left).unwrap();
            let ready = poll(&mut [PollFd::new(&socket, PollFlags::IN)], Some(&time)).unwrap();
            assert!(ready == 1, "{target} does not answer echo request {number}");
            let mut packet = vec![0; 65_536];
            let (length, _) = recv(&socket, &mut packet[..], RecvFlags::empty()).unwrap();
            let header = usize::from(packet[0] & 15) * 4;
            let answer = &packet[header..length];
            if answer[0] == 0 && answer[4..8] == message[4..8] {
                assert!(answer[8..] == message[8..], "the answer of {target} is not the question");
                break;
            }
        }
    }
}

/// The Internet checksum (RFC 1071) of an even number of bytes, or an odd one with a zero added.
fn checksum(bytes: &[u8]) -> u16 {
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
    let mut sum: u32 = bytes.chunks(2).map(word).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
