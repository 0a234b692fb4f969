//! The life of one function: boot, warm up, snapshot, record, tier, restore with each strategy.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use varve_agent::protocol::InvokeReply;

use super::boot::{boot_times, invoke, machine, power_off};
use super::columns::{Row, comparison, details};
use super::command::{json, output, words};
use super::said::{Restored, Tiered};
use super::text::{align, mib, millis};
use super::trim::{self, Saved};
use crate::prepare;
use crate::progress::Progress;

/// Memory of the machine.
pub const MEMORY: &str = "256M";
/// Inputs that warm the function up.
const WARM_INPUTS: [u64; 2] = [1, 2];
/// Inputs that are recorded.
pub const RECORDED_INPUTS: [u64; 3] = [11, 12, 13];
/// The input that is asked for after the restore. It is none of those above.
pub const INPUT: u64 = 7;
/// Layouts whose memory maps are drawn.
const LAYOUTS: [&str; 4] = ["flat", "reap", "faasnap", "tiered"];

/// How to go about it.
#[derive(Clone, Debug)]
pub struct Options {
    /// What to restore with.
    pub strategies: Vec<&'static str>,
    /// How often with each.
    pub runs: usize,
    /// Where the snapshot may be made.
    pub folder: PathBuf,
}

/// What came of it.
#[derive(Debug)]
pub struct Life {
    /// The function.
    pub function: String,
    /// Milliseconds from the start of the first machine to the function's first answer.
    pub cold_ms: f64,
    /// Milliseconds of a call to the first machine, warm, with the input that is asked for later.
    pub warm_ms: f64,
    /// Steps between boot and restore: what was done, milliseconds, what came of it.
    pub steps: Vec<(String, f64, String)>,
    /// The snapshot without and with trimming.
    pub trimming: Vec<Saved>,
    /// The tiered snapshot.
    pub tiered: Tiered,
    /// By strategy.
    pub rows: Vec<Row>,
    /// Memory maps as SVG, by layout.
    pub maps: Vec<(&'static str, String)>,
}

/// Lives it, and prints each step.
pub fn live(function: &str, options: &Options) -> Result<Life> {
    println!("\nThe life of {function:?}: one vCPU, {MEMORY}");
    let folder = tempfile::Builder::new()
        .prefix("varve-demo")
        .tempdir_in(&options.folder)
        .with_context(|| format!("cannot use {}", options.folder.display()))?;
    let snapshot = folder.path().join("snapshot");
    let mut steps = Steps(Vec::new());

    let untrimmed = folder.path().join("untrimmed");
    let first = FirstMachine::run(function, &untrimmed, &snapshot, &mut steps)?;
    let whole =
        Options { strategies: vec![trim::STRATEGY], runs: options.runs.min(2), ..options.clone() };
    let mut trimming = Vec::new();
    for (how, dir, took_ms) in
        [("as it is", &untrimmed, first.untrimmed_ms), ("with --trim", &snapshot, first.trimmed_ms)]
    {
        let stored = trim::stored(dir)?;
        for row in restore(function, dir, &first.answer.checksum, &whole)? {
            trimming.push(Saved { how, took_ms, stored, row });
        }
    }
    println!("\n  What trimming gains, restored by {:?}", trim::STRATEGY);
    print!("{}", align(&trim::table(&trimming)));
    println!();
    fs::remove_dir_all(&untrimmed).context("cannot remove a snapshot")?;
    let traces = record(function, folder.path(), &snapshot, &mut steps)?;
    let tiered = tier(&snapshot, &traces, &mut steps)?;
    print!("{}", align(&classes(&tiered)));
    let rows = restore(function, &snapshot, &first.answer.checksum, options)?;
    println!(
        "\n  Restored, input {INPUT} (was not recorded), the middle of {} run(s); before: {} from \
         start to answer, {} warm",
        options.runs,
        millis(first.cold_ms),
        millis(first.warm_ms)
    );
    print!("{}", align(&comparison(&rows)));
    println!("\n  Bytes read by image, faults answered by class (r: read, w: write)");
    print!("{}", align(&details(&rows)));
    let maps = LAYOUTS
        .into_iter()
        .map(|layout| Ok((layout, memory_map(&snapshot, folder.path(), layout)?)))
        .collect::<Result<_>>()?;
    Ok(Life {
        function: function.into(),
        cold_ms: first.cold_ms,
        warm_ms: first.warm_ms,
        steps: steps.0,
        trimming,
        tiered,
        rows,
        maps,
    })
}

/// Heading and rows: what share of memory each class has.
pub fn classes(tiered: &Tiered) -> Vec<Vec<String>> {
    let heading = ["class", "pages", "share", "extents", "size"].map(String::from).to_vec();
    let row = |class: &super::said::Class| {
        vec![
            class.class.clone(),
            class.pages.to_string(),
            format!("{:.1} %", class.share * 100.0),
            class.extents.to_string(),
            mib(class.bytes),
        ]
    };
    [heading].into_iter().chain(tiered.classes.iter().map(row)).collect()
}

struct Steps(Vec<(String, f64, String)>);

impl Steps {
    fn done(&mut self, what: impl Into<String>, took: f64, outcome: String) {
        let what = what.into();
        println!("  {what:<22} {:>9}  {outcome}", millis(took));
        self.0.push((what, took, outcome));
    }
}

/// What the machine that was booted leaves behind.
struct FirstMachine {
    cold_ms: f64,
    warm_ms: f64,
    answer: InvokeReply,
    untrimmed_ms: f64,
    trimmed_ms: f64,
    /// Restored machines make their vsock's socket there, as the first one did.
    _folder: tempfile::TempDir,
}

impl FirstMachine {
    fn run(
        function: &str,
        untrimmed: &Path,
        trimmed: &Path,
        steps: &mut Steps,
    ) -> Result<FirstMachine> {
        let progress = begin("boot", function);
        let builder = machine(MEMORY).option("--balloon", "hinting,stats=1");
        let api = builder.dir().join("api.sock");
        let start = Instant::now();
        let mut vm = builder.option("--api-sock", &api).start();
        let mut agent = vm.agent();
        let ready = start.elapsed().as_secs_f64() * 1e3;
        drop(progress);
        steps.done("boot", ready, boot_times(&vm).join(", "));
        let mut call = |what: &str, seed| -> Result<(InvokeReply, f64)> {
            let (reply, took) = invoke(&mut agent, function, seed)?;
            steps.done(what, took, format!("input {seed}, checksum {:.16}", reply.checksum));
            Ok((reply, took))
        };
        let [first, second] = WARM_INPUTS;
        let (_, took) = call("first call", first)?;
        let cold_ms = ready + took;
        call("warm call", second)?;
        let (_, untrimmed_ms) =
            output(words!["snapshot", "create", "--api-sock", &api, untrimmed])?;
        steps.done("snapshot create", untrimmed_ms, "the machine goes on".into());
        let create = words!["snapshot", "create", "--trim", "--api-sock", &api, trimmed];
        let (_, trimmed_ms) = output(create)?;
        steps.done("snapshot create --trim", trimmed_ms, "free pages were taken back first".into());
        let (answer, warm_ms) = invoke(&mut agent, function, INPUT)?;
        steps.done(
            "warm call",
            warm_ms,
            format!("input {INPUT}, checksum {:.16}", answer.checksum),
        );
        Ok(FirstMachine {
            cold_ms,
            warm_ms,
            answer,
            untrimmed_ms,
            trimmed_ms,
            _folder: power_off(vm)?,
        })
    }
}

/// Records each input in a machine of its own; the traces.
fn record(
    function: &str,
    folder: &Path,
    snapshot: &Path,
    steps: &mut Steps,
) -> Result<Vec<PathBuf>> {
    let mut traces = Vec::new();
    for seed in RECORDED_INPUTS {
        let progress = begin("record", &format!("{function} {seed}"));
        let trace = folder.join(format!("trace-{seed}"));
        let (run, took) = prepare::record(snapshot, &trace, function, seed)?;
        let (touched, written) = run.recorded.context("varve snapshot record recorded nothing")?;
        drop(progress);
        let outcome = format!("{touched} pages touched, {written} of them written");
        steps.done(format!("record, input {seed}"), took, outcome);
        traces.push(trace);
    }
    Ok(traces)
}

fn tier(snapshot: &Path, traces: &[PathBuf], steps: &mut Steps) -> Result<Tiered> {
    let progress = begin("tier", "classifying and packing");
    let (tiered, took) = prepare::tier(snapshot, traces)?;
    drop(progress);
    let images = tiered.images.iter().map(|i| format!("{} {}", i.image, mib(i.stored_bytes)));
    steps.done("snapshot tier", took, images.collect::<Vec<_>>().join(", "));
    Ok(tiered)
}

/// Restores with every strategy, round by round, so that whatever disturbs the host meets all.
fn restore(function: &str, snapshot: &Path, right: &str, options: &Options) -> Result<Vec<Row>> {
    let mut progress = Progress::new("restore", options.runs * options.strategies.len());
    let mut runs: Vec<Vec<Restored>> = vec![Vec::new(); options.strategies.len()];
    let call = format!("{function} {INPUT}");
    for _ in 0..options.runs {
        for (strategy, runs) in options.strategies.iter().zip(&mut runs) {
            progress.step(strategy);
            let words = words!["restore", snapshot, "--strategy", strategy, "--json"];
            let calls = words!["--invoke", &call, "--invoke", &call];
            let (run, _): (Restored, f64) = json(words.into_iter().chain(calls))?;
            ensure!(run.invocations.len() == 2, "{strategy}: not two answers: {run:?}");
            runs.push(run);
        }
    }
    Ok(options.strategies.iter().zip(runs).map(|(asked, runs)| row(asked, runs, right)).collect())
}

fn row(asked: &'static str, mut runs: Vec<Restored>, checksum: &str) -> Row {
    let all = || runs.iter().flat_map(|run| &run.invocations);
    let (answers, right) = (all().count(), all().filter(|a| a.checksum == checksum).count());
    runs.sort_by(|a, b| a.first_answer_ms.total_cmp(&b.first_answer_ms));
    let middle = (runs.len() - 1) / 2;
    Row { asked, run: runs.swap_remove(middle), right, answers }
}

/// The picture that `varve snapshot inspect` draws.
fn memory_map(snapshot: &Path, folder: &Path, layout: &str) -> Result<String> {
    let file = folder.join("map.svg");
    let map = format!("--map={layout}");
    output(words!["snapshot", "inspect", snapshot, &map, "--svg", &file])?;
    fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))
}

/// Progress of a single step.
fn begin(part: &'static str, what: &str) -> Progress {
    let mut progress = Progress::new(part, 1);
    progress.step(what);
    progress
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::said::tests::restored;

    #[test]
    fn the_middle_run_stands_for_all_and_every_answer_counts() {
        let mut runs: Vec<_> = [30.0, 10.0, 20.0].map(restored).into();
        runs[0].invocations[1].checksum = "other".into();
        let row = row("lazy", runs, "a<b");
        assert_eq!((row.run.first_answer_ms, row.right, row.answers), (20.0, 5, 6));
        assert!(!row.is_right());
    }

    #[test]
    fn what_is_asked_was_never_seen() {
        assert!(!RECORDED_INPUTS.contains(&INPUT) && !WARM_INPUTS.contains(&INPUT));
    }
}
