//! Whatever happens while a snapshot is made, what was there before can be used, and what was not
//! finished is not seen: after an error, after a kill, after a loss of power.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use common::{Guest, leftovers, trace_of};
use varve_snapshot::{
    Files, FlatOrder, FlatWriter, LocalFiles, ManifestReader, NewFile, PageRange, SnapshotError,
    StateFile, Summing, TierInput, TierOptions, clean, layout, memory_at, memory_in, merge_diff,
    settle, tier, verify,
};

/// What has happened since the last time that it was made durable.
#[derive(Default)]
struct Log {
    /// Operations until all fail; as they would on a full disk, or in a killed process.
    left: usize,
    used: usize,
    /// A killed process does not clean up either.
    killed: bool,
    /// Files whose content was not synced.
    dirty: HashMap<PathBuf, ()>,
    /// Renames whose folder was not synced: from, to, what stood there before.
    renames: Vec<(PathBuf, PathBuf, Option<Vec<u8>>)>,
}

impl Log {
    fn step(&mut self) -> io::Result<()> {
        self.used += 1;
        self.left = self.left.checked_sub(1).ok_or(io::ErrorKind::StorageFull)?;
        Ok(())
    }
}

/// The real file system, until it stops after some operations.
#[derive(Clone, Default)]
struct Failing(Arc<Mutex<Log>>);

struct FailingFile {
    file: File,
    path: PathBuf,
    log: Failing,
}

impl Failing {
    fn after(left: usize, killed: bool) -> Failing {
        Failing(Arc::new(Mutex::new(Log { left, killed, ..Log::default() })))
    }

    fn log(&self) -> std::sync::MutexGuard<'_, Log> {
        self.0.lock().unwrap()
    }

    /// What a loss of power leaves: renames that were not synced have not happened, or only the last
    /// of them has; content that was not synced is gone.
    fn lose_power(&self, last_survives: bool) {
        let mut log = self.log();
        if last_survives {
            log.renames.pop();
        }
        for (from, to, before) in std::mem::take(&mut log.renames).into_iter().rev() {
            fs::rename(&to, &from).unwrap();
            if let Some(before) = before {
                fs::write(&to, before).unwrap();
            }
        }
        for path in log.dirty.keys().filter(|p| p.exists()) {
            File::options().write(true).open(path).unwrap().set_len(0).unwrap();
        }
    }
}

impl Files for Failing {
    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        self.log().step()?;
        LocalFiles.create_dir(dir)
    }
    fn create(&self, path: &Path) -> io::Result<Box<dyn NewFile>> {
        let mut log = self.log();
        log.step()?;
        log.dirty.insert(path.to_owned(), ());
        let file = File::options().read(true).write(true).create_new(true).open(path)?;
        Ok(Box::new(FailingFile { file, path: path.to_owned(), log: self.clone() }))
    }
    fn open(&self, path: &Path) -> io::Result<Box<dyn NewFile>> {
        self.log().step()?;
        let file = File::options().read(true).write(true).open(path)?;
        Ok(Box::new(FailingFile { file, path: path.to_owned(), log: self.clone() }))
    }
    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut log = self.log();
        log.step()?;
        // Another name for content that is durable.
        log.dirty.remove(to);
        LocalFiles.link(from, to)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut log = self.log();
        log.step()?;
        log.renames.push((from.to_owned(), to.to_owned(), fs::read(to).ok()));
        if log.dirty.remove(from).is_some() {
            log.dirty.insert(to.to_owned(), ());
        }
        LocalFiles.rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut log = self.log();
        if log.killed || !path.to_string_lossy().contains(varve_snapshot::TEMP_PREFIX) {
            log.step()?;
        }
        LocalFiles.remove(path)
    }
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut log = self.log();
        log.step()?;
        log.renames.retain(|(_, to, _)| to.parent() != Some(dir));
        Ok(())
    }
}

impl NewFile for FailingFile {
    fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        if let Err(e) = self.log.log().step() {
            // Half of it got there.
            self.file.write_all_at(&bytes[..bytes.len() / 2], offset)?;
            return Err(e);
        }
        self.file.write_all_at(bytes, offset)
    }
    fn set_len(&mut self, len: u64) -> io::Result<()> {
        self.log.log().step()?;
        self.file.set_len(len)
    }
    fn sync(&mut self) -> io::Result<()> {
        let mut log = self.log.log();
        log.step()?;
        log.dirty.remove(&self.path);
        Ok(())
    }
}

fn guest() -> Guest {
    Guest::new(5, &[0, 9, 9, 9, 0, 9, 9, 9, 0, 9])
}

/// Runs `make` in a folder that `prepare` filled, failing after 0, 1, 2 ... operations until it
/// succeeds; `check` then judges the folder, and is told whether `make` succeeded.
fn at_every_operation(
    prepare: impl Fn(&Path),
    make: impl Fn(&dyn Files, &Path) -> bool,
    check: impl Fn(&Path, bool),
) {
    for (killed, power) in [(false, None), (true, None), (true, Some(false)), (true, Some(true))] {
        let mut left = 0;
        loop {
            let dir = tempfile::tempdir().unwrap();
            prepare(dir.path());
            let files = Failing::after(left, killed);
            let done = make(&files, dir.path());
            if let Some(last_survives) = power {
                files.lose_power(last_survives);
            }
            if !killed {
                assert_eq!(leftovers(dir.path()), Vec::<String>::new(), "after {left} operations");
            }
            clean(dir.path()).unwrap();
            assert_eq!(leftovers(dir.path()), Vec::<String>::new());
            check(dir.path(), done);
            if done {
                assert!(left > 3, "nothing was asked of the file system");
                break;
            }
            left += 1;
        }
    }
}

#[test]
fn tiering_anew_leaves_all_or_nothing() {
    let make = |files: &dyn Files, dir: &Path| {
        let traces = [trace_of(&guest(), &[(1, 1, 1), (3, 3, 2)])];
        let (state, memory) = (dir.join("state"), dir.join("memory"));
        let input = TierInput { state: &state, memory: &memory, traces: &traces, out: dir };
        tier(files, &input, &TierOptions::default()).is_ok()
    };
    at_every_operation(
        |dir| drop(guest().save(dir)),
        make,
        |dir, done| {
            // Renamed, and the folder's sync failed: whole, though not known to last.
            assert!(dir.join("manifest").exists() || !done);
            assert_eq!(verify(dir).unwrap().problems, Vec::<String>::new());
        },
    );
}

#[test]
fn tiering_again_leaves_the_old_or_the_new() {
    let make = |files: &dyn Files, dir: &Path| {
        let traces = [trace_of(&guest(), &[(1, 1, 1), (3, 3, 2)])];
        let (state, memory) = (dir.join("state"), dir.join("memory"));
        let input = TierInput { state: &state, memory: &memory, traces: &traces, out: dir };
        tier(files, &input, &TierOptions::default()).is_ok()
    };
    let prepare = |dir: &Path| {
        let (state, memory) = guest().save(dir);
        let input = TierInput { state: &state, memory: &memory, traces: &[], out: dir };
        tier(&LocalFiles, &input, &TierOptions::default()).unwrap();
    };
    at_every_operation(prepare, make, |dir, done| {
        assert_eq!(verify(dir).unwrap().problems, Vec::<String>::new());
        let manifest = ManifestReader::open(dir).unwrap();
        let touched = manifest.recorded().unwrap().touched;
        assert!(touched == 4 || (touched == 0 && !done));
        assert_eq!(guest().read_back(&manifest, layout::TIERED), guest().bytes);
    });
}

#[test]
fn a_state_file_is_replaced_whole() {
    let newer = || StateFile { vmm_version: "newer".into(), ..guest().state() };
    at_every_operation(
        |dir| drop(guest().save(dir)),
        |files, dir| newer().write(files, &dir.join("state")).is_ok(),
        |dir, done| {
            let found = StateFile::read(&dir.join("state")).unwrap();
            assert!(found == newer() || (found == guest().state() && !done));
        },
    );
}

/// Two functions share a store; the second fails to be added: the first one's pages stay.
#[test]
fn a_store_keeps_what_it_has() {
    let share = |files: &dyn Files, dir: &Path, name: &str, guest: &Guest| {
        let dir = dir.join(name);
        fs::create_dir_all(&dir).unwrap();
        let (state, memory) = (dir.join("state"), dir.join("memory"));
        if !state.exists() {
            guest.save(&dir);
        }
        let traces = [trace_of(guest, &[(0, 10, 1)])];
        let input = TierInput { state: &state, memory: &memory, traces: &traces, out: &dir };
        let store = Some(dir.parent().unwrap().join("store"));
        tier(files, &input, &TierOptions { store, ..TierOptions::default() })
    };
    at_every_operation(
        |dir| drop(share(&LocalFiles, dir, "first", &guest()).unwrap()),
        |files, dir| share(files, dir, "second", &newer()).is_ok(),
        |dir, done| {
            assert_eq!(verify(&dir.join("first")).unwrap().problems, Vec::<String>::new());
            let second = dir.join("second");
            assert!(second.join("manifest").exists() || !done);
            assert_eq!(verify(&second).unwrap().problems, Vec::<String>::new());
            // And it can be added to again, with both right.
            share(&LocalFiles, dir, "third", &newer()).unwrap();
            for (name, guest) in [("first", guest()), ("third", newer())] {
                let manifest = ManifestReader::open(&dir.join(name)).unwrap();
                assert_eq!(guest.read_back(&manifest, layout::TIERED), guest.bytes);
            }
        },
    );
}

/// Another guest, saved where `guest` is.
fn newer() -> Guest {
    Guest::new(5, &[9, 0, 0, 9, 9, 9, 0, 9, 9, 0])
}

fn save_newer(writer: FlatWriter) -> Result<(), Box<dyn std::error::Error>> {
    save(writer, &newer())
}

fn save(mut writer: FlatWriter, guest: &Guest) -> Result<(), Box<dyn std::error::Error>> {
    let mut sums = Summing::new(10, true);
    for (page, at) in guest.bytes.chunks(4096).zip(0..) {
        sums.add(at, page);
        writer.memory()?.write_at(page, at * 4096)?;
    }
    writer.finish(StateFile { sums: Some(sums.finish()), ..guest.state() })?;
    Ok(())
}

/// What a restore of the snapshot in `dir` would find: the state, and all of memory.
fn load(dir: &Path) -> (StateFile, Vec<u8>) {
    let state = StateFile::read(&dir.join("state")).unwrap();
    let memory = fs::read(memory_in(dir, &state).unwrap()).unwrap();
    assert!(memory == fs::read(memory_at(&state, &dir.join("memory")).unwrap()).unwrap());
    (state, memory)
}

#[test]
fn a_new_flat_snapshot_replaces_the_old_one_whole() {
    let prepare = |dir: &Path| {
        let (state, memory) = guest().save(dir);
        let input = TierInput { state: &state, memory: &memory, traces: &[], out: dir };
        tier(&LocalFiles, &input, &TierOptions::default()).unwrap();
    };
    let make = |files: &dyn Files, dir: &Path| {
        FlatWriter::in_dir(files, dir, 10 * 4096).is_ok_and(|writer| save_newer(writer).is_ok())
    };
    let only = |dir: &Path| {
        let mut names: Vec<_> =
            fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["memory", "state"], "nothing is left of what was replaced");
    };
    at_every_operation(prepare, make, |dir, done| {
        let (state, found) = load(dir);
        let old = state.id.is_none();
        assert!(found == if old { guest().bytes } else { newer().bytes });
        assert!(!(old && done));
        // The tiered one is as it was, or gone, or refused as it no longer fits.
        if let Ok(manifest) = ManifestReader::open(dir) {
            assert_eq!(manifest.read_state().is_ok(), old);
        }
        // What a kill left does not stay for ever.
        if old || done {
            assert!(make(&LocalFiles, dir));
            only(dir);
        }
        settle(&LocalFiles, dir).unwrap();
        assert!(load(dir).1 == fs::read(dir.join("memory")).unwrap());
    });
}

/// At given places, both replaced: always one of the two, whole.
#[test]
fn state_and_memory_never_mix() {
    let make = |files: &dyn Files, dir: &Path| {
        FlatWriter::at(files, &dir.join("state"), &dir.join("memory"), 10 * 4096)
            .is_ok_and(|writer| save_newer(writer).is_ok())
    };
    // Over a snapshot of an older version, over one that was replaced before, and over the other's.
    let twice = |dir: &Path| {
        guest().save(dir);
        save(FlatWriter::in_dir(&LocalFiles, dir, 10 * 4096).unwrap(), &guest()).unwrap();
    };
    for prepare in [(|dir| drop(guest().save(dir))) as fn(&Path), twice] {
        at_every_operation(prepare, make, |dir, done| {
            let (_, found) = load(dir);
            assert!(found == newer().bytes || (found == guest().bytes && !done));
        });
    }
}

/// The memory file of a snapshot whose state file has another name is replaced: that one stays whole
/// until the new state is there.
#[test]
fn another_state_files_memory_stays_until_the_new_one_is_there() {
    let make = |files: &dyn Files, dir: &Path| {
        FlatWriter::at(files, &dir.join("second"), &dir.join("memory"), 10 * 4096)
            .is_ok_and(|writer| save_newer(writer).is_ok())
    };
    at_every_operation(
        |dir| drop(guest().save(dir)),
        make,
        |dir, done| {
            let Ok(state) = StateFile::read(&dir.join("second")) else {
                assert!(!done && load(dir).1 == guest().bytes);
                return;
            };
            let memory = memory_at(&state, &dir.join("memory")).unwrap();
            assert!(fs::read(memory).unwrap() == newer().bytes);
        },
    );
}

/// A file system on which the last sync fails, and the state file cannot be read from then on.
struct Hiding(Mutex<bool>);

impl Files for Hiding {
    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        LocalFiles.create_dir(dir)
    }
    fn create(&self, path: &Path) -> io::Result<Box<dyn NewFile>> {
        LocalFiles.create(path)
    }
    fn open(&self, path: &Path) -> io::Result<Box<dyn NewFile>> {
        LocalFiles.open(path)
    }
    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        LocalFiles.link(from, to)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        *self.0.lock().unwrap() |= to.ends_with("state");
        LocalFiles.rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        LocalFiles.remove(path)
    }
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        if !*self.0.lock().unwrap() {
            return LocalFiles.sync_dir(dir);
        }
        fs::rename(dir.join("state"), dir.join("hidden")).unwrap();
        std::os::unix::fs::symlink("state", dir.join("state")).unwrap();
        Err(io::ErrorKind::StorageFull.into())
    }
}

/// A state file that cannot be read may be the new one: its memory stays.
#[test]
fn memory_stays_while_nobody_knows_which_state_is_there() {
    let dir = tempfile::tempdir().unwrap();
    guest().save(dir.path());
    let files = Hiding(Mutex::new(false));
    let writer = FlatWriter::in_dir(&files, dir.path(), 10 * 4096).unwrap();
    assert!(save_newer(writer).is_err());
    fs::rename(dir.path().join("hidden"), dir.path().join("state")).unwrap();
    let (state, found) = load(dir.path());
    assert!(state.id.is_some() && found == newer().bytes);
}

/// A state file that cannot be looked at is no reason to take its memory away.
#[test]
fn a_target_that_is_no_file_costs_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (state, memory) = guest().save(dir.path());
    fs::create_dir(dir.path().join("folder")).unwrap();
    let folder = dir.path().join("folder");
    for (state, memory) in [(&folder, &memory), (&state, &folder), (&memory, &memory)] {
        let refused = FlatWriter::at(&LocalFiles, state, memory, 10 * 4096).err().unwrap();
        assert!(matches!(refused, SnapshotError::Target { .. }), "{refused}");
    }
    assert!(load(dir.path()).1 == guest().bytes);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
}

/// A diff of `dirty` pages of content `byte`, since `base`.
fn diff_since(dir: &Path, base: &StateFile, dirty: &[PageRange], byte: u8) -> PathBuf {
    let diff = dir.join("diff");
    let mut writer = FlatWriter::in_dir(&LocalFiles, &diff, 10 * 4096).unwrap();
    let order = FlatOrder::new(&base.memory);
    let mut sums = Summing::new(10, false);
    for pages in dirty {
        let (first, bytes) = (order.of_pages(pages).unwrap(), vec![byte; pages.len() as usize]);
        sums.add(first, &bytes);
        writer.memory().unwrap().write_at(&bytes, first * 4096).unwrap();
    }
    let (dirty, bases) = (Some(dirty.to_vec()), vec![base.identity()]);
    let sums = Some(sums.finish());
    writer.finish(StateFile { dirty, bases, sums, ..newer().state() }).unwrap();
    diff
}

#[test]
fn a_merge_of_snapshots_leaves_the_base_or_the_merged_one() {
    let mut merged = guest().bytes;
    merged[4096..8192].fill(5);
    merged[3 * 4096..4 * 4096].fill(5);
    let make = |files: &dyn Files, dir: &Path| {
        let base = StateFile::read(&dir.join("state")).unwrap();
        let dirty = [common::range(1, 1), common::range(3, 1)];
        let diff = diff_since(dir, &base, &dirty, 5);
        let report = varve_snapshot::merge(files, dir, &diff, dir);
        if let Ok(report) = &report {
            assert_eq!((report.pages, report.from_diff, report.tied), (10, 2, true));
        }
        report.is_ok()
    };
    at_every_operation(
        |dir| drop(guest().save(dir)),
        make,
        |dir, done| {
            let (state, found) = load(dir);
            let old = state.id.is_none();
            assert!(found == if old { guest().bytes.clone() } else { merged.clone() });
            assert!(state.dirty.is_none() && !(old && done));
            assert_eq!(verify(dir).unwrap().problems, Vec::<String>::new());
        },
    );
}

/// A diff goes over the snapshot that it was made since, and over no other.
#[test]
fn a_diff_is_laid_over_its_own_base_alone() {
    let root = tempfile::tempdir().unwrap();
    let dir = |name: &str| root.path().join(name);
    let bytes = 10 * 4096;
    for (name, guest) in [("base", guest()), ("other", newer())] {
        save(FlatWriter::in_dir(&LocalFiles, &dir(name), bytes).unwrap(), &guest).unwrap();
    }
    let read = |name: &str| StateFile::read(&dir(name).join("state")).unwrap();
    let diff = diff_since(root.path(), &read("base"), &[common::range(1, 1)], 5);
    let merge =
        |base: &Path, diff: &Path| varve_snapshot::merge(&LocalFiles, base, diff, &dir("out"));
    for (base, diff, said) in [
        (dir("other"), &diff, "it was made since snapshot"),
        (diff.clone(), &diff, "the base is a diff itself"),
        (dir("base"), &dir("other"), "needs no base"),
    ] {
        let error = merge(&base, diff).unwrap_err().to_string();
        assert!(error.contains(said) && error.contains(diff.to_str().unwrap()), "{error}");
    }
    assert!(!dir("out").exists());
    assert!(merge(&dir("base"), &diff).unwrap().tied);
    assert_eq!(verify(&dir("out")).unwrap().unchecked, Vec::<String>::new());
    // The merged one is the base of the next.
    let next = diff_since(&dir("out"), &read("out"), &[common::range(2, 1)], 6);
    assert!(merge(&dir("out"), &next).unwrap().tied);

    // Damage gets no right checksum by being merged.
    let flip = |path: &Path| {
        let file = File::options().read(true).write(true).open(path).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, 9 * 4096).unwrap();
        file.write_all_at(&[byte[0] ^ 1], 9 * 4096).unwrap();
    };
    flip(&dir("base").join("memory"));
    assert!(matches!(merge(&dir("base"), &diff), Err(SnapshotError::Memory { .. })));
}

#[test]
fn a_merge_replaces_its_base_whole() {
    let diff_of = |dir: &Path| {
        let diff = dir.join("diff");
        let file = File::create(&diff).unwrap();
        file.set_len(10 * 4096).unwrap();
        file.write_all_at(&[5; 4096], 4096).unwrap();
        file.write_all_at(&[0; 4096], 3 * 4096).unwrap();
        diff
    };
    let mut merged = guest().bytes;
    merged[4096..8192].fill(5);
    merged[3 * 4096..4 * 4096].fill(0);
    at_every_operation(
        |dir| drop(guest().save(dir)),
        |files, dir| {
            let memory = dir.join("memory");
            match merge_diff(files, &memory, &diff_of(dir), None, &memory) {
                Ok(report) => {
                    assert_eq!((report.pages, report.from_diff), (10, 2));
                    true
                }
                Err(_) => false,
            }
        },
        |dir, done| {
            let found = fs::read(dir.join("memory")).unwrap();
            assert!(found == merged || (found == guest().bytes && !done));
        },
    );
}

/// Files that a living process still writes are not cleaned away.
#[test]
fn cleaning_spares_the_living() {
    let dir = tempfile::tempdir().unwrap();
    let mut staging = varve_snapshot::Staging::new(&LocalFiles);
    let target = dir.path().join("memory");
    let at = staging.create(&target).unwrap();
    staging.put(at, b"x", 0).unwrap();
    assert_eq!(clean(dir.path()).unwrap(), 0);
    fs::write(dir.path().join(format!("{}1-1-old", varve_snapshot::TEMP_PREFIX)), b"").unwrap();
    assert_eq!(clean(dir.path()).unwrap(), 1);
    staging.commit().unwrap();
    assert_eq!(fs::read(&target).unwrap(), b"x");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

/// What a process left that was killed while it wrote is removed by who writes there next, wherever the two
/// files are; what a living one writes stays.
#[test]
fn the_next_snapshot_cleans_both_folders() {
    let dir = tempfile::tempdir().unwrap();
    let (states, memories) = (dir.path().join("states"), dir.path().join("memories"));
    let write = |guest: &Guest| {
        let bytes = guest.bytes.len() as u64;
        let (state, memory) = (states.join("state"), memories.join("memory"));
        FlatWriter::at(&LocalFiles, &state, &memory, bytes).unwrap().finish(guest.state()).unwrap();
    };
    write(&guest());
    let mut living = varve_snapshot::Staging::new(&LocalFiles);
    for (folder, name) in [(&states, "state"), (&memories, "memory")] {
        let left = folder.join(format!("{}1-1-{name}", varve_snapshot::TEMP_PREFIX));
        fs::write(left, "half").unwrap();
        living.create(&folder.join("other")).unwrap();
    }
    write(&guest());
    for (folder, name) in [(&states, "state"), (&memories, "memory")] {
        let mut names: Vec<String> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names.len(), 2, "{names:?}");
        assert!(names[0].ends_with("-other") && names[1] == name, "{names:?}");
    }
}

/// Each page of a flat memory file is checked, and a damaged one is named by its place.
#[test]
fn flipped_bits_of_memory_are_found() {
    let dir = tempfile::tempdir().unwrap();
    save_newer(FlatWriter::in_dir(&LocalFiles, dir.path(), 10 * 4096).unwrap()).unwrap();
    let sound = verify(dir.path()).unwrap();
    assert!(sound.problems.is_empty() && sound.unchecked.is_empty(), "{sound:?}");
    let memory = File::options().read(true).write(true).open(dir.path().join("memory")).unwrap();
    for at in (0..10 * 4096).step_by(4096 + 8) {
        let mut byte = [0];
        memory.read_exact_at(&mut byte, at).unwrap();
        memory.write_all_at(&[byte[0] ^ 4], at).unwrap();
        let report = verify(dir.path()).unwrap();
        assert_eq!(report.problems.len(), 1, "{at:#x}: {report:?}");
        assert!(report.problems[0].contains("memory"), "{report:?}");
        memory.write_all_at(&byte, at).unwrap();
    }
    assert!(verify(dir.path()).unwrap().problems.is_empty());
}

/// A client may lay a diff over a copy of its base by itself: then it holds all of memory.
#[test]
fn a_diff_that_was_merged_by_a_client_is_whole() {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("base");
    save(FlatWriter::in_dir(&LocalFiles, &base, 10 * 4096).unwrap(), &guest()).unwrap();
    let state = StateFile::read(&base.join("state")).unwrap();
    let diff = diff_since(dir.path(), &state, &[common::range(1, 1)], 5);
    let (state, memory) = (StateFile::read(&diff.join("state")).unwrap(), diff.join("memory"));
    let whole = || varve_snapshot::check_whole(&state, &memory);
    assert!(matches!(whole(), Err(SnapshotError::OnlyDiff { .. })));
    let file = File::options().write(true).open(&memory).unwrap();
    file.write_all_at(&[8; 4096], 4 * 4096).unwrap();
    whole().unwrap();
}

/// A file that cannot be looked at is not taken for one that is not there.
#[test]
fn what_cannot_be_looked_at_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink("state", dir.path().join("state")).unwrap();
    let error = verify(dir.path()).unwrap_err();
    assert!(matches!(error, SnapshotError::Io { .. }), "{error}");
}
