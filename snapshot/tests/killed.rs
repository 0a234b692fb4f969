//! A process that is killed (SIGKILL) while it saves and tiers leaves a sound snapshot behind.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use common::{Guest, leftovers, trace_of};
use varve_snapshot::{
    FlatWriter, LocalFiles, ManifestReader, PAGE_SIZE, StateFile, TierInput, TierOptions, clean,
    layout, memory_in, tier, verify,
};

fn guest(generation: u8) -> Guest {
    let kinds: Vec<u8> =
        (0..600u32).map(|at| if at % 5 < 3 { 8 + generation % 8 } else { 0 }).collect();
    Guest::new(300, &kinds)
}

fn save(dir: &Path, guest: &Guest) {
    let mut writer = FlatWriter::in_dir(&LocalFiles, dir, guest.bytes.len() as u64).unwrap();
    for (page, at) in guest.bytes.chunks(PAGE_SIZE as usize).zip(0..) {
        writer.memory().unwrap().write_at(page, at * PAGE_SIZE).unwrap();
    }
    let mut state = guest.state();
    state.vmm_version = guest.bytes[0].to_string();
    writer.finish(state).unwrap();
}

fn tier_here(dir: &Path, guest: &Guest, runs: &[(u64, u64, u8)]) {
    let state = dir.join("state");
    let memory = dir.join(StateFile::read(&state).unwrap().memory_file.unwrap());
    let traces = [trace_of(guest, runs)];
    let input = TierInput { state: &state, memory: &memory, traces: &traces, out: dir };
    tier(&LocalFiles, &input, &TierOptions::default()).unwrap();
}

/// Not a test of its own: what the other one kills.
#[test]
#[ignore = "runs until it is killed"]
fn victim() {
    let dir = PathBuf::from(std::env::var_os("VARVE_VICTIM_DIR").unwrap());
    for generation in (0..4).cycle() {
        let guest = guest(generation);
        save(&dir, &guest);
        tier_here(&dir, &guest, &[(0, 40, 1)]);
        tier_here(&dir, &guest, &[(20, 60, 2)]);
    }
}

#[test]
fn whenever_it_is_killed_the_snapshot_is_sound() {
    let dir = tempfile::tempdir().unwrap();
    save(dir.path(), &guest(0));
    let mut unfinished = 0;
    for round in 0..20u64 {
        let mut victim = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "victim"])
            .env("VARVE_VICTIM_DIR", dir.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        thread::sleep(Duration::from_millis(40 + round * 7));
        assert_eq!(victim.try_wait().unwrap(), None, "it ended by itself");
        victim.kill().unwrap();
        victim.wait().unwrap();
        unfinished += leftovers(dir.path()).len();
        clean(dir.path()).unwrap();
        assert_eq!(leftovers(dir.path()), Vec::<String>::new());

        let state = StateFile::read(&dir.path().join("state")).unwrap();
        let memory = std::fs::read(memory_in(dir.path(), &state).unwrap()).unwrap();
        let known = (0..4).map(guest).find(|g| g.bytes == memory);
        let guest = known.expect("the memory of one generation, whole");
        assert_eq!(state.vmm_version, guest.bytes[0].to_string(), "state of another generation");
        // The tiered one is whole, or refused because the flat one is newer, or not there.
        let Ok(manifest) = ManifestReader::open(dir.path()) else { continue };
        if manifest.read_state().is_ok() {
            assert_eq!(verify(dir.path()).unwrap().problems, Vec::<String>::new());
            assert!(guest.read_back(&manifest, layout::TIERED) == guest.bytes);
        }
    }
    assert!(unfinished > 0, "never killed in the middle");
}
