//! What is where on a device (docs/tiers.md). All numbers are little-endian.
//!
//! ```text
//!  0        superblock
//!  64 KiB   1024 slots of 256 bytes: description (lines 0 and 1), state (line 2)
//!  2 MiB    leases: a line of 64 bytes for each slot and host
//!  4 MiB    images, in whole blocks of 2 MiB
//! ```
//!
//! What different hosts write is in different cache lines.

use varve_snapshot::Digest;

use crate::store::Key;

/// Hosts that can share a device.
pub const HOSTS: usize = 32;
/// Images that it can hold.
pub(super) const SLOTS: usize = 1024;
/// What images are given whole; also what devices are mapped by.
pub(super) const BLOCK: u64 = 2 << 20;
/// Where images begin.
pub(super) const DATA: u64 = 2 * BLOCK;
pub(super) const SUPERBLOCK_BYTES: usize = 64;
pub(super) const DESCRIPTION_BYTES: usize = 128;
const SLOT_TABLE: usize = 64 << 10;
const SLOT_BYTES: usize = 256;
const LINE: usize = 64;

const MAGIC: &[u8; 8] = b"VARVEDAX";
const VERSION: u32 = 1;

const _: () = {
    assert!(SLOT_TABLE + SLOTS * SLOT_BYTES <= BLOCK as usize);
    assert!(SLOTS * HOSTS * LINE <= BLOCK as usize);
};

/// Where a slot's description is.
pub(super) fn description_at(slot: usize) -> usize {
    SLOT_TABLE + slot * SLOT_BYTES
}

/// Where its state is.
pub(super) fn state_at(slot: usize) -> usize {
    description_at(slot) + DESCRIPTION_BYTES
}

/// Where a host's lease of it is.
pub(super) fn lease_at(slot: usize, host: usize) -> usize {
    BLOCK as usize + (slot * HOSTS + host) * LINE
}

/// What makes a device a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Superblock {
    /// The host that publishes and frees.
    pub owner: usize,
    /// Bytes of the device.
    pub size: u64,
}

impl Superblock {
    pub fn encode(&self) -> [u8; SUPERBLOCK_BYTES] {
        let mut bytes = [0; SUPERBLOCK_BYTES];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&(self.owner as u32).to_le_bytes());
        bytes[16..24].copy_from_slice(&self.size.to_le_bytes());
        seal(&mut bytes);
        bytes
    }

    /// What a device of `size` bytes says.
    pub fn decode(bytes: &[u8; SUPERBLOCK_BYTES], size: u64) -> Result<Superblock, String> {
        if &bytes[..8] != MAGIC {
            return Err("it is no store yet: varve tier init makes it one".into());
        }
        let version = u32_at(bytes, 8);
        if version != VERSION {
            return Err(format!("its version is {version}, and this varve knows {VERSION}"));
        }
        let found = Superblock { owner: u32_at(bytes, 12) as usize, size: u64_at(bytes, 16) };
        if !is_sealed(bytes) || found.owner >= HOSTS {
            return Err("its superblock is damaged: varve tier init --force makes it anew".into());
        }
        if found.size != size {
            let stated = found.size;
            return Err(format!("it was made a store with {stated} bytes, and has {size} now"));
        }
        Ok(found)
    }
}

/// What is in a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Description {
    /// The image.
    pub key: Key,
    /// Where it is.
    pub offset: u64,
    /// The epoch that it was published in.
    pub epoch: u64,
    /// Checksum of its bytes; `None`: they are not there yet.
    pub crc: Option<u32>,
}

impl Description {
    pub fn encode(&self) -> [u8; DESCRIPTION_BYTES] {
        let mut bytes = [0; DESCRIPTION_BYTES];
        bytes[..8].copy_from_slice(&self.epoch.to_le_bytes());
        bytes[8..40].copy_from_slice(&self.key.digest.0);
        bytes[40..48].copy_from_slice(&self.offset.to_le_bytes());
        bytes[48..56].copy_from_slice(&self.key.bytes.to_le_bytes());
        bytes[56..60].copy_from_slice(&self.crc.unwrap_or(0).to_le_bytes());
        bytes[60..64].copy_from_slice(&u32::from(self.crc.is_some()).to_le_bytes());
        seal(&mut bytes);
        bytes
    }

    /// What a slot of a device of `size` bytes says; none if it is not whole.
    pub fn decode(bytes: &[u8; DESCRIPTION_BYTES], size: u64) -> Option<Description> {
        let digest = Digest(bytes[8..40].try_into().ok()?);
        let key = Key { digest, bytes: u64_at(bytes, 48) };
        let crc = (u32_at(bytes, 60) == 1).then(|| u32_at(bytes, 56));
        let found = Description { key, offset: u64_at(bytes, 40), epoch: u64_at(bytes, 0), crc };
        let end = found.offset.checked_add(key.bytes)?;
        let inside = found.offset >= DATA && found.offset.is_multiple_of(BLOCK) && end <= size;
        (is_sealed(bytes) && inside).then_some(found)
    }
}

/// Ends bytes with the checksum of those before.
fn seal(bytes: &mut [u8]) {
    if let Some((body, crc)) = bytes.split_last_chunk_mut::<4>() {
        *crc = crc32c::crc32c(body).to_le_bytes();
    }
}

fn is_sealed(bytes: &[u8]) -> bool {
    let parts = bytes.split_last_chunk::<4>();
    parts.is_some_and(|(body, crc)| crc32c::crc32c(body).to_le_bytes() == *crc)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let part = bytes.get(at..).and_then(|b| b.first_chunk::<4>());
    part.map_or(0, |b| u32::from_le_bytes(*b))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let part = bytes.get(at..).and_then(|b| b.first_chunk::<8>());
    part.map_or(0, |b| u64::from_le_bytes(*b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_no_flipped_bit_is() {
        let size = 64 << 20;
        let superblock = Superblock { owner: 3, size };
        let bytes = superblock.encode();
        assert_eq!(Superblock::decode(&bytes, size), Ok(superblock));
        assert!(Superblock::decode(&bytes, size - BLOCK).unwrap_err().contains("has"));
        let key = Key { digest: Digest([7; 32]), bytes: 12345 };
        let description = Description { key, offset: DATA, epoch: 9, crc: Some(4) };
        let slot = description.encode();
        assert_eq!(Description::decode(&slot, size), Some(description));
        assert_eq!(Description::decode(&slot, DATA + 12344), None);
        for bit in 0..8 * DESCRIPTION_BYTES {
            let mut torn = slot;
            torn[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Description::decode(&torn, size), None);
            if bit < 8 * SUPERBLOCK_BYTES {
                let mut torn = bytes;
                torn[bit / 8] ^= 1 << (bit % 8);
                assert!(Superblock::decode(&torn, size).is_err());
            }
        }
    }
}
