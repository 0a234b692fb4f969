//! Recordings of functions: a guest with the kernel's own asynchronous page faults has the same pages
//! recorded as read and as written as a guest without them (`no-kvmapf`).
//!
//! The default run records `json` once on each guest kernel. The whole matrix records `hello` and `json`
//! three times each; it takes several minutes in the lab:
//!
//! ```sh
//! VARVE_LAB_OPTS="--mem 3072 --timeout 2400" cargo test -p varve-tests --test recorded_functions -- --ignored --nocapture
//! ```

#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::Path;

use serde_json::Value;
use varve_tests::images::{image, kernel_versions};
use varve_tests::{Restoring, Vm};

/// Kernel parameters of the two guests to compare.
const CMDLINES: [&str; 2] = ["init_on_free=1 no-kvmapf", "init_on_free=1"];
/// Largest difference of the two guests' pages, in percent of those of the guest with `no-kvmapf`.
const PERCENT: u64 = 5;

#[test]
fn json_is_recorded_alike_with_and_without_asynchronous_faults() {
    recorded_alike(&["json"], 1);
}

#[test]
#[ignore = "takes several minutes in the lab; the head of this file has the command"]
fn functions_are_recorded_alike_with_and_without_asynchronous_faults() {
    recorded_alike(&["hello", "json"], 3);
}

/// Compares the medians of touched and of written pages, and reports all differences at once.
fn recorded_alike(functions: &[&str], recordings: usize) {
    let mut different = Vec::new();
    for version in kernel_versions() {
        for function in functions {
            let medians = CMDLINES.map(|cmdline| {
                let pages = recorded(&version, function, cmdline, recordings);
                let medians = [0, 1].map(|at| median(pages.iter().map(|pages| pages[at])));
                println!("{version} {function} {cmdline:?}: {pages:?}, medians {medians:?}");
                medians
            });
            let [without, with] = medians;
            let far = |(a, b): (&u64, &u64)| a.abs_diff(*b) * 100 > a * PERCENT;
            if without.iter().zip(&with).any(far) {
                different.push(format!("{version} {function}: {without:?}, {with:?}"));
            }
        }
    }
    assert!(different.is_empty(), "pages touched, written; without and with: {different:#?}");
}

/// Snapshots a warm function and records it. Returns touched and written pages of each recording.
fn recorded(version: &str, function: &str, cmdline: &str, recordings: usize) -> Vec<[u64; 2]> {
    let dir = tempfile::Builder::new().prefix("varve-snapshot").tempdir().unwrap();
    let snapshot = dir.path().join("snapshot");
    let end = Vm::builder()
        .kernel_version(version)
        .initrd(Some(image(&format!("initramfs-{version}.cpio"))))
        .cmdline(cmdline)
        .option("--rootfs", format!("{}:ro", image("functions.ext4").display()))
        .option("--memory", "256M")
        .option("--snapshot-on-ready", &snapshot)
        .option("--invoke", format!("{function} 1"))
        .option("--invoke", format!("{function} 2"))
        .start()
        .wait();
    assert_eq!(end.code, Some(0), "{end:?}");
    let record = |number| record(&snapshot, &dir.path().join(format!("trace-{number}")), function);
    (0..recordings).map(record).collect()
}

fn record(snapshot: &Path, trace: &Path, function: &str) -> [u64; 2] {
    let end = Restoring::recording(snapshot, trace)
        .options("--json")
        .arg("--invoke")
        .arg(format!("{function} 11"))
        .arg("--invoke")
        .arg(format!("{function} 12"))
        .end();
    assert_eq!(end.code, Some(0), "{end:?}");
    let report: Value = serde_json::from_str(&end.console).unwrap();
    [0, 1].map(|at| report["recorded"][at].as_u64().unwrap())
}

fn median(values: impl Iterator<Item = u64>) -> u64 {
    let mut values: Vec<u64> = values.collect();
    values.sort_unstable();
    values[values.len() / 2]
}
