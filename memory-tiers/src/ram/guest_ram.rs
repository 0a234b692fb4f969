//! The sole owner of guest memory: one reservation, cut into the regions of the memory map.

use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use varve_snapshot::{PAGE_SIZE, PageRange};
use vm_memory::bitmap::AtomicBitmap;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionMmap};

use crate::ram::error::RamError;
use crate::ram::kind::{HUGE_PAGE, HugePages, PrefaultMode};
use crate::ram::missing::Missing;
use crate::ram::ranges::RangeSet;
use crate::ram::regions::{RamRegion, Regions};
use crate::ram::sys::mmap::Reservation;

/// Guest memory as vm-memory sees it, with a bitmap of the monitor's own writes when wanted.
pub type GuestMemory = GuestMemoryMmap<Option<AtomicBitmap>>;

/// What lies over the base layer.
#[derive(Debug)]
pub(crate) struct Layers {
    /// Pages over which a file is laid.
    pub files: RangeSet,
    /// Mappings that giving pages back may still add.
    pub room: usize,
}

impl Layers {
    /// Mappings that are added when a part of a file is covered: inside, it splits that in three; at
    /// its border, in two.
    fn added(&self, part: PageRange) -> usize {
        let beside = |at: u64| usize::from(self.files.has(at));
        beside(part.end()) + part.start().checked_sub(1).map_or(0, beside)
    }

    /// Whether there is room for covering a part of a file.
    pub fn fits(&self, part: PageRange) -> bool {
        self.added(part) <= self.room
    }

    /// A part of a file was covered.
    pub fn covered(&mut self, part: PageRange) {
        self.room = self.room.saturating_sub(self.added(part));
        self.files.remove(part);
    }
}

/// The guest's memory. Views of it ([`GuestRam::memory`]) keep no memory alive: the owner must
/// outlive vCPUs and devices, which the monitor's machine sees to by its field order.
#[derive(Debug)]
pub struct GuestRam {
    memory: GuestMemory,
    regions: Regions,
    huge: HugePages,
    layers: Mutex<Layers>,
    // Dropped before the memory, and no earlier: see `watch`.
    watched: OnceLock<Arc<dyn Missing>>,
    reservation: Reservation,
}

/// Mappings that giving pages back may add if no plan says otherwise: a quarter of the kernel's
/// default limit.
const DEFAULT_ROOM: usize = 16_384;

impl GuestRam {
    /// Memory for `ranges` (sorted, apart), all zero. With `track_writes` the view keeps a bitmap of
    /// the pages that the monitor writes.
    pub fn new(ranges: &[PageRange], track_writes: bool) -> Result<GuestRam, RamError> {
        GuestRam::with_pages(ranges, track_writes, HugePages::Off)
    }

    /// The same, of pages of the given kind.
    pub fn with_pages(
        ranges: &[PageRange],
        track_writes: bool,
        huge: HugePages,
    ) -> Result<GuestRam, RamError> {
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
            offset =
                offset.next_multiple_of(HUGE_PAGE) + (range.start() % HUGE_PAGE as u64) as usize;
            offsets.push(offset);
            offset = usize::try_from(range.len())
                .ok()
                .and_then(|len| offset.checked_add(len))
                .ok_or(RamError::Regions(*range))?;
        }
        let len = offset as u64;
        let reservation = match huge {
            HugePages::Pool => Reservation::new_hugetlb(offset)
                .map_err(|source| RamError::HugePages { len, source })?,
            _ => Reservation::new(offset, HUGE_PAGE)
                .map_err(|source| RamError::Reserve { len, source })?,
        };
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
        let layers = Mutex::new(Layers { files: RangeSet::default(), room: DEFAULT_ROOM });
        let watched = OnceLock::new();
        let regions = Regions::new(regions);
        let ram = GuestRam { memory, regions, huge, layers, watched, reservation };
        if huge == HugePages::Transparent {
            for &range in ranges {
                ram.call("use huge pages for", range, |r, o, len| r.want_huge(o, len))?;
            }
        }
        Ok(ram)
    }

    /// A view for vCPUs, loaders and devices.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// The regions, sorted.
    pub fn regions(&self) -> &[RamRegion] {
        self.regions.all()
    }

    /// Bytes of guest memory.
    pub fn size(&self) -> u64 {
        self.regions().iter().map(|r| r.pages.len()).sum()
    }

    /// What kind of pages it is made of.
    pub fn huge_pages(&self) -> HugePages {
        self.huge
    }

    /// Mappings that guest memory consists of now.
    pub fn mappings(&self) -> io::Result<usize> {
        let first = self.reservation.address() as u64;
        let end = self.regions().last().map_or(first, RamRegion::host_end);
        let maps = std::fs::read_to_string("/proc/self/maps")?;
        let start = |line: &str| u64::from_str_radix(line.split('-').next()?, 16).ok();
        Ok(maps.lines().filter_map(start).filter(|at| (first..end).contains(at)).count())
    }

    /// Where `range` begins in the reservation.
    pub(crate) fn offset(&self, range: PageRange) -> Result<usize, RamError> {
        Ok((self.places().host(range)? - self.reservation.address() as u64) as usize)
    }

    /// Guest physical address of a host address. It allocates nothing and takes no lock.
    pub fn guest_address(&self, host: u64) -> Option<u64> {
        self.places().guest_address(host)
    }

    /// Where its pages are in this process.
    pub(crate) fn places(&self) -> &Regions {
        &self.regions
    }

    pub(crate) fn reservation(&self) -> &Reservation {
        &self.reservation
    }

    /// Lays a file's pages over `range`.
    pub(crate) fn lay_file(
        &self,
        range: PageRange,
        file: &File,
        from: u64,
    ) -> Result<(), RamError> {
        let mut layers = self.layers();
        self.call("map", range, |r, o, len| r.map_file(o, len, file, from))?;
        layers.files.insert(range);
        if let Some(watched) = self.watched.get() {
            watched.forget(range);
        }
        Ok(())
    }

    /// Makes `range` present; see [`Reservation::populate`].
    pub(crate) fn populate(&self, range: PageRange, how: PrefaultMode) -> Result<(), RamError> {
        self.call("populate", range, |r, o, len| r.populate(o, len, how))
    }

    /// Copies `data` in, unseen by the bitmap of the monitor's writes: it is restored, not written.
    pub(crate) fn fill(&self, range: PageRange, data: &[u8]) -> Result<(), RamError> {
        self.call("fill", range, |r, o, len| {
            r.slice(o, len)?.copy_from(data);
            Ok(())
        })
    }

    /// A call of the reservation on `range`.
    pub(crate) fn call<T>(
        &self,
        what: &'static str,
        range: PageRange,
        call: impl FnOnce(&Reservation, usize, usize) -> io::Result<T>,
    ) -> Result<T, RamError> {
        let offset = self.offset(range)?;
        call(&self.reservation, offset, range.len() as usize).map_err(|source| RamError::Call {
            what,
            range,
            source,
        })
    }

    /// Keeps `watched` for as long as the memory lives.
    pub(crate) fn watch(&self, watched: Arc<dyn Missing>) -> Result<(), RamError> {
        self.watched.set(watched).map_err(|_| RamError::Watched)
    }

    /// The pages that are missing on purpose, if there are such.
    pub(crate) fn watched(&self) -> Option<&Arc<dyn Missing>> {
        self.watched.get()
    }

    /// Sets the number of mappings that giving pages back may add from now on.
    pub(crate) fn set_room(&self, mappings: usize) {
        self.layers().room = mappings;
    }

    pub(crate) fn layers(&self) -> MutexGuard<'_, Layers> {
        self.layers.lock().unwrap_or_else(PoisonError::into_inner)
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
            let mask = HUGE_PAGE as u64 - 1;
            assert_eq!(region.host & mask, region.pages.start() & mask);
        }
        ram.memory().write_obj(7u32, GuestAddress((1 << 32) + 8)).unwrap();
        assert_eq!(ram.memory().read_obj::<u32>(GuestAddress((1 << 32) + 8)).unwrap(), 7);
        assert!(ram.memory().read_obj::<u32>(GuestAddress(0x40_3000)).is_err());
        assert_eq!(ram.memory().num_regions(), 2);
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
