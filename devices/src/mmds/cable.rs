//! Where frames wait between the guest and the TCP/IP stack: one towards the stack, a few towards
//! the guest.

use std::collections::VecDeque;

use smoltcp::phy::{
    Checksum, ChecksumCapabilities, Device, DeviceCapabilities, Medium, RxToken, TxToken,
};
use smoltcp::time::Instant;

/// Frames that wait for the guest at most; the stack sends no more until it has taken some.
const MAX_WAITING: usize = 32;

/// The cable between guest and stack.
#[derive(Debug)]
pub struct Cable {
    /// Longest frame for the guest.
    max_frame: usize,
    from_guest: Option<Vec<u8>>,
    to_guest: VecDeque<Vec<u8>>,
}

impl Cable {
    pub fn new(max_frame: usize) -> Cable {
        Cable { max_frame, from_guest: None, to_guest: VecDeque::new() }
    }

    /// Lays a frame of the guest before the stack.
    pub fn put(&mut self, frame: Vec<u8>) {
        self.from_guest = Some(frame);
    }

    /// Takes a frame for the guest.
    pub fn take(&mut self) -> Option<Vec<u8>> {
        self.to_guest.pop_front()
    }

    /// Whether a frame for the guest waits.
    pub fn waits(&self) -> bool {
        !self.to_guest.is_empty()
    }

    /// Whether the stack has to wait for the guest.
    pub fn full(&self) -> bool {
        self.to_guest.len() >= MAX_WAITING
    }

    /// Forgets all frames.
    pub fn clear(&mut self) {
        self.from_guest = None;
        self.to_guest.clear();
    }

    /// Forgets a frame that the stack did not take: there was no room for what it might answer, and
    /// the guest sends it again.
    pub fn discard(&mut self) {
        self.from_guest = None;
    }
}

impl Device for Cable {
    type RxToken<'a> = FromGuest;
    type TxToken<'a> = ToGuest<'a>;

    fn receive(&mut self, _now: Instant) -> Option<(FromGuest, ToGuest<'_>)> {
        if self.full() {
            return None;
        }
        let frame = self.from_guest.take()?;
        Some((FromGuest(frame), ToGuest(&mut self.to_guest)))
    }

    fn transmit(&mut self, _now: Instant) -> Option<ToGuest<'_>> {
        (!self.full()).then_some(ToGuest(&mut self.to_guest))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = self.max_frame;
        // A guest may leave checksums to the device (virtio 1.2, 5.1.6.2), and nothing damages a
        // frame on the way here. The guest gets whole ones.
        capabilities.checksum = ChecksumCapabilities::default();
        capabilities.checksum.ipv4 = Checksum::Tx;
        capabilities.checksum.tcp = Checksum::Tx;
        capabilities.checksum.icmpv4 = Checksum::Tx;
        capabilities
    }
}

/// A frame of the guest.
#[derive(Debug)]
pub struct FromGuest(Vec<u8>);

impl RxToken for FromGuest {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, handle: F) -> R {
        handle(&self.0)
    }
}

/// Room for a frame to the guest.
#[derive(Debug)]
pub struct ToGuest<'a>(&'a mut VecDeque<Vec<u8>>);

impl TxToken for ToGuest<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, fill: F) -> R {
        let mut frame = vec![0; len];
        let result = fill(&mut frame);
        self.0.push_back(frame);
        result
    }
}
