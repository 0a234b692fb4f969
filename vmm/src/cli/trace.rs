//! `varve trace`: what recordings say of a function.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde::Serialize;
use serde_json::Value;
use varve_memory_tiers::{Mispredicted, mispredicted};
use varve_snapshot::{
    DEFAULT_CHUNK_PAGES, FlatFile, MANIFEST_FILE, ManifestReader, Profile, STATE_FILE, StateFile,
    Trace, check_whole, layout, memory_in, scan, there,
};

use super::out::outln;
use super::snapshot::predict::{Prediction, predict};

/// What to do with traces.
#[derive(Debug, Subcommand)]
pub enum TraceCommand {
    /// Report the working set, its overlap between inputs, and prediction errors
    #[command(after_help = EXAMPLES)]
    Report(ReportArgs),
}

const EXAMPLES: &str = "\
Examples:
  Shares of classes, overlap of three inputs, stability of classes:
    varve trace report json/trace-11 json/trace-12 json/trace-13 --snapshot json/snapshot

  What the cost model predicts beside what 'varve-bench compare' measured of the function:
    varve trace report json/trace-* --snapshot json/snapshot --measured compare.json --function json";

/// Options of `varve trace report`.
#[derive(Debug, Args)]
pub struct ReportArgs {
    /// Recorded traces, best one for each input
    #[arg(required = true, value_name = "TRACE")]
    traces: Vec<PathBuf>,

    /// Folder of the snapshot that they were recorded of, with its raw memory file
    #[arg(long, value_name = "DIR")]
    snapshot: PathBuf,

    /// Report of 'varve-bench compare': costs that were measured stand beside the predicted ones
    #[arg(long, value_name = "FILE", requires = "function")]
    measured: Option<PathBuf>,

    /// The function's name in that report
    #[arg(long, value_name = "NAME", requires = "measured")]
    function: Option<String>,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// All that is known of the function.
#[derive(Debug, Serialize)]
struct Report {
    profile: Profile,
    /// How each trace differs from what the tiered snapshot's classes say; empty if it is not tiered.
    mispredicted: Vec<(String, Mispredicted)>,
    /// What the cost model says; empty if it is not tiered.
    predicted: Vec<Prediction>,
    /// Medians of what restores added, by condition and strategy, in milliseconds.
    measured: Vec<Measured>,
}

/// What was measured under one condition.
#[derive(Debug, PartialEq, Serialize)]
struct Measured {
    condition: String,
    overhead_ms: BTreeMap<String, f64>,
}

/// Carries the command out.
pub fn main(command: TraceCommand) -> Result<ExitCode, Box<dyn Error>> {
    let TraceCommand::Report(args) = command;
    let traces = args.traces.iter().map(|path| Ok((name(path), Trace::read(path)?)));
    let traces = traces.collect::<Result<Vec<_>, Box<dyn Error>>>()?;
    let state = StateFile::read(&args.snapshot.join(STATE_FILE))?;
    let memory = memory_in(&args.snapshot, &state)?;
    check_whole(&state, &memory)?;
    let file = FlatFile::open(&memory, &state.memory)?;
    let pages = state.memory.iter().map(|range| range.pages()).sum();
    let zero = scan(&file, pages, DEFAULT_CHUNK_PAGES)?.zero;
    let profile = Profile::of(&state.memory, zero, &traces)?;

    let manifest = args.snapshot.join(MANIFEST_FILE);
    let (mut wrong, mut predicted) = (Vec::new(), Vec::new());
    if there(&manifest)? {
        let tiered = ManifestReader::open(&manifest)?.layout(layout::TIERED)?;
        wrong = traces.iter().map(|(n, trace)| (n.clone(), mispredicted(&tiered, trace))).collect();
        predicted = predict(&manifest)?;
    }
    let measured = match (&args.measured, &args.function) {
        (Some(path), Some(function)) => {
            let bad = |e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
            let text = fs::read(path).map_err(|e| bad(&e))?;
            let report: Value = serde_json::from_slice(&text).map_err(|e| bad(&e))?;
            let found = overheads(&report, function);
            if found.is_empty() {
                return Err(bad(&format!("nothing was measured of function {function:?}")).into());
            }
            found
        }
        _ => Vec::new(),
    };
    let report = Report { profile, mispredicted: wrong, predicted, measured };
    if args.json {
        outln!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print(&report);
    }
    Ok(ExitCode::SUCCESS)
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// Medians in a report of the benchmarks (docs/benchmarks.md, "The report").
fn overheads(report: &Value, function: &str) -> Vec<Measured> {
    let mut all: Vec<Measured> = Vec::new();
    for figure in report["figures"].as_array().into_iter().flatten() {
        let labels = figure["labels"].as_object().into_iter().flatten();
        let mut labels: BTreeMap<&str, &str> =
            labels.filter_map(|(key, value)| Some((key.as_str(), value.as_str()?))).collect();
        let scale = match figure["unit"].as_str() {
            Some("ms") => 1.0,
            Some("us") => 1e-3,
            _ => continue,
        };
        let (Some(of), Some(strategy)) = (labels.remove("function"), labels.remove("strategy"))
        else {
            continue;
        };
        let (name, part) = (figure["name"].as_str(), figure["part"].as_str());
        let (Some("overhead"), Some(part), Some(median)) = (name, part, figure["median"].as_f64())
        else {
            continue;
        };
        // What compares strategies; replays that vary something else do not.
        if of != function || !["machine", "replay"].contains(&part) {
            continue;
        }
        let words = labels.iter().map(|(key, value)| format!("{key} {value}"));
        let condition = [part.to_owned()].into_iter().chain(words).collect::<Vec<_>>().join(", ");
        let at = all.iter().position(|known| known.condition == condition);
        let at = at.unwrap_or_else(|| {
            all.push(Measured { condition, overhead_ms: BTreeMap::new() });
            all.len() - 1
        });
        if let Some(known) = all.get_mut(at) {
            known.overhead_ms.insert(strategy.into(), median * scale);
        }
    }
    all
}

fn print(report: &Report) {
    let profile = &report.profile;
    outln!("{} pages, {} recorded runs", profile.pages, profile.runs);
    for class in &profile.classes {
        outln!("  {:<6} {:>9} pages {:>6.2} %", class.class, class.pages, class.share * 100.0);
    }
    let (touched, written) = profile.zero_touched;
    outln!("  zero pages that were touched: {touched}, {written} of them written");
    outln!("touched by so many runs");
    for (nth, pages) in profile.touched_by.iter().enumerate() {
        outln!("  {:>4} {pages:>11} pages", nth + 1);
    }
    let stability = profile.stability;
    outln!(
        "of pages that several runs touched: {} always only read, {} always written, {} now read, now \
         written",
        stability.always_read,
        stability.always_written,
        stability.changing
    );
    outln!("inputs");
    for input in &profile.inputs {
        outln!(
            "  {:<16} {:>7} pages touched, {:>7} written, {:>7} that none before it touched",
            input.name,
            input.touched,
            input.written,
            input.new
        );
    }
    for overlap in &profile.overlaps {
        let (common, share) = (overlap.common, overlap.jaccard * 100.0);
        outln!(
            "  {} and {}: {common} pages in common, {share:.1} %",
            overlap.first,
            overlap.second
        );
    }
    if !report.mispredicted.is_empty() {
        outln!("against the snapshot's classes");
    }
    for (name, wrong) in &report.mispredicted {
        outln!(
            "  {name:<16} {} as predicted; read-only written {}, zero written {}, cold touched {}, hot \
             not touched {}, written only read {}",
            wrong.right,
            wrong.read_only_written,
            wrong.zero_written,
            wrong.cold_touched,
            wrong.hot_untouched,
            wrong.written_only_read
        );
    }
    if report.predicted.is_empty() {
        return;
    }
    outln!("cost of memory, milliseconds: predicted, and measured overheads");
    outln!("  {:<10} {:>10}", "", "predicted");
    for Prediction { strategy, cost_ms, .. } in &report.predicted {
        outln!("  {strategy:<10} {cost_ms:>10.2}");
    }
    for measured in &report.measured {
        let of = |(strategy, ms): (&String, &f64)| format!("{strategy} {ms:.2}");
        let all: Vec<_> = measured.overhead_ms.iter().map(of).collect();
        outln!("  {}: {}", measured.condition, all.join(", "));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn overheads_of_the_function_are_found_in_a_report() {
        let figure = |function: &str, strategy: &str, unit: &str, median: f64| {
            json!({"part": "replay", "name": "overhead", "unit": unit, "median": median,
                "labels": {"function": function, "strategy": strategy, "page cache": "cold"}})
        };
        let report = json!({"figures": [
            figure("json", "lazy", "us", 2500.0), figure("json", "reap", "us", 500.0),
            figure("hello", "lazy", "us", 1.0), figure("json", "lazy", "x", 1.0),
            {"part": "boot", "name": "to init", "unit": "ms", "median": 1.0, "labels": {}},
        ]});
        let found = overheads(&report, "json");
        let expected = Measured {
            condition: "replay, page cache cold".into(),
            overhead_ms: [("lazy".into(), 2.5), ("reap".into(), 0.5)].into(),
        };
        assert_eq!(found, [expected]);
        assert!(overheads(&report, "other").is_empty() && overheads(&json!(7), "json").is_empty());
    }
}
