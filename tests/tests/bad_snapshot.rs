//! Snapshots that are not as they should be, and restores that ask for what cannot be: one line says
//! what, and nothing is left behind.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use varve_agent::protocol::{Action, Memory, MemoryReply, Request};
use varve_skip::skipped;
use varve_snapshot::{LocalFiles, MANIFEST_FILE, STATE_FILE, StateFile};
use varve_tests::disk::Disk;
use varve_tests::images::varve;
use varve_tests::snapshots::{snapshot, tier};
use varve_tests::{Ended, Restoring, Vm, command};

fn folder() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("varve-snapshot").tempdir().unwrap()
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// A snapshot whose files are damaged one after another.
struct Victim {
    dir: PathBuf,
    memory: PathBuf,
}

impl Victim {
    fn new(dir: &Path) -> Victim {
        let state = StateFile::read(&dir.join(STATE_FILE)).unwrap();
        Victim { dir: dir.into(), memory: dir.join(state.memory_file.unwrap()) }
    }

    /// The one line that a restore fails with; it leaves nothing behind.
    fn error(&self, options: &str) -> String {
        self.error_of(&Restoring::from(&self.dir).options(options), options)
    }

    fn error_of(&self, restoring: &Restoring, what: &str) -> String {
        let before = names(&self.dir);
        let message = error_of(restoring.end(), what);
        assert_eq!(names(restoring.dir()), [""; 0], "left behind: {what}: {message}");
        assert_eq!(names(&self.dir), before, "{what}: {message}");
        message
    }

    /// The same while `file` holds `content`.
    fn error_with(&self, file: &Path, content: &[u8], options: &str) -> String {
        let good = fs::read(file).unwrap();
        fs::write(file, content).unwrap();
        let message = self.error(options);
        fs::write(file, good).unwrap();
        message
    }

    /// The same with a state file that says something else, in its right form.
    fn error_with_state(&self, change: impl FnOnce(&mut StateFile)) -> String {
        let file = self.dir.join(STATE_FILE);
        let mut state = StateFile::read(&file).unwrap();
        change(&mut state);
        let good = fs::read(&file).unwrap();
        state.write(&LocalFiles, &file).unwrap();
        let message = self.error("--strategy lazy");
        fs::write(file, good).unwrap();
        message
    }
}

fn error_of(end: Ended, what: &str) -> String {
    assert_eq!(end.code, Some(1), "{what}: {end:?}");
    let line = end.stderr.strip_prefix("varve: error: ").and_then(|line| line.strip_suffix('\n'));
    let line = line.unwrap_or_else(|| panic!("{what}: {end:?}"));
    assert!(!line.contains('\n'), "{what}: more than one line: {end:?}");
    line.to_owned()
}

#[track_caller]
fn says(message: &str, parts: &[&str]) {
    println!("{message}");
    for part in parts {
        assert!(message.contains(part), "no {part:?} in {message:?}");
    }
}

#[test]
fn every_error_is_one_clear_line() {
    let dir = folder();
    let at = |name: &str| dir.path().join(name);
    fs::write(at("drive"), vec![0; 1 << 20]).unwrap();
    let mut vm =
        Vm::builder().option("--memory", "96M").option("--drive", at("drive")).controlled().start();
    vm.info();
    vm.snapshot("", &at("flat"));
    drop(vm);
    let victim = Victim::new(&at("flat"));
    memory_file(&victim);
    state_file(&victim);
    processor(&victim);
    options(&victim, dir.path());

    tier(&at("flat"), &[], "");
    manifest(&victim);
    // After all that the snapshot is as good as before.
    Restoring::from(&at("flat")).start().info();
}

fn memory_file(victim: &Victim) {
    let Victim { memory, .. } = victim;
    let name = memory.file_name().unwrap().to_str().unwrap();
    let aside = memory.with_extension("aside");
    for strategy in ["lazy", "eager", "recorded"] {
        let restoring = match strategy {
            "recorded" => Restoring::recording(&victim.dir, Path::new("/dev/null")),
            _ => Restoring::from(&victim.dir).options("--strategy").arg(strategy),
        };
        let error = || victim.error_of(&restoring, strategy);
        fs::rename(memory, &aside).unwrap();
        says(&error(), &[name, "No such file"]);
        fs::rename(&aside, memory).unwrap();
        let file = OpenOptions::new().write(true).open(memory).unwrap();
        let length = file.metadata().unwrap().len();
        // What is cut off is zero in this guest, or is lost; it must not matter which.
        let tail = fs::read(memory).unwrap().split_off(length as usize - 4096);
        file.set_len(length - 4096).unwrap();
        says(&error(), &[name, &(length - 4096).to_string(), &length.to_string()]);
        file.write_all_at(&tail, length - 4096).unwrap();
    }
}

fn state_file(victim: &Victim) {
    let file = victim.dir.join(STATE_FILE);
    let good = fs::read(&file).unwrap();
    let lazy = "--strategy lazy";
    for length in [0, 7, 31, 100, good.len() / 2, good.len() - 1] {
        says(&victim.error_with(&file, &good[..length], lazy), &[STATE_FILE]);
    }
    for place in (0..good.len()).step_by(good.len() / 8) {
        let mut bad = good.clone();
        bad[place] ^= 0x10;
        says(&victim.error_with(&file, &bad, lazy), &[STATE_FILE]);
    }
    // What is right in form, and wrong.
    let vcpu =
        |state: &mut StateFile| state.blobs.iter().position(|blob| blob.name == "vcpu/0").unwrap();
    let of = |change: &dyn Fn(&mut StateFile, usize)| {
        victim.error_with_state(|state| {
            let at = vcpu(state);
            change(state, at);
        })
    };
    says(&of(&|state, at| state.blobs[at].bytes.truncate(40)), &["vcpu/0"]);
    says(&of(&|state, at| state.blobs[at].bytes.clear()), &["vcpu/0"]);
    says(&of(&|state, at| state.blobs[at].version = 99), &["vcpu/0", "99"]);
    says(&of(&|state, at| state.blobs[at].name = "vcpu/1".into()), &["vcpu/1", "no such vCPU"]);
    says(&of(&|state, at| drop(state.blobs.remove(at))), &["vcpu/0", "missing"]);
    says(&of(&|state, at| state.blobs[at].name = "spam".into()), &["spam", "does not know"]);
    says(&of(&|state, _| state.config = b"{}".to_vec()), &["config"]);
    let device = |state: &mut StateFile| {
        let mut blobs = state.blobs.iter_mut();
        blobs.find(|blob| blob.name == "device/vsock").unwrap().bytes.truncate(3);
    };
    says(&victim.error_with_state(device), &["vsock"]);
    let device = |state: &mut StateFile| state.blobs.retain(|blob| blob.name != "device/serial");
    says(&victim.error_with_state(device), &["serial"]);
}

/// Processor features that no host has.
fn processor(victim: &Victim) {
    let with = |leaf: u32, register: usize, change: &dyn Fn(u32) -> u32| {
        victim.error_with_state(|state| {
            let vcpu = state.blobs.iter_mut().find(|blob| blob.name == "vcpu/0").unwrap();
            // A CPUID leaf: 40 bytes of KVM's structure, function and index first, then flags and
            // the four registers.
            let begin: Vec<u8> = [&[40][..], &leaf.to_le_bytes(), &[0; 4]].concat();
            let at = vcpu.bytes.windows(begin.len()).position(|bytes| bytes == begin).unwrap();
            let word = &mut vcpu.bytes[at + 1 + 12 + 4 * register..][..4];
            let value = u32::from_le_bytes((&*word).try_into().unwrap());
            word.copy_from_slice(&change(value).to_le_bytes());
        })
    };
    let (ebx, ecx) = (1, 2);
    // PCOMMIT, which was never built, and a bit that is reserved for ever.
    says(
        &with(7, ebx, &|word| word | 1 << 22),
        &["cannot run the snapshot's guest", "0x7.0 ebx bit 22"],
    );
    says(
        &with(1, ecx, &|word| word | 1 << 16),
        &["cannot run the snapshot's guest", "0x1.0 ecx bit 16"],
    );
    says(&with(0, ecx, &|word| word ^ 1), &["the snapshot is from a", "processor, this one is"]);
}

fn options(victim: &Victim, dir: &Path) {
    for strategy in ["reap", "faasnap", "tiered", "template"] {
        let parts = [strategy, "needs a tiered snapshot", "varve snapshot tier"];
        says(&victim.error(&format!("--strategy {strategy}")), &parts);
    }
    let end = Restoring::from(&victim.dir).options("--strategy fast").end();
    assert_eq!(end.code, Some(2), "{end:?}");
    assert!(end.stderr.contains("fast"), "{end:?}");

    let other = dir.join("other");
    fs::write(&other, vec![0; 2 << 20]).unwrap();
    let drive = |id: &str, path: &Path| victim.error(&format!("--drive {id}={}", path.display()));
    says(&drive("drive0", &other), &["drive0", "2048 sectors", "4096"]);
    says(&drive("drive0", &dir.join("none")), &["drive0", "none", "No such file"]);
    says(&drive("drive7", &other), &["drive", "drive7"]);
    says(&victim.error("--net eth0=tap0"), &["net", "eth0"]);

    let end = Restoring::from(&dir.join("none")).end();
    says(&error_of(end, "no folder"), &["none", "No such file"]);

    // A socket that another machine uses stays that machine's.
    let mut vm = Restoring::from(&victim.dir).start();
    vm.info();
    let uds = vm.uds();
    let mut taken = restore_of(&victim.dir);
    taken.arg("--vsock").arg(&uds);
    says(&error_of(command::finish(taken), "--vsock"), &["v.sock", "exists already"]);
    let mut taken = restore_of(&victim.dir);
    taken.arg("--vsock").arg(dir.join("w.sock")).arg("--api-sock").arg(vm.api());
    says(&error_of(command::finish(taken), "--api-sock"), &["api.sock", "in use"]);
    assert!(!dir.join("w.sock").exists());
    vm.info();
}

fn restore_of(snapshot: &Path) -> Command {
    let mut command = Command::new(varve());
    command.arg("restore").arg(snapshot);
    command
}

fn manifest(victim: &Victim) {
    let file = victim.dir.join(MANIFEST_FILE);
    let good = fs::read(&file).unwrap();
    let tiered = "--strategy tiered";
    for length in [0, 31, good.len() / 2, good.len() - 1] {
        says(&victim.error_with(&file, &good[..length], tiered), &[MANIFEST_FILE]);
    }
    for place in (0..200).step_by(9) {
        let mut bad = good.clone();
        bad[place] ^= 0x10;
        let message = victim.error_with(&file, &bad, tiered);
        assert!(message.contains(MANIFEST_FILE), "byte {place}: {message}");
    }
    // Its state file is another one's.
    let message = victim.error_with_state(|state| state.vmm_version.push('x'));
    says(&message, &[STATE_FILE]);
    // The image of what no recorded run touched, which is all of it. (Where it is mapped, the raw
    // memory file takes its place.)
    let paged = "--strategy tiered --cold paged";
    let is_cold = |name: &String| name.starts_with("cold");
    let cold = victim.dir.join(names(&victim.dir).into_iter().find(is_cold).unwrap());
    let name = cold.file_name().unwrap().to_str().unwrap();
    let aside = victim.dir.join("aside");
    fs::rename(&cold, &aside).unwrap();
    says(&victim.error(paged), &[name, "No such file"]);
    fs::copy(&aside, &cold).unwrap();
    let file = OpenOptions::new().write(true).open(&cold).unwrap();
    file.set_len(fs::metadata(&aside).unwrap().len() - 4096).unwrap();
    says(&victim.error(paged), &[name]);
    fs::rename(&aside, &cold).unwrap();
}

/// Whoever kills the monitor while it writes a snapshot, finds the old one or the new one.
#[test]
fn killed_while_writing_leaves_a_whole_snapshot() {
    let dir = folder();
    let at = dir.path().join("snapshot");
    let mut vm = Vm::builder().option("--memory", "224M").controlled().start();
    vm.memory("m", Action::Allocate, 96, 0);
    vm.memory_by(1, "m", Action::Fill, 1);
    vm.snapshot("", &at);
    let took = {
        let start = Instant::now();
        vm.snapshot("", &at);
        start.elapsed()
    };
    drop(vm);
    let mut left = Vec::new();
    for part in 1..=3 {
        let mut vm = Restoring::from(&at).options("--strategy lazy").start();
        // One way or the other, what the guest remembers to have written is what is there.
        vm.memory_by(1, "m", Action::Rewrite, 10 + u64::from(part));
        let (api, target) = (vm.api(), at.clone());
        let writing = thread::spawn(move || {
            command::run([
                "snapshot".as_ref(),
                "create".as_ref(),
                "--api-sock".as_ref(),
                api.as_os_str(),
                target.as_os_str(),
            ])
        });
        thread::sleep(took * part / 4 + Duration::from_millis(1));
        vm.signal("KILL");
        drop(vm);
        let end = writing.join().unwrap();
        println!("killed after {part}/4 of {took:?}: {end:?}; left {:?}", names(&at));
        left.push(end.code);
        let end = command::run(["snapshot".as_ref(), "verify".as_ref(), at.as_os_str()]);
        assert_eq!(end.code, Some(0), "{end:?}");
    }
    assert!(left.contains(&Some(1)), "no kill came in time: {left:?}");

    // The same for whoever splits it into tiers, which changes nothing of what was there.
    let start = Instant::now();
    let elsewhere = dir.path().join("elsewhere");
    tier(&at, &[], &format!("--out {}", elsewhere.display()));
    let took = start.elapsed();
    let mut in_time = false;
    for part in [1, 2, 4] {
        let mut tiering = Command::new(varve());
        let mut child = tiering.args(["snapshot", "tier"]).arg(&at).spawn().unwrap();
        thread::sleep(took * part / 8);
        child.kill().unwrap();
        child.wait().unwrap();
        println!("killed after {part}/8 of {took:?}; left {:?}", names(&at));
        in_time |= !at.join(MANIFEST_FILE).exists();
        let end = command::run(["snapshot".as_ref(), "verify".as_ref(), at.as_os_str()]);
        assert_eq!(end.code, Some(0), "{end:?}");
    }
    assert!(in_time, "no kill came in time");
    let mut vm = Restoring::from(&at).start();
    vm.memory_by(1, "m", Action::Verify, 0);
    // What the killed ones left is cleared away by the next.
    vm.snapshot("", &at);
    assert_eq!(names(&at).len(), 2, "{:?}", names(&at));
}

/// A disk that gets full: the old snapshot stays, the machine goes on, nothing is left over.
#[test]
fn a_full_disk_leaves_the_old_snapshot() {
    let disk = match Disk::small(160) {
        Ok(disk) => disk,
        Err(reason) => return skipped("disk", "a_full_disk_leaves_the_old_snapshot", &reason),
    };
    let (at, trace) = (disk.path().join("snapshot"), disk.path().join("trace"));
    let mut vm = Vm::builder().option("--memory", "96M").controlled().start();
    vm.memory("m", Action::Allocate, 16, 0);
    vm.memory_by(1, "m", Action::Fill, 1);
    vm.snapshot("", &at);
    vm.memory_by(1, "m", Action::Rewrite, 2);
    let filler = disk.path().join("filler");
    let mut file = fs::File::create(&filler).unwrap();
    while std::io::Write::write_all(&mut file, &[1; 1 << 20]).is_ok() {}
    drop(file);
    let before = names(&at);
    let says_full =
        |end: Ended| says(&error_of(end, "full"), &["memory", "No space left on device"]);
    says_full(vm.try_snapshot("", &at));
    says_full(vm.try_snapshot("", &disk.path().join("another")));
    assert_eq!(names(&at), before);
    assert_eq!(names(&disk.path().join("another")), [""; 0]);
    // It goes on, and what it wrote is nobody's but its own.
    vm.memory_by(1, "m", Action::Verify, 0);
    let tier = ["snapshot".as_ref(), "tier".as_ref(), at.as_os_str()];
    says(&error_of(command::run(tier), "tier"), &["No space left on device"]);
    assert_eq!(names(&at), before);
    let mut record = Restoring::recording(&at, &trace).options("--json").start();
    record.wait_for_api();
    record.signal("TERM");
    let end = record.wait();
    says(&error_of(end, "record"), &["trace", "No space left on device"]);
    assert!(!trace.exists());
    // With room again, everything works.
    fs::remove_file(filler).unwrap();
    Restoring::from(&at).start().memory_by(1, "m", Action::Verify, 0);
    vm.snapshot("", &at);
    drop(vm);
    Restoring::from(&at).start().memory_by(1, "m", Action::Verify, 0);
    snapshot(tier.into_iter().skip(1));
    assert!(snapshot(["verify".as_ref(), at.as_os_str()]).contains("no problem found"));
}

/// Pages that are verified when they are fetched: a byte that flipped ends the machine, rather than
/// to be read.
#[test]
fn a_flipped_byte_in_an_image_is_never_read() {
    let dir = folder();
    let at = |name: &str| dir.path().join(name);
    let mut vm = Vm::builder().option("--memory", "96M").controlled().start();
    vm.memory("m", Action::Allocate, 8, 0);
    vm.memory_by(1, "m", Action::Fill, 1);
    vm.snapshot("", &at("flat"));
    drop(vm);
    let out = at("tiered");
    tier(&at("flat"), &[], &format!("--compress cold --out {}", out.display()));
    let cold = names(&out).into_iter().find(|name| name.starts_with("cold")).unwrap();
    let file = OpenOptions::new().read(true).write(true).open(out.join(&cold)).unwrap();
    let length = file.metadata().unwrap().len();
    for place in (0..64).map(|part| length * part / 64) {
        let mut byte = [0];
        file.read_exact_at(&mut byte, place).unwrap();
        file.write_all_at(&[byte[0] ^ 1], place).unwrap();
    }
    let end = command::run(["snapshot".as_ref(), "verify".as_ref(), out.as_os_str()]);
    assert_eq!(end.code, Some(1), "{end:?}");
    assert!(end.console.contains(&cold), "{end:?}");

    let mut vm = Restoring::from(&out).options("--strategy tiered").start();
    let start = Instant::now();
    while vm.runs() {
        assert!(start.elapsed() < Duration::from_secs(60), "it runs with bytes that flipped");
        // Until the machine ends, the agent may or may not answer.
        if let Ok(stream) = varve_agent::client::connect_vsock(&vm.uds(), varve_agent::CONTROL_PORT)
        {
            stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            let verify = Memory {
                name: "m".into(),
                action: Action::Verify,
                mib: None,
                seed: 0,
                threads: None,
            };
            let reply = varve_agent::client::Client::new(stream)
                .call::<MemoryReply>(&Request::Memory(verify));
            assert!(reply.is_err(), "memory is right though its image is not: {reply:?}");
        }
        thread::sleep(Duration::from_millis(10));
    }
    let end = vm.wait();
    assert_eq!(end.code, Some(5), "{end:?}");
    assert!(end.stderr.starts_with("varve: guest memory is lost: "), "{end:?}");
    assert_eq!(end.stderr.lines().count(), 1, "{end:?}");
    assert!(end.stderr.contains("cold"), "{end:?}");
    assert!(snapshot(["verify".as_ref(), at("flat").as_os_str()]).contains("no problem found"));
}
