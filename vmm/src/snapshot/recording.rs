//! A machine whose accesses to memory are recorded: what says so, marks between invocations, and the
//! trace at the end.

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use varve_memory_tiers::{Recorder, Restore, ScanBy, Scanner, TierError};
use varve_snapshot::{LocalFiles, Trace};

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
    /// What was seen, once the recording has ended.
    trace: Mutex<Option<Trace>>,
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
        let earlier = (record.append && record.trace_path.exists())
            .then(|| Trace::read(&record.trace_path))
            .transpose()?;
        Ok(Recording { record, earlier, eye, trace: Mutex::default() })
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
        let trace = lock(&self.trace);
        match &self.eye {
            _ if trace.is_some() => Ok(()),
            Eye::Faults(recorder) => recorder.mark(label),
            Eye::Looks(_, scanner) => lock(scanner).as_ref().map_or(Ok(()), |s| s.mark(label)),
        }
    }

    /// Whether accesses are still recorded.
    pub fn goes_on(&self) -> bool {
        lock(&self.trace).is_none()
    }

    /// Pages seen up to now: touched, and among them written. Looking tells at its end only.
    pub fn seen(&self) -> Option<(u64, u64)> {
        match (&*lock(&self.trace), &self.eye) {
            (Some(trace), _) => Some(count(trace)),
            (None, Eye::Faults(recorder)) => Some(recorder.seen()),
            (None, Eye::Looks(..)) => None,
        }
    }

    /// Ends the recording, if that was not done before. To be called before anything but the guest
    /// and its devices looks at guest memory.
    pub fn seal(&self) -> Result<(), TierError> {
        self.sealed(|_| ())
    }

    /// Ends the recording and writes the trace; tells pages that it saw touched, and among them
    /// written.
    pub fn save(&self) -> Result<(u64, u64), VmmError> {
        self.sealed(|trace| {
            let all = self.earlier.as_ref().and_then(|e| Trace::merge([e, trace]));
            all.as_ref().unwrap_or(trace).write(&LocalFiles, &self.record.trace_path)?;
            if trace.pages().is_empty() {
                log::warn!(
                    "the recording saw no page: mincore cannot tell pages that were in the page \
                     cache before; record by faults or by pagemap"
                );
            }
            Ok(count(trace))
        })?
    }

    fn sealed<T>(&self, then: impl FnOnce(&Trace) -> T) -> Result<T, TierError> {
        let mut trace = lock(&self.trace);
        if let Some(trace) = &*trace {
            return Ok(then(trace));
        }
        let seen = match &self.eye {
            Eye::Faults(recorder) => recorder.seal()?,
            Eye::Looks(_, scanner) => {
                let failed = || TierError::Plan("the recording failed when it was ended".into());
                lock(scanner).take().ok_or_else(failed)?.seal()?
            }
        };
        Ok(then(trace.insert(seen)))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn count(trace: &Trace) -> (u64, u64) {
    let written = trace.pages().iter().filter(|page| page.runs_written > 0).count();
    (trace.pages().len() as u64, written as u64)
}
