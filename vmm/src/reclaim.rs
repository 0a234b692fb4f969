//! The balloon's way to give pages of guest memory back to the host.

use std::io;
use std::sync::Arc;

use varve_devices::memory::Reclaim;
use varve_memory_tiers::{GuestRam, RamError};
use varve_snapshot::PageRange;

/// Discards pages of this memory.
pub struct RamReclaim(pub Arc<GuestRam>);

impl Reclaim for RamReclaim {
    fn discard(&self, gpa: u64, len: u64) -> io::Result<()> {
        let invalid = |e: Box<dyn std::error::Error + Send + Sync>| {
            io::Error::new(io::ErrorKind::InvalidInput, e)
        };
        let range = PageRange::new(gpa, len).map_err(|e| invalid(e.into()))?;
        self.0.discard(range).map_err(|e| match e {
            RamError::Discard { source, .. } | RamError::Call { source, .. } => source,
            other => invalid(other.into()),
        })
    }
}
