//! Pages that were taken out of guest memory: where each is now, and how it comes back.
//!
//! ```text
//!  guest memory ──take──> staged: aside, in this process ──commit──> kept: in a batch at the store
//!       ^                    │                                          │
//!       └─────── fault ──────┴──────────────── fault ───────────────────┘
//! ```
//!
//! A page is in guest memory or in this table, never in both: it enters when it is made missing and
//! leaves when it is put in place, both with [`Watched::discarded`] locked. What its source once held no
//! longer counts, so each page that enters is noted there, too.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use varve_snapshot::{PAGE_SIZE, PageRange, is_zero};

use crate::error::TierError;
use crate::fault::backing_store::BackingStore;
use crate::fault::stats::Count;
use crate::fault::watched::Watched;
use crate::ram::error::RamError;
use crate::ram::guest_ram::GuestRam;
use crate::ram::regions::Regions;
use crate::ram::sys::mmap::Reservation;
use crate::ram::sys::uffd::{Install, Installed};

/// Pages of a batch that are read together when one of them is asked for.
const WINDOW: usize = 16;
const PAGE: usize = PAGE_SIZE as usize;

/// The table, and its counters.
#[derive(Default)]
pub(crate) struct Evicted {
    state: Mutex<State>,
    /// Called when a batch has no page any more.
    pub on_freed: OnceLock<Box<dyn Fn() + Send + Sync>>,
    pub stats: EvictionStats,
}

#[derive(Default)]
struct State {
    /// By guest address.
    pages: BTreeMap<u64, Place>,
    batches: HashMap<u64, Batch>,
    staged: u64,
    /// Parcels that are wanted no more.
    freed: Vec<u64>,
    store: Option<Arc<dyn BackingStore>>,
}

/// Where a page is.
#[derive(Clone)]
enum Place {
    /// At an offset of memory of this process.
    Staged(Arc<Reservation>, usize),
    /// In a batch: its number, and which of its pages.
    Kept(u64, usize),
}

struct Batch {
    /// Guest addresses.
    pages: Vec<u64>,
    /// Pages that are still in it.
    left: usize,
}

/// Pages, counted as they go and come.
#[derive(Debug, Default)]
pub(crate) struct EvictionStats {
    pub taken: Count,
    pub zero: Count,
    pub sent: Count,
    pub touched: Count,
    pub faults: Count,
    pub fetched: Count,
    pub recalled: Count,
    pub discarded: Count,
}

impl std::fmt::Debug for Evicted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Evicted").field("stats", &self.stats).finish_non_exhaustive()
    }
}

impl State {
    /// Takes a page out of the table, for it is in place, or zero.
    fn remove(&mut self, page: u64) -> Option<Place> {
        let place = self.pages.remove(&page)?;
        match &place {
            Place::Staged(memory, at) => {
                self.staged -= 1;
                // The rest of the stage may stay for a while.
                let _ = memory.discard(*at, PAGE);
            }
            Place::Kept(number, _) => self.leave(*number),
        }
        Some(place)
    }

    fn leave(&mut self, number: u64) {
        if let Some(batch) = self.batches.get_mut(&number) {
            batch.left -= 1;
            if batch.left == 0 {
                self.batches.remove(&number);
                self.freed.push(number);
            }
        }
    }
}

impl Evicted {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Staged pages, and kept ones.
    pub fn counts(&self) -> (u64, u64) {
        let state = self.state();
        (state.staged, state.pages.len() as u64 - state.staged)
    }

    /// Whether a page has to come from a store.
    pub fn is_far(&self, page: u64) -> bool {
        matches!(self.state().pages.get(&page), Some(Place::Kept(..)))
    }

    /// Whether a page is in it.
    pub fn has(&self, page: u64) -> bool {
        self.state().pages.contains_key(&page)
    }

    /// Where kept pages are.
    pub fn store(&self) -> Option<Arc<dyn BackingStore>> {
        self.state().store.clone()
    }

    /// Where pages will be kept from now on. Those that are kept already must be there, too.
    pub fn set_depot(&self, store: Arc<dyn BackingStore>) {
        self.state().store = Some(store);
    }

    /// Addresses of staged pages.
    pub fn staged(&self) -> Vec<u64> {
        let state = self.state();
        let staged = state.pages.iter().filter(|(_, place)| matches!(place, Place::Staged(..)));
        staged.map(|(&page, _)| page).collect()
    }

    /// One of the batches: its number, a page that is in it, and the guest addresses of all that were.
    pub fn some_batch(&self) -> Option<(u64, u64, Vec<u64>)> {
        let state = self.state();
        let (&number, batch) = state.batches.iter().next()?;
        let is_in =
            |page: &&u64| matches!(state.pages.get(page), Some(Place::Kept(n, _)) if *n == number);
        let page = *batch.pages.iter().find(is_in)?;
        Some((number, page, batch.pages.clone()))
    }

    /// Copies those of `pages` that are staged into `data`, and returns which they are.
    pub fn copy_staged(&self, pages: &[u64], data: &mut Vec<u8>) -> std::io::Result<Vec<u64>> {
        let state = self.state();
        let mut found = Vec::with_capacity(pages.len());
        data.clear();
        for page in pages {
            if let Some(Place::Staged(memory, at)) = state.pages.get(page) {
                let end = data.len();
                data.resize(end + PAGE, 0);
                memory.slice(*at, PAGE)?.copy_to(&mut data[end..]);
                found.push(*page);
            }
        }
        Ok(found)
    }

    /// `pages`, as they were copied, are in a batch now: those that are still staged are kept there
    /// from here on.
    pub fn commit(&self, number: u64, pages: Vec<u64>) {
        let mut state = self.state();
        let mut left = 0;
        for (at, page) in pages.iter().enumerate() {
            if let Some(place @ Place::Staged(..)) = state.pages.get_mut(page) {
                *place = Place::Kept(number, at);
                left += 1;
            }
        }
        state.staged -= left as u64;
        self.stats.sent.add(left as u64);
        match left {
            0 => state.freed.push(number),
            _ => drop(state.batches.insert(number, Batch { pages, left })),
        }
    }

    /// Parcels that are wanted no more, since the last call.
    pub fn take_freed(&self) -> Vec<u64> {
        std::mem::take(&mut self.state().freed)
    }

    /// These pages were given back: they are zero, wherever they are.
    pub fn forget(&self, pages: PageRange) {
        let mut state = self.state();
        let gone: Vec<u64> =
            state.pages.range(pages.start()..pages.end()).map(|(&page, _)| page).collect();
        gone.iter().for_each(|&page| drop(state.remove(page)));
        self.stats.discarded.add(gone.len() as u64);
        self.tell_freed(state);
    }

    fn tell_freed(&self, state: MutexGuard<'_, State>) {
        let freed = !state.freed.is_empty();
        drop(state);
        if let (true, Some(on_freed)) = (freed, self.on_freed.get()) {
            on_freed();
        }
    }
}

/// Pages that follow each other in a batch.
#[derive(Clone, Copy)]
pub(crate) struct Part<'p> {
    pub batch: u64,
    /// Number of the first of them in the batch.
    pub first: usize,
    /// Guest addresses.
    pub pages: &'p [u64],
}

/// The counter for a page that comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Back {
    /// It, or a neighbour, was touched.
    Touched,
    /// All were called back, or could not be sent.
    Called,
}

impl Watched {
    /// Makes pages missing that are present and of memory that is watched, and keeps what they hold at
    /// `offset` of `stage`; tells how many bytes of that are used now. Zero pages are let go. Nobody
    /// may use the memory meanwhile. `remove` makes them missing.
    pub fn take(
        &self,
        ram: &GuestRam,
        pages: PageRange,
        stage: &Arc<Reservation>,
        offset: usize,
        remove: impl FnOnce() -> Result<(), RamError>,
    ) -> Result<usize, RamError> {
        let nothing_comes_back = self.empty(pages);
        let (mut end, mut taken) = (offset, Vec::new());
        let mut data = [0; PAGE];
        for page in (pages.start()..pages.end()).step_by(PAGE) {
            let one = PageRange::new(page, PAGE_SIZE).map_err(|_| RamError::NotMemory(pages))?;
            ram.call("read", one, |r, o, len| {
                r.slice(o, len)?.copy_to(&mut data);
                Ok(())
            })?;
            if is_zero(&data) {
                self.evicted.stats.zero.add(1);
                continue;
            }
            let call = |source| RamError::Call { what: "set aside", range: one, source };
            stage.slice(end, PAGE).map_err(call)?.copy_from(&data);
            taken.push((page, Place::Staged(stage.clone(), end)));
            end += PAGE;
        }
        if let Err(error) = remove() {
            // Whatever is there now holds what it held.
            drop(nothing_comes_back);
            for (page, place) in taken {
                let Place::Staged(stage, at) = place else { continue };
                let one =
                    PageRange::new(page, PAGE_SIZE).map_err(|_| RamError::NotMemory(pages))?;
                let call = |source| RamError::Call { what: "set aside", range: one, source };
                stage.slice(at, PAGE).map_err(call)?.copy_to(&mut data);
                ram.fill(one, &data)?;
            }
            return Err(error);
        }
        let mut state = self.evicted.state();
        state.staged += taken.len() as u64;
        self.evicted.stats.taken.add(taken.len() as u64);
        state.pages.extend(taken);
        Ok(end - offset)
    }

    /// Puts the page at `page`, which a thread waits for, in place if it is away, and its neighbours in
    /// its batch; whether it was away.
    pub fn bring_back(
        &self,
        regions: &Regions,
        page: u64,
        buffer: &mut Vec<u8>,
    ) -> Result<bool, TierError> {
        let state = self.evicted.state();
        let (number, at, store) = match (state.pages.get(&page), &state.store) {
            (Some(&Place::Kept(number, at)), Some(store)) => (number, at, store.clone()),
            (None, _) => return Ok(false),
            _ => {
                drop(state);
                self.put_staged(regions, page, Back::Touched)?;
                return Ok(true);
            }
        };
        let batch = state.batches.get(&number);
        let first = at / WINDOW * WINDOW;
        let window = batch.and_then(|p| p.pages.get(first..p.pages.len().min(first + WINDOW)));
        let window = window.unwrap_or_default().to_vec();
        drop(state);
        self.evicted.stats.faults.add(1);
        let part = Part { batch: number, first, pages: &window };
        self.fetch(regions, part, page, &*store, buffer, Back::Touched)?;
        Ok(true)
    }

    /// Brings pages of a batch back, those that are still in it. Fails if `wanted` cannot be had.
    pub fn fetch(
        &self,
        regions: &Regions,
        Part { batch: number, first, pages }: Part<'_>,
        wanted: u64,
        store: &dyn BackingStore,
        buffer: &mut Vec<u8>,
        back: Back,
    ) -> Result<(), TierError> {
        buffer.resize(pages.len() * PAGE, 0);
        if let Err(source) = store.read(number, first as u64, buffer) {
            // Another thread may have brought it back, and then its batch is no more.
            let state = self.evicted.state();
            if !matches!(state.pages.get(&wanted), Some(Place::Kept(n, _)) if *n == number) {
                return Ok(());
            }
            let pages = PageRange::new(wanted, PAGE_SIZE).map_err(plan)?;
            return Err(TierError::Evicted { pages, source });
        }
        let _emptied = self.discarded.read().unwrap_or_else(PoisonError::into_inner);
        let mut state = self.evicted.state();
        let mut came = 0;
        for ((&page, data), at) in pages.iter().zip(buffer.chunks_exact(PAGE)).zip(first..) {
            let here = matches!(state.pages.get(&page),
                Some(&Place::Kept(n, a)) if (n, a) == (number, at));
            if here {
                self.put(regions, page, data)?;
                state.remove(page);
                came += 1;
            }
        }
        match back {
            Back::Touched => self.evicted.stats.fetched.add(came),
            Back::Called => self.evicted.stats.recalled.add(came),
        }
        self.evicted.tell_freed(state);
        Ok(())
    }

    /// Puts a staged page in place, if it still is one.
    pub fn put_staged(&self, regions: &Regions, page: u64, back: Back) -> Result<(), TierError> {
        let _emptied = self.discarded.read().unwrap_or_else(PoisonError::into_inner);
        let mut state = self.evicted.state();
        let Some(Place::Staged(memory, at)) = state.pages.get(&page) else { return Ok(()) };
        let mut data = [0; PAGE];
        let range = PageRange::new(page, PAGE_SIZE).map_err(plan)?;
        let call = |source| RamError::Call { what: "read what was set aside of", range, source };
        memory.slice(*at, PAGE).map_err(call)?.copy_to(&mut data);
        self.put(regions, page, &data)?;
        state.remove(page);
        match back {
            Back::Touched => self.evicted.stats.touched.add(1),
            Back::Called => self.evicted.stats.recalled.add(1),
        }
        Ok(())
    }

    /// Installs one page, which is missing, and wakes who waits for it.
    fn put(&self, regions: &Regions, page: u64, data: &[u8]) -> Result<(), TierError> {
        let pages = PageRange::new(page, PAGE_SIZE).map_err(plan)?;
        let at = regions.host(pages)?;
        let call = |source| RamError::Call { what: "bring back", range: pages, source };
        loop {
            match self.uffd.copy(at, data, Install::Plain).map_err(call)? {
                Installed::All => return Ok(()),
                Installed::Part(_) => {}
                // It would be in both places.
                Installed::Present => {
                    return Err(call(std::io::ErrorKind::AlreadyExists.into()).into());
                }
            }
        }
    }
}

fn plan(error: impl std::fmt::Display) -> TierError {
    TierError::Plan(error.to_string())
}
