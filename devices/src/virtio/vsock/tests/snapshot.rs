//! Restores cut streams, and the guest hears of it before anything else.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::time::Instant;

use super::super::connection::ACCEPT_TIME;
use super::super::packet::op;
use super::guest::{Guest, device, ended, read_all};
use crate::state::{Savable, StateError};
use crate::virtio::conformance::device_conformance;
use crate::virtio::testing::Rig;
use crate::virtio::vsock::{RESET_TIME, Vsock, VsockConfig, VsockError};

device_conformance!(|| {
    use std::sync::atomic::{AtomicU32, Ordering};
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let name = format!("varve-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    Some(Box::new(device(&std::env::temp_dir().join(name))))
});

/// The guest goes on with a restored device; the old one goes with its socket.
fn restored(guest: Guest) -> Guest {
    let dir = tempfile::tempdir().unwrap();
    let rig = guest.rig.restored(Box::new(device(&dir.path().join("v.sock"))));
    Guest { rig, dir, ..guest }
}

#[test]
fn the_guest_resets_its_streams_and_keeps_its_listeners() {
    let mut guest = Guest::new();
    let (key, mut socket) = guest.host_calls(52);
    assert_eq!(guest.resets(), 0);
    socket.write_all(b"lost").unwrap();
    let mut guest = restored(guest);
    assert!(socket.write(b"x").is_err(), "the old device is gone with its sockets");

    // A program calls at once, but the guest is to take the event first.
    let mut early = UnixStream::connect(guest.uds()).unwrap();
    early.write_all(b"CONNECT 52\n").unwrap();
    early.set_nonblocking(true).unwrap();
    assert_eq!(guest.resets(), 1);
    assert!(guest.take().is_empty());
    // The driver is asked for a notification at its very next buffer, the fifth.
    assert_eq!(guest.rig.avail_event(2), 4);
    guest.streams.clear();
    guest.give_event_buffers(1);
    guest.work();
    assert!(read_all(&mut early).starts_with(b"OK "));
    assert_eq!(guest.streams.len(), 1);
    assert!(!guest.streams.contains_key(&key), "the old name may still be in use in the guest");
    assert_eq!(guest.resets(), 0);

    // The guest still talks on the old stream, should it not have listened.
    guest.send(key, op::CREDIT_UPDATE, 0);
    let answers = guest.take();
    assert_eq!(answers.iter().map(|(h, _)| h.op).collect::<Vec<_>>(), [op::RST]);

    // And again, from the restored machine.
    let mut guest = restored(guest);
    assert_eq!(guest.resets(), 1);
    guest.give_event_buffers(1);
    guest.host_calls(53);
}

#[test]
fn an_event_that_found_no_buffer_comes_with_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let mut guest = Guest::on(Rig::new(Box::new(device(&dir.path().join("v.sock")))), dir);
    guest.give_buffers(256);
    let mut guest = restored(guest);
    assert_eq!(guest.resets(), 0);
    // Not even a second snapshot loses it.
    let mut guest = restored(guest);
    assert_eq!(guest.resets(), 0);
    guest.give_event_buffers(1);
    assert_eq!(guest.resets(), 1);
    guest.give_event_buffers(1);
    assert_eq!(guest.resets(), 0);
}

/// A restored guest that listens, and a host program that called it before it ran.
fn called_early() -> (Guest, UnixStream) {
    let mut guest = restored(Guest::new());
    guest.listens.push(52);
    let mut socket = UnixStream::connect(guest.uds()).unwrap();
    socket.write_all(b"CONNECT 52\n").unwrap();
    socket.set_nonblocking(true).unwrap();
    (guest, socket)
}

#[test]
fn calls_wait_for_a_guest_that_is_slow_to_take_the_event() {
    let (mut guest, mut early) = called_early();
    assert_eq!(guest.resets(), 1);
    // Longer than a guest may take to accept.
    let start = Instant::now();
    while start.elapsed() < ACCEPT_TIME + ACCEPT_TIME / 4 {
        guest.rig.wait(100);
        assert!(guest.take().is_empty(), "the guest would reset it");
    }
    guest.give_event_buffers(1);
    guest.work();
    assert!(read_all(&mut early).starts_with(b"OK "));
}

#[test]
fn a_driver_that_ignores_events_is_served_after_a_while() {
    let (mut guest, mut socket) = called_early();
    let start = Instant::now();
    while read_all(&mut socket).is_empty() {
        assert!(start.elapsed() < RESET_TIME * 4);
        guest.rig.wait(100);
        guest.work();
    }
}

#[test]
fn a_machine_that_goes_on_after_a_snapshot_keeps_its_streams() {
    let mut guest = Guest::new();
    let (key, mut socket) = guest.host_calls(52);
    let saved = guest.rig.transport.save();
    assert!(!saved.is_empty());
    guest.rig.transport.kick();
    assert_eq!(guest.resets(), 0);
    guest.send_data(key, b"still here");
    assert_eq!(read_all(&mut socket), b"still here");
}

#[test]
fn a_reset_device_forgets_its_streams() {
    let mut guest = Guest::new();
    let (_, mut socket) = guest.host_calls(52);
    let mut silent = UnixStream::connect(guest.uds()).unwrap();
    silent.set_nonblocking(true).unwrap();
    guest.rig.run();
    guest.rig.configure(|offered| offered);
    assert!(ended(&mut socket) && ended(&mut silent));
    let dir = std::mem::replace(&mut guest.dir, tempfile::tempdir().unwrap());
    let mut guest = Guest::on(guest.rig, dir);
    guest.give_buffers(256);
    let listener = guest.host_listens(7);
    guest.guest_calls(&listener, 7, 1);
}

#[test]
fn configurations_and_states_that_do_not_fit_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let make = |guest_cid, name: &str| {
        Vsock::new(VsockConfig { guest_cid, uds_path: dir.path().join(name) })
    };
    for cid in [0, 1, 2, u32::MAX] {
        assert!(matches!(make(cid, "never"), Err(VsockError::Cid(c)) if c == cid));
        assert!(!dir.path().join("never").exists());
    }
    let three = make(3, "a").unwrap();
    let mut four = make(4, "b").unwrap();
    let refused = four.restore(1, &three.save()).unwrap_err();
    assert!(matches!(&refused, StateError::Invalid(m) if m.contains("guest_cid 3")), "{refused}");
    let long = "x".repeat(200);
    assert!(matches!(make(3, &long), Err(VsockError::Listen { .. })));
    drop((three, four));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is left behind");
}
