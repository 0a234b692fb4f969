//! The host's side of a tap, for tests: a network namespace of the test's own, in which the tap is
//! set up as an administrator would.
//!
//! UNSAFETY: ioctls with a `struct ifreq` and leaving a namespace have no safe wrapper.
#![allow(unsafe_code)]

use std::net::{Ipv4Addr, UdpSocket};

use rustix::ioctl::{Opcode, Setter, ioctl};
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// Address of the host's end.
pub const HOST: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);

/// Runs `test` in a network namespace of its own, or says that it is skipped where this process
/// may make neither namespaces nor taps. What the test makes there vanishes with it.
pub fn in_namespace(test: impl FnOnce() + Send + 'static) {
    let thread = std::thread::spawn(move || {
        // SAFETY: of what threads share, only the network namespace changes, and for this thread.
        if let Err(e) = unsafe { unshare_unsafe(UnshareFlags::NEWNET) } {
            varve_skip::skip!("net", format!("no network namespace: {e}"));
            return;
        }
        if let Err(e) = std::fs::OpenOptions::new().write(true).read(true).open("/dev/net/tun") {
            varve_skip::skip!("net", format!("/dev/net/tun: {e}"));
            return;
        }
        // Where there is IPv6, it would greet its neighbours in the midst of a test.
        let _ = std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
        test();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

#[repr(C)]
struct IfReq {
    name: [u8; 16],
    value: [u8; 24],
}

fn configure<const OPCODE: Opcode>(name: &str, value: &[u8]) {
    let mut request = IfReq { name: [0; 16], value: [0; 24] };
    request.name[..name.len()].copy_from_slice(name.as_bytes());
    request.value[..value.len()].copy_from_slice(value);
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    // SAFETY: each of these requests reads one `struct ifreq`, which is 40 bytes.
    unsafe { ioctl(&socket, Setter::<OPCODE, _>::new(request)).unwrap() };
}

/// Gives interface `name` the address [`HOST`] (net mask of 8 bits) and an MTU, and sets it up.
pub fn bring_up(name: &str, mtu: u32) {
    let mut address = [0; 16];
    address[..2].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
    address[4..8].copy_from_slice(&HOST.octets());
    configure::<{ libc::SIOCSIFADDR as Opcode }>(name, &address);
    configure::<{ libc::SIOCSIFMTU as Opcode }>(name, &mtu.to_ne_bytes());
    let flags = (libc::IFF_UP | libc::IFF_RUNNING) as u16;
    configure::<{ libc::SIOCSIFFLAGS as Opcode }>(name, &flags.to_ne_bytes());
}

/// Sets interface `name` down.
pub fn take_down(name: &str) {
    configure::<{ libc::SIOCSIFFLAGS as Opcode }>(name, &0u16.to_ne_bytes());
}
