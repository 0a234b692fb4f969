//! A snapshot that no machine was in: pages of all classes in runs of random length, and the trace
//! that would have made them so.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use clap::Args;
use varve_snapshot::{
    Access, FlatWriter, LocalFiles, Mechanism, PAGE_SIZE, PageAccess, PageRange, STATE_FILE,
    StateFile, TierInput, TierOptions, Trace, tier,
};

/// What the guest is like. Shares are of all pages; what is left is cold.
#[derive(Clone, Copy, Debug, Args)]
pub struct Shape {
    /// Guest memory of a synthetic snapshot, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 256)]
    pub size: u64,
    /// Share of zero pages
    #[arg(long, value_name = "SHARE", default_value_t = 0.65)]
    pub zero: f64,
    /// Share of pages that are only read
    #[arg(long, value_name = "SHARE", default_value_t = 0.019)]
    pub read: f64,
    /// Share of pages that are written
    #[arg(long, value_name = "SHARE", default_value_t = 0.03)]
    pub written: f64,
    /// Share of zero pages that are written
    #[arg(long, value_name = "SHARE", default_value_t = 0.01)]
    pub zero_written: f64,
    /// Mean length of runs of hot pages
    #[arg(long, value_name = "PAGES", default_value_t = 4)]
    pub run: u64,
}

/// The classes of its pages, and whether they are touched.
const KINDS: usize = 5;

/// A snapshot and its trace.
#[derive(Debug)]
pub struct Made {
    /// Folder of the tiered snapshot.
    pub snapshot: PathBuf,
    /// The trace that it was tiered by.
    pub trace: PathBuf,
}

/// Makes a tiered snapshot of the given shape in `folder`, the same each time.
///
/// # Errors
///
/// If shares are not shares, or the folder cannot be written to.
pub fn make(shape: &Shape, folder: &Path) -> Result<Made> {
    let Shape { zero, read, written, zero_written, .. } = *shape;
    let shares = [zero, read, written, zero_written];
    let sum: f64 = shares.iter().sum();
    let good = shares.iter().all(|share| (0.0..=1.0).contains(share)) && sum <= 1.0;
    ensure!(good, "shares of pages are between 0 and 1, and 1 in all at most: not {shares:?}");
    ensure!((1..=1 << 20).contains(&shape.size), "a guest of {} MiB", shape.size);
    let memory = PageRange::new(0, shape.size << 20)?;
    let runs = runs(memory.pages(), &shares, shape.run.max(1));

    let snapshot = folder.join("snapshot");
    std::fs::create_dir_all(&snapshot)?;
    let mut writer = FlatWriter::in_dir(&LocalFiles, &snapshot, memory.len())?;
    for run in runs.iter().filter(|run| !run.is_zero()) {
        let bytes: Vec<u8> = (run.first..run.first + run.pages).flat_map(content).collect();
        writer.memory()?.write_at(&bytes, run.first * PAGE_SIZE)?;
    }
    writer.finish(StateFile {
        vmm_version: env!("CARGO_PKG_VERSION").into(),
        memory: vec![memory],
        ..StateFile::default()
    })?;
    let trace_file = folder.join("trace");
    let trace = trace(&runs)?;
    trace.write(&LocalFiles, &trace_file)?;
    let input = TierInput {
        state: &snapshot.join(STATE_FILE),
        memory: &snapshot.join("memory"),
        traces: &[trace],
        out: &snapshot,
    };
    tier(&LocalFiles, &input, &TierOptions::default())?;
    Ok(Made { snapshot, trace: trace_file })
}

/// Pages of one kind: the index of a share, or after the last for cold ones.
#[derive(Clone, Copy, Debug)]
struct Run {
    first: u64,
    pages: u64,
    kind: usize,
}

impl Run {
    fn is_zero(self) -> bool {
        matches!(self.kind, 0 | 3)
    }
}

/// Runs of hot pages are `mean` long in the mean, others eight times that; all random.
fn runs(pages: u64, shares: &[f64; KINDS - 1], mean: u64) -> Vec<Run> {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let length = |kind: usize| if matches!(kind, 1..=3) { mean } else { 8 * mean };
    let cold = 1.0 - shares.iter().sum::<f64>();
    // A kind with long runs has to be chosen less often.
    let weights: Vec<f64> = (0..KINDS)
        .map(|kind| shares.get(kind).unwrap_or(&cold).max(0.0) / length(kind) as f64)
        .collect();
    let all: f64 = weights.iter().sum();
    let mut runs = Vec::new();
    let mut first = 0;
    while first < pages {
        let mut at = random.unit() * all;
        let kind = weights.iter().position(|w| {
            at -= w;
            at < 0.0
        });
        let kind = kind.unwrap_or(KINDS - 1);
        let len = 1 + random.next() % (2 * length(kind) - 1);
        runs.push(Run { first, pages: len.min(pages - first), kind });
        first += len;
    }
    runs
}

/// Hot runs are touched in random order, their pages one after another.
fn trace(runs: &[Run]) -> Result<Trace> {
    let mut random = Random(7);
    let mut hot: Vec<(u64, Run)> =
        runs.iter().filter(|r| matches!(r.kind, 1..=3)).map(|&r| (random.next(), r)).collect();
    hot.sort_by_key(|(key, _)| *key);
    let pages = hot.iter().flat_map(|(_, run)| {
        (run.first..run.first + run.pages).zip([run.kind; 1].into_iter().cycle())
    });
    let access = |kind: usize| match kind {
        1 => Access::READ,
        2 => Access::READ.with(Access::WRITTEN),
        _ => Access::WRITTEN,
    };
    let pages = pages.zip(0..).map(|((gfn, kind), order)| {
        let access = access(kind);
        let runs_written = access.has(Access::WRITTEN).into();
        PageAccess { gfn, order, access, invocation: 0, runs: 1, runs_written }
    });
    Ok(Trace::new(Mechanism::UffdWp, 1, vec!["synthetic".into()], pages.collect())?)
}

/// What a page holds: nothing that another holds.
fn content(page: u64) -> Vec<u8> {
    let mut random = Random(page + 1);
    (0..PAGE_SIZE / 8).flat_map(|_| (random.next() | 1).to_le_bytes()).collect()
}

/// Xorshift (Marsaglia, 2003): the same numbers each time.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// In `0..1`.
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: Shape =
        Shape { size: 8, zero: 0.5, read: 0.1, written: 0.1, zero_written: 0.1, run: 4 };

    #[test]
    fn shares_come_out_about_right() {
        let shares = [0.5, 0.1, 0.1, 0.1];
        let runs = runs(1 << 18, &shares, 4);
        assert_eq!(runs.iter().map(|r| r.pages).sum::<u64>(), 1 << 18);
        for (kind, share) in shares.into_iter().enumerate() {
            let pages: u64 = runs.iter().filter(|r| r.kind == kind).map(|r| r.pages).sum();
            let found = pages as f64 / f64::from(1 << 18);
            assert!((found - share).abs() < share / 5.0, "{kind}: {found}");
        }
        assert!(make(&Shape { zero: 0.9, ..SHAPE }, Path::new("/nowhere")).is_err());
    }

    #[test]
    fn every_strategy_replays_it() {
        use crate::replay::once::{Conditions, once};
        let folder = tempfile::tempdir().unwrap();
        let made = make(&SHAPE, folder.path()).unwrap();
        let trace = Trace::read(&made.trace).unwrap();
        assert!(trace.pages().len() > 300);
        for strategy in ["lazy", "eager", "reap", "faasnap", "tiered", "template", "auto"] {
            let conditions = Conditions {
                snapshot: made.snapshot.clone(),
                trace: made.trace.clone(),
                strategy: strategy.parse().unwrap(),
                threads: 2,
                ..Conditions::default()
            };
            let ran = match once(&conditions) {
                Err(e) if strategy == "reap" && format!("{e:#}").contains("userfaultfd") => {
                    varve_skip::skip!("uffd", format!("{e:#}"));
                    continue;
                }
                ran => ran.unwrap(),
            };
            assert_eq!(ran.accesses, trace.pages().len() as u64, "{strategy}");
            assert_eq!(ran.touches.iter().map(|b| b.count).sum::<u64>(), ran.accesses);
            assert!(ran.plan_us < ran.mapped_us && ran.mapped_us < ran.end_us, "{ran:?}");
            match strategy {
                // Every page is there before it is touched.
                "eager" => assert!(ran.in_place.is_empty() && ran.mappings == 1, "{ran:?}"),
                "lazy" => assert!(ran.faults > 100 && ran.read.values().all(|&b| b == 0)),
                _ => {}
            }
        }
    }
}
