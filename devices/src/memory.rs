//! Guest memory as devices see it.

use vm_memory::GuestMemoryMmap;
use vm_memory::bitmap::AtomicBitmap;

/// Guest memory with a bitmap of pages that the monitor itself wrote (`None`: not tracked).
///
/// KVM's dirty log sees the guest's own writes only; what devices write goes through vm-memory and
/// is marked here, so that an incremental snapshot misses neither.
pub type DeviceMemory = GuestMemoryMmap<Option<AtomicBitmap>>;
