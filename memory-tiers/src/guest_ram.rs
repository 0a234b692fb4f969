//! The sole owner of guest memory: one reservation, cut into the regions of the memory map.

use std::num::NonZeroUsize;
use std::sync::Arc;

use varve_snapshot::{PAGE_SIZE, PageRange};
use vm_memory::bitmap::AtomicBitmap;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionMmap};

use crate::error::RamError;
use crate::sys::mmap::Reservation;

/// Guest memory as vm-memory sees it, with a bitmap of the monitor's own writes when wanted.
pub type GuestMemory = GuestMemoryMmap<Option<AtomicBitmap>>;

/// Regions start at huge page borders in the host as in the guest, so that 2 MiB pages fit.
const REGION_ALIGN: usize = 2 << 20;

/// One run of guest memory and where it is in this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RamRegion {
    /// Guest physical pages.
    pub pages: PageRange,
    /// Host virtual address of the first byte.
    pub host: u64,
}

/// The guest's memory. Views of it ([`GuestRam::memory`]) keep no memory alive: the owner must
/// outlive vCPUs and devices, which the monitor's machine sees to by its field order.
#[derive(Debug)]
pub struct GuestRam {
    memory: GuestMemory,
    regions: Vec<RamRegion>,
    reservation: Arc<Reservation>,
}

impl GuestRam {
    /// Memory for `ranges` (sorted, apart), all zero. With `track_writes` the view keeps a bitmap of
    /// the pages that the monitor writes.
    pub fn new(ranges: &[PageRange], track_writes: bool) -> Result<GuestRam, RamError> {
        if ranges.is_empty() {
            return Err(RamError::NoRegion);
        }
        if let Some(pair) = ranges.windows(2).find(|w| w[0].end() > w[1].start()) {
            return Err(RamError::Regions(pair[1]));
        }
        // Each region begins as far behind a 2 MiB border as its guest address does.
        let mut offset = 0usize;
        let mut offsets = Vec::with_capacity(ranges.len());
        for range in ranges {
            offset = offset.next_multiple_of(REGION_ALIGN)
                + (range.start() % REGION_ALIGN as u64) as usize;
            offsets.push(offset);
            offset = usize::try_from(range.len())
                .ok()
                .and_then(|len| offset.checked_add(len))
                .ok_or(RamError::Regions(*range))?;
        }
        let reservation = Reservation::new(offset, REGION_ALIGN)
            .map_err(|source| RamError::Reserve { len: offset as u64, source })?;
        let regions = ranges
            .iter()
            .zip(offsets)
            .map(|(&pages, o)| RamRegion {
                pages,
                host: reservation.address().wrapping_byte_add(o) as u64,
            })
            .collect::<Vec<_>>();
        let views = regions
            .iter()
            .map(|region| view(region, track_writes))
            .collect::<Result<Vec<_>, _>>()?;
        let memory = GuestMemory::from_regions(views).map_err(|e| RamError::View(e.to_string()))?;
        Ok(GuestRam { memory, regions, reservation: Arc::new(reservation) })
    }

    /// A view for vCPUs, loaders and devices.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// The regions, sorted.
    pub fn regions(&self) -> &[RamRegion] {
        &self.regions
    }

    /// Bytes of guest memory.
    pub fn size(&self) -> u64 {
        self.regions.iter().map(|r| r.pages.len()).sum()
    }

    /// Gives pages back to the host; the guest reads them as zero afterwards.
    pub fn discard(&self, range: PageRange) -> Result<(), RamError> {
        let region = self
            .regions
            .iter()
            .find(|r| r.pages.contains(&range))
            .ok_or(RamError::NotMemory(range))?;
        let host = region.host + (range.start() - region.pages.start());
        let offset = host as usize - self.reservation.address() as usize;
        self.reservation
            .discard(offset, range.len() as usize)
            .map_err(|source| RamError::Discard { range, source })
    }
}

/// The vm-memory region over `region`.
#[allow(unsafe_code)]
fn view(
    region: &RamRegion,
    track_writes: bool,
) -> Result<GuestRegionMmap<Option<AtomicBitmap>>, RamError> {
    let len = region.pages.len() as usize;
    let page = const { NonZeroUsize::new(PAGE_SIZE as usize).expect("a page has bytes") };
    let bitmap = track_writes.then(|| AtomicBitmap::new(len, page));
    let builder = MmapRegionBuilder::new_with_bitmap(len, bitmap)
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
        .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE);
    // SAFETY: the region lies inside the reservation, which stays mapped while `GuestRam` lives.
    let mapping = unsafe { builder.with_raw_mmap_pointer(region.host as *mut u8) }
        .build()
        .map_err(|e| RamError::View(e.to_string()))?;
    GuestRegionMmap::new(mapping, GuestAddress(region.pages.start()))
        .ok_or(RamError::Regions(region.pages))
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::{Bytes, GuestMemoryBackend};

    fn range(start: u64, len: u64) -> PageRange {
        PageRange::new(start, len).unwrap()
    }

    #[test]
    fn regions_keep_their_alignment_and_content() {
        let ram = GuestRam::new(&[range(0, 0x40_3000), range(1 << 32, 0x20_0000)], false).unwrap();
        assert_eq!(ram.size(), 0x60_3000);
        for region in ram.regions() {
            let mask = REGION_ALIGN as u64 - 1;
            assert_eq!(region.host & mask, region.pages.start() & mask);
        }
        ram.memory().write_obj(7u32, GuestAddress((1 << 32) + 8)).unwrap();
        assert_eq!(ram.memory().read_obj::<u32>(GuestAddress((1 << 32) + 8)).unwrap(), 7);
        assert!(ram.memory().read_obj::<u32>(GuestAddress(0x40_3000)).is_err());
        assert_eq!(ram.memory().num_regions(), 2);
    }

    #[test]
    fn discarded_pages_read_as_zero() {
        let ram = GuestRam::new(&[range(0, 0x10_0000)], true).unwrap();
        ram.memory().write_slice(&[9; 0x3000], GuestAddress(0x4000)).unwrap();
        ram.discard(range(0x5000, 0x1000)).unwrap();
        let mut data = [1; 0x3000];
        ram.memory().read_slice(&mut data, GuestAddress(0x4000)).unwrap();
        assert_eq!(data[..0x1000], [9; 0x1000]);
        assert_eq!(data[0x1000..0x2000], [0; 0x1000]);
        assert_eq!(data[0x2000..], [9; 0x1000]);
        assert!(matches!(ram.discard(range(0xf_f000, 0x2000)), Err(RamError::NotMemory(_))));
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(matches!(GuestRam::new(&[], false), Err(RamError::NoRegion)));
        let overlap = [range(0, 0x2000), range(0x1000, 0x1000)];
        assert!(matches!(GuestRam::new(&overlap, false), Err(RamError::Regions(_))));
        let huge = [range(0, 1 << 62)];
        assert!(matches!(GuestRam::new(&huge, false), Err(RamError::Reserve { .. })));
    }
}
