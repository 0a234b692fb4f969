//! What a recording sees is what happened.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::Path;

use serde_json::Value;
use varve_agent::protocol::Action;
use varve_skip::skipped;
use varve_snapshot::{Access, Mechanism, STATE_FILE, StateFile, Trace};
use varve_tests::disk::{Disk, drop_cache};
use varve_tests::{Restoring, Vm, command};

const PAGES_PER_MIB: u64 = 256;
fn folder() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("varve-snapshot").tempdir().unwrap()
}

fn machine() -> Vm {
    Vm::builder().option("--memory", "96M").controlled().start()
}

fn invoke(vm: &mut Vm) {
    vm.memory_by(2, "read", Action::Verify, 0);
    vm.memory_by(2, "written", Action::Rewrite, 9);
    vm.memory_by(1, "fresh", Action::Fill, 9);
}

/// The same by two ways that know nothing of each other: faults on pages that are write-protected,
/// and page tables afterwards.
#[test]
fn written_pages_are_those_that_became_private() {
    // Only what is not in memory anyway can be seen to come to the page cache.
    let disk = Disk::on_a_device(256);
    let dir = folder();
    let home = disk.as_ref().map_or(dir.path(), Disk::path);
    let (snapshot, trace) = (home.join("snapshot"), dir.path().join("trace"));
    let mut vm = machine();
    for name in ["read", "written", "fresh"] {
        vm.memory(name, Action::Allocate, 6, 0);
        if name != "fresh" {
            vm.memory_by(1, name, Action::Fill, 1);
        }
    }
    vm.snapshot("", &snapshot);
    drop(vm);

    let record = |trace: &Path| Restoring::recording(&snapshot, trace).options("--json");
    let mut vm = record(&trace).start();
    invoke(&mut vm);
    let report = vm.end_with_report();
    let number = |value: &Value| value.as_u64().unwrap();
    let (touched, written) = (number(&report["recorded"][0]), number(&report["recorded"][1]));
    let mut vm = Restoring::from(&snapshot).options("--json --strategy lazy").start();
    invoke(&mut vm);
    let census = vm.end_with_report()["census"].clone();
    let private = ["zero", "ro", "rw", "cold"].map(|class| number(&census[class]["private"]));
    let private: u64 = private.iter().sum();
    println!("touched {touched}, written {written}; private {private}: {census}");
    assert!(written.abs_diff(private) * 50 <= private, "{written} written, {private} private");

    // The cheap way sees what is there now and then, and what the kernel brought in along with it.
    let cheap = dir.path().join("cheap");
    let mut vm = record(&cheap).options("--by pagemap").start();
    invoke(&mut vm);
    vm.end_with_report();
    let cheap = Trace::read(&cheap).unwrap();
    let all = cheap.pages().len() as u64;
    let some = cheap.pages().iter().filter(|page| page.access.has(Access::WRITTEN)).count() as u64;
    println!("by pagemap: touched {all}, written {some}");
    assert!(all + touched / 50 >= touched, "{all} touched by pagemap, {touched} by faults");
    assert!(written.abs_diff(some) * 50 <= written, "{some} written by pagemap, not {written}");
    // What both ways saw is the same pages, not only as many.
    let exact = Trace::read(&trace).unwrap();
    let missed = exact.pages().iter().filter(|page| cheap.find(page.gfn).is_none()).count() as u64;
    assert!(missed * 50 <= touched, "{missed} pages touched that pagemap did not see");

    match disk {
        Ok(_) => by_mincore(&snapshot, &dir.path().join("mincore"), &exact),
        Err(reason) => skipped("disk", "recording by mincore", &reason),
    }

    // The regions: one read, two written, of which one was zero.
    let least = 12 * PAGES_PER_MIB;
    assert!((least..least + 6 * PAGES_PER_MIB).contains(&written), "{written} written");
    let only_read = touched - written;
    assert!(only_read >= 6 * PAGES_PER_MIB, "{only_read} only read");

    // The file says the same.
    let trace = Trace::read(&trace).unwrap();
    assert_eq!((trace.mechanism, trace.runs), (Mechanism::UffdWp, 1));
    let pages = trace.pages();
    let has = |access| pages.iter().filter(|page| page.access.has(access)).count() as u64;
    assert_eq!(pages.len() as u64, touched);
    assert_eq!(has(Access::WRITTEN), written);
    // Queues of devices are used by the monitor.
    let monitor = has(Access::MONITOR);
    assert!((1..touched / 4).contains(&monitor), "{monitor} by the monitor");
    // What was rewritten was read first, page by page.
    let both = has(Access::READ.with(Access::WRITTEN));
    assert!(both >= 6 * PAGES_PER_MIB, "{both} read and then written");
    // Each page has a place of its own in the order.
    let mut order: Vec<u32> = pages.iter().map(|page| page.order).collect();
    order.sort_unstable();
    assert!(order.iter().copied().eq(0..pages.len() as u32), "order is not 0, 1, 2 …");
}

/// What comes to the page cache of the memory file: all that is touched, and what the kernel reads
/// ahead. Nothing tells writes.
fn by_mincore(snapshot: &Path, trace: &Path, exact: &Trace) {
    let memory = StateFile::read(&snapshot.join(STATE_FILE)).unwrap().memory_file.unwrap();
    drop_cache(&snapshot.join(memory));
    let mut vm = Restoring::recording(snapshot, trace).options("--json --by mincore").start();
    invoke(&mut vm);
    vm.end_with_report();
    let trace = Trace::read(trace).unwrap();
    assert_eq!(trace.mechanism, Mechanism::Mincore);
    let (seen, touched) = (trace.pages().len(), exact.pages().len());
    let missed = exact.pages().iter().filter(|page| trace.find(page.gfn).is_none()).count();
    println!("by mincore: {seen} touched, by faults {touched}, of which mincore missed {missed}");
    // Two runs of a guest never touch quite the same pages: 3 % were others on a busy host.
    assert!(missed * 20 <= touched, "{missed} of {touched} pages are not seen by mincore");
    let all = 96 * PAGES_PER_MIB as usize;
    assert!((touched..all * 9 / 10).contains(&seen), "{seen} pages by mincore");
    assert!(trace.pages().iter().all(|page| page.access == Access::READ), "mincore tells writes");
}

#[test]
fn each_call_is_an_invocation_of_the_trace() {
    let dir = folder();
    let (snapshot, trace) = (dir.path().join("snapshot"), dir.path().join("trace"));
    let mut vm = machine();
    vm.install_function();
    vm.snapshot("", &snapshot);
    drop(vm);

    let calls = ["count 1", "count 2", "count 2"];
    let run = |mut restoring: Restoring| {
        for call in calls {
            restoring = restoring.arg("--invoke").arg(call);
        }
        let end = restoring.options("--json").end();
        assert_eq!(end.code, Some(0), "{end:?}");
        serde_json::from_str::<Value>(&end.console).unwrap()
    };
    let report = run(Restoring::recording(&snapshot, &trace));
    let again = run(Restoring::from(&snapshot).options("--strategy lazy"));
    let sums = |report: &Value| -> Vec<String> {
        let calls = report["invocations"].as_array().unwrap();
        calls.iter().map(|call| call["checksum"].as_str().unwrap().into()).collect()
    };
    let (first, second) = (sums(&report), sums(&again));
    assert_eq!(first, second);
    assert_eq!(first[1], first[2]);
    assert!(first[0] != first[1] && first[0].len() == 64, "{first:?}");
    assert_eq!(report["strategy"], "record");

    let recorded = Trace::read(&trace).unwrap();
    assert_eq!(recorded.labels, ["resume", "count 1", "count 2", "count 2"]);
    // The first mark only names what follows; each later one begins a run of its own.
    assert_eq!(recorded.runs, 3);
    let first_in =
        |label: u32| recorded.pages().iter().filter(|page| page.invocation == label).count();
    let counts = [0, 1, 2, 3].map(first_in);
    println!("pages by the invocation that touched them first: {counts:?}");
    assert!(counts[0] > 0 && counts[1] > 0, "{counts:?}");
    // The interpreter's pages, say, are used by every call.
    let always = recorded.pages().iter().filter(|page| page.runs == 3).count();
    assert!(always > 100, "{always} pages in all runs");
    // 2 MB of data were written in each.
    let written = recorded.pages().iter().filter(|page| page.runs_written > 0).count();
    assert!(written > 400, "{written} pages written");
    // Another way to record, the calls twice, added to what is there.
    let more = dir.path().join("more");
    std::fs::copy(&trace, &more).unwrap();
    run(Restoring::recording(&snapshot, &more).options("--by pagemap --append --repeat 2"));
    let merged = Trace::read(&more).unwrap();
    // What only looks sees one run.
    assert_eq!((merged.mechanism, merged.runs, merged.labels.len()), (Mechanism::Mixed, 4, 4 + 7));
    assert!(merged.pages().iter().any(|page| page.runs == 4));
    std::fs::write(&more, "VARVE-TR").unwrap();
    let end = Restoring::recording(&snapshot, &more).options("--append --invoke hello").end();
    assert_eq!(end.code, Some(2), "{end:?}");
    let end = Restoring::recording(&snapshot, &more).options("--append").end();
    assert_eq!(end.code, Some(1), "{end:?}");
    assert!(end.stderr.contains("more"), "{end:?}");

    let tiered = |hot_if: &str| {
        let out = dir.path().join(hot_if);
        let trace = ["--trace".as_ref(), trace.as_os_str()];
        let more = ["--hot-if".as_ref(), hot_if.as_ref(), "--out".as_ref(), out.as_os_str()];
        let args = ["snapshot".as_ref(), "tier".as_ref(), snapshot.as_os_str(), "--json".as_ref()];
        let end = command::run(args.into_iter().chain(trace).chain(more));
        assert_eq!(end.code, Some(0), "{end:?}");
        out
    };
    for hot_if in ["all", "2", "2-of-3"] {
        let dir = tiered(hot_if);
        let way =
            format!("--strategy tiered --wait {}", if hot_if == "2" { "all" } else { "nothing" });
        let report = run(Restoring::from(&dir).options(&way));
        assert_eq!(sums(&report), first, "{hot_if}");
    }
}
