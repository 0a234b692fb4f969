//! The command line of `varve-bench replay`.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::Args;
use varve_memory_tiers::Strategy;
use varve_tests::images::root;

use super::once::Conditions;
use super::synthetic::{self, Shape};
use super::{Comparison, PageCache, compare, name};
use crate::session::Session;

/// Options of `varve-bench replay`.
#[derive(Clone, Debug, Args)]
pub struct ReplayArgs {
    /// Folder of a tiered snapshot; without one, a synthetic snapshot is made
    #[arg(requires = "trace")]
    snapshot: Option<PathBuf>,
    /// The recorded accesses (`varve snapshot record`): best those of an input that the snapshot was
    /// not tiered by
    #[arg(long, value_name = "FILE", requires = "snapshot")]
    trace: Option<PathBuf>,
    /// Methods, the first of which the others are compared with
    #[arg(
        long,
        value_name = "NAMES",
        value_delimiter = ',',
        default_value = "lazy,eager,reap,faasnap,tiered,template,auto"
    )]
    strategy: Vec<Strategy>,
    /// Page cache: warm, cold, or both
    #[arg(long, value_enum, value_delimiter = ',', default_value = "warm")]
    cache: Vec<PageCache>,
    #[command(flatten)]
    conditions: Conditions,
    #[command(flatten)]
    shape: Shape,
}

impl ReplayArgs {
    /// Measures every method `runs` times.
    ///
    /// # Errors
    ///
    /// If the snapshot cannot be made or restored.
    pub fn run(&self, runs: usize, session: &mut Session) -> Result<()> {
        ensure!(!self.strategy.is_empty() && !self.cache.is_empty(), "nothing to compare");
        let mut conditions = self.conditions.clone();
        if conditions.calibrate {
            let costs = crate::calibrate::measure()?;
            eprintln!("measured: {costs:?}");
            conditions.costs = Some(costs);
        }
        // On the disk, as there would be no cold page cache elsewhere.
        let place = root().join("target/bench");
        std::fs::create_dir_all(&place).with_context(|| place.display().to_string())?;
        let folder = tempfile::Builder::new().prefix("replay").tempdir_in(&place)?;
        let name = match (&self.snapshot, &self.trace) {
            (Some(snapshot), Some(trace)) => {
                conditions.snapshot = snapshot.clone();
                conditions.trace = trace.clone();
                name(snapshot)
            }
            _ => {
                let made = synthetic::make(&self.shape, folder.path())?;
                (conditions.snapshot, conditions.trace) = (made.snapshot, made.trace);
                format!("synthetic {} MiB", self.shape.size)
            }
        };
        let (strategies, caches) = (self.strategy.clone(), self.cache.clone());
        let labels = vec![("snapshot", name)];
        let part = "replay";
        compare(&[Comparison { part, labels, strategies, caches, runs, conditions }], session)
    }
}
