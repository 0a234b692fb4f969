//! virtio-block over a raw file (virtio 1.2, 5.2).

use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use event_manager::EventSet;
use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX,
    VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use super::buffers::{ChainError, Run};
use super::{
    BrokenQueue, Chain, DeviceIo, Done, Failure, Source, Turn, VirtioDevice, read_config_bytes,
};
use crate::limiter::{Limiter, LimiterConfig, LimiterState};
use crate::memory::DeviceMemory;
use crate::metrics::BlockMetrics;
use crate::state::{self, Savable, StateError};

mod disk;
mod request;

use disk::Disk;
pub use disk::{BlockError, SECTOR};
use request::{Ask, Request};

const VERSION: u32 = 2;
const QUEUE: usize = 0;
const QUEUE_SIZE: u16 = 256;
/// Segments per request: the queue without the header's and the status' descriptor.
const SEG_MAX: u32 = QUEUE_SIZE as u32 - 2;
/// Bytes of a segment.
const SIZE_MAX: u32 = 64 << 10;
/// Most bytes of a request: what a driver that keeps to both can ask for, 15.9 MiB.
const MAX_TRANSFER: u64 = SEG_MAX as u64 * SIZE_MAX as u64;

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
    /// Limits of reads and writes together.
    #[serde(default)]
    pub limiter: LimiterConfig,
    /// It is to be served by a thread of its own; whoever owns the device sees to that.
    #[serde(default)]
    pub apart: bool,
}

/// A drive.
pub struct Block {
    config: BlockConfig,
    disk: Disk,
    limiter: Limiter,
    metrics: Arc<BlockMetrics>,
    /// A request to replace the image was refused because writes to it may be lost.
    warned: bool,
}

/// What a snapshot kept before there were limits: enough to refuse a different image.
#[derive(Serialize, Deserialize)]
struct BlockStateV1 {
    sectors: u64,
    read_only: bool,
}

/// What a snapshot keeps: the same, and what is left of the limits.
#[derive(Serialize, Deserialize)]
struct BlockStateV2 {
    sectors: u64,
    read_only: bool,
    limiter: LimiterState,
}

impl Block {
    /// Opens the image.
    pub fn new(config: BlockConfig) -> Result<Block, BlockError> {
        let disk = Disk::open(&config.path, config.read_only)?;
        let limiter = Limiter::new(config.limiter).map_err(BlockError::Timer)?;
        Ok(Block { config, disk, limiter, metrics: Arc::default(), warned: false })
    }

    /// What it counts.
    pub fn metrics(&self) -> Arc<BlockMetrics> {
        self.metrics.clone()
    }

    /// Puts another image in the drive and tells the driver of its size. Requests that wait go to
    /// the new one. On an error the drive is as it was.
    ///
    /// # Errors
    ///
    /// The new image does not open, or the guest's writes to the old one may be lost. The second time
    /// that is no obstacle any more; the guest is told by its next flush.
    pub fn replace_image(&mut self, path: &Path, io: &mut DeviceIo) -> Result<(), BlockError> {
        let mut disk = Disk::open(path, self.config.read_only)
            .inspect_err(|_| self.metrics.update_fails.inc())?;
        // The guest's next flush would not reach the old one any more.
        if let Err(error) = self.disk.settle()
            && !std::mem::replace(&mut self.warned, true)
        {
            self.metrics.update_fails.inc();
            return Err(BlockError::Flush { path: self.config.path.clone(), source: error });
        }
        self.metrics.update_count.inc();
        self.warned = false;
        if self.config.flush {
            self.disk.hand_over(&mut disk);
        }
        self.disk = disk;
        self.config.path = path.into();
        io.signal_config();
        Ok(())
    }

    /// Has all that the guest wrote put on the disk, before a snapshot says that it is there.
    ///
    /// # Errors
    ///
    /// That fails, or did before and the guest was not told. The guest is told by its next flush; one
    /// that has no flush is as if told by this error.
    pub fn settle(&mut self) -> Result<(), BlockError> {
        self.disk.settle().map_err(|source| {
            self.metrics.execute_fails.inc();
            if !self.config.flush {
                self.disk.forget();
            }
            BlockError::Flush { path: self.config.path.clone(), source }
        })
    }

    /// Replaces limits; see [`Limiter::update`].
    pub fn update_limiter(&mut self, update: LimiterConfig) {
        self.limiter.update(update);
    }

    fn serve_queue(&mut self, queue: usize, io: &mut DeviceIo) -> Result<(), BrokenQueue> {
        if self.limiter.waits() {
            return Ok(());
        }
        let mut idle = true;
        let turn = io.turn;
        let result = io.drain(queue, |chain, mem| {
            idle = false;
            self.request(chain, mem, turn)
        });
        if idle {
            self.metrics.no_avail_buffer.inc();
        }
        result
    }

    /// Carries out one request. It waits if the limiter does not let it go yet.
    fn request(&mut self, chain: Chain, mem: &DeviceMemory, turn: &Turn) -> Done {
        let served = match Request::new(chain, mem) {
            Ok(request) if request.transfer() > MAX_TRANSFER => self.refuse(request),
            Ok(request) if !self.limiter.take(request.transfer()) => {
                self.metrics.rate_limiter_throttled_events.inc();
                return Done::Waits;
            }
            Ok(request) => {
                turn.bytes(request.transfer());
                self.serve(request)
            }
            Err(e) => Err(e),
        };
        Done::Used(served.unwrap_or_else(|e| {
            // There may be no status byte to say so; the driver sees a length of zero. The guest
            // decides how often this happens.
            log::debug!("drive {:?}: malformed request: {e}", self.config.id);
            self.metrics.invalid_reqs_count.inc();
            0
        }))
    }

    /// Answers a request that is longer than a driver may make it. It costs no transfer.
    fn refuse(&self, Request { mut status, .. }: Request) -> Result<u32, ChainError> {
        status.write_all(&[self.invalid(VIRTIO_BLK_S_IOERR) as u8])?;
        Ok(1)
    }

    fn serve(&mut self, Request { ask, mut status }: Request) -> Result<u32, ChainError> {
        let (code, written) = match ask {
            Ask::Read(sector, data) => (self.read(sector, &data), data.len()),
            Ask::Write(sector, data) => (self.write(sector, &data), 0),
            Ask::Flush => match self.disk.flush() {
                Ok(()) => {
                    self.metrics.flush_count.inc();
                    (VIRTIO_BLK_S_OK, 0)
                }
                Err(e) => (self.host_failed("flush", 0, &e), 0),
            },
            Ask::Name(data) => (self.name(data), VIRTIO_BLK_ID_BYTES as usize),
            Ask::Unknown => (self.invalid(VIRTIO_BLK_S_UNSUPP), 0),
            Ask::Nothing => (self.invalid(VIRTIO_BLK_S_IOERR), 0),
        };
        status.write_all(&[code as u8])?;
        let written = if code == VIRTIO_BLK_S_OK { written } else { 0 };
        Ok(u32::try_from(written).unwrap_or(u32::MAX - 1) + 1)
    }

    fn read(&self, sector: u64, data: &Run) -> u32 {
        if !self.disk.holds(sector, data.len()) {
            return self.invalid(VIRTIO_BLK_S_IOERR);
        }
        let start = Instant::now();
        match self.disk.read(sector, data) {
            Ok(()) => {
                self.metrics.read_agg.record_since(start);
                self.metrics.read_count.inc();
                self.metrics.read_bytes.add(data.len() as u64);
                VIRTIO_BLK_S_OK
            }
            Err(e) => self.host_failed("read", sector, &e),
        }
    }

    fn write(&mut self, sector: u64, data: &Run) -> u32 {
        if self.config.read_only || !self.disk.holds(sector, data.len()) {
            return self.invalid(VIRTIO_BLK_S_IOERR);
        }
        let start = Instant::now();
        match self.disk.write(sector, data) {
            Ok(()) => {
                self.metrics.write_agg.record_since(start);
                self.metrics.write_count.inc();
                self.metrics.write_bytes.add(data.len() as u64);
                VIRTIO_BLK_S_OK
            }
            Err(e) => self.host_failed("write", sector, &e),
        }
    }

    fn name(&self, mut data: Run) -> u32 {
        let mut id = [0u8; VIRTIO_BLK_ID_BYTES as usize];
        let name = self.config.id.as_bytes();
        let n = name.len().min(id.len());
        id[..n].copy_from_slice(&name[..n]);
        match data.write_all(&id) {
            Ok(()) => VIRTIO_BLK_S_OK,
            Err(_) => VIRTIO_BLK_S_IOERR,
        }
    }

    fn invalid(&self, status: u32) -> u32 {
        self.metrics.invalid_reqs_count.inc();
        status
    }

    fn host_failed(&self, what: &str, sector: u64, e: &std::io::Error) -> u32 {
        self.metrics.execute_fails.inc();
        log::error!("drive {:?}: {what} at sector {sector}: {e}", self.config.id);
        VIRTIO_BLK_S_IOERR
    }
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
            | 1 << VIRTIO_BLK_F_SIZE_MAX
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
        // virtio 1.2, 5.2.4: capacity, size_max, seg_max.
        let mut config = [0u8; 16];
        config[..8].copy_from_slice(&self.disk.sectors().to_le_bytes());
        config[8..12].copy_from_slice(&SIZE_MAX.to_le_bytes());
        config[12..].copy_from_slice(&SEG_MAX.to_le_bytes());
        read_config_bytes(&config, offset, data);
    }

    fn activate(&mut self, _features: u64) {}

    /// The limits stay what they are: a guest cannot shake them off.
    fn reset(&mut self) {}

    fn sources(&self) -> Vec<Source> {
        vec![Source { fd: self.limiter.as_raw_fd(), token: 0, events: EventSet::IN }]
    }

    fn queue_event(&mut self, queue: usize, io: &mut DeviceIo) -> Result<(), BrokenQueue> {
        self.metrics.queue_event_count.inc();
        self.serve_queue(queue, io)
    }

    fn failed(&self, failure: Failure) {
        match failure {
            Failure::Activation => self.metrics.activate_fails.inc(),
            Failure::Queue(_) => self.metrics.event_fails.inc(),
        }
    }

    fn source_event(
        &mut self,
        _token: u32,
        _events: EventSet,
        io: &mut DeviceIo,
    ) -> Result<(), BrokenQueue> {
        if !self.limiter.resume() {
            return Ok(());
        }
        self.metrics.rate_limiter_event_count.inc();
        self.serve_queue(QUEUE, io)
    }
}

/// Nobody is left who could be told, but who reads the log.
impl Drop for Block {
    fn drop(&mut self) {
        if self.config.flush
            && let Err(e) = self.disk.settle()
        {
            let (id, path) = (&self.config.id, &self.config.path);
            log::error!("drive {id:?}: what the guest wrote to {path:?} may be lost: {e}");
        }
    }
}

impl Savable for Block {
    fn version(&self) -> u32 {
        VERSION
    }

    fn save(&self) -> Vec<u8> {
        // What the guest wrote is on the disk: `settle` comes before.
        state::encode(&BlockStateV2 {
            sectors: self.disk.sectors(),
            read_only: self.config.read_only,
            limiter: self.limiter.save(),
        })
    }

    fn restore(&mut self, version: u32, bytes: &[u8]) -> Result<(), StateError> {
        let BlockStateV2 { sectors, read_only, limiter } = match version {
            1 => {
                let BlockStateV1 { sectors, read_only } = state::decode(version, 1, bytes)?;
                BlockStateV2 { sectors, read_only, limiter: LimiterState::default() }
            }
            _ => state::decode(version, VERSION, bytes)?,
        };
        let have = self.disk.sectors();
        if (sectors, read_only) != (have, self.config.read_only) {
            return Err(StateError::Invalid(format!(
                "drive {:?} had {sectors} sectors (read only: {read_only}), {:?} has {have} ({})",
                self.config.id, self.config.path, self.config.read_only
            )));
        }
        self.limiter.restore(limiter);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
