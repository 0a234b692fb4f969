//! Copying pages in before the guest runs: image by image, in the image's order, so that a chunk
//! that many extents share is read once.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use rustix::fs::{Advice, fadvise};
use varve_snapshot::{PAGE_SIZE, PageClass, PageRange, Stored, data_start};

use crate::error::TierError;
use crate::fault::watched::Watched;
use crate::plan::image::Tier;
use crate::plan::ops::{Action, Op};
use crate::ram::error::RamError;
use crate::ram::kind::{HugePages, PrefaultMode};
use crate::ram::sys::uffd::{Install, Installed};
use crate::restore::execute::Shared;
use crate::restore::workers::Workers;
use crate::source::chunk::Chunk;
use crate::source::page_cache::in_memory;
use crate::source::page_source::lost;

/// Pages that are read at once.
const BATCH: u64 = 256;

/// What is to be copied and installed, in the order of images. Has the disk begin with what goes to dense
/// blocks from an image in guest layout: packed ones are fetched as a whole.
pub(crate) fn ask(shared: &Shared) -> Result<Vec<Op>, TierError> {
    let mut ops = Vec::new();
    for op in shared.plan.ops.iter().filter(|op| copies(op)) {
        ops.extend(without_hole(shared, op)?);
    }
    ops.sort_unstable_by_key(|op| op.from.map(|f| (f.image, f.page)));
    let image = |op: &Op| op.from.filter(|_| op.action == Action::Fill).map(|from| from.image);
    for fills in ops.chunk_by(|a, b| image(a) == image(b)) {
        let Some(source) = fills.first().and_then(image).and_then(|i| shared.source(i).ok()) else {
            continue;
        };
        let spread = source.info().guest_layout && source.info().tier == Tier::Local;
        let Some((file, 0)) = source.file().filter(|_| spread) else { continue };
        let pages: Vec<u64> = fills.iter().filter_map(|op| Some(op.from?.page)).collect();
        if in_memory(file, &pages).unwrap_or(true) {
            continue;
        }
        for (op, page) in fills.iter().zip(pages) {
            let len = NonZeroU64::new(op.pages.len());
            // Who cannot fetch ahead fetches on demand.
            let _ = fadvise(file, page * PAGE_SIZE, len, Advice::WillNeed);
        }
    }
    Ok(ops)
}

/// What is left of an operation if what it fills a part of a block with begins with a hole: that is zero
/// already. Only what the layout did not name can.
fn without_hole(shared: &Shared, op: &Op) -> Result<Option<Op>, TierError> {
    let (plan, Some(from)) = (&shared.plan, op.from.filter(|_| op.action == Action::Fill)) else {
        return Ok(Some(*op));
    };
    let region = plan.layout.find(op.pages.start());
    let unnamed = plan.base_image == Some(from.image)
        && region.is_some_and(|region| region.class == PageClass::Cold);
    let source = shared.source(from.image)?;
    let Some((file, offset)) = source.file().filter(|_| unnamed) else { return Ok(Some(*op)) };
    let start = offset + from.page * PAGE_SIZE;
    let end = start + op.pages.len();
    // What is behind the end of a file is lost, and no hole: reading says so.
    if !file.metadata().is_ok_and(|found| found.len() >= end) {
        return Ok(Some(*op));
    }
    let found = data_start(file, start, end);
    match found.map_err(|cause| lost(op.pages, source, cause.into()))? {
        Some(data) if data > start => Ok(cut(*op, (data - start) / PAGE_SIZE).1),
        Some(_) => Ok(Some(*op)),
        None => Ok(None),
    }
}

/// Copies and installs what was asked for.
pub(crate) fn carry_out(
    shared: &Arc<Shared>,
    watched: Option<Arc<Watched>>,
    ops: Vec<Op>,
    workers: &Workers,
) -> Result<(), TierError> {
    let blocks = shared.plan.ops.iter().filter(|op| op.action == Action::Block);
    let blocks: Vec<PageRange> = blocks.map(|op| op.pages).collect();
    let (next_block, next) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let pages: u64 = ops.iter().map(|op| op.pages.pages()).sum();
    let parts = split(&ops, pages.div_ceil(workers.len() as u64).max(4 * BATCH));
    let shared = shared.clone();
    workers.share(move || {
        while let Some(&block) = blocks.get(next_block.fetch_add(1, Relaxed)) {
            make_block(&shared, block);
        }
        while let Some(part) = parts.get(next.fetch_add(1, Relaxed)) {
            copy_all(&shared, watched.as_deref(), part)?;
        }
        Ok(())
    })
}

/// Makes a huge block present, as one page where the kernel has one.
fn make_block(shared: &Shared, block: PageRange) {
    match shared.ram.populate(block, PrefaultMode::Write) {
        Ok(()) => shared.stats.ahead(PrefaultMode::Write, block.pages()),
        // What is copied into it is made present then, or is an error.
        Err(error) => {
            log::warn!("a huge block is not made ready: {error}");
            shared.stats.ahead_failed.add(block.pages());
        }
    }
}

fn copies(op: &Op) -> bool {
    matches!(op.action, Action::Copy | Action::Fill | Action::Install)
}

/// Runs of operations of at most `pages` pages each; one that crosses a border is cut.
fn split(ops: &[Op], pages: u64) -> Vec<Vec<Op>> {
    let mut parts = vec![Vec::new()];
    let mut room = pages;
    for &op in ops {
        let mut rest = Some(op);
        while let Some(op) = rest {
            let (head, tail) = cut(op, room);
            room -= head.pages.pages();
            if let Some(part) = parts.last_mut() {
                part.push(head);
            }
            rest = tail;
            if room == 0 {
                parts.push(Vec::new());
                room = pages;
            }
        }
    }
    parts
}

/// The first `pages` pages of `op`, and the rest.
fn cut(op: Op, pages: u64) -> (Op, Option<Op>) {
    let len = pages.saturating_mul(PAGE_SIZE).min(op.pages.len());
    let head = PageRange::new(op.pages.start(), len).unwrap_or(op.pages);
    let tail = PageRange::new(head.end(), op.pages.end() - head.end()).ok().map(|pages| Op {
        pages,
        from: op.from.map(|f| Stored { page: f.page + head.pages(), ..f }),
        ..op
    });
    (Op { pages: head, ..op }, tail)
}

fn copy_all(shared: &Shared, watched: Option<&Watched>, ops: &[Op]) -> Result<(), TierError> {
    let mut chunk = Chunk::default();
    // Extents that follow one another in their file are read by one call.
    let joins = |a: &Op, b: &Op| match (in_file(shared, a), in_file(shared, b)) {
        (Some(a_from), Some(b_from)) => {
            let end = Stored { page: a_from.page + a.pages.pages(), ..a_from };
            end == b_from
        }
        _ => false,
    };
    for run in ops.chunk_by(joins) {
        if let Some(from) = run.first().and_then(|op| in_file(shared, op)) {
            read_run(shared, run, from)?;
            continue;
        }
        for &op in run {
            let mut rest = Some(op);
            while let Some(op) = rest {
                let (head, tail) = cut(op, BATCH);
                copy(shared, watched, &head, &mut chunk)?;
                rest = tail;
            }
        }
    }
    Ok(())
}

/// Where the content of `op` is, if it can be read straight from a file to where it belongs.
fn in_file(shared: &Shared, op: &Op) -> Option<Stored> {
    let from = op.from.filter(|_| op.action != Action::Install)?;
    shared.source(from.image).ok()?.file().map(|_| from)
}

/// Reads extents that are one run of a file, from `from` on.
fn read_run(shared: &Shared, run: &[Op], from: Stored) -> Result<(), TierError> {
    let ram = &shared.ram;
    let source = shared.source(from.image)?;
    let Some((file, offset)) = source.file() else { return Ok(()) };
    let mut ranges = Vec::with_capacity(run.len());
    for op in run {
        if ram.huge_pages() == HugePages::Off && op.action == Action::Copy {
            ram.populate(op.pages, PrefaultMode::Write)?;
        }
        ranges.push((ram.offset(op.pages)?, op.pages.len() as usize));
    }
    let read = ram.reservation().read_file(&ranges, file, offset + from.page * PAGE_SIZE);
    let first = run.first().map(|op| op.pages);
    if let (Err(cause), Some(first)) = (read, first) {
        return Err(lost(first, source, cause.into()));
    }
    let pages = run.iter().map(|op| op.pages.pages()).sum();
    shared.stats.copied.add(pages);
    shared.stats.read(from.image.0, pages);
    Ok(())
}

fn copy(
    shared: &Shared,
    watched: Option<&Watched>,
    op: &Op,
    chunk: &mut Chunk,
) -> Result<(), TierError> {
    let (ram, pages) = (&shared.ram, op.pages);
    let zeros;
    let data = match op.from {
        Some(from) => {
            let source = shared.source(from.image)?;
            let read = chunk.get(source, from, pages.pages());
            let (data, fresh) = read.map_err(|cause| lost(pages, source, cause))?;
            shared.stats.read(from.image.0, fresh);
            data
        }
        None => {
            zeros = vec![0; pages.len() as usize];
            &zeros
        }
    };
    match (op.action, watched) {
        (Action::Install, Some(watched)) => {
            install(shared, watched, pages, data)?;
            shared.stats.installed.add(pages.pages());
        }
        _ => {
            ram.fill(pages, data)?;
            shared.stats.copied.add(pages.pages());
        }
    }
    Ok(())
}

/// Puts `data` in place in watched memory that nobody uses yet.
fn install(
    shared: &Shared,
    watched: &Watched,
    pages: PageRange,
    mut data: &[u8],
) -> Result<(), TierError> {
    let mut at = shared.ram.places().host(pages)?;
    while !data.is_empty() {
        let call = |source| RamError::Call { what: "install", range: pages, source };
        match watched.uffd.copy(at, data, Install::Plain).map_err(call)? {
            Installed::All => break,
            Installed::Part(done) => {
                at += done as u64;
                data = data.get(done..).unwrap_or_default();
            }
            // Only a plan that installs a page twice could do this.
            Installed::Present => {
                let what = format!("pages {pages:?} are installed twice");
                return Err(TierError::Plan(what));
            }
        }
    }
    Ok(())
}
