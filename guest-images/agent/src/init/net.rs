//! Bringing up `lo` and `eth0` by the kernel's rtnetlink protocol (rtnetlink(7)): the four requests
//! that a guest needs, no more. Numbers are those of linux/rtnetlink.h and linux/if_addr.h.

use std::fs;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;

use anyhow::{Context, Result, bail};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with,
};

use super::cmdline::Network;

const NLMSG_ERROR: u16 = 2;
const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;
/// `NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE`.
const FLAGS: u16 = 0x1 | 0x4 | 0x400;
const AF_INET: u8 = 2;
const IFF_UP: u32 = 1;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_BOOT: u8 = 3;
const RTN_UNICAST: u8 = 1;

/// Brings up `lo`, and `eth0` if it is given an address.
pub fn bring_up(network: Option<&Network>) -> Result<()> {
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    set_up(&socket, index("lo")?).context("lo")?;
    let Some(network) = network else { return Ok(()) };
    let eth0 = index("eth0").context("varve.ip is given, but there is no eth0")?;
    add_address(&socket, eth0, network).context("the address of eth0")?;
    set_up(&socket, eth0).context("eth0")?;
    match network.gateway {
        Some(gateway) => add_route(&socket, eth0, gateway).context("the default route"),
        None => Ok(()),
    }
}

fn index(name: &str) -> Result<u32> {
    let path = format!("/sys/class/net/{name}/ifindex");
    Ok(fs::read_to_string(&path).context(path)?.trim().parse()?)
}

fn set_up(socket: &OwnedFd, index: u32) -> Result<()> {
    // struct ifinfomsg: family, padding, type, index, flags, mask of flags to change.
    let mut body = vec![0; 4];
    body.extend(index.to_ne_bytes());
    body.extend(IFF_UP.to_ne_bytes());
    body.extend(IFF_UP.to_ne_bytes());
    request(socket, RTM_NEWLINK, &body)
}

fn add_address(socket: &OwnedFd, index: u32, network: &Network) -> Result<()> {
    // struct ifaddrmsg: family, prefix length, flags, scope, index.
    let mut body = vec![AF_INET, network.prefix, 0, 0];
    body.extend(index.to_ne_bytes());
    attribute(&mut body, IFA_LOCAL, network.address.octets());
    attribute(&mut body, IFA_ADDRESS, network.address.octets());
    request(socket, RTM_NEWADDR, &body)
}

fn add_route(socket: &OwnedFd, index: u32, gateway: Ipv4Addr) -> Result<()> {
    // struct rtmsg: family, lengths of destination and source, tos, table, protocol, scope, type, flags.
    let mut body = vec![AF_INET, 0, 0, 0, RT_TABLE_MAIN, RTPROT_BOOT, 0, RTN_UNICAST];
    body.extend(0_u32.to_ne_bytes());
    attribute(&mut body, RTA_GATEWAY, gateway.octets());
    attribute(&mut body, RTA_OIF, index.to_ne_bytes());
    request(socket, RTM_NEWROUTE, &body)
}

/// Appends an attribute of four bytes: its length (with this header), type and value.
fn attribute(body: &mut Vec<u8>, kind: u16, value: [u8; 4]) {
    body.extend(8_u16.to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend(value);
}

/// Sends one request and waits for the kernel's verdict.
fn request(socket: &OwnedFd, kind: u16, body: &[u8]) -> Result<()> {
    // struct nlmsghdr: length, type, flags, sequence, port.
    let mut message = u32::try_from(16 + body.len())?.to_ne_bytes().to_vec();
    message.extend(kind.to_ne_bytes());
    message.extend(FLAGS.to_ne_bytes());
    message.extend([0; 8]);
    message.extend(body);
    send(socket, &message, SendFlags::empty())?;
    let mut answer = [0_u8; 4096];
    let (length, _) = recv(socket, &mut answer[..], RecvFlags::empty())?;
    // struct nlmsgerr follows the header: a negative errno, or 0.
    let (Some(kind), Some(code)) = (answer[..length].get(4..6), answer[..length].get(16..20))
    else {
        bail!("the kernel's answer has {length} bytes");
    };
    if kind != NLMSG_ERROR.to_ne_bytes() {
        bail!("the kernel's answer is of type {kind:?}");
    }
    match i32::from_ne_bytes(code.try_into()?) {
        0 => Ok(()),
        code => Err(Errno::from_raw_os_error(-code).into()),
    }
}
