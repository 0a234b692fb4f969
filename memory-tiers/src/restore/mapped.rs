//! Pages of mapped images that are lost while the guest runs: the file became shorter, or its disk fails.
//! The kernel tells of it by an address alone, or not at all; here it gets the names of the page, the image
//! and the tier.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use varve_snapshot::{ImageId, PAGE_SIZE, PageRange, Stored};

use crate::error::TierError;
use crate::plan::ops::{Action, Op, Plan};
use crate::restore::execute::{Restore, Shared};
use crate::source::page_source::{PageSource, lost};

/// Bytes that are read at a time when a lost page is looked for.
const PART: u64 = 1 << 20;
/// Limit of the time that the search for an unreadable page takes.
const PATIENCE: Duration = Duration::from_secs(10);

/// What each image's file must have: the byte after the last one that is mapped.
pub(crate) type Ends = BTreeMap<ImageId, u64>;

/// Names of mapped pages, for a signal's handler: it allocates nothing and takes no lock.
pub struct MappedPages(Weak<Shared>);

impl MappedPages {
    /// Writes what is mapped at the guest physical address `page`; whether anything is.
    pub fn describe(&self, page: u64, to: &mut dyn fmt::Write) -> bool {
        let Some(shared) = self.0.upgrade() else { return false };
        let named = mapped_at(&shared.plan, page).and_then(|at| {
            let info = shared.sources.get(usize::from(at.image.0))?.as_ref()?.info();
            write!(to, "from page {} of {} image {}", at.page, info.tier, info.name).ok()
        });
        // The last owner must not be a handler, which may not free memory.
        std::mem::forget(shared);
        named.is_some()
    }
}

impl Restore {
    /// Names of mapped pages, for a signal's handler.
    pub fn mapped_pages(&self) -> MappedPages {
        MappedPages(Arc::downgrade(self.shared()))
    }

    /// The means to look whether the files of mapped images are as long as they must be: it tells a page that
    /// is mapped from behind the end of its file. Nothing is wrong once this is dropped.
    pub fn watch_lengths(&self) -> impl Fn() -> Result<(), TierError> + Send + Sync + use<> {
        let shared = Arc::downgrade(self.shared());
        move || shared.upgrade().map_or(Ok(()), |shared| shared.check_lengths())
    }

    /// Looks for a page that KVM could not have: it tells neither which one nor why. Reads the images, for
    /// some seconds at most.
    #[must_use]
    pub fn find_lost(&self) -> Option<TierError> {
        let shared = self.shared();
        if let Err(error) = shared.check_lengths() {
            return Some(error);
        }
        let deadline = Instant::now() + PATIENCE;
        for op in shared.plan.ops.iter().filter(|op| op.action == Action::Map) {
            let source = shared.source(op.from?.image).ok()?;
            let Some((file, offset)) = source.file() else { continue };
            let (mut page, start) = (op.pages.start(), byte(op, op.pages.start(), offset)?);
            while page < op.pages.end() && Instant::now() < deadline {
                let at = start + (page - op.pages.start());
                let len = PART.min(op.pages.end() - page);
                if let Some((bad, error)) = unreadable(file, at, len) {
                    return Some(lost_page(page + (bad - at), source, error.into()));
                }
                page += len;
            }
        }
        None
    }
}

impl Shared {
    fn check_lengths(&self) -> Result<(), TierError> {
        for (&image, &end) in self.ends.get_or_init(|| ends(self)) {
            let source = self.source(image)?;
            let Some((file, offset)) = source.file() else { continue };
            let Some(length) = length(file).filter(|length| *length < end) else { continue };
            let gone = |op: &&Op| byte(op, op.pages.end(), offset).is_some_and(|at| at > length);
            let Some(op) = maps(self, image).find(gone) else { continue };
            let start = byte(op, op.pages.start(), offset).unwrap_or_default();
            let skipped = length.saturating_sub(start) / PAGE_SIZE * PAGE_SIZE;
            let cause = format!("the file is {length} bytes long now and was mapped up to {end}");
            return Err(lost_page(op.pages.start() + skipped, source, cause.into()));
        }
        Ok(())
    }
}

fn lost_page(
    page: u64,
    source: &dyn PageSource,
    cause: crate::source::page_source::SourceError,
) -> TierError {
    match PageRange::new(page, PAGE_SIZE) {
        Ok(pages) => lost(pages, source, cause),
        Err(error) => TierError::Plan(error.to_string()),
    }
}

/// Where the page at `address` is mapped from: what was laid last counts.
fn mapped_at(plan: &Plan, address: u64) -> Option<Stored> {
    let covers = |op: &&Op| {
        let laid = !matches!(op.action, Action::Watch);
        laid && (op.pages.start()..op.pages.end()).contains(&address)
    };
    let op = plan.ops.iter().rev().find(covers).filter(|op| op.action == Action::Map)?;
    let from = op.from?;
    Some(Stored { page: from.page + (address - op.pages.start()) / PAGE_SIZE, ..from })
}

fn maps(shared: &Shared, image: ImageId) -> impl Iterator<Item = &Op> {
    let of_image = move |op: &&Op| op.from.is_some_and(|from| from.image == image);
    shared.plan.ops.iter().filter(|op| op.action == Action::Map).filter(of_image)
}

/// The byte of its file at which an operation's guest address `address` is.
fn byte(op: &Op, address: u64, offset: u64) -> Option<u64> {
    let page = op.from?.page.checked_mul(PAGE_SIZE)?;
    offset.checked_add(page)?.checked_add(address - op.pages.start())
}

fn ends(shared: &Shared) -> Ends {
    let mut ends = Ends::new();
    for op in shared.plan.ops.iter().filter(|op| op.action == Action::Map) {
        let Some(from) = op.from else { continue };
        let offset = shared.source(from.image).ok().and_then(|s| Some(s.file()?.1));
        let end = offset.and_then(|offset| byte(op, op.pages.end(), offset));
        let known = ends.entry(from.image).or_default();
        *known = end.unwrap_or_default().max(*known);
    }
    ends
}

/// The length of a regular file. Devices have none that can be asked for, and do not shrink.
fn length(file: &File) -> Option<u64> {
    file.metadata().ok().filter(|data| data.is_file()).map(|data| data.len())
}

/// The first page of a file that its disk does not give, and the disk's answer.
fn unreadable(file: &File, at: u64, len: u64) -> Option<(u64, io::Error)> {
    let failed = |error: &io::Error| {
        let codes = [libc::EIO, libc::EHWPOISON, libc::ESTALE, libc::EREMOTEIO, libc::ENODATA];
        error.raw_os_error().is_some_and(|code| codes.contains(&code))
    };
    let mut buffer = vec![0; len as usize];
    file.read_at(&mut buffer, at).err().filter(failed)?;
    (at..at + len).step_by(PAGE_SIZE as usize).find_map(|at| {
        let page = buffer.get_mut(..PAGE_SIZE as usize)?;
        file.read_at(page, at).err().filter(failed).map(|error| (at, error))
    })
}
