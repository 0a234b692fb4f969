//! The kill matrix: each process (monitor, pager, pool node) in each phase of a snapshot's life in the
//! pool is killed, stopped for a while, and killed and started again. Nothing may be lost: whoever
//! goes on has the right memory, whoever cannot says why. Nothing may leak: memory and objects of
//! nodes, machines and descriptors of the pager, sockets, files.
//!
//! The pager and the nodes are the real processes. The monitor is a process of this test's own that
//! restores guest memory as a monitor does, and touches it in place of a guest, so that all of it runs
//! where KVM does not; with guests, `tests/tests/pager.rs` and `pool.rs` do part of it.
//!
//! A process is stopped for one second, or as many as VARVE_STOP_SECONDS says.
#![allow(clippy::unwrap_used)]

use std::fmt;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use varve_memory_tiers::{GuestRam, Hooks, Policy, Restore, Strategy, open};
use varve_pool::client::NodeClient;
use varve_pool::{Key, Places};
use varve_snapshot::{
    Access, HostIdentity, LocalFiles, ManifestReader, Mechanism, PageAccess, PageRange, StateFile,
    TierInput, TierOptions, Trace, tier,
};
use varve_tests::Ended;
use varve_tests::command;
use varve_tests::services::{KEY, Service, key_file};
use vm_memory::{Bytes, GuestAddress};

/// Pages of guest memory: the first ones are read and written by what was recorded, the next are cold,
/// of which there is more than a shard of 8 MiB; the rest is zero.
const PAGES: u64 = 4096;
const HOT: u64 = 128;
const STORED: u64 = HOT + 2560;
/// Longest that anything here may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);
/// Set for the process that is a machine: the snapshot and the pager's socket.
const ROLE: &str = "VARVE_KILL_MATRIX_MACHINE";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Process {
    Monitor,
    Pager,
    Node,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Publish,
    Attach,
    Restore,
    Run,
    Offload,
    Detach,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Kill,
    Stop,
    Restart,
}

use Action::{Kill, Restart, Stop};
use Phase::{Attach, Detach, Offload, Publish, Run};
use Process::{Monitor, Node, Pager};

const PROCESSES: [Process; 3] = [Monitor, Pager, Node];
const PHASES: [Phase; 6] = [Publish, Attach, Phase::Restore, Run, Offload, Detach];
const ACTIONS: [Action; 3] = [Kill, Stop, Restart];

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{self:?}").to_lowercase())
    }
}

/// Why a cell has no meaning, if it has none.
fn meaningless(process: Process, phase: Phase) -> Option<&'static str> {
    match (process, phase) {
        // Publishing is between the command and the nodes.
        (Monitor | Pager, Publish) => Some("- (not part of it)"),
        // Rows for when a running machine can do so.
        (_, Offload) => Some("- (no offloading yet)"),
        _ => None,
    }
}

fn stopped_for() -> Duration {
    let seconds = std::env::var("VARVE_STOP_SECONDS").ok().and_then(|s| s.parse().ok());
    Duration::from_secs(seconds.unwrap_or(1))
}

/// What a page holds.
fn word(page: u64) -> u64 {
    if page < STORED { (page + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1 } else { 0 }
}

fn memory() -> PageRange {
    PageRange::new(0, PAGES << 12).unwrap()
}

fn fail(error: &dyn std::error::Error, code: i32) -> ! {
    let causes = std::iter::successors(error.source(), |&e| e.source());
    eprintln!("{}", causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}")));
    std::process::exit(code)
}

/// A machine, in a process of its own: it restores, and reads pages as it is told to by lines `FIRST
/// COUNT`. On its own this test does nothing.
#[test]
fn a_machine() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let (snapshot, pager) = role.split_once(' ').unwrap();
    let policy = Policy { pager: Some(pager.into()), ..Policy::new(Strategy::Tiered) };
    let manifest = ManifestReader::open(Path::new(snapshot)).unwrap();
    let (plan, sources) = open(&manifest, &policy, &()).unwrap();
    let ram = Arc::new(GuestRam::new(&[memory()], false).unwrap());
    // As the monitor does.
    let hooks = Hooks { stage2: None, on_fatal: Box::new(|e| fail(&e, 5)) };
    let restore = match Restore::start(ram.clone(), plan, sources, hooks) {
        Ok(restore) => restore,
        Err(e) => fail(&e, 1),
    };
    restore.populate_beside().unwrap();
    println!("\nmachine: ready");
    for line in std::io::stdin().lines() {
        let line = line.unwrap();
        let (first, count) = line.split_once(' ').unwrap();
        let (first, count): (u64, u64) = (first.parse().unwrap(), count.parse().unwrap());
        for page in first..first + count {
            for at in [0, 4088] {
                let found: u64 = ram.memory().read_obj(GuestAddress((page << 12) + at)).unwrap();
                assert_eq!(found, word(page), "page {page}");
            }
        }
        println!("machine: read {line}");
    }
    drop(restore);
    println!("machine: ends");
    std::process::exit(0);
}

/// A machine's process.
struct Machine {
    child: Child,
    stdin: Option<ChildStdin>,
    said: Receiver<String>,
    err: PathBuf,
}

impl Machine {
    fn start(world: &World) -> Machine {
        let err = world.dir.path().join("machine-said");
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["a_machine", "--exact", "--nocapture"])
            .env(ROLE, format!("{} {}", world.snapshot.display(), world.socket.display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(File::create(&err).unwrap())
            .spawn()
            .unwrap();
        let (tell, said) = channel();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                if let Some(line) = line.strip_prefix("machine: ") {
                    let _ = tell.send(line.to_owned());
                }
            }
        });
        let stdin = child.stdin.take();
        Machine { child, stdin, said, err }
    }

    /// Has it read pages, without waiting for it.
    fn ask(&mut self, first: u64, count: u64) {
        // One that has ended says why later.
        let _ = writeln!(self.stdin.as_mut().unwrap(), "{first} {count}");
    }

    /// Waits until it says so.
    fn expect(&mut self, what: &str) {
        match self.said.recv_timeout(PATIENCE) {
            Ok(said) => assert_eq!(said, what),
            Err(e) => panic!("no {what:?} came ({e}): {}", self.words()),
        }
    }

    fn reads(&mut self, first: u64, count: u64) {
        self.ask(first, count);
        self.expect(&format!("read {first} {count}"));
    }

    fn words(&self) -> String {
        fs::read_to_string(&self.err).unwrap_or_default()
    }

    fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "a machine does not end: {}", self.words());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Ends it as its guest would.
    fn end(&mut self) {
        self.stdin.take();
        self.expect("ends");
        let status = self.wait();
        assert!(status.success(), "{status}: {}", self.words());
    }

    fn ends_without_its_pager(&mut self) {
        let status = self.wait();
        assert_eq!(status.code(), Some(5), "{}", self.words());
        assert!(self.words().contains("has ended, and nobody else answers"), "{}", self.words());
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Two nodes with stores, a snapshot on both, and a pager for it.
struct World {
    dir: tempfile::TempDir,
    keys: PathBuf,
    snapshot: PathBuf,
    socket: PathBuf,
    nodes: [Option<Service>; 2],
    addresses: [String; 2],
    pager: Option<Service>,
    descriptors: usize,
    /// Bytes that a node uses for the image.
    used: u64,
}

impl World {
    fn new() -> World {
        let dir = tempfile::Builder::new().prefix("varve-kill").tempdir().unwrap();
        let keys = key_file(dir.path());
        let snapshot = dir.path().join("tiered");
        tiered(dir.path(), &snapshot);
        let mut world = World {
            socket: dir.path().join("pager.sock"),
            keys,
            snapshot,
            nodes: [None, None],
            addresses: ["127.0.0.1:0".into(), "127.0.0.1:0".into()],
            pager: None,
            descriptors: 0,
            used: 0,
            dir,
        };
        for node in 0..2 {
            world.start_node(node);
        }
        published(&world.publish());
        world.used = world.status(0).used;
        world.start_pager();
        world.descriptors = world.pager_descriptors();
        world
    }

    fn start_node(&mut self, node: usize) {
        let store = self.dir.path().join(format!("store{node}"));
        let more = ["--store", store.to_str().unwrap()];
        let started = Service::node_with(&self.addresses[node], &self.keys, &more);
        self.addresses[node] = started.place.clone();
        self.nodes[node] = Some(started);
    }

    fn start_pager(&mut self) {
        let more = ["--pool-keys", self.keys.to_str().unwrap(), "--pool-transport", "tcp"];
        // A small cache, so that it is the pool that serves.
        let more = [&more[..], &["--cache", "1M"]].concat();
        self.pager = Some(Service::pager(&self.socket, &self.snapshot, &more));
    }

    fn pager(&mut self) -> &mut Service {
        self.pager.as_mut().unwrap()
    }

    /// The pager's descriptors, but for connections to nodes, of which it keeps some.
    fn pager_descriptors(&mut self) -> usize {
        let proc = PathBuf::from(format!("/proc/{}", self.pager().pid().as_raw_nonzero()));
        let unix = fs::read_to_string(proc.join("net/unix")).unwrap();
        let counts = |name: &Path| {
            let name = name.to_string_lossy();
            let inode = name.strip_prefix("socket:[").and_then(|rest| rest.strip_suffix(']'));
            inode.is_none_or(|inode| unix.split_whitespace().any(|word| word == inode))
        };
        let all = fs::read_dir(proc.join("fd")).unwrap().flatten();
        all.filter_map(|entry| fs::read_link(entry.path()).ok()).filter(|name| counts(name)).count()
    }

    fn machines_of_pager(&mut self) -> u64 {
        self.pager().counters()["machines"]["now"].as_u64().unwrap()
    }

    fn client(&self, node: usize) -> NodeClient {
        let tenant = "acme".to_owned().try_into().unwrap();
        NodeClient::new(&self.addresses[node], tenant, Key::from_hex(KEY).unwrap())
    }

    fn status(&self, node: usize) -> varve_pool::wire::Status {
        self.client(node).status().unwrap()
    }

    fn command(&self, verb: &str) -> Command {
        let mut command = Command::new(varve_tests::images::varve());
        command.args(["pool", verb]).arg(&self.snapshot).arg("--keys").arg(&self.keys);
        if verb == "publish" {
            command.args(["--copies", "2", "--to"]).arg(self.addresses.join(","));
        }
        command
    }

    fn publish(&self) -> Ended {
        command::finish(self.command("publish"))
    }

    /// Does it to the process, and tells when it is over.
    fn act(&mut self, process: Process, action: Action, machine: Option<&mut Machine>) {
        let service = match process {
            Pager => self.pager.as_mut(),
            Node => self.nodes[0].as_mut(),
            Monitor => None,
        };
        match (action, service, machine) {
            (Stop, service, machine) => {
                let own = |m: &mut Machine| Pid::from_child(&m.child);
                let pid = service.map(|s| s.pid()).or(machine.map(own)).unwrap();
                kill_process(pid, Signal::STOP).unwrap();
                std::thread::sleep(stopped_for());
                kill_process(pid, Signal::CONT).unwrap();
            }
            (_, Some(service), _) => service.kill(),
            (_, None, machine) => {
                let machine = machine.unwrap();
                machine.child.kill().unwrap();
                assert_eq!(machine.wait().signal(), Some(libc::SIGKILL));
            }
        }
        match (action, process) {
            (Restart, Pager) => self.start_pager(),
            (Restart, Node) => self.start_node(0),
            _ => {}
        }
    }

    /// A machine is restored, has all of its memory, and ends.
    fn a_machine_lives(&mut self) {
        let mut machine = Machine::start(self);
        machine.expect("ready");
        machine.reads(0, PAGES);
        machine.end();
    }

    /// After a cell: what is down starts again, and then all is as it was.
    fn nothing_is_lost_or_leaked(&mut self, process: Process, action: Action) {
        match (process, action) {
            (Pager, Kill) => self.start_pager(),
            (Node, Kill) => self.start_node(0),
            _ => {}
        }
        self.a_machine_lives();
        until("the pager's machines end", || self.machines_of_pager() == 0);
        assert_eq!(self.pager_descriptors(), self.descriptors, "descriptors of the pager");
        for node in 0..2 {
            let what = format!("node {node} keeps what it should");
            until(&what, || self.status(node).used == self.used);
            assert_eq!(self.status(node).publications, 1);
            let objects = self.dir.path().join(format!("store{node}/acme/objects"));
            assert_eq!(fs::read_dir(objects).unwrap().count(), 2, "files of node {node}");
        }
        let sockets = fs::read_dir(self.dir.path()).unwrap().filter(|entry| {
            entry.as_ref().unwrap().path().extension().is_some_and(|end| end == "sock")
        });
        assert_eq!(sockets.count(), 1);
        assert!(Places::read(&self.snapshot).unwrap().images["cold"].complete);
    }
}

fn published(end: &Ended) {
    assert_eq!(end.code, Some(0), "{end:?}");
}

/// Started, with what it says kept.
fn quiet(mut command: Command) -> std::io::Result<Child> {
    command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn()
}

fn until(what: &str, mut reached: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !reached() {
        assert!(Instant::now() < deadline, "{what}: not");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A tiered snapshot, made without a machine.
fn tiered(dir: &Path, out: &Path) {
    let memory_file = dir.join("memory");
    let file = File::create(&memory_file).unwrap();
    file.set_len(PAGES << 12).unwrap();
    for page in 0..STORED {
        file.write_all_at(&word(page).to_le_bytes().repeat(512), page << 12).unwrap();
    }
    let state = dir.join("state");
    StateFile {
        vmm_version: "0".into(),
        memory_file: Some("memory".into()),
        config: b"{}".to_vec(),
        host: HostIdentity::default(),
        memory: vec![memory()],
        dirty: None,
        blobs: vec![],
    }
    .write(&LocalFiles, &state)
    .unwrap();
    let access = |page| if page % 2 == 0 { Access::READ } else { Access::WRITTEN };
    let seen = (0..HOT).map(|page| PageAccess {
        gfn: page,
        order: page as u32,
        access: access(page),
        invocation: 0,
        runs: 1,
        runs_written: (page % 2) as u32,
    });
    let trace = Trace::new(Mechanism::UffdWp, 1, vec!["one".into()], seen.collect()).unwrap();
    let input = TierInput { state: &state, memory: &memory_file, traces: &[trace], out };
    tier(&LocalFiles, &input, &TierOptions::default()).unwrap();
}

/// Carries a cell out, and tells what happened.
fn cell(world: &mut World, process: Process, phase: Phase, action: Action) -> &'static str {
    let done = match phase {
        Publish => publish(world, action),
        Attach => attach(world, process, action),
        Phase::Restore => touch(world, process, action, true),
        Run => touch(world, process, action, false),
        Detach => detach(world, process, action),
        Offload => unreachable!("it is meaningless"),
    };
    world.nothing_is_lost_or_leaked(process, action);
    done
}

/// A node, while an image is sent to it.
fn publish(world: &mut World, action: Action) -> &'static str {
    published(&command::finish(world.command("forget")));
    assert_eq!((world.status(0).used, world.status(1).used), (0, 0));
    let mut child = quiet(world.command("publish")).unwrap();
    until("something has come", || child.try_wait().unwrap().is_some() || world.status(0).used > 0);
    world.act(Node, action, None);
    let end = child.wait_with_output().unwrap();
    if action != Stop && !end.status.success() {
        let said = String::from_utf8_lossy(&end.stderr).into_owned();
        assert!(said.contains(&world.addresses[0]), "{said}");
        assert!(!Places::read(&world.snapshot).unwrap().images["cold"].complete);
    }
    if action == Kill {
        world.start_node(0);
    }
    if end.status.success() {
        return "published";
    }
    assert_ne!(action, Stop, "{}", String::from_utf8_lossy(&end.stderr));
    published(&world.publish());
    if action == Kill {
        world.nodes[0].as_mut().unwrap().kill();
    }
    "refused by name; published again"
}

/// Before a machine is handed over, or while it is.
fn attach(world: &mut World, process: Process, action: Action) -> &'static str {
    if process != Monitor {
        if action == Stop {
            let socket = world.socket.clone();
            let pid = match process {
                Pager => world.pager().pid(),
                _ => world.nodes[0].as_ref().unwrap().pid(),
            };
            kill_process(pid, Signal::STOP).unwrap();
            let mut machine = Machine::start(world);
            std::thread::sleep(stopped_for());
            kill_process(pid, Signal::CONT).unwrap();
            machine.expect("ready");
            machine.reads(0, PAGES);
            machine.end();
            assert!(socket.exists());
            return "goes on";
        }
        world.act(process, action, None);
        let mut machine = Machine::start(world);
        if (process, action) == (Pager, Kill) {
            let status = machine.wait();
            assert_eq!(status.code(), Some(1), "{}", machine.words());
            let said = machine.words();
            assert!(said.contains("cannot hand guest memory to the page fault handler"), "{said}");
            return "refused by name (exit 1)";
        }
        machine.expect("ready");
        machine.reads(0, PAGES);
        machine.end();
        return if process == Node { "goes on from the copy" } else { "goes on" };
    }
    // Half of a message, and then nothing.
    let mut stream = UnixStream::connect(&world.socket).unwrap();
    stream.write_all(b"[{\"base_host_virt_addr\":").unwrap();
    let refused =
        |world: &mut World| world.pager().counters()["machines"]["refused"].as_u64().unwrap();
    let before = refused(world);
    drop(stream);
    until("it is refused", || refused(world) == before + 1);
    let mut machine = Machine::start(world);
    world.act(Monitor, action, Some(&mut machine));
    match action {
        Stop => {
            machine.expect("ready");
            machine.reads(0, PAGES);
            machine.end();
            "goes on"
        }
        Kill => "is gone",
        Restart => {
            world.a_machine_lives();
            "is gone; a new one lives"
        }
    }
}

/// While a machine's memory comes: its first pages, or later ones.
fn touch(world: &mut World, process: Process, action: Action, first: bool) -> &'static str {
    let mut machine = Machine::start(world);
    let half = if first { 0 } else { PAGES / 2 };
    machine.expect("ready");
    if !first {
        machine.reads(0, half);
    }
    machine.ask(half, PAGES - half);
    let target = (process == Monitor).then_some(&mut machine);
    world.act(process, action, target);
    match (process, action) {
        (Monitor, Kill) => "is gone",
        (Monitor, Restart) => {
            world.a_machine_lives();
            "is gone; a new one lives"
        }
        (Pager, Kill | Restart) => {
            machine.ends_without_its_pager();
            "ends by name (exit 5)"
        }
        _ => {
            machine.expect(&format!("read {half} {}", PAGES - half));
            machine.reads(0, PAGES);
            machine.end();
            if process == Node && action != Stop { "goes on from the copy" } else { "goes on" }
        }
    }
}

/// While a machine ends, or while an image is taken out of the pool.
fn detach(world: &mut World, process: Process, action: Action) -> &'static str {
    if process == Node {
        return forget(world, action);
    }
    let mut machine = Machine::start(world);
    machine.expect("ready");
    machine.reads(0, STORED / 2);
    match (process, action) {
        (Pager, Stop) => {
            let pid = world.pager().pid();
            kill_process(pid, Signal::STOP).unwrap();
            machine.end();
            std::thread::sleep(stopped_for());
            kill_process(pid, Signal::CONT).unwrap();
            "ends without waiting for it"
        }
        (Pager, _) => {
            machine.stdin.take();
            world.act(process, action, None);
            let code = machine.wait().code();
            assert!(matches!(code, Some(0 | 5)), "{code:?}: {}", machine.words());
            "ends"
        }
        (_, Stop) => {
            machine.stdin.take();
            world.act(process, action, Some(&mut machine));
            machine.end_after_its_time();
            "ends"
        }
        _ => {
            machine.stdin.take();
            machine.child.kill().unwrap();
            let _ = machine.wait();
            "is gone"
        }
    }
}

impl Machine {
    fn end_after_its_time(&mut self) {
        let status = self.wait();
        assert!(status.success(), "{status}: {}", self.words());
    }
}

fn forget(world: &mut World, action: Action) -> &'static str {
    let done = match action {
        Stop => {
            let pid = world.nodes[0].as_ref().unwrap().pid();
            kill_process(pid, Signal::STOP).unwrap();
            let child = quiet(world.command("forget")).unwrap();
            std::thread::sleep(stopped_for());
            kill_process(pid, Signal::CONT).unwrap();
            let end = child.wait_with_output().unwrap();
            if end.status.success() { "forgotten" } else { "refused by name; forgotten again" }
        }
        _ => {
            world.nodes[0].as_mut().unwrap().kill();
            let end = command::finish(world.command("forget"));
            assert_eq!(end.code, Some(1), "{end:?}");
            assert!(end.stderr.contains(&world.addresses[0]), "{end:?}");
            world.start_node(0);
            "refused by name; forgotten again"
        }
    };
    published(&command::finish(world.command("forget")));
    assert_eq!((world.status(0).used, world.status(1).used), (0, 0));
    for node in 0..2 {
        let objects = world.dir.path().join(format!("store{node}/acme/objects"));
        assert_eq!(fs::read_dir(objects).unwrap().count(), 0, "files of node {node}");
    }
    published(&world.publish());
    if action == Kill {
        world.nodes[0].as_mut().unwrap().kill();
    }
    done
}

fn has_uffd() -> bool {
    let has = rustix::process::geteuid().is_root() || File::open("/dev/userfaultfd").is_ok();
    if !has {
        println!("skipped: there is no userfaultfd for this user");
    }
    has
}

#[test]
fn without_any_copy_a_machine_says_which_page_it_lost_and_others_are_not_harmed() {
    if !has_uffd() {
        return;
    }
    let mut world = World::new();
    let mut machine = Machine::start(&world);
    machine.expect("ready");
    machine.reads(0, HOT + 16);
    let mut spared = Machine::start(&world);
    spared.expect("ready");
    for node in &mut world.nodes {
        node.as_mut().unwrap().kill();
    }
    machine.ask(HOT + 1000, 1);
    let status = machine.wait();
    assert_eq!(status.code(), Some(5), "{}", machine.words());
    let address = (HOT + 1000) << 12;
    let pages = format!("guest pages {address:#x}..{:#x} cannot be had", address + 4096);
    for part in [pages.as_str(), "from remote image cold", "no copy has it", &world.addresses[1]] {
        assert!(machine.words().contains(part), "{part:?}: {}", machine.words());
    }
    // Who asks for nothing that is lost goes on; and when the nodes are back, so is all of it.
    spared.reads(0, HOT);
    for node in 0..2 {
        world.start_node(node);
    }
    spared.reads(0, PAGES);
    spared.end();
    assert_eq!(world.pager().counters()["machines"]["lost"], 1);
}

/// The disk of a node is a small file system that the node alone sees.
#[test]
fn a_node_whose_disk_is_full_refuses_and_keeps_nothing() {
    if !rustix::process::geteuid().is_root() {
        return println!("skipped: only root mounts");
    }
    let dir = tempfile::tempdir().unwrap();
    let (keys, store, snapshot) =
        (key_file(dir.path()), dir.path().join("store"), dir.path().join("tiered"));
    fs::create_dir(&store).unwrap();
    tiered(dir.path(), &snapshot);
    let script = "mount -t tmpfs -o size=9m tmpfs \"$1\" && exec \"$0\" pool serve \
                  --listen 127.0.0.1:0 --keys \"$2\" --store \"$1\"";
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", script]).arg(varve_tests::images::varve());
    command.arg(&store).arg(&keys);
    let node = Service::node_by(command);
    let tenant = "acme".to_owned().try_into().unwrap();
    let client = NodeClient::new(&node.place, tenant, Key::from_hex(KEY).unwrap());
    let publish = |copies: &str, to: &str| {
        let mut command = Command::new(varve_tests::images::varve());
        command.args(["pool", "publish"]).arg(&snapshot).arg("--keys").arg(&keys);
        command::finish({
            command.args(["--copies", copies, "--to", to]);
            command
        })
    };
    let end = publish("1", &node.place);
    assert_eq!(end.code, Some(1), "{end:?}");
    assert!(end.stderr.contains(&node.place), "{end:?}");
    assert!(end.stderr.contains("No space left on device"), "{end:?}");
    until("what came of it is freed", || client.status().unwrap().used == 0);
    assert!(!Places::read(&snapshot).unwrap().images["cold"].complete);
    // Elsewhere there is room.
    let other = Service::node("127.0.0.1", &keys);
    published(&publish("1", &other.place));
    assert!(Places::read(&snapshot).unwrap().images["cold"].complete);
}

/// What happened in each cell, printed at the end, however that comes.
#[derive(Default)]
struct Table {
    rows: String,
    /// The cell that is carried out.
    at: String,
}

impl Table {
    fn row(&mut self, [process, phase, kill, stop, restart]: [String; 5]) {
        let row = format!("{process:<8} {phase:<8} {kill:<33} {stop:<33} {restart}\n");
        self.rows.push_str(&row);
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        let failed = if std::thread::panicking() { &self.at } else { "" };
        println!("\n{}{failed}", self.rows);
    }
}

#[test]
fn nothing_is_lost_and_nothing_leaks() {
    if !has_uffd() {
        return;
    }
    let mut world = World::new();
    let mut table = Table::default();
    table.row(["process", "phase", "kill", "stop", "restart"].map(str::to_owned));
    for process in PROCESSES {
        for phase in PHASES {
            let done = ACTIONS.map(|action| match meaningless(process, phase) {
                Some(why) => why,
                None => {
                    table.at = format!("{process:?} {phase} {action:?}");
                    cell(&mut world, process, phase, action)
                }
            });
            let words = [format!("{process:?}").to_lowercase(), phase.to_string()];
            let done = done.map(str::to_owned);
            table.row(words.into_iter().chain(done).collect::<Vec<_>>().try_into().unwrap());
        }
    }
    let said = world.pager.take().unwrap().end();
    assert!(!said.contains("panicked"), "{said}");
    assert!(!world.socket.exists(), "a pager that ends takes its socket along");
}
