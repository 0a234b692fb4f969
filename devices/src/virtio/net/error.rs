//! Why a network device cannot be made.

use std::io;

/// Why a network device cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// No interface can have this name.
    #[error("{0:?} cannot name a tap: 1 to 15 characters, without '/', '%', ':' and white space")]
    Name(String),
    /// The address is a group's.
    #[error(
        "MAC address {} is a multicast address: the first byte of a device's own is even",
        hex(.0)
    )]
    Mac([u8; 6]),
    /// The MTU is too small for IPv4.
    #[error("an MTU of {0} is too small: the smallest is 68")]
    Mtu(u16),
    /// The host has no taps, or not for this user.
    #[error("cannot open /dev/net/tun: load the tun module, and let this user read and write it")]
    Tun(#[source] io::Error),
    /// Another process has it.
    #[error("tap {0:?} is in use by another process: give each machine a tap of its own")]
    Busy(String),
    /// It does not exist and may not be created, or is someone else's.
    #[error(
        "tap {0:?} is missing or another user's, and this process may not create one: as root, \
         `ip tuntap add dev {0} mode tap user <user>` and `ip link set {0} up`"
    )]
    Denied(String),
    /// There is an interface of that name, but not such a tap.
    #[error("{0:?} is not a tap with a single queue: name another one, or remove it and retry")]
    NotATap(String),
    /// The system has no timer for its rate limiters.
    #[error("cannot make a timer")]
    Timer(#[source] io::Error),
    /// Anything else the kernel said.
    #[error("cannot attach to tap {tap:?}")]
    Attach {
        /// The tap.
        tap: String,
        /// The system's answer.
        source: io::Error,
    },
}

fn hex(mac: &[u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}
