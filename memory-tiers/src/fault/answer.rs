//! The answer to a fault: the page from its source, verified, with the neighbours that were read with
//! it; or zero, where that is what the page holds.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use varve_snapshot::{PAGE_SIZE, PageClass, PageRange, RegionMap, Stored};

use crate::error::TierError;
use crate::fault::stats::Stats;
use crate::fault::threads::Work;
use crate::fault::watchdog::{Pending, lock};
use crate::fault::watched::Watched;
use crate::plan::policy::DEFAULT_DEADLINE;
use crate::plan::stored::stored_at;
use crate::ram::error::RamError;
use crate::ram::guest_ram::GuestRam;
use crate::ram::ranges::RangeSet;
use crate::ram::regions::Regions;
use crate::ram::sys::uffd::{Fault, Install, Installed};
use crate::source::chunk::Chunk;
use crate::source::page_source::{Sources, lost, source_of};

/// Memory whose missing pages are asked for, and all that an answer needs.
pub(crate) struct FaultContext {
    /// Where guest pages are, in the process that owns them.
    pub regions: Regions,
    /// Bytes of its pages.
    pub page_size: u64,
    pub watched: Arc<Watched>,
    /// Where each page's content is in `sources`.
    pub layout: RegionMap,
    /// The same, by image and page in it.
    pub order: Arc<Vec<(Stored, PageRange)>>,
    pub sources: Sources,
    pub stats: Arc<Stats>,
    /// Limit of the time of one read from a source.
    pub deadline: Duration,
    /// Called when a page cannot be had.
    pub on_fatal: Arc<dyn Fn(TierError) + Send + Sync>,
}

impl FaultContext {
    /// What `watched`, of memory that comes from nowhere, asks for: what was not taken out is zero.
    pub fn of_nothing(
        ram: &GuestRam,
        watched: Arc<Watched>,
        on_fatal: Arc<dyn Fn(TierError) + Send + Sync>,
    ) -> Result<FaultContext, TierError> {
        let memory: Vec<PageRange> = ram.regions().iter().map(|r| r.pages).collect();
        let layout =
            RegionMap::new(Vec::new(), &memory).map_err(|e| TierError::Plan(e.to_string()))?;
        Ok(FaultContext {
            regions: ram.places().clone(),
            page_size: PAGE_SIZE,
            watched,
            layout,
            order: Arc::default(),
            sources: Sources::new(),
            stats: Arc::new(Stats::new(0)),
            deadline: DEFAULT_DEADLINE,
            on_fatal,
        })
    }

    /// Whether it still counts for a page what its source holds.
    fn is_at_source(&self, page: u64) -> bool {
        let has =
            |set: &RwLock<RangeSet>| set.read().unwrap_or_else(PoisonError::into_inner).has(page);
        has(&self.watched.pages) && !has(&self.watched.discarded)
    }
}

/// One thread's means to answer.
pub(crate) struct FaultHandler {
    pub context: Arc<FaultContext>,
    pub work: Arc<Work>,
    pending: Arc<Pending>,
    buffer: Vec<u8>,
    chunk: Chunk,
}

impl FaultHandler {
    pub fn new(context: Arc<FaultContext>, work: Arc<Work>, pending: Arc<Pending>) -> FaultHandler {
        FaultHandler { context, work, pending, buffer: Vec::new(), chunk: Chunk::default() }
    }

    /// Answers, or leaves it to another thread.
    pub fn answer(&mut self, fault: Fault) {
        if !self.is_far(&fault) {
            return self.answer_now(fault);
        }
        if !self.work.may_wait(fault) {
            return;
        }
        self.answer_now(fault);
        while let Some(fault) = self.work.next_far() {
            self.answer_now(fault);
        }
    }

    /// Whether the page may be long in coming.
    fn is_far(&self, fault: &Fault) -> bool {
        let context = &self.context;
        let Some(page) = context.regions.guest_address(fault.address) else { return false };
        if context.watched.evicted.is_far(page) {
            return true;
        }
        let Some(from) = stored_at(&context.layout, page).filter(|_| context.is_at_source(page))
        else {
            return false;
        };
        source_of(&context.sources, from.image).is_ok_and(|source| {
            let unit = source.info().chunk_pages.max(1);
            source.is_far(from.page / unit * unit)
        })
    }

    fn answer_now(&mut self, fault: Fault) {
        let context = self.context.clone();
        let started = Instant::now();
        // Of a large page the fault is somewhere inside; its region begins where one does.
        let address = fault.address & !(context.page_size - 1);
        let Some(page) = context.regions.guest_address(address) else {
            let source = std::io::ErrorKind::AddrNotAvailable.into();
            return (context.on_fatal)(TierError::Fault { address, source });
        };
        let done = match self.bring_back(page) {
            Ok(true) => one(page).and_then(|pages| self.wake(pages)),
            Ok(false) => self.answer_from_source(page, fault.write),
            Err(error) => Err(error),
        };
        match done {
            Ok(()) => {
                let took = started.elapsed();
                context.stats.fault_time.add_time(started);
                context.stats.slowest_fault.raise(took);
                context.stats.fault_latency.add(took);
            }
            Err(error) => (context.on_fatal)(error),
        }
    }

    /// A page that was taken out; whether it is one.
    fn bring_back(&mut self, page: u64) -> Result<bool, TierError> {
        *lock(&self.pending) = Some((Instant::now(), one(page)?, None));
        let back = self.context.watched.bring_back(&self.context.regions, page, &mut self.buffer);
        *lock(&self.pending) = None;
        back
    }

    /// A page that was not taken out.
    fn answer_from_source(&mut self, page: u64, write: bool) -> Result<(), TierError> {
        let context = self.context.clone();
        let region = context.layout.find(page);
        context.stats.fault(region.map_or(PageClass::Zero, |r| r.class), write);
        match stored_at(&context.layout, page) {
            _ if context.page_size != PAGE_SIZE => self.whole(page),
            Some(from) if context.is_at_source(page) => self.fetch(page, from),
            _ => self.zero(page, write),
        }
    }

    /// Zero: a page to write on at once, or the one that all share. One that was taken out meanwhile is
    /// left alone: who waits looks again.
    fn zero(&self, page: u64, write: bool) -> Result<(), TierError> {
        let FaultContext { watched, stats, .. } = &*self.context;
        let (pages, uffd) = (one(page)?, &watched.uffd);
        let at = self.context.regions.host(pages)?;
        let zeros = [0; PAGE_SIZE as usize];
        loop {
            let discarded = watched.discarded.read().unwrap_or_else(PoisonError::into_inner);
            if watched.evicted.has(page) {
                break;
            }
            let done = match write {
                true => uffd.copy(at, &zeros, Install::Quiet),
                false => uffd.zero(at, zeros.len()),
            };
            drop(discarded);
            match settled(pages, done)? {
                Some(Installed::Part(_)) => {
                    self.work.make_way(&self.context)?;
                    continue;
                }
                Some(Installed::All) => stats.zeroed.add(1),
                Some(Installed::Present) => stats.late.add(1),
                None => {}
            }
            break;
        }
        self.wake(pages)
    }

    /// Brings in the chunk that holds the page, all that is watched of it.
    fn fetch(&mut self, page: u64, from: Stored) -> Result<(), TierError> {
        let context = self.context.clone();
        let source = source_of(&context.sources, from.image)?;
        let info = source.info();
        let unit = info.chunk_pages.max(1);
        let first = from.page / unit * unit;
        let count = unit.min(info.pages.saturating_sub(first));
        let wanted = one(page)?;
        self.buffer.resize((count * PAGE_SIZE) as usize, 0);
        *lock(&self.pending) = Some((Instant::now(), wanted, Some(from)));
        let read = source.read(first, &mut self.buffer);
        *lock(&self.pending) = None;
        read.map_err(|cause| lost(wanted, source, cause))?;
        context.stats.read(from.image.0, count);
        // The page that is waited for first, counted before its threads go on, then its neighbours.
        let at = ((from.page - first) * PAGE_SIZE) as usize;
        let data = self.buffer.get(at..at + PAGE_SIZE as usize).unwrap_or_default();
        let placed = self.place(wanted, data, Install::Quiet)?;
        context.stats.fetched.add(placed);
        if placed == 0 {
            context.stats.late.add(1);
        }
        self.wake(wanted)?;
        if count > 1 {
            self.place_along(Stored { page: first, ..from }, count)?;
        }
        Ok(())
    }

    /// Places what else the buffer, `count` pages of the image from `first` on, holds of watched
    /// memory.
    fn place_along(&self, first: Stored, count: u64) -> Result<(), TierError> {
        let context = &self.context;
        let end = first.page + count;
        let from = context.order.partition_point(|(stored, pages)| {
            (stored.image, stored.page + pages.pages()) <= (first.image, first.page)
        });
        for &(stored, pages) in context.order.get(from..).unwrap_or_default() {
            if stored.image != first.image || stored.page >= end {
                break;
            }
            let skip = first.page.saturating_sub(stored.page);
            let here = end.min(stored.page + pages.pages()) - (stored.page + skip);
            let range = PageRange::new(pages.start() + skip * PAGE_SIZE, here * PAGE_SIZE);
            let Ok(range) = range else { continue };
            let watched = context.watched.pages.read().unwrap_or_else(PoisonError::into_inner);
            let parts = watched.within(range);
            drop(watched);
            for part in parts.into_iter().flat_map(|part| context.regions.within(part)) {
                let in_image = stored.page + skip + (part.start() - range.start()) / PAGE_SIZE;
                let at = ((in_image - first.page) * PAGE_SIZE) as usize;
                let data = self.buffer.get(at..at + part.len() as usize).unwrap_or_default();
                let placed = self.place(part, data, Install::Plain)?;
                context.stats.fetched.add(placed);
                context.stats.along.add(placed);
            }
        }
        Ok(())
    }

    /// Puts those of `pages`, of one region, in place that are missing and were not given back
    /// meanwhile; tells how many.
    fn place(&self, pages: PageRange, data: &[u8], how: Install) -> Result<u64, TierError> {
        let FaultContext { regions, watched, .. } = &*self.context;
        let mut placed = 0;
        let mut rest = Some(pages);
        while let Some(pages_left) = rest.take() {
            // Held from looking at it until all are in place; see `Watched::discarded`.
            let discarded = watched.discarded.read().unwrap_or_else(PoisonError::into_inner);
            'parts: for part in discarded.outside(pages_left) {
                let mut at = (part.start() - pages.start()) as usize;
                let end = at + part.len() as usize;
                let host = regions.host(pages)?;
                while at < end {
                    let data = data.get(at..end).unwrap_or_default();
                    let done = watched.uffd.copy(host + at as u64, data, how);
                    let step = match settled(part, done)? {
                        Some(Installed::All) => data.len(),
                        Some(Installed::Part(0)) => {
                            // Once it has been read what is given back, look again.
                            let from = pages.start() + at as u64;
                            rest = PageRange::new(from, pages.end() - from).ok();
                            break 'parts;
                        }
                        Some(Installed::Part(bytes)) => bytes,
                        Some(Installed::Present) | None => {
                            at += PAGE_SIZE as usize;
                            continue;
                        }
                    };
                    placed += step as u64 / PAGE_SIZE;
                    at += step;
                }
            }
            drop(discarded);
            if rest.is_some() {
                self.work.make_way(&self.context)?;
            }
        }
        Ok(placed)
    }

    /// Brings in a large page, put together from all that it consists of.
    fn whole(&mut self, page: u64) -> Result<(), TierError> {
        let context = self.context.clone();
        let pages =
            PageRange::new(page, context.page_size).map_err(|e| TierError::Plan(e.to_string()))?;
        let mut data = std::mem::take(&mut self.buffer);
        data.clear();
        data.resize(context.page_size as usize, 0);
        let at = context.layout.regions().partition_point(|r| r.pages.end() <= page);
        let regions = context.layout.regions().get(at..).unwrap_or_default();
        for region in regions.iter().take_while(|r| r.pages.start() < pages.end()) {
            let Some(stored) = region.stored else { continue };
            let start = region.pages.start().max(page);
            let end = region.pages.end().min(pages.end());
            let from = (start - region.pages.start()) / PAGE_SIZE;
            let from = Stored { page: stored.page + from, ..stored };
            let part =
                PageRange::new(start, end - start).map_err(|e| TierError::Plan(e.to_string()))?;
            let source = source_of(&context.sources, from.image)?;
            *lock(&self.pending) = Some((Instant::now(), part, Some(from)));
            let read = self.chunk.get(source, from, part.pages());
            *lock(&self.pending) = None;
            let (bytes, fresh) = read.map_err(|cause| lost(part, source, cause))?;
            context.stats.read(from.image.0, fresh);
            let at = (start - page) as usize;
            if let Some(room) = data.get_mut(at..at + bytes.len()) {
                room.copy_from_slice(bytes);
            }
        }
        let placed = self.place_whole(pages, &mut data);
        self.buffer = data;
        match placed? {
            true => context.stats.fetched.add(pages.pages()),
            false => context.stats.late.add(1),
        }
        self.wake(pages)
    }

    /// Puts a large page in place, zero where it was given back; tells whether it was missing.
    fn place_whole(&self, pages: PageRange, data: &mut [u8]) -> Result<bool, TierError> {
        let FaultContext { regions, watched, .. } = &*self.context;
        let host = regions.host(pages)?;
        loop {
            let discarded = watched.discarded.read().unwrap_or_else(PoisonError::into_inner);
            for part in discarded.within(pages) {
                let at = (part.start() - pages.start()) as usize;
                if let Some(given_back) = data.get_mut(at..at + part.len() as usize) {
                    given_back.fill(0);
                }
            }
            match settled(pages, watched.uffd.copy(host, data, Install::Quiet))? {
                Some(Installed::All) => return Ok(true),
                Some(Installed::Present) | None => return Ok(false),
                Some(Installed::Part(_)) => drop(discarded),
            }
            self.work.make_way(&self.context)?;
        }
    }

    /// Has waiting threads look again, also those that came after the page was in place.
    fn wake(&self, pages: PageRange) -> Result<(), TierError> {
        let at = self.context.regions.host(pages)?;
        let woken = self.context.watched.uffd.wake(at, pages.len() as usize);
        settled(pages, woken.map(|()| Installed::All)).map(|_| ())
    }
}

/// Tells results from failures. Something else may have been laid over the page meanwhile, which ends
/// the watch (ENOENT): who waits looks again and finds that. Or the process has ended (ESRCH), and
/// nobody waits.
fn settled(
    pages: PageRange,
    done: std::io::Result<Installed>,
) -> Result<Option<Installed>, TierError> {
    match done {
        Ok(installed) => Ok(Some(installed)),
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) => Ok(None),
        Err(source) => Err(RamError::Call { what: "install", range: pages, source }.into()),
    }
}

/// The page at `address` as a range.
fn one(address: u64) -> Result<PageRange, TierError> {
    PageRange::new(address, PAGE_SIZE).map_err(|e| TierError::Plan(e.to_string()))
}
