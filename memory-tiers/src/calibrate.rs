//! Measuring what mechanisms cost on this host, on a little memory of its own.

use std::fs::File;
use std::time::Instant;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use varve_snapshot::{PAGE_SIZE, PageRange};

use crate::error::{RamError, TierError};
use crate::guest_ram::GuestRam;
use crate::policy::Costs;
use crate::sys::mmap::Ahead;

/// Extents, each of as many pages, every second one of which is used.
const EXTENTS: u64 = 128;
const PAGES: u64 = 8;
/// Each figure is the best of so many.
const ROUNDS: usize = 3;

impl Costs {
    /// The costs of this host, measured in some milliseconds. What only a guest or a tier can show
    /// (faults with their exits, remote memory) is scaled with what is alike, or left as it is.
    pub fn measure() -> Result<Costs, TierError> {
        let usual = Costs::default();
        let mut best: Option<Costs> = None;
        for _ in 0..ROUNDS {
            let now = measure_once(usual)?;
            best = Some(best.map_or(now, |best| Costs {
                map: best.map.min(now.map),
                read_call: best.read_call.min(now.read_call),
                copy_page: best.copy_page.min(now.copy_page),
                populate_read: best.populate_read.min(now.populate_read),
                populate_write: best.populate_write.min(now.populate_write),
                ..best
            }));
        }
        let measured = best.unwrap_or(usual);
        let scale = |cost: f64, by: f64, like: f64| (cost * by / like).round();
        Ok(Costs {
            install_page: scale(usual.install_page, measured.copy_page, usual.copy_page),
            read_fault: scale(usual.read_fault, measured.populate_read, usual.populate_read),
            write_fault: scale(usual.write_fault, measured.populate_write, usual.populate_write),
            ..measured
        })
    }
}

fn measure_once(usual: Costs) -> Result<Costs, TierError> {
    let len = EXTENTS * PAGES * PAGE_SIZE;
    let file = file(len).map_err(TierError::Census)?;
    let range = |at: u64, len| PageRange::new(at, len).map_err(|e| TierError::Plan(e.to_string()));
    let memory = [range(0, 2 * len)?];
    let ram = GuestRam::new(&memory, false)?;
    let extents = (0..EXTENTS).map(|e| range(e * 2 * PAGES * PAGE_SIZE, PAGES * PAGE_SIZE));
    let extents = extents.collect::<Result<Vec<_>, _>>()?;
    let per = |count: u64, each: &dyn Fn(PageRange, u64) -> Result<(), RamError>| {
        let started = Instant::now();
        for (extent, at) in extents.iter().zip((0..).step_by((PAGES * PAGE_SIZE) as usize)) {
            each(*extent, at)?;
        }
        Ok::<f64, TierError>(started.elapsed().as_nanos() as f64 / count as f64)
    };
    let pages = EXTENTS * PAGES;
    let read = |pages: PageRange, at: u64| {
        ram.call("read", pages, |r, o, len| r.read_file(&[(o, len)], &file, at))
    };
    let populate = per(pages, &|pages, _| ram.populate(pages, Ahead::Write))?;
    let read_extent = per(EXTENTS, &read)?;
    // One page of each: what is more than that is copying.
    let read_page = per(EXTENTS, &|pages, at| {
        let page = PageRange::new(pages.start(), PAGE_SIZE).unwrap_or(pages);
        read(page, at)
    })?;
    let copy = (read_extent - read_page).max(0.0) / (PAGES - 1) as f64;
    let map = per(EXTENTS, &|pages, at| ram.lay_file(pages, &file, at))?;
    let populate_read = per(pages, &|pages, _| ram.populate(pages, Ahead::Read))?;
    per(EXTENTS, &|pages, at| ram.lay_file(pages, &file, at))?;
    let populate_write = per(pages, &|pages, _| ram.populate(pages, Ahead::Write))?;
    Ok(Costs {
        map: map.round(),
        read_call: (read_page - copy).max(1.0).round(),
        copy_page: (populate + copy).round(),
        populate_read: populate_read.round(),
        populate_write: populate_write.round(),
        ..usual
    })
}

/// A file in memory with content.
fn file(len: u64) -> std::io::Result<File> {
    let file = File::from(memfd_create("calibrate", MemfdFlags::CLOEXEC)?);
    ftruncate(&file, len)?;
    let page = vec![1; PAGE_SIZE as usize];
    for at in (0..len).step_by(page.len()) {
        std::os::unix::fs::FileExt::write_all_at(&file, &page, at)?;
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn costs_are_those_of_a_host() {
        let costs = Costs::measure().unwrap();
        println!("{costs:?}");
        let text = serde_json::to_string(&costs).unwrap();
        assert_eq!(serde_json::from_str::<Costs>(&text).unwrap(), costs);
        for cost in [costs.map, costs.copy_page, costs.populate_read, costs.write_fault] {
            assert!((10.0..1e7).contains(&cost), "{costs:?}");
        }
    }
}
