//! A slot of a device as the protocol reaches it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use varve_memory_tiers::DeviceMap;

use super::layout::{DESCRIPTION_BYTES, Description, description_at, lease_at, state_at};
use crate::protocol::{Line, Slot, leased};
use crate::store::Key;

/// Bytes that are copied or verified at a time.
const BATCH: usize = 1 << 20;
const WORD: usize = 8;

/// A slot of a mapped device.
pub(super) struct MappedSlot<'a> {
    map: &'a DeviceMap,
    index: usize,
    image: Option<Image<'a>>,
}

/// What is to be put into a slot.
pub(super) struct Image<'a> {
    pub key: Key,
    pub offset: u64,
    pub from: &'a File,
    pub progress: &'a mut dyn FnMut(u64),
}

impl<'a> MappedSlot<'a> {
    pub fn new(map: &'a DeviceMap, index: usize) -> MappedSlot<'a> {
        MappedSlot { map, index, image: None }
    }

    pub fn with_image(self, image: Image<'a>) -> MappedSlot<'a> {
        MappedSlot { image: Some(image), ..self }
    }

    /// State and description, from memory and not from this host's caches.
    pub fn look(&self) -> io::Result<(u64, Option<Description>)> {
        let (state, description) = (state_at(self.index), description_at(self.index));
        self.map.flush(description, state + WORD - description)?;
        Ok((self.map.load(state)?, self.description()?))
    }

    /// Whether a host has a lease of any epoch.
    pub fn has_lease(&self, host: usize) -> io::Result<bool> {
        let at = lease_at(self.index, host);
        self.map.flush(at, WORD)?;
        Ok(leased(self.map.load(at)?) != 0)
    }

    fn description(&self) -> io::Result<Option<Description>> {
        let mut bytes = [0; DESCRIPTION_BYTES];
        self.map.read(description_at(self.index), &mut bytes)?;
        Ok(Description::decode(&bytes, self.map.len() as u64))
    }

    /// Copies the image in, described as not there yet before, so that its room is known to be taken.
    fn fill(&mut self, epoch: u64) -> io::Result<()> {
        let image = self.image.as_mut().ok_or(io::ErrorKind::InvalidInput)?;
        let describe = |crc| {
            let description = Description { key: image.key, offset: image.offset, epoch, crc };
            let at = description_at(self.index);
            self.map.write(at, &description.encode())?;
            self.map.flush(at, DESCRIPTION_BYTES)
        };
        describe(None)?;
        let mut buffer = vec![0; BATCH];
        let (mut at, mut crc) = (0, 0);
        while at < image.key.bytes {
            let len = (image.key.bytes - at).min(BATCH as u64) as usize;
            let data = &mut buffer[..len];
            image.from.read_exact_at(data, at)?;
            crc = crc32c::crc32c_append(crc, data);
            self.map.write((image.offset + at) as usize, data)?;
            at += len as u64;
            (image.progress)(at);
        }
        describe(Some(crc))
    }

    /// The epoch of which the image is whole, or 0.
    fn whole(&self) -> io::Result<u64> {
        let Some(Description { key, offset, epoch, crc: Some(wanted) }) = self.description()?
        else {
            return Ok(0);
        };
        let mut buffer = vec![0; BATCH];
        let (mut at, mut crc) = (0, 0);
        while at < key.bytes {
            let len = (key.bytes - at).min(BATCH as u64) as usize;
            self.map.read((offset + at) as usize, &mut buffer[..len])?;
            crc = crc32c::crc32c_append(crc, &buffer[..len]);
            at += len as u64;
        }
        Ok(if crc == wanted { epoch } else { 0 })
    }
}

impl Slot for MappedSlot<'_> {
    type Error = io::Error;

    fn load(&mut self, line: Line) -> io::Result<u64> {
        match line {
            Line::State => self.map.load(state_at(self.index)),
            Line::Lease(host) => self.map.load(lease_at(self.index, host)),
            Line::Content => self.whole(),
        }
    }

    fn store(&mut self, line: Line, value: u64) -> io::Result<()> {
        match line {
            Line::State => self.map.store(state_at(self.index), value),
            Line::Lease(host) => self.map.store(lease_at(self.index, host), value),
            Line::Content => self.fill(value),
        }
    }

    fn flush(&mut self, line: Line) -> io::Result<()> {
        match line {
            Line::State => self.map.flush(state_at(self.index), WORD),
            Line::Lease(host) => self.map.flush(lease_at(self.index, host), WORD),
            Line::Content => {
                self.map.flush(description_at(self.index), DESCRIPTION_BYTES)?;
                match self.description()? {
                    Some(d) => self.map.flush(d.offset as usize, d.key.bytes as usize),
                    None => Ok(()),
                }
            }
        }
    }
}
