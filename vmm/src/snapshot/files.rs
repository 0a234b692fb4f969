//! The files of a flat snapshot, written from what the paused machine said of itself and from its memory.
//! No part of it needs the machine, so that a thread of its own can do it.

use std::fs::File;
use std::io::{self, ErrorKind, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use varve_memory_tiers::{GuestRam, write_memory, write_pages};
use varve_snapshot::{
    FlatFile, FlatOrder, FlatWriter, LocalFiles, PageRange, SnapshotError, StateFile, Summing,
    check_whole, chunks_of,
};

use crate::end::EndSignal;
use crate::machine::lineage::Lineage;

/// A diff that was written over so many others is laid over the latest of their bases.
const MOST_BASES: usize = 256;

/// A snapshot of a machine that stands still until its files are written.
pub struct PendingSnapshot {
    /// What the machine says of itself.
    pub file: StateFile,
    /// The pages of a diff; `None`: all.
    pub pages: Option<Vec<PageRange>>,
    /// The snapshot before.
    pub last: Option<Lineage>,
    /// Guest memory.
    pub ram: Arc<GuestRam>,
    /// Ends the writing early.
    pub end: Arc<EndSignal>,
    /// Where the state file goes.
    pub state_path: PathBuf,
    /// Where the memory file goes.
    pub memory_path: PathBuf,
}

impl PendingSnapshot {
    /// Writes both files; tells which snapshot the machine's last one is now.
    ///
    /// # Errors
    ///
    /// If a file cannot be written, or the machine's end is announced before all are.
    pub fn write(self) -> Result<Option<Lineage>, SnapshotError> {
        let PendingSnapshot { mut file, pages, last, ram, end, state_path, memory_path } = self;
        let memory_path = memory_path.as_path();
        let mut writer = FlatWriter::at(&LocalFiles, &state_path, memory_path, ram.size())?;
        let order = FlatOrder::new(&file.memory);
        let under = match (&pages, &last) {
            (Some(_), Some(last)) => under(&writer, last, memory_path)?,
            // All of memory is written, or all that is not zero.
            _ => Under::Nothing,
        };
        match (&pages, under) {
            (_, Under::Last | Under::Unknown) => writer.keep_old()?,
            (Some(_), Under::Nothing) => writer.forget_old()?,
            (None, Under::Nothing) => {}
        }
        // What is left out of a diff is zero only if no snapshot came before.
        let mut sums = Summing::new(order.pages(), pages.is_none() || last.is_none());
        let zeros = writer.holds_old();
        let io = |e| SnapshotError::io("write", memory_path)(e);
        let target = writer.memory().map_err(io)?;
        let file_of = target.file().ok_or_else(|| io(ErrorKind::Unsupported.into()))?;
        let mut target = Stoppable { file: file_of, end: &end };
        match &pages {
            None if !zeros => write_memory(&ram, &mut target, &mut sums),
            None => write_pages(&ram, &file.memory, &mut target, true, &mut sums),
            Some(pages) => write_pages(&ram, pages, &mut target, true, &mut sums),
        }
        .map_err(io)?;
        match (pages, last, under) {
            (Some(pages), Some(last), Under::Nothing) => {
                (file.dirty, file.bases) = (Some(pages), vec![last.id]);
                file.sums = Some(sums.finish());
            }
            (Some(pages), Some(last), Under::Last) => {
                laid_over(&mut file, last, pages, &writer, &order)?;
            }
            (Some(_), Some(_), Under::Unknown) => {}
            (None, ..) | (Some(_), None, _) => file.sums = Some(sums.finish()),
        }
        writer.finish(file.clone())?;
        Ok(Lineage::written(&file, memory_path))
    }
}

/// A file whose writing fails once the machine has ended: a signal is not kept waiting for all of
/// memory, and what is there of the file is removed.
struct Stoppable<'a> {
    file: &'a File,
    end: &'a EndSignal,
}

impl Write for Stoppable<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.end.get() {
            None => self.file.write(bytes),
            Some(end) => Err(io::Error::other(format!("given up: {end}"))),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Seek for Stoppable<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.file.seek(to)
    }
}

/// What a diff is laid over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Under {
    /// It is a file of its own.
    Nothing,
    /// The memory file of the last snapshot.
    Last,
    /// A memory file that the client says is the base, and of which nothing is known.
    Unknown,
}

/// What is at the place of the memory file of a diff since `last`.
fn under(writer: &FlatWriter, last: &Lineage, memory: &Path) -> Result<Under, SnapshotError> {
    Ok(match writer.old() {
        None => Under::Nothing,
        Some((file, _)) if last.is_in(file) => Under::Last,
        Some((_, None)) => Under::Unknown,
        Some((_, Some(old))) => match check_whole(old, memory) {
            // Another diff, which is replaced.
            Err(SnapshotError::OnlyDiff { .. }) => Under::Nothing,
            Err(error) => return Err(error),
            // A diff that was merged has the same identity as its result, so it was ruled out before.
            Ok(()) if old.identity() == last.id => Under::Unknown,
            Ok(()) => {
                let path = memory.to_owned();
                let problem = "the memory of another snapshot than the one since which this diff is: \
                               name another file, or remove the state file of that one";
                return Err(SnapshotError::Target { path, problem });
            }
        },
    })
}

/// What the state file says of a memory file that held snapshot `last`, and now `pages` over it.
fn laid_over(
    file: &mut StateFile,
    last: Lineage,
    pages: Vec<PageRange>,
    writer: &FlatWriter,
    order: &FlatOrder,
) -> Result<(), SnapshotError> {
    let touched = chunks_of(order, &pages);
    if let Some(held) = last.held {
        // It holds what either of the two diffs holds, and fits whatever either fits.
        file.bases = last.bases;
        file.bases.push(last.id);
        let more = file.bases.len().saturating_sub(MOST_BASES);
        file.bases.drain(..more);
        file.dirty = Some(PageRange::union(held.into_iter().chain(pages).collect()));
    }
    let Some(mut sums) = last.sums else { return Ok(()) };
    let memory = FlatFile::open(writer.memory_path(), &file.memory)?;
    sums.renew(&memory, order, file.dirty.as_deref(), &touched)?;
    file.sums = Some(sums);
    Ok(())
}

#[cfg(test)]
mod tests {
    use varve_snapshot::SnapshotId;

    use super::*;

    const PAGES: u64 = 4;

    fn range(first: u64, pages: u64) -> PageRange {
        PageRange::new(first << 12, pages << 12).unwrap()
    }

    /// Writes a snapshot whose memory is `byte` in `held`, or in all pages.
    fn snapshot(state: &Path, memory: &Path, byte: u8, held: Option<PageRange>) -> StateFile {
        let mut writer = FlatWriter::at(&LocalFiles, state, memory, PAGES << 12).unwrap();
        let pages = held.unwrap_or(range(0, PAGES));
        let bytes = vec![byte; pages.len() as usize];
        writer.memory().unwrap().write_at(&bytes, pages.start()).unwrap();
        let file = StateFile {
            memory: vec![range(0, PAGES)],
            dirty: held.map(|held| vec![held]),
            id: Some(SnapshotId::random().unwrap()),
            ..StateFile::default()
        };
        writer.finish(file.clone()).unwrap();
        file
    }

    /// As Firecracker's clients make them: a diff never takes the place of pages that only its base has.
    #[test]
    fn a_diff_goes_over_what_is_at_its_place() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let base = snapshot(&at("base"), &at("base.mem"), 1, None);
        let last = Lineage::written(&base, &at("base.mem")).unwrap();
        let under = |state: &str, memory: &str| {
            let (state, memory) = (at(state), at(memory));
            let writer = FlatWriter::at(&LocalFiles, &state, &memory, PAGES << 12).unwrap();
            under(&writer, &last, &memory)
        };
        assert_eq!(under("diff", "diff.mem").unwrap(), Under::Nothing);
        assert_eq!(under("diff", "base.mem").unwrap(), Under::Last);
        assert_eq!(under("base", "base.mem").unwrap(), Under::Last);
        // A copy of which nothing is known, and one that its state file tells of.
        std::fs::copy(at("base.mem"), at("copy.mem")).unwrap();
        assert_eq!(under("diff", "copy.mem").unwrap(), Under::Unknown);
        std::fs::copy(at("base"), at("copy")).unwrap();
        assert_eq!(under("copy", "copy.mem").unwrap(), Under::Unknown);
        // A file of another length cannot be a base; another diff is replaced; another machine's memory is not.
        std::fs::write(at("short.mem"), "x").unwrap();
        assert_eq!(under("diff", "short.mem").unwrap(), Under::Nothing);
        snapshot(&at("other"), &at("other.mem"), 2, Some(range(1, 1)));
        assert_eq!(under("other", "other.mem").unwrap(), Under::Nothing);
        snapshot(&at("foreign"), &at("foreign.mem"), 3, None);
        let error = under("foreign", "foreign.mem").unwrap_err().to_string();
        assert!(error.contains("another snapshot"), "{error}");
    }
}
