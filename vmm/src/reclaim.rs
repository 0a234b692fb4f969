//! The balloon's way to give pages of guest memory back to the host.

use std::io;
use std::sync::Arc;

use varve_devices::memory::Reclaim;
use varve_memory_tiers::{GuestRam, RamError};
use varve_snapshot::PageRange;
use vm_memory::bitmap::Bitmap;
use vm_memory::{GuestAddress, GuestMemoryBackend};

/// Discards pages of this memory.
pub struct RamReclaim(pub Arc<GuestRam>);

impl Reclaim for RamReclaim {
    fn discard(&self, gpa: u64, len: u64) -> io::Result<()> {
        let range =
            PageRange::new(gpa, len).map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))?;
        self.0.discard(range).map_err(|e| match e {
            RamError::Discard { source, .. } => source,
            other => io::Error::new(io::ErrorKind::InvalidInput, other),
        })?;
        // The content changed, and KVM's log does not know.
        let slices = self.0.memory().get_slices(GuestAddress(gpa), len as usize);
        slices.flatten().for_each(|slice| slice.bitmap().mark_dirty(0, slice.len()));
        Ok(())
    }
}
