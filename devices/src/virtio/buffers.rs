//! A descriptor chain as two runs of guest memory: what the device reads, what it writes.
//!
//! Devices make no assumption about how the driver cut a request into descriptors (virtio 1.2,
//! 2.7.4): they consume bytes here. Chains that break the rules are found before a byte is used.

use std::collections::VecDeque;

use vm_memory::bitmap::BS;
use vm_memory::{
    ByteValued, Bytes, GuestMemory, GuestMemoryError, Permissions, VolatileMemoryError,
    VolatileSlice,
};

use super::Chain;
use crate::memory::DeviceMemory;

/// A piece of guest memory.
pub type Slice<'a> = VolatileSlice<'a, BS<'a, <DeviceMemory as GuestMemory>::Bitmap>>;

/// What is wrong with a chain.
#[derive(Debug, thiserror::Error)]
pub enum ChainError {
    /// It does not end: a loop, an index past the table, a bad indirect table, or over 4 GiB.
    #[error("descriptor chain does not end properly")]
    Endless,
    /// It has no descriptor at all.
    #[error("descriptor chain is empty or its table is not in guest memory")]
    Empty,
    /// A device-readable descriptor follows a device-writable one (virtio 1.2, 2.7.4.2).
    #[error("readable descriptor after a writable one")]
    Order,
    /// A buffer is not in guest memory.
    #[error("buffer at {address:#x}+{len:#x} is not in guest memory")]
    Address {
        /// Guest physical address of the buffer.
        address: u64,
        /// Its length in bytes.
        len: u32,
        /// Why not.
        source: GuestMemoryError,
    },
    /// Shorter than the request needs.
    #[error("chain is shorter than the request")]
    Short,
    /// Guest memory could not be accessed.
    #[error("guest memory")]
    Access(#[source] VolatileMemoryError),
}

/// A run of guest memory that is consumed from the front.
#[derive(Debug, Default)]
pub struct Run<'a> {
    slices: VecDeque<Slice<'a>>,
    len: usize,
}

/// The two runs of a chain.
#[derive(Debug)]
pub struct Buffers<'a> {
    /// What the driver sends.
    pub readable: Run<'a>,
    /// Where the device answers.
    pub writable: Run<'a>,
}

impl<'a> Buffers<'a> {
    /// Walks `chain` to its end and checks it.
    pub fn new(chain: Chain<'a>, mem: &'a DeviceMemory) -> Result<Buffers<'a>, ChainError> {
        let mut buffers = Buffers { readable: Run::default(), writable: Run::default() };
        let mut ended = None;
        for desc in chain {
            ended = Some(!desc.has_next());
            let writable = desc.is_write_only();
            if !writable && !buffers.writable.slices.is_empty() {
                return Err(ChainError::Order);
            }
            let (address, len) = (desc.addr().0, desc.len());
            let wrap = |source| ChainError::Address { address, len, source };
            let access = if writable { Permissions::Write } else { Permissions::Read };
            let run = if writable { &mut buffers.writable } else { &mut buffers.readable };
            if len == 0 {
                continue;
            }
            let slices = GuestMemory::get_slices(mem, desc.addr(), len as usize, access);
            for slice in slices.map_err(wrap)? {
                run.push(slice.map_err(wrap)?);
            }
        }
        match ended {
            Some(true) => Ok(buffers),
            Some(false) => Err(ChainError::Endless),
            None => Err(ChainError::Empty),
        }
    }
}

impl<'a> Run<'a> {
    fn push(&mut self, slice: Slice<'a>) {
        self.len += slice.len();
        self.slices.push_back(slice);
    }

    /// Bytes left.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The pieces, in order.
    pub fn slices(&self) -> impl ExactSizeIterator<Item = &Slice<'a>> {
        self.slices.iter()
    }

    /// Takes the first `count` bytes off as a run of their own.
    pub fn take(&mut self, mut count: usize) -> Result<Run<'a>, ChainError> {
        if count > self.len {
            return Err(ChainError::Short);
        }
        let mut front = Run::default();
        while count > 0 {
            let slice = self.slices.pop_front().ok_or(ChainError::Short)?;
            self.len -= slice.len();
            let n = slice.len().min(count);
            if n < slice.len() {
                let rest = slice.offset(n).map_err(ChainError::Access)?;
                self.len += rest.len();
                self.slices.push_front(rest);
            }
            front.push(slice.subslice(0, n).map_err(ChainError::Access)?);
            count -= n;
        }
        Ok(front)
    }

    /// Copies the front to `data`, as much as there is; how much that was.
    pub fn peek(&self, data: &mut [u8]) -> Result<usize, ChainError> {
        let mut done = 0;
        for slice in self.slices() {
            let n = slice.len().min(data.len() - done);
            slice.read_slice(&mut data[done..done + n], 0).map_err(ChainError::Access)?;
            done += n;
        }
        Ok(done)
    }

    /// Takes an object off the front.
    pub fn read_obj<T: ByteValued + Default>(&mut self) -> Result<T, ChainError> {
        let mut value = T::default();
        self.read_exact(value.as_mut_slice())?;
        Ok(value)
    }

    /// Takes `data.len()` bytes off the front, into `data`.
    pub fn read_exact(&mut self, data: &mut [u8]) -> Result<(), ChainError> {
        let run = self.take(data.len())?;
        let mut done = 0;
        for slice in run.slices() {
            slice.read_slice(&mut data[done..done + slice.len()], 0).map_err(ChainError::Access)?;
            done += slice.len();
        }
        Ok(())
    }

    /// Writes all of `data` to the front, and takes that off.
    pub fn write_all(&mut self, data: &[u8]) -> Result<(), ChainError> {
        let run = self.take(data.len())?;
        let mut done = 0;
        for slice in run.slices() {
            slice.write_slice(&data[done..done + slice.len()], 0).map_err(ChainError::Access)?;
            done += slice.len();
        }
        Ok(())
    }
}
