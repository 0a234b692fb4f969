//! The function image: every sample function answers, and what it answers depends on its input alone,
//! in a machine that was booted as in one that was restored, by whichever strategy.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Instant;

use serde_json::Value;
use varve_agent::protocol::{How, Invoke, InvokeReply, Request};
use varve_tests::images::image;
use varve_tests::snapshots::tier;
use varve_tests::{Restoring, Vm};

/// Each function's checksum for seed 1, as it was when the image was built.
fn checksums() -> BTreeMap<String, String> {
    let text = fs::read_to_string(image("manifest.json")).unwrap();
    let manifest: Value = serde_json::from_str(&text).unwrap();
    serde_json::from_value(manifest["functions"]["facts"]["checksums"].clone()).unwrap()
}

/// Arguments with which each function is soon done.
const SMALL: [(&str, &str); 13] = [
    ("chameleon", r#"{"rows": 4, "columns": 4}"#),
    ("compression", r#"{"size_kib": 16}"#),
    ("ffmpeg", r#"{"width": 32, "height": 16, "frames": 1}"#),
    ("hello", "{}"),
    ("image", r#"{"width": 32, "height": 32}"#),
    ("json", r#"{"size_kib": 8}"#),
    ("matmul", r#"{"size": 32}"#),
    ("mmap", r#"{"size_mib": 1}"#),
    ("pagerank", r#"{"vertices": 40}"#),
    ("pyaes", r#"{"size_kib": 1}"#),
    ("read-list", r#"{"size_mib": 1}"#),
    ("recognition", r#"{"images": 1}"#),
    ("wordcount", r#"{"words": 200}"#),
];
/// The input that is recorded, and another one.
const INPUTS: [u64; 2] = [11, 12];

/// What each function answers to an input.
fn small_answers(vm: &mut Vm, seed: u64) -> Vec<String> {
    let answer = |(function, args): (&str, &str)| {
        let args = serde_json::from_str(args).unwrap();
        let request = Invoke { function: function.into(), seed, args, timeout_s: None };
        vm.agent().call::<InvokeReply>(&Request::Invoke(request)).unwrap().checksum
    };
    SMALL.map(answer).into()
}

/// Restores the snapshot and calls every function with each input.
fn restored(dir: &Path, strategy: &str) -> Vec<String> {
    let mut restoring = Restoring::from(dir).options("--json --strategy").arg(strategy);
    for seed in INPUTS {
        for (function, args) in SMALL {
            restoring = restoring.arg("--invoke").arg(format!("{function} {seed} {args}"));
        }
    }
    let start = Instant::now();
    let end = restoring.end();
    assert_eq!(end.code, Some(0), "{strategy}: {end:?}");
    let report: Value = serde_json::from_str(&end.console).unwrap();
    let calls = report["invocations"].as_array().unwrap();
    println!("{strategy}: {:.1?}, {}", start.elapsed(), report["vcpu_faults"]);
    calls.iter().map(|call| call["checksum"].as_str().unwrap().into()).collect()
}

/// Recorded and new inputs, by every strategy.
fn every_strategy_answers(dir: &Path, expected: &[String]) {
    let trace = dir.join("trace");
    // All calls as one: telling them apart takes longer than the calls.
    let mut vm = Restoring::recording(dir, &trace).options("--json").start();
    assert_eq!(small_answers(&mut vm, INPUTS[0]), expected[..SMALL.len()], "recording");
    println!("recorded: {}", vm.end_with_report()["recorded"]);
    tier(dir, &[&trace], "");
    for strategy in ["lazy", "eager", "reap", "faasnap", "tiered", "template", "auto"] {
        assert_eq!(restored(dir, strategy), expected, "{strategy}");
    }
}

fn invoke(vm: &mut Vm, function: &str, seed: u64) -> InvokeReply {
    let request = Invoke { function: function.into(), seed, ..Invoke::default() };
    let reply: InvokeReply = vm.agent().call(&Request::Invoke(request)).unwrap();
    assert_eq!((reply.function.as_str(), reply.seed), (function, seed));
    reply
}

#[test]
fn every_function_answers_as_when_the_image_was_made() {
    let expected = checksums();
    assert_eq!(expected.len(), 13);
    let root = image("functions.ext4");
    let drive = format!("{}:ro", root.display());
    let mut vm = Vm::builder()
        .initrd(Some(image("initramfs.cpio")))
        .option("--rootfs", &drive)
        .option("--memory", "1G")
        .arg("--entropy")
        .option("--balloon", "hinting,stats=1")
        .controlled()
        .start();
    assert!(expected.keys().eq(SMALL.map(|(function, _)| function).iter()), "{expected:?}");
    small_answers(&mut vm, 1);
    let dir = tempfile::Builder::new().prefix("varve-snapshot").tempdir().unwrap();
    // Without what is not in use: the less there is to save, to split and to read.
    vm.sh("echo 3 >/proc/sys/vm/drop_caches");
    vm.snapshot("--trim", dir.path());
    let small = INPUTS.map(|seed| small_answers(&mut vm, seed)).concat();
    for (function, checksum) in &expected {
        let other = invoke(&mut vm, function, 2);
        // In the worker that runs already: what another input left there makes no difference.
        let reply = invoke(&mut vm, function, 1);
        assert_eq!(reply.start_micros, None, "{reply:?}");
        assert_eq!(&reply.checksum, checksum, "{function}: {reply:?}");
        assert_ne!(&other.checksum, checksum, "{function}");
    }

    let request = Invoke { function: "dance".into(), seed: 1, ..Invoke::default() };
    let refused = vm.agent().call::<InvokeReply>(&Request::Invoke(request)).unwrap_err();
    assert!(refused.to_string().contains("dance"), "{refused}");

    let drives = vm.info().block;
    assert_eq!(drives.len(), 1);
    assert!(drives[0].read_only && drives[0].serial.as_deref() == Some("rootfs"), "{drives:?}");
    assert_eq!(drives[0].bytes, fs::metadata(&root).unwrap().len());
    vm.power(How::Poweroff);
    let end = vm.wait();
    assert_eq!(end.code, Some(0), "{end:?}");
    every_strategy_answers(dir.path(), &small);
}
