//! The pool: who publishes to a node, and a node that keeps images on a disk.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use varve_pool::client::NodeClient;
use varve_pool::{Key, Places};
use varve_tests::services::{KEY, Service, key_file};

use crate::files::names;
use crate::order;
use crate::sweep::{self as harness, CALLS, FAULTS, counted, traced};
use crate::verbs::{Verb, tier_old, varve};

/// The node that verbs of the table publish to.
static NODE: OnceLock<String> = OnceLock::new();

const CLIENT: [Verb; 2] = [
    Verb { name: "publish to the pool", prepare: with_keys, run: publish, check: published },
    Verb { name: "forget in the pool", prepare: in_pool, run: forget, check: forgotten },
];

/// A client that is killed.
pub fn sweep_client() {
    let dir = tempfile::tempdir().unwrap();
    let node = Service::node("127.0.0.1", &key_file(dir.path()));
    NODE.set(node.place.clone()).unwrap();
    CLIENT.iter().for_each(harness::sweep);
}

fn with_keys(dir: &Path) {
    tier_old(dir);
    key_file(dir);
}

fn in_pool(dir: &Path) {
    with_keys(dir);
    assert!(publish(dir).status().unwrap().success());
}

fn with(verb: &str, dir: &Path) -> Command {
    let mut command = varve(&["pool", verb]);
    command.arg(dir.join("s")).arg("--keys").arg(dir.join("keys"));
    command
}

fn publish_to(dir: &Path, node: &str) -> Command {
    let mut command = with("publish", dir);
    command.args(["--to", node]);
    command
}

fn publish(dir: &Path) -> Command {
    publish_to(dir, NODE.get().unwrap())
}

fn forget(dir: &Path) -> Command {
    with("forget", dir)
}

/// Publications and objects of a node.
fn kept(node: &str) -> (u64, u64) {
    let key = Key::from_hex(KEY).unwrap();
    let status =
        NodeClient::new(node, "acme".to_owned().try_into().unwrap(), key).status().unwrap();
    (status.publications, status.objects)
}

fn complete(dir: &Path) -> Option<bool> {
    Places::read(&dir.join("s")).unwrap().images.get("cold").map(|place| place.complete)
}

/// What was published can be taken back, and nothing of it stays, however often it was begun.
fn published(dir: &Path, done: bool) {
    assert!(complete(dir) == Some(true) || !done);
    if done {
        assert!(forget(dir).status().unwrap().success());
        assert_eq!(kept(NODE.get().unwrap()), (0, 0));
    }
}

fn forgotten(dir: &Path, done: bool) {
    assert!(complete(dir).is_none() || !done);
    if complete(dir).is_none() {
        assert_eq!(kept(NODE.get().unwrap()), (0, 0));
    }
}

/// A node with its disk, under strace: the process is the node itself, and strace watches it.
fn serve(dir: &Path, options: &[&str]) -> Service {
    let mut node = varve(&["pool", "serve", "--listen", "127.0.0.1:0", "--keys"]);
    node.arg(dir.join("keys")).arg("--store").arg(dir.join("store"));
    match options {
        [] => Service::node_by(node),
        _ => Service::node_by(traced(&node, &[&["-D"], options].concat(), &dir.join("log"))),
    }
}

/// A node that is killed while an image is published and forgotten.
pub fn sweep() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path();
    with_keys(dir);
    serve(dir, &[]).end();
    let calls = CALLS.replace(",mkdir,mkdirat", "");

    let node = serve(dir, &["-e", &format!("trace={calls}")]);
    for command in [publish_to(dir, &node.place), forget(dir)] {
        let mut command = command;
        assert!(command.status().unwrap().success());
    }
    node.end();
    let counts = ended(&dir.join("log"));
    assert!(counts.values().sum::<usize>() > 4, "{counts:?}");
    let store = dir.join("store");
    let empty = names(&store);

    for (call, count) in &counts {
        for (when, fault) in (1..=*count).flat_map(|n| FAULTS.map(|fault| (n, fault))) {
            let at = format!("node: {fault} at {call} {when} of {count}");
            let inject = format!("inject={call}:{fault}:when={when}");
            let mut node = serve(dir, &["-e", &inject]);
            let done = publish_to(dir, &node.place).status().unwrap().success()
                && forget(dir).status().unwrap().success();
            assert!(!done || !fault.contains("KILL"), "{at}");
            node.kill();

            // It has whole images, and what was begun can be finished.
            let node = serve(dir, &[]);
            let (publications, _) = kept(&node.place);
            assert!(
                publications <= 1 && (publications == 1 || complete(dir) != Some(true)),
                "{at}"
            );
            assert!(publish_to(dir, &node.place).status().unwrap().success(), "{at}");
            assert_eq!(kept(&node.place), (1, 1), "{at}");
            assert!(!node.said().contains("error"), "{at}: {}", node.said());
            node.end();
            let node = serve(dir, &[]);
            assert_eq!(kept(&node.place), (1, 1), "{at}");
            // Its address is another one now.
            assert!(publish_to(dir, &node.place).status().unwrap().success(), "{at}");
            assert!(forget(dir).status().unwrap().success(), "{at}");
            node.end();
            assert_eq!(names(&store), empty, "{at}: what was left stays");
        }
    }
    println!("node: {counts:?}");
}

/// The log of a process that has ended, which its tracer may still be writing.
fn ended(log: &Path) -> std::collections::BTreeMap<String, usize> {
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut before = String::new();
    loop {
        let seen = fs::read_to_string(log).unwrap();
        if seen == before && !seen.is_empty() {
            order::check("node", &seen, log.parent().unwrap());
            return counted(&seen);
        }
        assert!(Instant::now() < deadline, "{seen}");
        before = seen;
        std::thread::sleep(Duration::from_millis(300));
    }
}
