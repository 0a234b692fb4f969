//! `tune`: which options of tiering and restoring suit a function, by replays of a trace in plain
//! processes, with what the cost model predicts beside. One option after another is varied, and the best
//! value is kept for the next.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::Args;
use varve_memory_tiers::{HugePages, PrefaultBarrier, Strategy, open};
use varve_snapshot::{
    ClassifyOptions, HotIf, LocalFiles, MEMORY_FILE, ManifestReader, STATE_FILE, StateFile,
    TierInput, TierOptions, Trace, tier,
};

use crate::demo::text::align;
use crate::progress::Progress;
use crate::recorder::Series;
use crate::replay::once::Conditions;
use crate::replay::{PageCache, cache, overhead, run};
use crate::report::Unit;
use crate::session::Session;
use crate::stats::Summary;
use crate::table::digits;

/// The part of the report.
const PART: &str = "tune";
/// Options that are tried, one after another; the values that are tried of each.
const SWEEP: [(&str, &[&str]); 7] = [
    ("strategy", &["template", "tiered"]),
    ("hot-if", &["any", "all"]),
    ("bridge", &["2", "0", "8"]),
    ("min-extent", &["1", "4"]),
    ("wait", &["nothing", "written", "first", "all"]),
    ("threads", &["1", "2"]),
    ("huge-pages", &["off", "transparent"]),
];
/// Those of `varve snapshot tier`; the others are of `varve restore`.
const TIERING: [&str; 3] = ["hot-if", "bridge", "min-extent"];

/// Options of `varve-bench tune`.
#[derive(Clone, Debug, Args)]
pub struct TuneArgs {
    /// Folder of the snapshot, with its raw memory file
    snapshot: PathBuf,
    /// Trace to tier by (repeat for more)
    #[arg(long = "trace", required = true, value_name = "FILE")]
    traces: Vec<PathBuf>,
    /// Trace to replay: best one of an input that it is not tiered by [default: the first]
    #[arg(long, value_name = "FILE")]
    replay: Option<PathBuf>,
    /// Page cache
    #[arg(long, value_enum, default_value = "warm")]
    cache: PageCache,
    /// Computing between two accesses, in nanoseconds
    #[arg(long, value_name = "NS", default_value_t = 4000)]
    compute: u64,
    /// What an access to a page in place costs more than to local memory, in nanoseconds
    #[arg(long, value_name = "NS", default_value_t = 0)]
    delay: u64,
    /// Where tiered snapshots are made, and removed again [default: the folder above the snapshot's]
    #[arg(long, value_name = "DIR")]
    folder: Option<PathBuf>,
}

/// A value is better than the one before only if it takes less than so much of its time.
const NOISE: f64 = 0.95;

/// A value of each option.
type Options = BTreeMap<&'static str, &'static str>;

/// What was found of one set of options.
#[derive(Debug)]
struct Tried {
    options: Options,
    predicted_ms: f64,
    measured_ms: Vec<f64>,
}

impl Tried {
    fn median(&self) -> f64 {
        Summary::of(&self.measured_ms).map_or(f64::INFINITY, |summary| summary.median)
    }
}

impl TuneArgs {
    /// Sweeps, prints what was tried, and the best.
    ///
    /// # Errors
    ///
    /// If the snapshot cannot be tiered or restored.
    pub fn run(&self, runs: usize, session: &mut Session) -> Result<()> {
        let above = self.snapshot.parent().filter(|p| *p != Path::new(""));
        let place = self.folder.as_deref().or(above).unwrap_or(Path::new("."));
        let made = tempfile::Builder::new().prefix("tune").tempdir_in(place);
        let made = made.with_context(|| format!("cannot use {}", place.display()))?;
        let steps = SWEEP.iter().map(|(_, values)| values.len()).sum::<usize>() * runs;
        let mut progress = Progress::new(PART, steps);
        let mut best: Options = SWEEP.iter().map(|(option, values)| (*option, values[0])).collect();
        let mut all: Vec<Tried> = Vec::new();
        for (option, values) in SWEEP {
            let mut candidates = Vec::new();
            for value in values {
                let mut options = best.clone();
                options.insert(option, value);
                let snapshot = self.tiered(&options, made.path())?;
                let conditions = self.conditions(&options, snapshot)?;
                let predicted_ms = predict(&conditions)?;
                let tried = Tried { options, predicted_ms, measured_ms: Vec::new() };
                candidates.push((tried, conditions));
            }
            for _ in 0..runs {
                for (tried, conditions) in &mut candidates {
                    progress.step(&format!("{option} {}", tried.options[option]));
                    match self.cache {
                        PageCache::Cold => self.drop(conditions)?,
                        PageCache::Warm => self.fill(conditions)?,
                    }
                    let ms = overhead(&run(conditions)?) / 1e3;
                    tried.measured_ms.push(ms);
                    let labels: Vec<_> = tried.options.iter().map(|(k, v)| (*k, *v)).collect();
                    let series = Series::new(PART, "overhead", Unit::Millis).with(&labels);
                    session.recorder.add(&series, ms)?;
                }
            }
            let found = candidates.into_iter().map(|(tried, _)| tried).collect::<Vec<_>>();
            best = choose(&found).map_or(best, |tried| tried.options.clone());
            all.extend(found);
        }
        drop(progress);
        print!("{}", align(&table(&all)));
        println!("\n{}", advice(&best));
        session.save()
    }

    /// The snapshot tiered so, made once.
    fn tiered(&self, options: &Options, folder: &Path) -> Result<PathBuf> {
        let name: Vec<&str> = TIERING.iter().map(|option| options[option]).collect();
        let out = folder.join(name.join("-"));
        if out.exists() {
            return Ok(out);
        }
        let number = |option: &str| options[option].parse().with_context(|| option.to_owned());
        let hot_if: HotIf = options["hot-if"].parse().map_err(anyhow::Error::msg)?;
        let classify = ClassifyOptions {
            hot_if,
            bridge_pages: number("bridge")?,
            min_extent_pages: number("min-extent")?,
        };
        let traces = self.traces.iter().map(|path| Trace::read(path));
        let state = self.snapshot.join(STATE_FILE);
        let memory = StateFile::read(&state)?.memory_file.unwrap_or_else(|| MEMORY_FILE.into());
        let input = TierInput {
            state: &state,
            memory: &self.snapshot.join(memory),
            traces: &traces.collect::<Result<Vec<_>, _>>()?,
            out: &out,
        };
        tier(&LocalFiles, &input, &TierOptions { classify, ..TierOptions::default() })?;
        Ok(out)
    }

    fn conditions(&self, options: &Options, snapshot: PathBuf) -> Result<Conditions> {
        let trace = self.replay.as_ref().or(self.traces.first()).context("no trace")?;
        ensure!(trace.exists(), "{} is missing", trace.display());
        let strategy: Strategy = options["strategy"].parse()?;
        let wait: PrefaultBarrier = serde_json::from_value(options["wait"].into())?;
        let huge_pages: HugePages = serde_json::from_value(options["huge-pages"].into())?;
        Ok(Conditions {
            snapshot,
            trace: trace.clone(),
            strategy,
            wait,
            huge_pages,
            populate_threads: options["threads"].parse()?,
            compute: self.compute,
            delay: self.delay,
            ..Conditions::default()
        })
    }

    /// The images are in one folder, the raw memory file in another.
    fn drop(&self, conditions: &Conditions) -> Result<()> {
        cache::drop(&self.snapshot)?;
        cache::drop(&conditions.snapshot)
    }

    fn fill(&self, conditions: &Conditions) -> Result<()> {
        cache::fill(&self.snapshot)?;
        cache::fill(&conditions.snapshot)
    }
}

/// The best; the default, which comes first, unless another is better by more than noise.
fn choose(found: &[Tried]) -> Option<&Tried> {
    found.iter().reduce(
        |best, other| {
            if other.median() < best.median() * NOISE { other } else { best }
        },
    )
}

/// Milliseconds, by the cost model.
fn predict(conditions: &Conditions) -> Result<f64> {
    let manifest = ManifestReader::open(&conditions.snapshot)?;
    let (plan, _) = open(&manifest, &conditions.policy(), conditions)?;
    Ok(plan.cost().total() / 1e6)
}

fn table(all: &[Tried]) -> Vec<Vec<String>> {
    let heading = SWEEP.iter().map(|(option, _)| (*option).to_owned());
    let heading = heading.chain(["predicted".into(), "overhead".into(), "spread".into()]);
    let row = |tried: &Tried| {
        let options = SWEEP.iter().map(|(option, _)| tried.options[option].to_owned());
        let spread = Summary::of(&tried.measured_ms).and_then(|summary| summary.spread);
        let figures = [
            format!("{} ms", digits(tried.predicted_ms)),
            format!("{} ms", digits(tried.median())),
            format!("{:.0} %", spread.unwrap_or(0.0) * 100.0),
        ];
        options.chain(figures).collect()
    };
    [heading.collect()].into_iter().chain(all.iter().map(row)).collect()
}

/// As options of the commands.
fn advice(best: &Options) -> String {
    let flags = |tiering: bool| {
        let own = best.iter().filter(|(option, _)| TIERING.contains(option) == tiering);
        own.map(|(option, value)| format!(" --{option} {value}")).collect::<String>()
    };
    format!("best: varve snapshot tier …{}\n      varve restore …{}", flags(true), flags(false))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replay::synthetic::{Shape, make};

    #[test]
    fn noise_does_not_change_defaults() {
        let tried = |ms: f64| Tried {
            options: Options::new(),
            predicted_ms: 0.0,
            measured_ms: vec![ms, ms * 3.0, ms / 2.0],
        };
        let chosen = |all: &[f64]| {
            let all: Vec<_> = all.iter().map(|&ms| tried(ms)).collect();
            choose(&all).unwrap().median()
        };
        assert_eq!(chosen(&[100.0, 96.0]), 100.0);
        assert_eq!(chosen(&[100.0, 90.0, 86.0]), 90.0);
        assert_eq!(chosen(&[100.0, 120.0, 50.0]), 50.0);
        assert!(choose(&[]).is_none());
    }

    #[test]
    fn the_first_values_are_the_defaults_and_all_can_be_carried_out() {
        let dir = tempfile::tempdir().unwrap();
        let shape =
            Shape { size: 8, zero: 0.5, read: 0.1, written: 0.1, zero_written: 0.1, run: 4 };
        let made = make(&shape, dir.path()).unwrap();
        let args = TuneArgs {
            snapshot: made.snapshot,
            traces: vec![made.trace],
            replay: None,
            cache: PageCache::Warm,
            compute: 0,
            delay: 0,
            folder: None,
        };
        let mut options: Options = SWEEP.iter().map(|(o, values)| (*o, values[0])).collect();
        let defaults = Conditions::default();
        let tiered = ClassifyOptions::default();
        assert_eq!(options["bridge"], tiered.bridge_pages.to_string());
        assert_eq!(options["min-extent"], tiered.min_extent_pages.to_string());
        let mut folders = Vec::new();
        for (option, values) in SWEEP {
            for value in values.iter().rev() {
                options.insert(option, value);
                let snapshot = args.tiered(&options, dir.path()).unwrap();
                folders.push(snapshot.clone());
                let conditions = args.conditions(&options, snapshot).unwrap();
                assert!(predict(&conditions).unwrap() > 0.0);
                if SWEEP.iter().all(|(o, values)| options[o] == values[0]) {
                    assert_eq!((conditions.wait, conditions.threads), (defaults.wait, 1));
                }
            }
        }
        folders.sort();
        folders.dedup();
        assert_eq!(folders.len(), 1 + 1 + 2 + 1, "each tiering once");
        let advice = advice(&options);
        assert!(advice.contains("tier … --bridge 2 --hot-if any --min-extent 1\n"), "{advice}");
        assert!(advice.contains("--strategy template --threads 1 --wait nothing"), "{advice}");
    }
}
