//! `replay`: guest memory restored in a plain process, without KVM, and the recorded accesses made
//! there at full speed. What it shows is the host's share of a restore's cost.
//!
//! Each measurement is a process of its own ([`once`]); this starts them in turn and puts their
//! figures together.

pub mod cache;
pub mod command;
pub mod once;
pub mod synthetic;

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use varve_memory_tiers::Strategy;

use crate::progress::Progress;
use crate::recorder::{Recorder, Series};
use crate::report::Unit;
use crate::session::Session;
use crate::turns::turns;
use once::{Conditions, Ran};

/// Whether images are in the page cache when a restore begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PageCache {
    /// All of them.
    Warm,
    /// None of them, nor the manifest. Programs, libraries and the trace are.
    Cold,
}

impl PageCache {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            PageCache::Warm => "warm",
            PageCache::Cold => "cold",
        }
    }
}

/// What is compared.
#[derive(Clone, Debug)]
pub struct Comparison {
    /// The part that figures belong to.
    pub part: &'static str,
    /// What tells the snapshot, and the input, from others in the report.
    pub labels: Vec<(&'static str, String)>,
    /// The methods; the first is what the others are compared with.
    pub strategies: Vec<Strategy>,
    /// Page cache states.
    pub caches: Vec<PageCache>,
    /// How often.
    pub runs: usize,
    /// All else, for which the strategy is filled in.
    pub conditions: Conditions,
}

/// Measures round by round: each comparison and strategy once, then each again.
///
/// # Errors
///
/// If a run fails, or restores another snapshot's trace.
pub fn compare(all: &[Comparison], session: &mut Session) -> Result<()> {
    let steps = |what: &Comparison| what.caches.len() * what.strategies.len() * (what.runs + 1);
    let mut progress = Progress::new("replay", all.iter().map(steps).sum());
    let runs = all.iter().map(|what| what.runs).max().unwrap_or(0);
    // A round that does not count: the program comes into the page cache.
    for round in 0..=runs {
        for what in all.iter().filter(|what| round <= what.runs) {
            what.round(round, &mut progress, session)?;
        }
    }
    Ok(())
}

/// One run, in a process of its own.
///
/// # Errors
///
/// If it fails.
pub fn run(conditions: &Conditions) -> Result<Ran> {
    let program = std::env::current_exe().context("where this program is")?;
    let mut command = Command::new(program);
    command.arg(once::COMMAND).arg(serde_json::to_string(conditions)?);
    let output = command.output().with_context(|| format!("cannot start {command:?}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{}: {}", output.status, said.trim());
    }
    let ran: Ran = serde_json::from_slice(&output.stdout).context("what a run prints")?;
    ensure!(ran.accesses > 0, "the trace names no page of this snapshot");
    Ok(ran)
}

/// What restoring adds to the accesses.
pub const OVERHEAD: &str = "overhead";
/// The same as a multiple of the first strategy's in the same round.
pub const OVERHEAD_COMPARED: &str = "overhead, compared";
/// How long each access took, the first to its page.
pub const TOUCH: &str = "first access to a page";

const TOTAL: &str = "total";
const TOTAL_COMPARED: &str = "total, compared";

impl Comparison {
    /// Each strategy once; what round 0 takes is not recorded.
    fn round(&self, round: usize, progress: &mut Progress, session: &mut Session) -> Result<()> {
        let counted = round.checked_sub(1);
        for &cache in &self.caches {
            if cache == PageCache::Warm {
                cache::fill(&self.conditions.snapshot)?;
            }
            for place in turns(self.strategies.len(), counted.unwrap_or(0)) {
                let strategy = self.strategies[place];
                progress.step(&format!("{} {strategy} {}", self.name(), cache.name()));
                let overhead = self.series(OVERHEAD, Unit::Micros, cache, strategy);
                if session.recorder.value(&overhead, counted.unwrap_or(0)).is_some() {
                    // Measured before the run was cut short that this one goes on with.
                    continue;
                }
                if cache == PageCache::Cold {
                    cache::drop(&self.conditions.snapshot)?;
                }
                let ran = run(&Conditions { strategy, ..self.conditions.clone() })
                    .with_context(|| format!("{}, strategy {strategy}", self.name()))?;
                if counted.is_some() {
                    self.record(cache, strategy, &ran, &mut session.recorder)?;
                    session.save()?;
                }
            }
            if let Some(round) = counted {
                self.compare(cache, round, &mut session.recorder)?;
                session.save()?;
            }
        }
        Ok(())
    }

    /// Each strategy with the first one.
    fn compare(&self, cache: PageCache, round: usize, recorder: &mut Recorder) -> Result<()> {
        let Some(&first) = self.strategies.first() else { return Ok(()) };
        for (name, compared) in [(OVERHEAD, OVERHEAD_COMPARED), (TOTAL, TOTAL_COMPARED)] {
            let of = |strategy| self.series(name, Unit::Micros, cache, strategy);
            for &strategy in &self.strategies {
                let ratio = self.series(compared, Unit::Times, cache, strategy);
                recorder.compare(&ratio, &of(strategy), &of(first), round)?;
            }
        }
        Ok(())
    }

    /// What the snapshot is called.
    fn name(&self) -> String {
        self.labels.iter().map(|(_, value)| value.as_str()).collect::<Vec<_>>().join(" ")
    }

    fn series(&self, name: &str, unit: Unit, cache: PageCache, strategy: Strategy) -> Series {
        let own = [("strategy", strategy.name()), ("page cache", cache.name())];
        let labels = self.labels.iter().map(|(key, value)| (*key, value.as_str())).chain(own);
        Series::new(self.part, name, unit).with(&labels.collect::<Vec<_>>())
    }

    fn record(
        &self,
        cache: PageCache,
        strategy: Strategy,
        ran: &Ran,
        recorder: &mut Recorder,
    ) -> Result<()> {
        let mut add = |name: &str, unit, value: f64| {
            recorder.add(&self.series(name, unit, cache, strategy), value)
        };
        add(OVERHEAD, Unit::Micros, overhead(ran))?;
        add(TOTAL, Unit::Micros, ran.end_us)?;
        add("to mapped", Unit::Micros, ran.mapped_us)?;
        add("to mapped: metadata and plan", Unit::Micros, ran.plan_us)?;
        add("replay", Unit::Micros, ran.end_us - ran.mapped_us)?;
        add("processor time", Unit::Micros, ran.cpu_us)?;
        add("faults of the accesses", Unit::Count, ran.faults as f64)?;
        add("of these major", Unit::Count, ran.major_faults as f64)?;
        add("mappings", Unit::Count, ran.mappings as f64)?;
        add("Pss", Unit::Kib, ran.pss_kib as f64)?;
        add("read from disk", Unit::Kib, ran.disk_bytes as f64 / 1024.0)?;
        for (tier, bytes) in &ran.read {
            add(&format!("copied from {tier}"), Unit::Kib, *bytes as f64 / 1024.0)?;
        }
        for (image, pages) in &ran.in_place {
            add(&format!("touched in place in {image}"), Unit::Kib, *pages as f64 * 4.0)?;
        }
        if ran.strategy != strategy.name() {
            add(&format!("chose {}", ran.strategy), Unit::Count, 1.0)?;
        }
        recorder.add_all(&self.series(TOUCH, Unit::Nanos, cache, strategy), &ran.touches);
        Ok(())
    }
}

/// What restoring adds to the accesses themselves: not less than what precedes them.
pub fn overhead(ran: &Ran) -> f64 {
    (ran.end_us - ran.warm_us).max(ran.mapped_us)
}

/// What a snapshot's folder is called: by the folder above, if its own name says nothing.
pub fn name(snapshot: &Path) -> String {
    let part = |p: &Path| p.file_name().map(|n| n.to_string_lossy().into_owned());
    match (part(snapshot), snapshot.parent().and_then(part)) {
        (Some(own), Some(above)) if own == "snap" || own == "snapshot" => above,
        (Some(own), _) => own,
        _ => snapshot.display().to_string(),
    }
}
