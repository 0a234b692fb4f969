//! The TCP/IP stack behind one network interface: the station that answers to the service's address.
//!
//! It is driven by frames and by time, both handed in, and knows no descriptors. smoltcp does ARP,
//! IPv4 and TCP; here are its limits and what becomes of connections.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpAddress, IpCidr, IpProtocol, Ipv4Packet};

use super::cable::Cable;
use super::connection::Connection;
use super::service::Service;
use super::{Mmds, MmdsConfig};
use crate::metrics::MmdsMetrics;

/// The station's address on the cable, as Firecracker's.
pub const MAC: [u8; 6] = [0x06, 0x01, 0x23, 0x45, 0x67, 0x01];
const PORT: u16 = 80;
/// Connections at once, as many as Firecracker has.
const MAX_CONNECTIONS: usize = 30;
/// A connection without traffic for so long makes room for a new one, if there is no other room.
const IDLE: Duration = Duration::from_secs(10);
/// A guest that answers nothing for so long is gone.
const DEAD: smoltcp::time::Duration = smoltcp::time::Duration::from_secs(30);
const RECEIVE_BUFFER: usize = 4 << 10;
const SEND_BUFFER: usize = 16 << 10;

const ETHERNET: usize = 14;
const MAX_MTU: usize = 1500;
const ARP: [u8; 2] = [0x08, 0x06];
const IPV4: [u8; 2] = [0x08, 0x00];
/// Where a frame names its station: the target of an ARP message (RFC 826), the destination of an
/// IPv4 packet (RFC 791, 3.1).
const ARP_TARGET: usize = ETHERNET + 24;
const IPV4_DESTINATION: usize = ETHERNET + 16;

/// Bytes of a frame's front by which [`Stack::wants`] decides.
pub const HEAD: usize = ARP_TARGET + 4;

/// The service's station on one cable.
pub struct Stack {
    address: Ipv4Addr,
    service: Service,
    metrics: Arc<MmdsMetrics>,
    cable: Cable,
    interface: Interface,
    sockets: SocketSet<'static>,
    /// Waits for the next connection, unless there are too many.
    listener: Option<SocketHandle>,
    connections: Vec<Connection>,
}

impl Stack {
    /// A station for the guest that `config` describes; `mtu` is that of its interface. `seed` makes
    /// its sequence numbers hard to guess.
    pub fn new(mmds: Arc<Mmds>, config: &MmdsConfig, mtu: Option<u16>, seed: u64) -> Stack {
        let mtu = mtu.map_or(MAX_MTU, usize::from).min(MAX_MTU);
        let mut cable = Cable::new(mtu + ETHERNET);
        let mut settings = Config::new(HardwareAddress::Ethernet(EthernetAddress(MAC)));
        settings.random_seed = seed;
        let mut interface = Interface::new(settings, &mut cable, Instant::ZERO);
        let address = config.ipv4_address;
        // Whatever address the guest has, it is at the other end of the cable.
        let cidr = IpCidr::new(IpAddress::Ipv4(address), 0);
        interface.update_ip_addrs(|addresses| addresses.push(cidr).unwrap_or_default());
        Stack {
            address,
            metrics: mmds.metrics.clone(),
            service: Service::new(mmds, config),
            cable,
            interface,
            sockets: SocketSet::new(Vec::new()),
            listener: None,
            connections: Vec::new(),
        }
    }

    /// Whether a frame that begins with `head` is for this station. 42 bytes are enough.
    pub fn wants(&self, head: &[u8]) -> bool {
        let target = match head.get(12..ETHERNET) {
            Some(kind) if kind == ARP => head.get(ARP_TARGET..ARP_TARGET + 4),
            Some(kind) if kind == IPV4 => head.get(IPV4_DESTINATION..IPV4_DESTINATION + 4),
            _ => None,
        };
        target == Some(&self.address.octets()[..])
    }

    /// Takes a frame of the guest.
    pub fn receive(&mut self, frame: &[u8], now: Duration) {
        self.count(frame);
        let mut frame = frame.to_vec();
        // A guest that has no route to the station sends to its gateway: it means the station.
        if let Some(destination) = frame.get_mut(..6) {
            destination.copy_from_slice(&MAC);
        }
        self.listen(now);
        self.cable.put(frame);
        self.poll(now);
        self.cable.discard();
    }

    fn count(&self, frame: &[u8]) {
        self.metrics.rx_accepted.inc();
        if frame.get(12..ETHERNET) != Some(&IPV4) {
            return;
        }
        match Ipv4Packet::new_checked(&frame[ETHERNET..]).map(|packet| packet.next_header()) {
            Ok(IpProtocol::Tcp) => self.metrics.rx_count.inc(),
            Ok(_) => self.metrics.rx_accepted_unusual.inc(),
            Err(_) => self.metrics.rx_accepted_err.inc(),
        }
    }

    /// The next frame for the guest.
    pub fn next(&mut self, now: Duration) -> Option<Vec<u8>> {
        let was_full = self.cable.full();
        let frame = self.cable.take()?;
        self.metrics.tx_count.inc();
        self.metrics.tx_frames.inc();
        self.metrics.tx_bytes.add(frame.len() as u64);
        if was_full {
            self.poll(now);
        }
        Some(frame)
    }

    /// Whether there is a frame for the guest.
    pub fn waits(&self) -> bool {
        self.cable.waits()
    }

    /// When to call [`Stack::poll`] if nothing else happens.
    pub fn poll_at(&mut self, now: Duration) -> Option<Duration> {
        // A full cable has its turn when the guest takes a frame.
        if self.cable.full() {
            return None;
        }
        let at = self.interface.poll_at(instant(now), &self.sockets)?;
        Some(Duration::from_micros(at.total_micros().max(0) as u64))
    }

    /// Lets time pass: sends what is due, gives up what is lost.
    pub fn poll(&mut self, now: Duration) {
        self.interface.poll(instant(now), &mut self.cable, &mut self.sockets);
        if let Some(handle) = self.listener
            && !self.sockets.get::<Socket>(handle).is_listening()
        {
            self.listener = None;
            self.connections.push(Connection::new(handle, now));
            self.metrics.connections_created.inc();
        }
        for connection in &mut self.connections {
            let socket = self.sockets.get_mut(connection.handle);
            connection.serve(socket, &self.service, now);
        }
        self.interface.poll(instant(now), &mut self.cable, &mut self.sockets);
        self.connections.retain(|connection| {
            let handle = connection.handle;
            // Nothing of an old connection can arrive late: the cable keeps the order. One that the
            // guest reset before it stood listens again.
            let state = self.sockets.get::<Socket>(handle).state();
            let over = matches!(state, State::Closed | State::TimeWait | State::Listen);
            if over {
                self.metrics.connections_destroyed.inc();
                self.sockets.remove(handle);
            }
            !over
        });
    }

    /// Forgets frames and connections: the guest's driver starts over.
    pub fn reset(&mut self) {
        self.cable.clear();
        self.metrics.connections_destroyed.add(self.connections.len() as u64);
        let handles = self.connections.drain(..).map(|connection| connection.handle);
        for handle in handles.chain(self.listener.take()) {
            self.sockets.remove(handle);
        }
    }

    /// Sees to it that a connection can be taken up.
    fn listen(&mut self, now: Duration) {
        if self.listener.is_some() {
            return;
        }
        if self.connections.len() >= MAX_CONNECTIONS {
            let idle = |c: &&Connection| now.saturating_sub(c.active) >= IDLE;
            let longest = self.connections.iter().filter(idle).min_by_key(|c| c.active);
            let Some(handle) = longest.map(|c| c.handle) else { return };
            self.sockets.remove(handle);
            self.connections.retain(|connection| connection.handle != handle);
            self.metrics.connections_destroyed.inc();
        }
        let buffer = |len| SocketBuffer::new(vec![0; len]);
        let mut socket = Socket::new(buffer(RECEIVE_BUFFER), buffer(SEND_BUFFER));
        socket.set_timeout(Some(DEAD));
        socket.set_ack_delay(None);
        socket.set_nagle_enabled(false);
        // Fails for port 0 and for a socket that is in use.
        if socket.listen(PORT).is_ok() {
            self.listener = Some(self.sockets.add(socket));
        }
    }
}

fn instant(now: Duration) -> Instant {
    Instant::from_micros(i64::try_from(now.as_micros()).unwrap_or(i64::MAX))
}
