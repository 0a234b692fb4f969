//! The verbs that write.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use varve_shared::{Places, Uri, status};
use varve_snapshot::{LocalFiles, ManifestReader, StateFile, Trace, write_output};

use crate::files::{flat, memory, range, save, sound, state, tiered, trace};

/// Environment of the test's own process that is killed.
pub const DIR: &str = "VARVE_KILLED_IN";
pub const WHAT: &str = "VARVE_KILLED_WHILE";

/// A verb, in a folder of its own.
pub struct Verb {
    pub name: &'static str,
    /// Fills the folder.
    pub prepare: fn(&Path),
    /// What is killed.
    pub run: fn(&Path) -> Command,
    /// All is as before or as after; as after, if it is `done`.
    pub check: fn(&Path, bool),
}

pub const VERBS: &[Verb] = &[
    Verb { name: "replace a flat snapshot", prepare: old, run: replace, check: replaced },
    Verb { name: "replace a tiered snapshot", prepare: tier_old, run: replace, check: replaced },
    Verb { name: "merge in place", prepare: diff, run: merge, check: merged },
    Verb { name: "merge elsewhere", prepare: diff, run: merge_out, check: merged_out },
    Verb { name: "tier", prepare: old, run: tier, check: is_tiered },
    Verb { name: "tier again", prepare: tier_old, run: tier_anew, check: is_tiered_anew },
    Verb { name: "tier elsewhere", prepare: old, run: tier_out, check: is_tiered_out },
    Verb { name: "tier elsewhere again", prepare: out, run: tier_out_anew, check: is_tiered_again },
    Verb { name: "tier with a store", prepare: old, run: tier_store, check: is_tiered_out },
    Verb { name: "add to a store", prepare: in_store, run: tier_store, check: is_tiered_out },
    Verb { name: "write a trace", prepare: old_trace, run: write_trace, check: is_traced },
    Verb { name: "record a trace", prepare: old_trace, run: record_trace, check: is_traced },
    Verb { name: "publish to a folder", prepare: tier_old, run: publish, check: published },
    Verb { name: "publish again", prepare: retired, run: publish, check: published },
    Verb { name: "revoke", prepare: is_published, run: revoke, check: revoked },
    Verb { name: "collect", prepare: abandoned, run: gc, check: collected },
];

pub fn varve(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_varve"));
    command.args(args);
    command
}

/// Runs a command that must succeed.
pub fn done(mut command: Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
}

/// Has this test do something in a process of its own.
fn own(dir: &Path, what: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["victim", "--exact", "--ignored", "--test-threads=1"]);
    command.env(DIR, dir).env(WHAT, what);
    command
}

pub fn victim(dir: &Path, what: &str) {
    match what {
        "replace" => save(&dir.join("s"), &memory(101), state(2)),
        "trace" => trace(8).write(&LocalFiles, &dir.join("trace")).unwrap(),
        "record" => write_output(&dir.join("trace"), &trace(8).to_bytes()).unwrap(),
        _ => unreachable!(),
    }
}

fn text(path: PathBuf) -> String {
    path.into_os_string().into_string().unwrap()
}

// A flat snapshot.

fn old(dir: &Path) {
    save(&dir.join("s"), &memory(1), state(1));
    trace(0).write(&LocalFiles, &dir.join("trace")).unwrap();
    trace(8).write(&LocalFiles, &dir.join("trace2")).unwrap();
}

fn replace(dir: &Path) -> Command {
    own(dir, "replace")
}

fn replaced(dir: &Path, done: bool) {
    let (state, bytes) = flat(&dir.join("s"));
    let new = state.id == self::state(2).id;
    assert!(bytes == memory(if new { 101 } else { 1 }) && (new || !done));
    if let Ok(manifest) = ManifestReader::open(&dir.join("s"))
        && manifest.read_state().is_ok()
    {
        assert!(!new);
        sound(&dir.join("s"));
        assert!(tiered(&dir.join("s")) == memory(1));
    }
}

// Merging.

fn diff(dir: &Path) {
    old(dir);
    let base = StateFile::read(&dir.join("s/state")).unwrap();
    let mut bytes = vec![0; memory(1).len()];
    bytes[4096..8192].fill(99);
    let (dirty, bases) = (Some(vec![range(1, 1)]), vec![base.identity()]);
    save(&dir.join("d"), &bytes, StateFile { dirty, bases, ..state(2) });
    fs::create_dir(dir.join("kept")).unwrap();
    save(&dir.join("kept"), &memory(1), state(1));
}

fn merge(dir: &Path) -> Command {
    // Once more, after it was done: from the base that was kept.
    let [base, diff, out] = ["kept", "d", "s"].map(|name| text(dir.join(name)));
    let (_, bytes) = flat(&dir.join("s"));
    match bytes == memory(1) {
        true => varve(&["snapshot", "merge", &out, &diff]),
        false => varve(&["snapshot", "merge", &base, &diff, "--out", &out]),
    }
}

fn laid_over() -> Vec<u8> {
    let mut bytes = memory(1);
    bytes[4096..8192].fill(99);
    bytes
}

fn merged(dir: &Path, done: bool) {
    let (found, bytes) = flat(&dir.join("s"));
    let new = found.id == state(2).id;
    assert!(bytes == if new { laid_over() } else { memory(1) } && (new || !done));
    sound(&dir.join("s"));
}

fn merge_out(dir: &Path) -> Command {
    let [base, diff, out] = ["s", "d", "out"].map(|name| text(dir.join(name)));
    varve(&["snapshot", "merge", &base, &diff, "--out", &out])
}

fn merged_out(dir: &Path, done: bool) {
    assert!(flat(&dir.join("s")).1 == memory(1));
    if done || dir.join("out/state").exists() {
        assert!(flat(&dir.join("out")).1 == laid_over());
        sound(&dir.join("out"));
    }
}

// Tiering.

fn tier_with(dir: &Path, trace: &str, more: &[&str]) -> Command {
    let [snapshot, trace] = ["s", trace].map(|name| text(dir.join(name)));
    let mut command =
        varve(&["snapshot", "tier", &snapshot, "--trace", &trace, "--min-extent", "1"]);
    command.args(more);
    command
}

fn tier(dir: &Path) -> Command {
    tier_with(dir, "trace", &[])
}

fn tier_anew(dir: &Path) -> Command {
    tier_with(dir, "trace2", &[])
}

fn tier_out(dir: &Path) -> Command {
    tier_with(dir, "trace", &["--out", &text(dir.join("out"))])
}

fn tier_out_anew(dir: &Path) -> Command {
    tier_with(dir, "trace2", &["--out", &text(dir.join("out"))])
}

fn tier_store(dir: &Path) -> Command {
    tier_with(dir, "trace", &["--out", &text(dir.join("out")), "--store", &text(dir.join("store"))])
}

pub fn tier_old(dir: &Path) {
    old(dir);
    done(tier(dir));
}

fn out(dir: &Path) {
    old(dir);
    done(tier_out(dir));
}

fn in_store(dir: &Path) {
    old(dir);
    let store = text(dir.join("store"));
    done(tier_with(dir, "trace2", &["--out", &text(dir.join("first")), "--store", &store]));
}

/// The tiered snapshot in `dir`, if there is one, or has to be.
fn whole(dir: &Path, done: bool) {
    if done || dir.join("manifest").exists() {
        assert!(tiered(dir) == memory(1));
        sound(dir);
    }
}

fn is_tiered(dir: &Path, done: bool) {
    assert!(flat(&dir.join("s")).1 == memory(1));
    whole(&dir.join("s"), done);
}

fn is_tiered_anew(dir: &Path, _done: bool) {
    is_tiered(dir, true);
}

fn is_tiered_out(dir: &Path, done: bool) {
    is_tiered(dir, false);
    whole(&dir.join("out"), done);
    if dir.join("first").exists() {
        whole(&dir.join("first"), true);
    }
}

fn is_tiered_again(dir: &Path, _done: bool) {
    is_tiered_out(dir, true);
}

// Traces.

fn old_trace(dir: &Path) {
    trace(0).write(&LocalFiles, &dir.join("trace")).unwrap();
}

fn write_trace(dir: &Path) -> Command {
    own(dir, "trace")
}

fn record_trace(dir: &Path) -> Command {
    own(dir, "record")
}

fn is_traced(dir: &Path, done: bool) {
    let found = Trace::read(&dir.join("trace")).unwrap();
    assert!(found == trace(8) || (found == trace(0) && !done));
}

// Images on memory that machines share.

fn uri(dir: &Path) -> Uri {
    format!("file:{}", dir.join("shared").display()).parse().unwrap()
}

fn publish(dir: &Path) -> Command {
    varve(&["tier", "publish", &text(dir.join("s")), "--to", &uri(dir).to_string()])
}

fn revoke(dir: &Path) -> Command {
    varve(&["tier", "revoke", &text(dir.join("s"))])
}

fn gc(dir: &Path) -> Command {
    varve(&["tier", "gc", &uri(dir).to_string()])
}

fn is_published(dir: &Path) {
    tier_old(dir);
    done(publish(dir));
}

/// An image that waits for its last user to go, and is published again meanwhile.
fn retired(dir: &Path) {
    is_published(dir);
    let store = dir.join("shared");
    let image = images(&store).remove(0);
    fs::rename(&image, image.with_extension("retired")).unwrap();
    fs::remove_file(dir.join("s/tiers.json")).unwrap();
    fs::remove_file(image.with_extension("users")).unwrap();
}

fn images(store: &Path) -> Vec<PathBuf> {
    let all = fs::read_dir(store).into_iter().flatten().map(|entry| entry.unwrap().path());
    all.filter(|path| path.extension().is_some_and(|e| e == "image")).collect()
}

/// The snapshot is whole; what it says is in the store is there, and is what it was.
fn publication(dir: &Path) -> Option<bool> {
    is_tiered(dir, true);
    let place = Places::read(&dir.join("s")).unwrap().images.remove("ro")?;
    if place.complete {
        let held = status(&uri(dir)).unwrap();
        let held = held.iter().find(|status| status.held.key == place.key()).unwrap();
        assert!(held.held.published && held.snapshots.len() == 1, "{held:?}");
        let manifest = ManifestReader::open(&dir.join("s")).unwrap();
        let own = fs::read(manifest.image_path(manifest.named("ro").unwrap()).unwrap()).unwrap();
        assert!(fs::read(&images(&dir.join("shared"))[0]).unwrap() == own);
    }
    Some(place.complete)
}

fn published(dir: &Path, done: bool) {
    assert!(publication(dir) == Some(true) || !done);
}

/// Whoever is killed while an image is revoked leaves it to the collection.
fn revoked(dir: &Path, done: bool) {
    let place = publication(dir);
    assert!(place.is_none() || !done);
    if place.is_none() {
        self::done(gc(dir));
        assert!(images(&dir.join("shared")).is_empty());
    }
}

/// An image whose snapshot is gone, and one that is used.
fn abandoned(dir: &Path) {
    is_published(dir);
    save(&dir.join("t"), &memory(50), state(3));
    let snapshot = text(dir.join("t"));
    let trace = text(dir.join("trace"));
    done(varve(&["snapshot", "tier", &snapshot, "--trace", &trace, "--min-extent", "1"]));
    done(varve(&["tier", "publish", &snapshot, "--to", &uri(dir).to_string()]));
    assert_eq!(images(&dir.join("shared")).len(), 2);
    fs::remove_dir_all(dir.join("t")).unwrap();
}

fn collected(dir: &Path, done: bool) {
    let held = status(&uri(dir)).unwrap();
    let used: Vec<_> = held.iter().filter(|held| held.snapshots == [dir.join("s")]).collect();
    assert!(used.len() == 1 && used[0].held.published, "{held:?}");
    assert!(held.len() == 1 || !done, "{held:?}");
}
