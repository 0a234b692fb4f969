//! The vsock packet header and its numbers (virtio 1.2, 5.10.6).
//!
//! What the fields mean for a stream is `connection.rs`'s matter.

/// Bytes of a header; the payload follows it without a gap.
pub const HEADER_LEN: usize = 44;

/// The host's context id (virtio 1.2, 5.10.4).
pub const HOST_CID: u64 = 2;

/// The only socket type on offer: a stream of bytes.
pub const TYPE_STREAM: u16 = 1;

/// Operations.
pub mod op {
    /// Opens a connection.
    pub const REQUEST: u16 = 1;
    /// Accepts one.
    pub const RESPONSE: u16 = 2;
    /// Refuses or ends one at once.
    pub const RST: u16 = 3;
    /// The sender will not receive or send any more; see [`super::shutdown`].
    pub const SHUTDOWN: u16 = 4;
    /// Carries data.
    pub const RW: u16 = 5;
    /// Tells the sender's buffer space.
    pub const CREDIT_UPDATE: u16 = 6;
    /// Asks for the receiver's buffer space.
    pub const CREDIT_REQUEST: u16 = 7;
}

/// Flags of [`op::SHUTDOWN`].
pub mod shutdown {
    /// The sender of the packet receives no more.
    pub const RCV: u32 = 1;
    /// The sender of the packet sends no more.
    pub const SEND: u32 = 2;
    /// Neither.
    pub const BOTH: u32 = RCV | SEND;
}

/// A connection as both sides name it. The context ids are always the host's and this guest's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// Port on the host's side.
    pub host_port: u32,
    /// Port on the guest's side.
    pub guest_port: u32,
}

/// A packet header, in the machine's byte order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// Context id of the sender.
    pub src_cid: u64,
    /// Context id of the receiver.
    pub dst_cid: u64,
    /// Port of the sender.
    pub src_port: u32,
    /// Port of the receiver.
    pub dst_port: u32,
    /// Bytes of payload.
    pub len: u32,
    /// Socket type.
    pub kind: u16,
    /// One of [`op`].
    pub op: u16,
    /// Flags of the operation.
    pub flags: u32,
    /// The sender's buffer for this connection, in bytes.
    pub buf_alloc: u32,
    /// Bytes that the sender has taken out of that buffer so far, modulo 2^32.
    pub fwd_cnt: u32,
}

impl Header {
    /// Decodes the little-endian form.
    pub fn from_bytes(bytes: &[u8; HEADER_LEN]) -> Header {
        let mut rest = bytes.as_slice();
        Header {
            src_cid: u64::from_le_bytes(next(&mut rest)),
            dst_cid: u64::from_le_bytes(next(&mut rest)),
            src_port: u32::from_le_bytes(next(&mut rest)),
            dst_port: u32::from_le_bytes(next(&mut rest)),
            len: u32::from_le_bytes(next(&mut rest)),
            kind: u16::from_le_bytes(next(&mut rest)),
            op: u16::from_le_bytes(next(&mut rest)),
            flags: u32::from_le_bytes(next(&mut rest)),
            buf_alloc: u32::from_le_bytes(next(&mut rest)),
            fwd_cnt: u32::from_le_bytes(next(&mut rest)),
        }
    }

    /// Encodes to the little-endian form.
    pub fn to_bytes(self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        let mut at = 0;
        let mut put = |field: &[u8]| {
            bytes[at..at + field.len()].copy_from_slice(field);
            at += field.len();
        };
        put(&self.src_cid.to_le_bytes());
        put(&self.dst_cid.to_le_bytes());
        put(&self.src_port.to_le_bytes());
        put(&self.dst_port.to_le_bytes());
        put(&self.len.to_le_bytes());
        put(&self.kind.to_le_bytes());
        put(&self.op.to_le_bytes());
        put(&self.flags.to_le_bytes());
        put(&self.buf_alloc.to_le_bytes());
        put(&self.fwd_cnt.to_le_bytes());
        bytes
    }

    /// The connection that a packet of the guest belongs to.
    pub fn key(&self) -> Key {
        Key { host_port: self.dst_port, guest_port: self.src_port }
    }

    /// A packet to the guest on connection `key`, with no payload and no credit.
    pub fn to_guest(key: Key, guest_cid: u32, op: u16) -> Header {
        Header {
            src_cid: HOST_CID,
            dst_cid: guest_cid.into(),
            src_port: key.host_port,
            dst_port: key.guest_port,
            kind: TYPE_STREAM,
            op,
            ..Header::default()
        }
    }
}

/// Takes `N` bytes off the front; the callers' lengths add up to the header's.
fn next<const N: usize>(rest: &mut &[u8]) -> [u8; N] {
    let mut field = [0; N];
    let (front, back) = rest.split_at(N);
    field.copy_from_slice(front);
    *rest = back;
    field
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_lie_where_the_specification_has_them() {
        let bytes: [u8; HEADER_LEN] = std::array::from_fn(|i| i as u8);
        let header = Header::from_bytes(&bytes);
        assert_eq!(header.dst_cid, u64::from_le_bytes([8, 9, 10, 11, 12, 13, 14, 15]));
        assert_eq!(header.src_port, u32::from_le_bytes([16, 17, 18, 19]));
        assert_eq!(header.len, u32::from_le_bytes([24, 25, 26, 27]));
        assert_eq!(header.kind, u16::from_le_bytes([28, 29]));
        assert_eq!(header.op, u16::from_le_bytes([30, 31]));
        assert_eq!(header.flags, u32::from_le_bytes([32, 33, 34, 35]));
        assert_eq!(header.fwd_cnt, u32::from_le_bytes([40, 41, 42, 43]));
        assert_eq!(header.to_bytes(), bytes);
    }
}
