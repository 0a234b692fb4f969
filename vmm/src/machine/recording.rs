//! A machine whose accesses to memory are recorded: what says so, marks between invocations, and the
//! trace at the end.

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use varve_memory_tiers::{Recorder, Restore, ScanBy, Scanner, TierError};
use varve_snapshot::{Trace, check_output};

use crate::error::VmmError;

/// How accesses are recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RecordBy {
    /// Every first access is a fault: exact, in order, reads told from writes.
    #[default]
    Faults,
    /// By looking at the page cache from time to time: cheaper, and less exact.
    Mincore,
    /// By looking at page tables from time to time: cheaper, and less exact.
    Pagemap,
}

impl RecordBy {
    /// What is looked at, if recording means looking.
    pub fn scan(self) -> Option<ScanBy> {
        match self {
            RecordBy::Faults => None,
            RecordBy::Mincore => Some(ScanBy::Mincore),
            RecordBy::Pagemap => Some(ScanBy::Pagemap),
        }
    }
}

/// A recording that is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Where the trace goes.
    pub trace_path: PathBuf,
    /// How.
    #[serde(default)]
    pub by: RecordBy,
    /// Add to the trace that is there, if one is; else it is replaced.
    #[serde(default)]
    pub append: bool,
}

/// Time between two looks.
pub(super) const SCAN_PERIOD: Duration = Duration::from_millis(50);

/// A restore under recording.
pub struct Recording {
    record: Record,
    /// What the trace is added to.
    earlier: Option<Trace>,
    eye: Eye,
    progress: Mutex<Progress>,
}

enum Progress {
    GoesOn,
    /// Not written yet.
    Ended(Trace),
    /// With so many pages, and among them so many written.
    Saved(u64, u64),
}

/// Who sees accesses. The first goes on to bring pages in when the recording has ended.
enum Eye {
    Faults(Recorder),
    /// With what brings the pages in. A scanner can be asked once.
    Looks(Restore, Mutex<Option<Scanner>>),
}

impl Recording {
    /// Recording by faults.
    pub fn by_faults(recorder: Recorder, record: Record) -> Result<Recording, VmmError> {
        Recording::new(Eye::Faults(recorder), record)
    }

    /// Recording by looking at memory that `restore` brings.
    pub fn by_looks(
        scanner: Scanner,
        restore: Restore,
        record: Record,
    ) -> Result<Recording, VmmError> {
        Recording::new(Eye::Looks(restore, Mutex::new(Some(scanner))), record)
    }

    /// A trace that cannot be added to is better found now than at the end.
    fn new(eye: Eye, record: Record) -> Result<Recording, VmmError> {
        check_output(&record.trace_path)?;
        // An empty file was made beforehand, as for a mount.
        let has_trace = std::fs::metadata(&record.trace_path).is_ok_and(|found| found.len() > 0);
        let earlier =
            (record.append && has_trace).then(|| Trace::read(&record.trace_path)).transpose()?;
        Ok(Recording { record, earlier, eye, progress: Mutex::new(Progress::GoesOn) })
    }

    /// What was asked for.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// What brings the pages in, where the recording only looks.
    pub fn restore(&self) -> Option<&Restore> {
        match &self.eye {
            Eye::Faults(_) => None,
            Eye::Looks(restore, _) => Some(restore),
        }
    }

    /// An invocation begins. Without effect once the recording has ended.
    pub fn mark(&self, label: &str) -> Result<(), TierError> {
        match (&*lock(&self.progress), &self.eye) {
            (Progress::GoesOn, Eye::Faults(recorder)) => recorder.mark(label),
            (Progress::GoesOn, Eye::Looks(_, scanner)) => {
                lock(scanner).as_ref().map_or(Ok(()), |scanner| scanner.mark(label))
            }
            _ => Ok(()),
        }
    }

    /// Whether accesses are still recorded.
    pub fn goes_on(&self) -> bool {
        matches!(&*lock(&self.progress), Progress::GoesOn)
    }

    /// Pages seen up to now: touched, and among them written. Looking tells at its end only.
    pub fn seen(&self) -> Option<(u64, u64)> {
        match (&*lock(&self.progress), &self.eye) {
            (Progress::GoesOn, Eye::Faults(recorder)) => Some(recorder.seen()),
            (Progress::GoesOn, Eye::Looks(..)) => None,
            (Progress::Ended(trace), _) => Some(count(trace)),
            (&Progress::Saved(pages, written), _) => Some((pages, written)),
        }
    }

    /// Ends the recording, if that was not done before. To be called before anything but the guest
    /// and its devices looks at guest memory.
    pub fn seal(&self) -> Result<(), TierError> {
        let mut progress = lock(&self.progress);
        if matches!(*progress, Progress::GoesOn) {
            *progress = Progress::Ended(self.end()?);
        }
        Ok(())
    }

    /// Ends the recording and has `write` write the trace to its path, unless that was done before; tells
    /// pages that it saw touched, and among them written.
    ///
    /// # Errors
    ///
    /// If the recording failed, or the trace cannot be written.
    pub fn save(
        &self,
        write: impl FnOnce(&Path, Vec<u8>) -> Result<(), VmmError>,
    ) -> Result<(u64, u64), VmmError> {
        let mut progress = lock(&self.progress);
        let trace = match &*progress {
            &Progress::Saved(pages, written) => return Ok((pages, written)),
            Progress::Ended(trace) => Cow::Borrowed(trace),
            Progress::GoesOn => Cow::Owned(self.end()?),
        };
        let (pages, written) = count(&trace);
        let all = self.earlier.as_ref().and_then(|earlier| Trace::merge([earlier, &*trace]));
        let all = all.as_ref().unwrap_or(&trace);
        if let Err(error) = write(&self.record.trace_path, all.to_bytes()) {
            // It may be tried again.
            *progress = Progress::Ended(trace.into_owned());
            return Err(error);
        }
        if pages == 0 {
            log::warn!(
                "the recording saw no page: mincore cannot tell pages that were in the page cache \
                 before; record by faults or by pagemap"
            );
        }
        *progress = Progress::Saved(pages, written);
        Ok((pages, written))
    }

    fn end(&self) -> Result<Trace, TierError> {
        match &self.eye {
            Eye::Faults(recorder) => recorder.seal(),
            Eye::Looks(_, scanner) => {
                let failed = || TierError::Plan("the recording failed when it was ended".into());
                lock(scanner).take().ok_or_else(failed)?.seal()
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn count(trace: &Trace) -> (u64, u64) {
    let written = trace.pages().iter().filter(|page| page.runs_written > 0).count();
    (trace.pages().len() as u64, written as u64)
}
