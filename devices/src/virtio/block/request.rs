//! Requests as the driver writes them (virtio 1.2, 5.2.6), taken apart before any is carried out.

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
};
use vm_memory::ByteValued;

use super::super::Chain;
use super::super::buffers::{Buffers, ChainError, Run};
use crate::memory::DeviceMemory;

/// Header of a request.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Header {
    kind: u32,
    reserved: u32,
    sector: u64,
}

#[allow(unsafe_code)]
// SAFETY: plain integers without padding; every bit pattern is valid.
unsafe impl ByteValued for Header {}

/// What is asked for.
pub(super) enum Ask<'a> {
    /// Read from this sector.
    Read(u64, Run<'a>),
    /// Write from this sector.
    Write(u64, Run<'a>),
    /// Flush.
    Flush,
    /// The drive's name.
    Name(Run<'a>),
    /// Something that this device does not know.
    Unknown,
    /// There is no whole header.
    Nothing,
}

/// A request.
pub(super) struct Request<'a> {
    /// What is asked for.
    pub(super) ask: Ask<'a>,
    /// Where the status byte goes.
    pub(super) status: Run<'a>,
}

impl<'a> Request<'a> {
    /// Takes `chain` apart. One without room for the status byte is no request.
    pub(super) fn new(chain: Chain<'a>, mem: &'a DeviceMemory) -> Result<Request<'a>, ChainError> {
        let Buffers { mut readable, mut writable } = Buffers::new(chain, mem)?;
        let data_len = writable.len().checked_sub(1).ok_or(ChainError::Short)?;
        let data = writable.take(data_len)?;
        let ask = match readable.read_obj::<Header>() {
            Err(_) => Ask::Nothing,
            Ok(Header { kind, sector, .. }) => match u32::from_le(kind) {
                VIRTIO_BLK_T_IN => Ask::Read(u64::from_le(sector), data),
                VIRTIO_BLK_T_OUT => Ask::Write(u64::from_le(sector), readable),
                VIRTIO_BLK_T_FLUSH => Ask::Flush,
                VIRTIO_BLK_T_GET_ID => Ask::Name(data),
                _ => Ask::Unknown,
            },
        };
        Ok(Request { ask, status: writable })
    }

    /// Bytes that it moves to or from the disk.
    pub(super) fn transfer(&self) -> u64 {
        match &self.ask {
            Ask::Read(_, data) | Ask::Write(_, data) => data.len() as u64,
            Ask::Flush | Ask::Name(_) | Ask::Unknown | Ask::Nothing => 0,
        }
    }
}
