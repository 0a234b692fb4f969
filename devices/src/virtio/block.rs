//! virtio-block over a raw file (virtio 1.2, 5.2).

use std::fs::{File, OpenOptions};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_ID_BYTES,
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vm_memory::ByteValued;

use super::buffers::{Buffers, ChainError};
use super::{BrokenQueue, Chain, DeviceIo, VirtioDevice, iov, read_config_bytes};
use crate::memory::DeviceMemory;
use crate::state::{self, Savable, StateError};

/// Bytes of a sector, the unit of every address (virtio 1.2, 5.2.4).
pub const SECTOR: u64 = 512;

const VERSION: u32 = 1;
const QUEUE_SIZE: u16 = 256;
/// Segments per request: the queue without the header's and the status' descriptor.
const SEG_MAX: u32 = QUEUE_SIZE as u32 - 2;

/// What the user asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockConfig {
    /// Name of the drive; the guest reads its first 20 bytes as the disk's serial number.
    pub id: String,
    /// The raw image or block device.
    pub path: PathBuf,
    /// The guest may not write.
    pub read_only: bool,
    /// Offer flush: what the guest flushed survives a crash of the host. Without it the guest
    /// believes that the disk has no cache.
    pub flush: bool,
}

/// Why a drive cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum BlockError {
    /// The image does not open.
    #[error("cannot open {path:?}")]
    Open {
        /// The image.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// Neither a file nor a block device.
    #[error("{0:?} is not a regular file or block device")]
    NotAFile(PathBuf),
    /// Smaller than one sector.
    #[error("{path:?} has {len} bytes, less than one sector of {SECTOR}")]
    TooSmall {
        /// The image.
        path: PathBuf,
        /// Its length in bytes.
        len: u64,
    },
}

/// A drive.
pub struct Block {
    config: BlockConfig,
    file: File,
    /// Size in sectors.
    sectors: u64,
    /// There are writes that no flush has covered yet: flushed before a snapshot.
    unflushed: bool,
}

/// What a snapshot keeps: enough to refuse a different image.
#[derive(Serialize, Deserialize)]
struct BlockStateV1 {
    sectors: u64,
    read_only: bool,
}

/// Header of a request (virtio 1.2, 5.2.6).
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct RequestHeader {
    kind: u32,
    reserved: u32,
    sector: u64,
}

#[allow(unsafe_code)]
// SAFETY: plain integers without padding; every bit pattern is valid.
unsafe impl ByteValued for RequestHeader {}

impl Block {
    /// Opens the image.
    pub fn new(config: BlockConfig) -> Result<Block, BlockError> {
        let (file, sectors) = open(&config.path, config.read_only)?;
        Ok(Block { config, file, sectors, unflushed: false })
    }

    /// Carries out one request; returns how many bytes of the chain were written.
    fn request(&mut self, chain: Chain, mem: &DeviceMemory) -> u32 {
        match Buffers::new(chain, mem).and_then(|buffers| self.serve(buffers)) {
            Ok(written) => written,
            Err(e) => {
                // There may be no status byte to say so; the driver sees a length of zero.
                log::warn!("drive {:?}: malformed request: {e}", self.config.id);
                0
            }
        }
    }

    fn serve(&mut self, buffers: Buffers) -> Result<u32, ChainError> {
        let Buffers { mut readable, mut writable } = buffers;
        let data_len = writable.len().checked_sub(1).ok_or(ChainError::Short)?;
        let data_in = writable.take(data_len)?;
        let header = match readable.read_obj::<RequestHeader>() {
            Ok(header) => header,
            Err(_) => {
                writable.write_all(&[VIRTIO_BLK_S_IOERR as u8])?;
                return Ok(1);
            }
        };
        let sector = u64::from_le(header.sector);
        let (status, written) = match u32::from_le(header.kind) {
            VIRTIO_BLK_T_IN => match self.check(sector, data_in.len()) {
                Some(offset) => match iov::read_exact_at(self.file.as_fd(), &data_in, offset) {
                    Ok(()) => (VIRTIO_BLK_S_OK, data_in.len()),
                    Err(e) => (self.failed("read", sector, &e), 0),
                },
                None => (VIRTIO_BLK_S_IOERR, 0),
            },
            VIRTIO_BLK_T_OUT => (self.write(sector, &readable), 0),
            VIRTIO_BLK_T_FLUSH => match self.flush() {
                Ok(()) => (VIRTIO_BLK_S_OK, 0),
                Err(e) => (self.failed("flush", sector, &e), 0),
            },
            VIRTIO_BLK_T_GET_ID => {
                let mut id = [0u8; VIRTIO_BLK_ID_BYTES as usize];
                let name = self.config.id.as_bytes();
                let n = name.len().min(id.len());
                id[..n].copy_from_slice(&name[..n]);
                let mut data_in = data_in;
                match data_in.write_all(&id) {
                    Ok(()) => (VIRTIO_BLK_S_OK, id.len()),
                    Err(_) => (VIRTIO_BLK_S_IOERR, 0),
                }
            }
            _ => (VIRTIO_BLK_S_UNSUPP, 0),
        };
        writable.write_all(&[status as u8])?;
        Ok(u32::try_from(written).unwrap_or(u32::MAX - 1) + 1)
    }

    fn write(&mut self, sector: u64, data: &super::buffers::Run) -> u32 {
        if self.config.read_only {
            return VIRTIO_BLK_S_IOERR;
        }
        let Some(offset) = self.check(sector, data.len()) else { return VIRTIO_BLK_S_IOERR };
        self.unflushed = true;
        match iov::write_all_at(self.file.as_fd(), data, offset) {
            Ok(()) => VIRTIO_BLK_S_OK,
            Err(e) => self.failed("write", sector, &e),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        if std::mem::take(&mut self.unflushed) {
            self.file.sync_data().inspect_err(|_| self.unflushed = true)?;
        }
        Ok(())
    }

    fn failed(&self, what: &str, sector: u64, e: &std::io::Error) -> u32 {
        log::error!("drive {:?}: {what} at sector {sector}: {e}", self.config.id);
        VIRTIO_BLK_S_IOERR
    }

    /// Byte offset of `sector`, if `len` bytes from there are whole sectors inside the disk.
    fn check(&self, sector: u64, len: usize) -> Option<u64> {
        let len = len as u64;
        let end = sector.checked_add(len / SECTOR)?;
        (len.is_multiple_of(SECTOR) && end <= self.sectors).then(|| sector * SECTOR)
    }
}

fn open(path: &Path, read_only: bool) -> Result<(File, u64), BlockError> {
    use std::io::{Seek, SeekFrom};
    use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};

    let fail = |source| BlockError::Open { path: path.to_owned(), source };
    // Not waiting keeps a FIFO from blocking the open; for files and disks it has no effect.
    let mut file = OpenOptions::new()
        .read(true)
        .write(!read_only)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(path)
        .map_err(fail)?;
    let kind = file.metadata().map_err(fail)?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err(BlockError::NotAFile(path.to_owned()));
    }
    let len = file.seek(SeekFrom::End(0)).map_err(fail)?;
    if len < SECTOR {
        return Err(BlockError::TooSmall { path: path.to_owned(), len });
    }
    if !len.is_multiple_of(SECTOR) {
        log::warn!("{path:?}: the last {} bytes are no whole sector and not visible", len % SECTOR);
    }
    Ok((file, len / SECTOR))
}

impl VirtioDevice for Block {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn features(&self) -> u64 {
        let mut bits = 1 << VIRTIO_RING_F_EVENT_IDX
            | 1 << VIRTIO_RING_F_INDIRECT_DESC
            | 1 << VIRTIO_BLK_F_SEG_MAX;
        if self.config.read_only {
            bits |= 1 << VIRTIO_BLK_F_RO;
        }
        if self.config.flush {
            bits |= 1 << VIRTIO_BLK_F_FLUSH;
        }
        bits
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        // virtio 1.2, 5.2.4: capacity, size_max (not offered), seg_max.
        let mut config = [0u8; 16];
        config[..8].copy_from_slice(&self.sectors.to_le_bytes());
        config[12..].copy_from_slice(&SEG_MAX.to_le_bytes());
        read_config_bytes(&config, offset, data);
    }

    fn activate(&mut self, _features: u64) {}

    fn reset(&mut self) {}

    fn queue_event(&mut self, queue: usize, io: &mut DeviceIo) -> Result<(), BrokenQueue> {
        io.drain(queue, |chain, mem| self.request(chain, mem))
    }
}

impl Savable for Block {
    fn version(&self) -> u32 {
        VERSION
    }

    fn save(&self) -> Vec<u8> {
        // What the guest believes to be written must be in the file that the restored machine
        // opens; a failure is reported by the guest's own next flush.
        if self.unflushed
            && let Err(e) = self.file.sync_data()
        {
            log::error!("drive {:?}: flush before saving: {e}", self.config.id);
        }
        state::encode(&BlockStateV1 { sectors: self.sectors, read_only: self.config.read_only })
    }

    fn restore(&mut self, version: u32, bytes: &[u8]) -> Result<(), StateError> {
        let BlockStateV1 { sectors, read_only } = state::decode(version, VERSION, bytes)?;
        if (sectors, read_only) != (self.sectors, self.config.read_only) {
            return Err(StateError::Invalid(format!(
                "drive {:?} had {sectors} sectors (read only: {read_only}), {:?} has {} ({})",
                self.config.id, self.config.path, self.sectors, self.config.read_only
            )));
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "block_tests.rs"]
mod tests;
