//! How long the lists are: docs/isolation.md has the table, which is made here, and Firecracker's lists
//! beside it.

use std::collections::BTreeMap;
use std::path::Path;

use super::call::Call;
use super::{Tasks, Thread};

/// Where the table is.
const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/isolation.md");
/// What stands in front of the table, and behind it.
const BEGIN: &str =
    "<!-- counts: made by `VARVE_WRITE_DOCS=1 cargo test -p varve-vmm --lib counts` -->\n";
const END: &str = "<!-- /counts -->\n";

const ALONE: Tasks = Tasks { api: false, saves: false, pool: false };
const SAVES: Tasks = Tasks { api: false, saves: true, pool: false };
const SERVES: Tasks = Tasks { api: true, saves: true, pool: false };
const POOL: Tasks = Tasks { api: false, saves: false, pool: true };

/// Calls, and those of them without a rule, of Firecracker 1.13's filters for x86-64
/// (resources/seccomp/x86_64-unknown-linux-musl.json) of the same threads.
const FIRECRACKER: &[(Thread, (usize, usize))] =
    &[(Thread::Main, (50, 37)), (Thread::Vcpu, (31, 22))];

const ROWS: &[(&str, Thread, Tasks)] = &[
    ("`start`", Thread::Start, ALONE),
    ("`start`, with the API", Thread::Start, SERVES),
    ("`vmm`", Thread::Main, ALONE),
    ("`vmm` that saves", Thread::Main, SAVES),
    ("`vmm`, with the API", Thread::Main, SERVES),
    ("`vmm` that offloads to a pool", Thread::Main, POOL),
    ("`saver`", Thread::Saver, SAVES),
    ("`drive`", Thread::Drive, ALONE),
    ("`vcpu`", Thread::Vcpu, ALONE),
    ("`memory`", Thread::Memory, ALONE),
    ("`memory`, with a pool", Thread::Memory, POOL),
    ("`client`", Thread::Client, ALONE),
    ("`pager`", Thread::Pager, ALONE),
    ("`pager`, with a pool", Thread::Pager, POOL),
];

/// Calls of a list, and those of them without a rule.
fn count(thread: Thread, tasks: Tasks) -> (usize, usize) {
    let mut calls: BTreeMap<i64, bool> = BTreeMap::new();
    for call in thread.own_lists(tasks).into_iter().flatten() {
        *calls.entry(call.number()).or_default() |= Call::is_unchecked(call);
    }
    (calls.len(), calls.values().filter(|unchecked| **unchecked).count())
}

fn firecracker(thread: Thread) -> Option<(usize, usize)> {
    FIRECRACKER.iter().find(|(of, _)| *of == thread).map(|(_, counts)| *counts)
}

#[test]
fn the_table_of_the_document_is_true() {
    let mut table = String::from(
        "| threads | calls | without a rule | Firecracker's |\n| --- | --- | --- | --- |\n",
    );
    for &(name, thread, tasks) in ROWS {
        let (calls, unchecked) = count(thread, tasks);
        let theirs = firecracker(thread).map_or("none".into(), |(c, u)| format!("{c}, {u}"));
        let theirs = match thread {
            Thread::Start => "no filter yet".into(),
            Thread::Main if tasks.api => format!("{theirs}, and a thread for the API"),
            Thread::Main if tasks.pool => format!("{theirs}; it has no pool"),
            _ => theirs,
        };
        table += &format!("| {name} | {calls} | {unchecked} | {theirs} |\n");
    }
    let document = std::fs::read_to_string(DOCUMENT).unwrap();
    let (before, rest) = document.split_once(BEGIN).unwrap();
    let (found, after) = rest.split_once(END).unwrap();
    if std::env::var_os("VARVE_WRITE_DOCS").is_some() {
        let written = [before, BEGIN, &table, END, after].concat();
        std::fs::write(Path::new(DOCUMENT), written).unwrap();
    } else {
        assert_eq!(found, table, "docs/isolation.md is out of date: it says how it is made anew");
    }
}

/// That is for the work that both monitors do. Firecracker has no pools.
#[test]
fn lists_are_no_longer_than_firecrackers() {
    let mains = [ALONE, SAVES, SERVES].map(|tasks| (Thread::Main, tasks));
    for (thread, tasks) in mains.into_iter().chain([(Thread::Vcpu, SERVES)]) {
        let (calls, unchecked) = count(thread, tasks);
        let (most, most_unchecked) = firecracker(thread).unwrap();
        assert!(calls <= most, "{thread:?} {tasks:?}: {calls} calls, Firecracker's has {most}");
        assert!(unchecked <= most_unchecked, "{thread:?} {tasks:?}: {unchecked} without a rule");
    }
}
