//! The thread that writes the files of snapshots and traces. Others have no filter with which they could
//! make, rename or remove files, so that a fault in the devices' code or the API's does not reach these calls.
//!
//! ```text
//!  main thread ──(Job: a snapshot or a trace, nothing else)──> saver
//!              <──(what came of it)──────────────────────────
//! ```
//!
//! The main thread waits for the answer: the machine stands still meanwhile. A signal ends the wait, because
//! `PendingSnapshot::write` then gives up, or the thread of signals ends the process.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::Builder;

use varve_snapshot::{SnapshotError, write_output};

use super::files::PendingSnapshot;
use crate::error::VmmError;
use crate::machine::lineage::Lineage;
use crate::seccomp;

/// What the thread can be asked for, and where the answer goes.
enum Job {
    Snapshot(Box<PendingSnapshot>, Sender<Result<Option<Lineage>, SnapshotError>>),
    Trace(PathBuf, Vec<u8>, Sender<Result<(), SnapshotError>>),
}

/// The thread. It ends when this is dropped.
pub struct Saver {
    jobs: Sender<Job>,
}

impl Saver {
    /// Starts it.
    ///
    /// # Errors
    ///
    /// If the system has no thread to give.
    pub fn start() -> io::Result<Saver> {
        let (jobs, come) = channel();
        Builder::new().name("saver".into()).spawn(move || {
            seccomp::confine_or_die(seccomp::Thread::Saver);
            work(&come);
        })?;
        Ok(Saver { jobs })
    }

    /// Writes a snapshot's files; see `PendingSnapshot::write`.
    ///
    /// # Errors
    ///
    /// As of `PendingSnapshot::write`.
    pub fn write_snapshot(&self, snapshot: PendingSnapshot) -> Result<Option<Lineage>, VmmError> {
        self.ask(|answer| Job::Snapshot(Box::new(snapshot), answer))
    }

    /// Writes a trace; see [`write_output`].
    ///
    /// # Errors
    ///
    /// As of [`write_output`].
    pub fn write_trace(&self, path: &Path, trace: Vec<u8>) -> Result<(), VmmError> {
        self.ask(|answer| Job::Trace(path.to_owned(), trace, answer))
    }

    fn ask<T>(
        &self,
        job: impl FnOnce(Sender<Result<T, SnapshotError>>) -> Job,
    ) -> Result<T, VmmError> {
        let ended = |_| VmmError::System("thread that saves", io::ErrorKind::BrokenPipe.into());
        let (answer, answers) = channel();
        self.jobs.send(job(answer)).map_err(|_| ended(()))?;
        Ok(answers.recv().map_err(|_| ended(()))??)
    }
}

/// A job's parts, guest memory among them, are gone when its answer is sent. Nobody may wait for it any more.
fn work(jobs: &Receiver<Job>) {
    for job in jobs {
        match job {
            Job::Snapshot(snapshot, answer) => drop(answer.send(snapshot.write())),
            Job::Trace(path, trace, answer) => drop(answer.send(write_output(&path, &trace))),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process::Command;
    use std::sync::Arc;

    use varve_memory_tiers::GuestRam;
    use varve_snapshot::{PageRange, SnapshotId, StateFile, check_output};
    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::end::{End, EndSignal};
    use crate::seccomp::{Choice, Tasks};

    /// The folder that the process works in.
    const FOLDER: &str = "VARVE_SAVER_TEST";

    const PAGE: u64 = 4096;

    fn range(first: u64, pages: u64) -> PageRange {
        PageRange::new(first * PAGE, pages * PAGE).unwrap()
    }

    /// What the process does that the next test starts; on its own this test does nothing.
    #[test]
    fn role() {
        let Ok(folder) = std::env::var(FOLDER) else { return };
        std::env::set_current_dir(folder).unwrap();
        let tasks = Tasks { saves: true, ..Tasks::default() };
        seccomp::enter(&Choice::Own(tasks)).unwrap();
        assert!(seccomp::saves());
        let saver = Saver::start().unwrap();
        let end = Arc::new(EndSignal::new().unwrap());
        let ram = Arc::new(GuestRam::new(&[range(0, 4)], false).unwrap());
        let write = |byte: u8, first: u64, pages: u64| {
            let bytes = vec![byte; usize::try_from(pages * PAGE).unwrap()];
            ram.memory().write_slice(&bytes, GuestAddress(first * PAGE)).unwrap();
        };
        let snapshot = |state: &str, memory: &str, pages: Option<Vec<PageRange>>, last| {
            let (ram, end) = (ram.clone(), end.clone());
            let id = Some(SnapshotId::random().unwrap());
            let file = StateFile { memory: vec![range(0, 4)], id, ..StateFile::default() };
            let (state_path, memory_path) = (state.into(), memory.into());
            let snapshot = PendingSnapshot { file, pages, last, ram, end, state_path, memory_path };
            saver.write_snapshot(snapshot)
        };
        // A whole one in a folder that is made, a diff over it and one of its own, a whole one in its place.
        write(1, 0, 3);
        let last = snapshot("new/state", "new/memory", None, None).unwrap();
        write(2, 1, 1);
        let last = snapshot("new/state", "new/memory", Some(vec![range(1, 1)]), last).unwrap();
        write(3, 3, 1);
        let last = snapshot("state", "memory", Some(vec![range(3, 1)]), last).unwrap();
        assert_eq!(last.unwrap().held, Some(vec![range(3, 1)]));
        snapshot("state", "memory", None, None).unwrap();
        // A trace that is new, one that is replaced, and one with two names, which is written in place.
        check_output(Path::new("trace")).unwrap();
        for trace in ["1", "2"] {
            saver.write_trace(Path::new("trace"), trace.into()).unwrap();
        }
        saver.write_trace(Path::new("one"), "3".into()).unwrap();
        assert!(saver.write_trace(Path::new("new"), "4".into()).is_err(), "a folder");
        end.announce(End::Signal("SIGTERM"));
        let error = snapshot("late", "late.memory", None, None).unwrap_err();
        assert!(crate::error::chain(&error).contains("given up: stopped by SIGTERM"), "{error}");
        assert_eq!(Arc::strong_count(&ram), 1, "the thread has none of it left");
    }

    /// In a process of its own, because filters stay.
    #[test]
    fn a_filtered_process_saves() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("one"), "long before").unwrap();
        fs::hard_link(at("one"), at("two")).unwrap();
        let test = concat!(module_path!(), "::role");
        let (_, test) = test.split_once("::").unwrap();
        let output = Command::new(std::env::current_exe().unwrap())
            .args([test, "--exact", "--nocapture"])
            .env(FOLDER, dir.path())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {said}", output.status);
        let bytes = |pages: [u8; 4]| pages.map(|byte| vec![byte; 4096]).concat();
        assert!(fs::read(at("new/memory")).unwrap() == bytes([1, 2, 1, 0]));
        assert!(fs::read(at("memory")).unwrap() == bytes([1, 2, 1, 3]));
        for state in ["new/state", "state"] {
            let state = StateFile::read(&at(state)).unwrap();
            assert!(state.sums.is_some() && state.dirty.is_none(), "{state:?}");
        }
        let trace = |name: &str| fs::read_to_string(at(name)).unwrap();
        assert_eq!(
            (trace("trace"), trace("one"), trace("two")),
            ("2".into(), "3".into(), "3".into())
        );
        let names = |dir: &Path| {
            let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name());
            let mut names: Vec<String> = entries.map(|name| name.into_string().unwrap()).collect();
            names.sort();
            names
        };
        assert_eq!(names(dir.path()), ["memory", "new", "one", "state", "trace", "two"]);
        assert_eq!(names(&at("new")), ["memory", "state"]);
    }
}
