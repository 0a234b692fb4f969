//! Flow control of one stream (virtio 1.2, 5.10.6.3): each side tells how large its buffer is and
//! how much it has taken out of it, and sends no more than fits. All counters wrap at 2^32.

use super::packet::Header;

/// The device's buffer per connection for data that its host socket does not take yet, in bytes.
pub const BUFFER: u32 = 256 << 10;

/// The guest is told of freed space once this much has been freed since it last heard of it.
const UPDATE_AT: u32 = BUFFER / 2;

/// The counters of one connection.
#[derive(Debug, Default)]
pub struct Credit {
    /// Bytes of the guest that went on to the host socket.
    forwarded: u32,
    /// What of that the guest was told.
    told: u32,
    /// Bytes sent to the guest.
    sent: u32,
    /// What of that the guest has consumed, as it says.
    guest_forwarded: u32,
    /// The guest's buffer, as it says.
    guest_buffer: u32,
}

impl Credit {
    /// Takes in what a packet of the guest says.
    pub fn learn(&mut self, header: &Header) {
        self.guest_buffer = header.buf_alloc;
        self.guest_forwarded = header.fwd_cnt;
    }

    /// Puts the device's side into a packet to the guest.
    pub fn tell(&mut self, header: &mut Header) {
        header.buf_alloc = BUFFER;
        header.fwd_cnt = self.forwarded;
        self.told = self.forwarded;
    }

    /// Bytes that the guest has room for. A guest that claims to have consumed more than it got,
    /// or shrinks its buffer below what is on its way, has none.
    pub fn room(&self) -> u32 {
        let in_flight = self.sent.wrapping_sub(self.guest_forwarded);
        self.guest_buffer.saturating_sub(in_flight)
    }

    /// `count` bytes were sent to the guest.
    pub fn sent(&mut self, count: usize) {
        self.sent = self.sent.wrapping_add(count as u32);
    }

    /// `count` bytes of the guest left the device.
    pub fn forwarded(&mut self, count: usize) {
        self.forwarded = self.forwarded.wrapping_add(count as u32);
    }

    /// Whether the guest should hear of freed space by a packet of its own.
    pub fn update_due(&self) -> bool {
        self.forwarded.wrapping_sub(self.told) >= UPDATE_AT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_survives_wrapping_and_lies() {
        let mut credit = Credit { sent: u32::MAX - 10, ..Credit::default() };
        let says = |fwd_cnt, buf_alloc| Header { fwd_cnt, buf_alloc, ..Header::default() };
        credit.learn(&says(u32::MAX - 20, 100));
        assert_eq!(credit.room(), 90);
        credit.sent(50);
        assert_eq!((credit.sent, credit.room()), (39, 40));
        credit.learn(&says(39, 100));
        assert_eq!(credit.room(), 100);
        credit.learn(&says(40, 100));
        assert_eq!(credit.room(), 0, "consumed more than was sent");
        credit.learn(&says(0, 10));
        assert_eq!(credit.room(), 0, "the buffer shrank");
    }

    #[test]
    fn updates_are_due_at_half() {
        let mut credit = Credit::default();
        credit.forwarded(UPDATE_AT as usize - 1);
        assert!(!credit.update_due());
        credit.forwarded(1);
        assert!(credit.update_due());
        credit.tell(&mut Header::default());
        assert!(!credit.update_due());
    }
}
