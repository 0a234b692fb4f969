//! The trace: which pages recorded runs touched, in which order, and which they wrote. Recording is
//! `varve-memory-tiers`' business, what follows from a trace is `classify`'s.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::codec::{Decoder, Encoder};
use crate::container::{Builder, Container, Kind, ReadError, SectionId};
use crate::error::{FormatError, SnapshotError};
use crate::page::PAGE_SIZE;
use crate::store::{Files, Staging};

const INFO: SectionId = SectionId::new(1, 0);
const PAGES: SectionId = SectionId::new(2, 0);
const KNOWN: [u16; 2] = [INFO.kind, PAGES.kind];
pub(crate) const ACCESS_LEN: usize = 28;

/// How accesses were seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u8)]
pub enum Mechanism {
    /// Missing and write-protect events of userfaultfd: exact order, exact writes.
    UffdWp = 0,
    /// Polling which pages of the memory file became resident (FaaSnap): no writes, coarse order.
    Mincore = 1,
    /// Page-table walks by pagemap: exact writes, coarse order.
    Pagemap = 2,
    /// Traces of different mechanisms, merged.
    Mixed = 3,
}

impl Mechanism {
    pub(crate) fn from_number(n: u8) -> Option<Mechanism> {
        use Mechanism::*;
        [UffdWp, Mincore, Pagemap, Mixed].into_iter().find(|&m| m as u8 == n)
    }
}

/// How a page was touched: a set of flags.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Access(u8);

impl Access {
    /// Read, by whomever.
    pub const READ: Access = Access(1);
    /// Written, by whomever. A page first read and later written has both.
    pub const WRITTEN: Access = Access(2);
    /// Touched by the monitor (devices, queues), not or not only by vCPUs.
    pub const MONITOR: Access = Access(4);
    const ALL: u8 = 7;

    /// Both sets together.
    #[must_use]
    pub fn with(self, other: Access) -> Access {
        Access(self.0 | other.0)
    }

    /// Whether all flags of `other` are set.
    pub fn has(self, other: Access) -> bool {
        self.0 & other.0 == other.0
    }
}

/// One page that recorded runs touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageAccess {
    /// Guest frame number: guest physical address / 4096.
    pub gfn: u64,
    /// Rank of the first access, from 0; the lowest of all runs. Not unique after a merge.
    pub order: u32,
    /// How it was touched, in all runs together.
    pub access: Access,
    /// Index in [`Trace::labels`] of the invocation that touched it first.
    pub invocation: u32,
    /// Number of runs that touched it; at least 1.
    pub runs: u32,
    /// Number of runs that wrote it; at most `runs`, at least 1 exactly if it was written.
    pub runs_written: u32,
}

/// Page accesses of recorded runs. A *run* is one restored VM that was recorded, with one or more
/// invocations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    /// How accesses were seen.
    pub mechanism: Mechanism,
    /// Number of runs that were merged into this trace; at least 1.
    pub runs: u32,
    /// Names of the invocations, in order. By convention a run's first is `resume`: what was touched
    /// before the first mark.
    pub labels: Vec<String>,
    pages: Vec<PageAccess>,
}

impl Trace {
    /// A trace of pages in any order, each once, and checked as a file's are.
    pub fn new(
        mechanism: Mechanism,
        runs: u32,
        labels: Vec<String>,
        mut pages: Vec<PageAccess>,
    ) -> Result<Trace, FormatError> {
        pages.sort_unstable_by_key(|p| p.gfn);
        let trace = Trace { mechanism, runs, labels, pages };
        trace.check()?;
        Ok(trace)
    }

    /// A trace of one run that touched nothing.
    pub fn empty(mechanism: Mechanism) -> Trace {
        Trace { mechanism, runs: 1, labels: Vec::new(), pages: Vec::new() }
    }

    /// The pages, by guest frame number.
    pub fn pages(&self) -> &[PageAccess] {
        &self.pages
    }

    /// What is known of a page.
    pub fn find(&self, gfn: u64) -> Option<&PageAccess> {
        self.pages.binary_search_by_key(&gfn, |p| p.gfn).ok().and_then(|at| self.pages.get(at))
    }

    /// All runs of `traces` as one: runs add up, of the orders the lowest counts. Counts, flags and
    /// order do not depend on the order of `traces`; the numbers of invocations do, as their labels
    /// are put one after another. `None` if there are no traces.
    pub fn merge<'a>(traces: impl IntoIterator<Item = &'a Trace>) -> Option<Trace> {
        let mut traces = traces.into_iter().peekable();
        let first = traces.peek()?;
        let mut merged = Trace { runs: 0, ..Trace::empty(first.mechanism) };
        let mut pages: BTreeMap<u64, PageAccess> = BTreeMap::new();
        for trace in traces {
            if trace.mechanism != merged.mechanism {
                merged.mechanism = Mechanism::Mixed;
            }
            merged.runs = merged.runs.saturating_add(trace.runs);
            let shift = merged.labels.len() as u32;
            merged.labels.extend(trace.labels.iter().cloned());
            for page in &trace.pages {
                let page =
                    PageAccess { invocation: page.invocation.saturating_add(shift), ..*page };
                pages.entry(page.gfn).and_modify(|p| join(p, &page)).or_insert(page);
            }
        }
        merged.pages = pages.into_values().collect();
        Some(merged)
    }

    fn check(&self) -> Result<(), FormatError> {
        let d = Decoder::new("trace", &[]);
        if self.runs == 0 {
            return Err(d.value("runs", "0".into(), "at least 1 was expected"));
        }
        let mut next = 0;
        for page in &self.pages {
            let shown = || format!("{page:?}");
            if page.gfn < next {
                return Err(d.value("pages", shown(), "not after the page before it"));
            }
            if page.gfn >= u64::MAX / PAGE_SIZE {
                return Err(d.value("page frame", shown(), "beyond the address space"));
            }
            next = page.gfn + 1;
            if page.runs == 0 || page.runs > self.runs || page.runs_written > page.runs {
                return Err(d.value("runs of a page", shown(), "more than there are, or none"));
            }
            if page.access.has(Access::WRITTEN) != (page.runs_written > 0) {
                return Err(d.value("access", shown(), "contradicts the number of writing runs"));
            }
            if page.invocation as usize >= self.labels.len() {
                return Err(d.value("invocation", shown(), "not one of the labels"));
            }
        }
        Ok(())
    }

    /// The bytes of a trace file.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut info = Encoder::default();
        info.u8(self.mechanism as u8);
        info.u32(self.runs);
        info.count(self.labels.len());
        self.labels.iter().for_each(|l| info.string(l));
        let mut pages = Encoder(Vec::with_capacity(8 + ACCESS_LEN * self.pages.len()));
        pages.count(self.pages.len());
        for p in &self.pages {
            pages.u64(p.gfn);
            pages.u32(p.order);
            pages.u32(p.access.0.into());
            pages.u32(p.invocation);
            pages.u32(p.runs);
            pages.u32(p.runs_written);
        }
        let mut file = Builder::new(Kind::Trace);
        file.required(INFO, info);
        file.required(PAGES, pages);
        file.finish()
    }

    /// The trace that a file's bytes say.
    pub fn from_bytes(bytes: &[u8]) -> Result<Trace, FormatError> {
        Self::decode(bytes).map_err(ReadError::in_memory)
    }

    fn decode(bytes: &[u8]) -> Result<Trace, ReadError> {
        let file = Container::from_bytes(Kind::Trace, &KNOWN, bytes)?;
        file.check_all()?;
        let body = file.required(INFO, "info")?;
        let mut d = Decoder::new("info", &body);
        let number = d.u8("mechanism")?;
        let mechanism = Mechanism::from_number(number)
            .ok_or_else(|| d.value("mechanism", number.to_string(), "not one that is known"))?;
        let runs = d.u32("runs")?;
        let labels =
            (0..d.count("labels", 8)?).map(|_| d.string("label")).collect::<Result<_, _>>()?;
        d.end()?;
        let body = file.required(PAGES, "pages")?;
        let mut d = Decoder::new("pages", &body);
        let records = d.records::<ACCESS_LEN>("pages")?;
        let mut pages = Vec::with_capacity(records.len());
        for record in records {
            pages.push(decode_access(record)?);
        }
        d.end()?;
        let trace = Trace { mechanism, runs, labels, pages };
        trace.check()?;
        Ok(trace)
    }

    /// Writes the trace to a file, whole or not at all.
    pub fn write(&self, files: &dyn Files, path: &Path) -> Result<(), SnapshotError> {
        Staging::write_file(files, path, &self.to_bytes())
    }

    /// Reads a trace file.
    pub fn read(path: &Path) -> Result<Trace, SnapshotError> {
        let bytes = fs::read(path).map_err(SnapshotError::io("read", path))?;
        Self::from_bytes(&bytes).map_err(SnapshotError::format(path))
    }
}

fn decode_access(record: &[u8; ACCESS_LEN]) -> Result<PageAccess, FormatError> {
    let mut d = Decoder::new("pages", record);
    let (gfn, order, flags) = (d.u64("gfn")?, d.u32("order")?, d.u32("access")?);
    let access = match u8::try_from(flags) {
        Ok(bits) if bits & !Access::ALL == 0 && bits & 3 != 0 => Access(bits),
        _ => return Err(d.value("access", format!("{flags:#x}"), "not a set of known flags")),
    };
    let (invocation, runs) = (d.u32("invocation")?, d.u32("runs")?);
    Ok(PageAccess { gfn, order, access, invocation, runs, runs_written: d.u32("runs written")? })
}

fn join(page: &mut PageAccess, other: &PageAccess) {
    if other.order < page.order {
        page.order = other.order;
        page.invocation = other.invocation;
    }
    page.access = page.access.with(other.access);
    page.runs = page.runs.saturating_add(other.runs);
    page.runs_written = page.runs_written.saturating_add(other.runs_written);
}
