//! The comparison of the benchmarks, for one function: what it measures is there, another monitor is
//! driven by its API, and what was measured is not measured again.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::Path;
use std::process::Command;

use serde_json::Value;
use varve_tests::command::run;
use varve_tests::images::varve;

/// Runs it; its report.
fn compare(dir: &Path, store: &str, runs: &str) -> Value {
    let report = dir.join("report.json");
    let output = Command::new(varve().with_file_name("varve-bench"))
        .args(["compare", "--function", "hello", "--memory", "128M", "--runs", runs])
        .args(["--strategy", "lazy,tiered", "--cache", "warm", "--input", "new", "--vms", "2"])
        .args(["--ways", "machine", "--store", store])
        .arg("--monitor")
        .arg(format!("varve-api={}", varve().display()))
        .arg("--folder")
        .arg(dir)
        .arg("--resume")
        .arg(&report)
        .output()
        .expect("varve-bench is built by 'cargo build -p varve-benches'");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stdout));
    for made in ["md", "html"] {
        assert!(report.with_extension(made).exists(), "{made}");
    }
    serde_json::from_slice(&std::fs::read(report).unwrap()).unwrap()
}

/// All values of a figure.
fn values(report: &Value, strategy: &str, name: &str) -> Vec<f64> {
    let figures = report["figures"].as_array().unwrap();
    let found = figures.iter().find(|f| f["name"] == name && f["labels"]["strategy"] == strategy);
    let found = found.unwrap_or_else(|| panic!("no {name:?} of {strategy}"));
    let values = found["values"].as_array().unwrap();
    values.iter().map(|value| value.as_f64().unwrap()).collect()
}

#[test]
fn strategies_and_another_monitor_are_measured_and_resumed() {
    let dir = tempfile::Builder::new().prefix("varve-compare").tempdir().unwrap();
    let shared = tempfile::tempdir_in("/dev/shm").unwrap();
    let store = format!("file:{}", shared.path().display());
    let first = compare(dir.path(), &store, "1");
    for who in ["lazy", "tiered", "varve-api"] {
        for name in ["to resumed", "to first answer", "warm answer", "memory of a machine (Pss)"] {
            let found = values(&first, who, name);
            assert!(found.len() == 1 && found[0] > 0.0, "{who} {name} {found:?}");
        }
    }
    // The same machine comes back by the same means: as many faults, whoever counts them.
    let [lazy, other] = ["lazy", "varve-api"].map(|who| values(&first, who, "faults in all")[0]);
    assert!(lazy > 500.0 && other > lazy / 2.0 && other < lazy * 2.0, "{lazy} {other}");
    assert!(values(&first, "tiered", "faults in all")[0] < lazy);
    let figures = first["figures"].as_array().unwrap();
    assert!(figures.iter().all(|figure| figure["labels"]["store"] == store.as_str()));
    // What was published is taken back, and freed.
    let left = run(["tier", "status", &store, "--json"]);
    assert_eq!(left.console.trim(), "[]", "{left:?}");
    assert!(!dir.path().join("hello/snapshot/tiers.json").exists());

    let second = compare(dir.path(), &store, "2");
    let [before, after] = [&first, &second].map(|r| values(r, "lazy", "to first answer"));
    assert_eq!(after.len(), 2);
    assert_eq!(before[0], after[0], "what was measured stays");
}

#[test]
fn tuning_is_found_under_tiers() {
    let help = run(["tier", "tune", "--help"]);
    assert_eq!(help.code, Some(0), "{help:?}");
    assert!(help.console.contains("Usage: varve-bench tune"), "{help:?}");
    let bad = run(["tier", "tune", "/nowhere", "--trace", "/nowhere/trace"]);
    assert_eq!(bad.code, Some(1), "{bad:?}");
    assert!(bad.stderr.contains("/nowhere"), "{bad:?}");
}
