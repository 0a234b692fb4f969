//! The time of each mechanism that brings a page, measured on memory of this process. [`crate::calibrate`]
//! turns it into the costs that a planner uses.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use varve_memory_tiers::sys::mmap::Reservation;
use varve_memory_tiers::sys::uffd::{Install, Uffd, Watch};
use varve_memory_tiers::{HUGE_PAGE, PrefaultMode};
use vm_memory::Bytes;

const PAGE: usize = varve_snapshot::PAGE_SIZE as usize;

/// The memory that is measured on: extents of the same length, each as far from the next as it is long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Number of extents, at least 1.
    pub extents: usize,
    /// Pages of each, at least 1.
    pub pages: usize,
}

/// Nanoseconds of each mechanism, once; per page, unless the name says something else. Files are memory
/// files, so no disk is in it. Faults are those of a process: a guest's have an exit on top.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Mechanisms {
    /// A page that is present, read (one word).
    pub present_read: f64,
    /// A private mapping of a compact file laid over another, per extent.
    pub map_extent: f64,
    /// The first read of a page of such a mapping; the kernel maps neighbours along.
    pub map_read_fault: f64,
    /// The first write to a page of such a mapping: it is copied.
    pub map_write_fault: f64,
    /// The first write to a page of such a mapping that is mapped for reading already.
    pub map_write_fault_after_read: f64,
    /// MADV_POPULATE_READ of extents of such a mapping.
    pub map_populate_read: f64,
    /// MADV_POPULATE_WRITE of the same.
    pub map_populate_write: f64,
    /// MADV_WILLNEED of the same, already in the page cache, per extent.
    pub map_will_need_extent: f64,
    /// The first write to a page of a file in guest layout that is mapped as a whole.
    pub whole_write_fault: f64,
    /// MADV_POPULATE_READ of extents of a file in guest layout that is mapped as a whole.
    pub whole_populate_read: f64,
    /// MADV_POPULATE_WRITE of the same.
    pub whole_populate_write: f64,
    /// The first write to a page of fresh memory.
    pub fresh_write_fault: f64,
    /// MADV_POPULATE_WRITE of extents of fresh memory.
    pub fresh_populate_write: f64,
    /// The same of memory with transparent huge pages, for all of it; 0 where the kernel gave none.
    pub huge_populate_write: f64,
    /// A page of the system's pool of 2 MiB pages, populated, per 4 KiB; 0 if the pool is too small.
    pub pool_populate_write: f64,
    /// A read of one page into memory that is present: one call for each, per call.
    pub read_call: f64,
    /// Reading an extent by a call of its own into memory that is present.
    pub read_extents: f64,
    /// Reading all extents by one call into memory that is present.
    pub read_at_once: f64,
    /// Reading all extents by one call into memory that is not present.
    pub read_at_once_absent: f64,
    /// UFFDIO_COPY page by page; 0 if userfaultfd is not to be had.
    pub install_page: f64,
    /// UFFDIO_COPY extent by extent; 0 likewise.
    pub install_extent: f64,
    /// A page asked for, and installed by another thread that polls; 0 likewise.
    pub paged_fault: f64,
    /// From the start of a thread to its first instruction, per thread.
    pub thread_start: f64,
}

impl Mechanisms {
    /// Measures all of them once.
    ///
    /// # Errors
    ///
    /// What the system says, if there is not enough memory; [`io::ErrorKind::InvalidInput`] for a
    /// shape without pages.
    pub fn measure(shape: Shape) -> io::Result<Mechanisms> {
        let ground = Ground::new(shape)?;
        let present = ground.laid()?;
        ground.touch(&present, false)?;
        let (install_page, install_extent, paged_fault) = ground.userfault()?;
        let written = |how| {
            let memory = ground.laid()?;
            ground.populate(&memory, how)?;
            ground.touch(&memory, true)
        };
        let read_call = {
            let memory = ground.present()?;
            let read = |&(offset, _, at): &Extent| {
                memory.read_file(&[(offset, PAGE)], &ground.compact, at)
            };
            ground.timed(ground.shape.extents, read)?
        };
        Ok(Mechanisms {
            present_read: ground.touch(&present, false)?,
            map_extent: ground.lay(&ground.fresh()?)? * shape.pages as f64,
            map_read_fault: ground.touch(&ground.laid()?, false)?,
            map_write_fault: ground.touch(&ground.laid()?, true)?,
            map_write_fault_after_read: written(PrefaultMode::Read)?,
            map_populate_read: ground.populate(&ground.laid()?, PrefaultMode::Read)?,
            map_populate_write: ground.populate(&ground.laid()?, PrefaultMode::Write)?,
            map_will_need_extent: ground.populate(&ground.laid()?, PrefaultMode::Cache)?
                * shape.pages as f64,
            whole_write_fault: ground.touch(&ground.whole()?, true)?,
            whole_populate_read: ground.populate(&ground.whole()?, PrefaultMode::Read)?,
            whole_populate_write: ground.populate(&ground.whole()?, PrefaultMode::Write)?,
            fresh_write_fault: ground.touch(&ground.fresh()?, true)?,
            fresh_populate_write: ground.populate(&ground.fresh()?, PrefaultMode::Write)?,
            huge_populate_write: ground.huge()?,
            pool_populate_write: ground.pool()?,
            read_call,
            read_extents: ground.read_each(&ground.present()?)?,
            read_at_once: ground.read_all(&ground.present()?)?,
            read_at_once_absent: ground.read_all(&ground.fresh()?)?,
            install_page,
            install_extent,
            paged_fault,
            thread_start: thread_start()?,
        })
    }
}

/// Offset in memory, length, and byte in the compact file.
type Extent = (usize, usize, u64);

struct Ground {
    shape: Shape,
    extents: Vec<Extent>,
    /// Bytes of memory.
    len: usize,
    /// The extents one after another.
    compact: File,
    /// The extents where memory has them.
    spread: File,
}

impl Ground {
    fn new(shape: Shape) -> io::Result<Ground> {
        let Shape { extents, pages } = shape;
        let len = extents.checked_mul(pages).and_then(|n| n.checked_mul(2 * PAGE));
        let len = len.filter(|&len| len > 0 && len < isize::MAX as usize);
        let len = len.ok_or(io::ErrorKind::InvalidInput)?;
        let (compact, spread) = (file(len / 2)?, file(len)?);
        let data = vec![1; pages * PAGE];
        let extents: Vec<Extent> = (0..extents)
            .map(|e| (2 * e * data.len(), data.len(), (e * data.len()) as u64))
            .collect();
        for &(offset, _, at) in &extents {
            compact.write_all_at(&data, at)?;
            spread.write_all_at(&data, offset as u64)?;
        }
        Ok(Ground { shape, extents, len, compact, spread })
    }

    fn pages(&self) -> usize {
        self.shape.extents * self.shape.pages
    }

    /// Nanoseconds of `each` on all extents, for one of `of`.
    fn timed(&self, of: usize, each: impl FnMut(&Extent) -> io::Result<()>) -> io::Result<f64> {
        let started = Instant::now();
        self.extents.iter().try_for_each(each)?;
        Ok(per(started, of))
    }

    fn fresh(&self) -> io::Result<Reservation> {
        Reservation::new(self.len, HUGE_PAGE)
    }

    fn present(&self) -> io::Result<Reservation> {
        let memory = self.fresh()?;
        self.populate(&memory, PrefaultMode::Write)?;
        Ok(memory)
    }

    fn laid(&self) -> io::Result<Reservation> {
        let memory = self.fresh()?;
        self.lay(&memory)?;
        Ok(memory)
    }

    fn whole(&self) -> io::Result<Reservation> {
        let memory = self.fresh()?;
        memory.map_file(0, self.len, &self.spread, 0)?;
        Ok(memory)
    }

    fn lay(&self, memory: &Reservation) -> io::Result<f64> {
        let file = &self.compact;
        self.timed(self.pages(), |&(offset, len, at)| memory.map_file(offset, len, file, at))
    }

    fn populate(&self, memory: &Reservation, how: PrefaultMode) -> io::Result<f64> {
        self.timed(self.pages(), |&(offset, len, _)| memory.populate(offset, len, how))
    }

    fn touch(&self, memory: &Reservation, write: bool) -> io::Result<f64> {
        self.timed(self.pages(), |&(offset, len, _)| {
            (offset..offset + len).step_by(PAGE).try_for_each(|at| touch(memory, at, write))
        })
    }

    fn read_each(&self, memory: &Reservation) -> io::Result<f64> {
        let file = &self.compact;
        self.timed(self.pages(), |&(offset, len, at)| memory.read_file(&[(offset, len)], file, at))
    }

    fn read_all(&self, memory: &Reservation) -> io::Result<f64> {
        let ranges: Vec<_> = self.extents.iter().map(|&(offset, len, _)| (offset, len)).collect();
        let started = Instant::now();
        memory.read_file(&ranges, &self.compact, 0)?;
        Ok(per(started, self.pages()))
    }

    /// Whether the kernel gave huge pages is told by the faults that it took: the last page of the first
    /// 2 MiB is there although only its first was touched.
    fn huge(&self) -> io::Result<f64> {
        let len = self.len.next_multiple_of(HUGE_PAGE);
        let memory = Reservation::new(len, HUGE_PAGE)?;
        if memory.want_huge(0, len).is_err() {
            return Ok(0.0);
        }
        touch(&memory, 0, true)?;
        if !memory.in_core(HUGE_PAGE - PAGE, PAGE)?.contains(&true) {
            return Ok(0.0);
        }
        memory.discard(0, len)?;
        let started = Instant::now();
        memory.populate(0, len, PrefaultMode::Write)?;
        Ok(per(started, len / PAGE))
    }

    fn pool(&self) -> io::Result<f64> {
        let Ok(memory) = Reservation::new_hugetlb(self.len) else { return Ok(0.0) };
        let len = self.len.next_multiple_of(HUGE_PAGE);
        let started = Instant::now();
        memory.populate(0, len, PrefaultMode::Write)?;
        Ok(per(started, len / PAGE))
    }

    /// Page by page, extent by extent, and asked for.
    fn userfault(&self) -> io::Result<(f64, f64, f64)> {
        let watched = || {
            let memory = self.fresh()?;
            let Ok(uffd) = Uffd::open(Watch::Missing) else { return Ok(None) };
            uffd.register(&memory, 0, self.len, Watch::Missing)?;
            Ok::<_, io::Error>(Some((memory, uffd)))
        };
        let data = vec![1; self.shape.pages * PAGE];
        let Some((memory, uffd)) = watched()? else { return Ok((0.0, 0.0, 0.0)) };
        let by_page = self.timed(self.pages(), |&(offset, len, _)| {
            let mut pages = data.chunks(PAGE).zip((offset..offset + len).step_by(PAGE));
            pages.try_for_each(|(page, offset)| {
                uffd.copy(address(&memory, offset), page, Install::Plain).map(drop)
            })
        })?;
        drop(memory);
        let Some((memory, uffd)) = watched()? else { return Ok((0.0, 0.0, 0.0)) };
        let by_extent = self.timed(self.pages(), |&(offset, _, _)| {
            uffd.copy(address(&memory, offset), &data, Install::Plain).map(drop)
        })?;
        drop(memory);
        let Some((memory, uffd)) = watched()? else { return Ok((0.0, 0.0, 0.0)) };
        let done = AtomicBool::new(false);
        let asked = thread::scope(|scope| {
            let answers = scope.spawn(|| answer(&uffd, &data[..PAGE], &done));
            let asked = self.touch(&memory, false);
            done.store(true, Relaxed);
            let answered = answers.join().map_err(|_| io::Error::other("a thread panicked"))?;
            answered.and(asked)
        })?;
        Ok((by_page, by_extent, asked))
    }
}

/// Answers each fault with `page` until it is `done`. A failure ends the process: who asked would wait
/// for ever.
fn answer(uffd: &Uffd, page: &[u8], done: &AtomicBool) -> io::Result<()> {
    let tick = Timespec { tv_sec: 0, tv_nsec: 10_000_000 };
    while !done.load(Relaxed) {
        let mut fds = [PollFd::from_borrowed_fd(uffd.as_fd(), PollFlags::IN)];
        poll(&mut fds, Some(&tick))?;
        for fault in uffd.read()? {
            if uffd.copy(fault.address, page, Install::Plain).is_err() {
                std::process::abort();
            }
        }
    }
    Ok(())
}

fn address(memory: &Reservation, offset: usize) -> u64 {
    memory.address() as u64 + offset as u64
}

fn touch(memory: &Reservation, offset: usize, write: bool) -> io::Result<()> {
    let page = memory.slice(offset, PAGE)?;
    let done = if write { page.write_obj(1u64, 0) } else { page.read_obj::<u64>(0).map(drop) };
    done.map_err(io::Error::other)
}

fn thread_start() -> io::Result<f64> {
    const THREADS: usize = 16;
    let mut nanos = 0.0;
    for _ in 0..THREADS {
        let started = Instant::now();
        let thread = thread::Builder::new().spawn(move || per(started, 1))?;
        nanos += thread.join().map_err(|_| io::Error::other("a thread panicked"))?;
    }
    Ok(nanos / THREADS as f64)
}

fn per(started: Instant, of: usize) -> f64 {
    started.elapsed().as_nanos() as f64 / of.max(1) as f64
}

/// A file in memory.
fn file(len: usize) -> io::Result<File> {
    let file = File::from(memfd_create("mechanisms", MemfdFlags::CLOEXEC)?);
    ftruncate(&file, len as u64)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mechanism_takes_time() {
        let found = Mechanisms::measure(Shape { extents: 64, pages: 4 }).unwrap();
        let text = serde_json::to_value(found).unwrap();
        let may_lack = [
            "huge_populate_write",
            "pool_populate_write",
            "install_page",
            "install_extent",
            "paged_fault",
        ];
        for (name, nanos) in text.as_object().unwrap() {
            let nanos = nanos.as_f64().unwrap();
            let lacks = nanos == 0.0 && may_lack.contains(&name.as_str());
            assert!(lacks || (0.1..1e8).contains(&nanos), "{name}: {nanos}");
        }
        // A copy is more than a mapping, whatever else the machine does.
        assert!(found.map_populate_write > found.present_read);
    }

    #[test]
    fn nothing_cannot_be_measured() {
        for shape in [Shape { extents: 0, pages: 4 }, Shape { extents: 4, pages: 0 }] {
            let error = Mechanisms::measure(shape).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        }
    }
}
