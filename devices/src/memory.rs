//! Guest memory as devices see it, and the way to give parts of it back to the host.

use std::io;

use vm_memory::GuestMemoryMmap;
use vm_memory::bitmap::AtomicBitmap;

/// Guest memory with a bitmap of pages that the monitor itself wrote (`None`: not tracked).
///
/// KVM's dirty log sees the guest's own writes only; what devices write goes through vm-memory and
/// is marked here, so that an incremental snapshot misses neither.
pub type DeviceMemory = GuestMemoryMmap<Option<AtomicBitmap>>;

/// Gives guest memory back to the host; whoever owns the memory implements it.
pub trait Reclaim: Send {
    /// Drops what `gpa..gpa + len` holds: from now on it reads as zero, until the guest writes it
    /// again. Both are multiples of 4 KiB and the range is guest memory, which may lie in more
    /// than one region. That the content changed is for the implementation to note, where dirty
    /// pages are tracked: no bitmap of [`DeviceMemory`] is marked.
    ///
    /// Called on the event loop's thread, while vCPUs run. An error leaves the content as it is.
    fn discard(&self, gpa: u64, len: u64) -> io::Result<()>;
}
