//! Replays that vary one thing: guest size, share of hot pages, latency of the tier that read-only
//! pages are used from.

use std::path::Path;

use anyhow::Result;
use varve_memory_tiers::{ReadOnlyPages, Strategy};

use crate::parts::Effort;
use crate::replay::once::Conditions;
use crate::replay::synthetic::{Shape, make};
use crate::replay::{Comparison, PageCache, compare};
use crate::session::Session;

/// The part of guests that differ in size; the hot pages are as many in each.
pub const BY_SIZE: &str = "by guest size";
/// The part of guests that differ in how much of them is hot.
pub const BY_SHARE: &str = "by share of hot pages";
/// The part of tiers that differ in latency.
pub const BY_LATENCY: &str = "by latency";
/// MiB.
const SIZES: [u64; 7] = [128, 256, 512, 1024, 2048, 4096, 8192];
const QUICK_SIZES: [u64; 3] = [128, 512, 2048];
/// Hot memory of each, in MiB: about what recorded functions touch.
const HOT: f64 = 12.0;
/// Of 256 MiB.
const SHARES: [f64; 6] = [0.01, 0.02, 0.05, 0.1, 0.2, 0.4];
/// What an access in place costs more than to local memory, in nanoseconds.
const LATENCIES: [u64; 4] = [0, 200, 400, 600];

/// Replays of synthetic snapshots.
#[derive(Clone, Copy, Debug)]
pub struct Shapes<'a> {
    /// Methods.
    pub strategies: &'a [Strategy],
    /// How often, and how many sizes.
    pub effort: Effort,
    /// Where snapshots are made.
    pub folder: &'a Path,
}

impl Shapes<'_> {
    /// By guest size, then by share of hot pages; with a warm page cache.
    ///
    /// # Errors
    ///
    /// If a snapshot cannot be made or restored.
    pub fn run(&self, session: &mut Session) -> Result<()> {
        let sizes = if self.effort.quick { &QUICK_SIZES[..] } else { &SIZES[..] };
        for &size in sizes {
            let label = ("guest size (MiB)", size.to_string());
            self.one(BY_SIZE, label, shape(size, HOT / size as f64), session)?;
        }
        for share in SHARES {
            let label = ("hot pages (%)", format!("{:.0}", share * 100.0));
            self.one(BY_SHARE, label, shape(256, share), session)?;
        }
        Ok(())
    }

    fn one(
        &self,
        part: &'static str,
        label: (&'static str, String),
        shape: Shape,
        session: &mut Session,
    ) -> Result<()> {
        let folder = tempfile::Builder::new().prefix("shape").tempdir_in(self.folder)?;
        let made = make(&shape, folder.path())?;
        // To read all of memory takes as long as it is large; that is known.
        let strategies = self.strategies.iter().copied().filter(|&s| s != Strategy::Eager);
        let what = Comparison {
            part,
            labels: vec![label],
            strategies: strategies.collect(),
            caches: vec![PageCache::Warm],
            runs: self.effort.runs,
            conditions: Conditions {
                snapshot: made.snapshot,
                trace: made.trace,
                compute: 1000,
                ..Conditions::default()
            },
        };
        compare(&[what], session)
    }
}

/// A guest of which `hot` is touched: two of five hot pages are only read, as many written, one is zero
/// and written. Of the rest three quarters are zero.
fn shape(size: u64, hot: f64) -> Shape {
    let zero = 0.75 * (1.0 - hot);
    Shape { size, zero, read: 0.4 * hot, written: 0.4 * hot, zero_written: 0.2 * hot, run: 4 }
}

/// One function's read-only pages mapped, copied and as the planner would, which reckons with this host's
/// costs, by latency of their tier.
///
/// # Errors
///
/// If it cannot be restored.
pub fn latency(base: &Comparison, session: &mut Session) -> Result<()> {
    let costs = Some(crate::calibrate::measure()?);
    let one = |delay: u64, how: &str, read_only: ReadOnlyPages| {
        let mut labels = base.labels.clone();
        labels.push(("latency (ns)", delay.to_string()));
        labels.push(("read-only pages", how.into()));
        Comparison {
            part: BY_LATENCY,
            labels,
            strategies: vec![Strategy::Tiered],
            caches: vec![PageCache::Warm],
            runs: base.runs,
            conditions: Conditions { delay, read_only, costs, ..base.conditions.clone() },
        }
    };
    for delay in LATENCIES {
        let ways = [
            one(delay, "mapped", ReadOnlyPages::Mapped),
            one(delay, "copied", ReadOnlyPages::Copied),
            one(delay, "auto", ReadOnlyPages::Auto),
        ];
        compare(&ways, session)?;
    }
    Ok(())
}
