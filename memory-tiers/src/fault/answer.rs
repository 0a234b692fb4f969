//! The answer to a fault: the page from its source, verified, with the neighbours that were read with
//! it; or zero, where that is what the page holds.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use varve_snapshot::{PAGE_SIZE, PageClass, PageRange, RegionMap, Stored};

use crate::error::TierError;
use crate::fault::tally::Tally;
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
pub(crate) struct Asked {
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
    pub tally: Arc<Tally>,
    /// How long a source may take.
    pub deadline: Duration,
    /// Called when a page cannot be had.
    pub on_fatal: Arc<dyn Fn(TierError) + Send + Sync>,
}

impl Asked {
    /// What `watched`, of memory that comes from nowhere, asks for: what was not taken out is zero.
    pub fn of_nothing(
        ram: &GuestRam,
        watched: Arc<Watched>,
        on_fatal: Arc<dyn Fn(TierError) + Send + Sync>,
    ) -> Result<Asked, TierError> {
        let memory: Vec<PageRange> = ram.regions().iter().map(|r| r.pages).collect();
        let layout =
            RegionMap::new(Vec::new(), &memory).map_err(|e| TierError::Plan(e.to_string()))?;
        Ok(Asked {
            regions: ram.places().clone(),
            page_size: PAGE_SIZE,
            watched,
            layout,
            order: Arc::default(),
            sources: Sources::new(),
            tally: Arc::new(Tally::new(0)),
            deadline: DEFAULT_DEADLINE,
            on_fatal,
        })
    }

    /// Whether it still counts for a page what its source holds.
    fn is_at_source(&self, page: u64) -> bool {
        let has =
            |set: &RwLock<RangeSet>| set.read().unwrap_or_else(PoisonError::into_inner).has(page);
        has(&self.watched.pages) && !has(&self.watched.emptied)
    }
}

/// One thread's means to answer.
pub(crate) struct Answerer {
    pub asked: Arc<Asked>,
    pub work: Arc<Work>,
    pending: Arc<Pending>,
    buffer: Vec<u8>,
    chunk: Chunk,
}

impl Answerer {
    pub fn new(asked: Arc<Asked>, work: Arc<Work>, pending: Arc<Pending>) -> Answerer {
        Answerer { asked, work, pending, buffer: Vec::new(), chunk: Chunk::default() }
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
        let asked = &self.asked;
        let Some(page) = asked.regions.guest_address(fault.address) else { return false };
        if asked.watched.away.is_far(page) {
            return true;
        }
        let Some(from) = stored_at(&asked.layout, page).filter(|_| asked.is_at_source(page)) else {
            return false;
        };
        source_of(&asked.sources, from.image).is_ok_and(|source| {
            let unit = source.info().chunk_pages.max(1);
            source.is_far(from.page / unit * unit)
        })
    }

    fn answer_now(&mut self, fault: Fault) {
        let asked = self.asked.clone();
        let started = Instant::now();
        // Of a large page the fault is somewhere inside; its region begins where one does.
        let address = fault.address & !(asked.page_size - 1);
        let Some(page) = asked.regions.guest_address(address) else {
            let source = std::io::ErrorKind::AddrNotAvailable.into();
            return (asked.on_fatal)(TierError::Fault { address, source });
        };
        let done = match self.bring_back(page) {
            Ok(true) => one(page).and_then(|pages| self.wake(pages)),
            Ok(false) => self.answer_from_source(page, fault.write),
            Err(error) => Err(error),
        };
        match done {
            Ok(()) => {
                let took = started.elapsed();
                asked.tally.fault_time.add_time(started);
                asked.tally.slowest_fault.raise(took);
                asked.tally.fault_latency.add(took);
            }
            Err(error) => (asked.on_fatal)(error),
        }
    }

    /// A page that was taken out; whether it is one.
    fn bring_back(&mut self, page: u64) -> Result<bool, TierError> {
        *lock(&self.pending) = Some((Instant::now(), one(page)?, None));
        let back = self.asked.watched.bring_back(&self.asked.regions, page, &mut self.buffer);
        *lock(&self.pending) = None;
        back
    }

    /// A page that was not taken out.
    fn answer_from_source(&mut self, page: u64, write: bool) -> Result<(), TierError> {
        let asked = self.asked.clone();
        let region = asked.layout.find(page);
        asked.tally.fault(region.map_or(PageClass::Zero, |r| r.class), write);
        match stored_at(&asked.layout, page) {
            _ if asked.page_size != PAGE_SIZE => self.whole(page),
            Some(from) if asked.is_at_source(page) => self.fetch(page, from),
            _ => self.zero(page, write),
        }
    }

    /// Zero: a page to write on at once, or the one that all share. One that was taken out meanwhile is
    /// left alone: who waits looks again.
    fn zero(&self, page: u64, write: bool) -> Result<(), TierError> {
        let Asked { watched, tally, .. } = &*self.asked;
        let (pages, uffd) = (one(page)?, &watched.uffd);
        let at = self.asked.regions.host(pages)?;
        let zeros = [0; PAGE_SIZE as usize];
        loop {
            let emptied = watched.emptied.read().unwrap_or_else(PoisonError::into_inner);
            if watched.away.has(page) {
                break;
            }
            let done = match write {
                true => uffd.copy(at, &zeros, Install::Quiet),
                false => uffd.zero(at, zeros.len()),
            };
            drop(emptied);
            match settled(pages, done)? {
                Some(Installed::Part(_)) => {
                    self.work.make_way(&self.asked)?;
                    continue;
                }
                Some(Installed::All) => tally.zeroed.add(1),
                Some(Installed::Present) => tally.late.add(1),
                None => {}
            }
            break;
        }
        self.wake(pages)
    }

    /// Brings in the chunk that holds the page, all that is watched of it.
    fn fetch(&mut self, page: u64, from: Stored) -> Result<(), TierError> {
        let asked = self.asked.clone();
        let source = source_of(&asked.sources, from.image)?;
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
        asked.tally.read(from.image.0, count);
        // The page that is waited for first, counted before its threads go on, then its neighbours.
        let at = ((from.page - first) * PAGE_SIZE) as usize;
        let data = self.buffer.get(at..at + PAGE_SIZE as usize).unwrap_or_default();
        let placed = self.place(wanted, data, Install::Quiet)?;
        asked.tally.fetched.add(placed);
        if placed == 0 {
            asked.tally.late.add(1);
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
        let asked = &self.asked;
        let end = first.page + count;
        let from = asked.order.partition_point(|(stored, pages)| {
            (stored.image, stored.page + pages.pages()) <= (first.image, first.page)
        });
        for &(stored, pages) in asked.order.get(from..).unwrap_or_default() {
            if stored.image != first.image || stored.page >= end {
                break;
            }
            let skip = first.page.saturating_sub(stored.page);
            let here = end.min(stored.page + pages.pages()) - (stored.page + skip);
            let range = PageRange::new(pages.start() + skip * PAGE_SIZE, here * PAGE_SIZE);
            let Ok(range) = range else { continue };
            let watched = asked.watched.pages.read().unwrap_or_else(PoisonError::into_inner);
            let parts = watched.within(range);
            drop(watched);
            for part in parts.into_iter().flat_map(|part| asked.regions.within(part)) {
                let in_image = stored.page + skip + (part.start() - range.start()) / PAGE_SIZE;
                let at = ((in_image - first.page) * PAGE_SIZE) as usize;
                let data = self.buffer.get(at..at + part.len() as usize).unwrap_or_default();
                let placed = self.place(part, data, Install::Plain)?;
                asked.tally.fetched.add(placed);
                asked.tally.along.add(placed);
            }
        }
        Ok(())
    }

    /// Puts those of `pages`, of one region, in place that are missing and were not given back
    /// meanwhile; tells how many.
    fn place(&self, pages: PageRange, data: &[u8], how: Install) -> Result<u64, TierError> {
        let Asked { regions, watched, .. } = &*self.asked;
        let mut placed = 0;
        let mut rest = Some(pages);
        while let Some(pages_left) = rest.take() {
            // Held from looking at it until all are in place; see `Watched::emptied`.
            let emptied = watched.emptied.read().unwrap_or_else(PoisonError::into_inner);
            'parts: for part in emptied.outside(pages_left) {
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
            drop(emptied);
            if rest.is_some() {
                self.work.make_way(&self.asked)?;
            }
        }
        Ok(placed)
    }

    /// Brings in a large page, put together from all that it consists of.
    fn whole(&mut self, page: u64) -> Result<(), TierError> {
        let asked = self.asked.clone();
        let pages =
            PageRange::new(page, asked.page_size).map_err(|e| TierError::Plan(e.to_string()))?;
        let mut data = std::mem::take(&mut self.buffer);
        data.clear();
        data.resize(asked.page_size as usize, 0);
        let at = asked.layout.regions().partition_point(|r| r.pages.end() <= page);
        let regions = asked.layout.regions().get(at..).unwrap_or_default();
        for region in regions.iter().take_while(|r| r.pages.start() < pages.end()) {
            let Some(stored) = region.stored else { continue };
            let start = region.pages.start().max(page);
            let end = region.pages.end().min(pages.end());
            let from = (start - region.pages.start()) / PAGE_SIZE;
            let from = Stored { page: stored.page + from, ..stored };
            let part =
                PageRange::new(start, end - start).map_err(|e| TierError::Plan(e.to_string()))?;
            let source = source_of(&asked.sources, from.image)?;
            *lock(&self.pending) = Some((Instant::now(), part, Some(from)));
            let read = self.chunk.get(source, from, part.pages());
            *lock(&self.pending) = None;
            let (bytes, fresh) = read.map_err(|cause| lost(part, source, cause))?;
            asked.tally.read(from.image.0, fresh);
            let at = (start - page) as usize;
            if let Some(room) = data.get_mut(at..at + bytes.len()) {
                room.copy_from_slice(bytes);
            }
        }
        let placed = self.place_whole(pages, &mut data);
        self.buffer = data;
        match placed? {
            true => asked.tally.fetched.add(pages.pages()),
            false => asked.tally.late.add(1),
        }
        self.wake(pages)
    }

    /// Puts a large page in place, zero where it was given back; tells whether it was missing.
    fn place_whole(&self, pages: PageRange, data: &mut [u8]) -> Result<bool, TierError> {
        let Asked { regions, watched, .. } = &*self.asked;
        let host = regions.host(pages)?;
        loop {
            let emptied = watched.emptied.read().unwrap_or_else(PoisonError::into_inner);
            for part in emptied.within(pages) {
                let at = (part.start() - pages.start()) as usize;
                if let Some(given_back) = data.get_mut(at..at + part.len() as usize) {
                    given_back.fill(0);
                }
            }
            match settled(pages, watched.uffd.copy(host, data, Install::Quiet))? {
                Some(Installed::All) => return Ok(true),
                Some(Installed::Present) | None => return Ok(false),
                Some(Installed::Part(_)) => drop(emptied),
            }
            self.work.make_way(&self.asked)?;
        }
    }

    /// Has waiting threads look again, also those that came after the page was in place.
    fn wake(&self, pages: PageRange) -> Result<(), TierError> {
        let at = self.asked.regions.host(pages)?;
        let woken = self.asked.watched.uffd.wake(at, pages.len() as usize);
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
