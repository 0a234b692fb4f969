//! The monitor: a process of this test's own, with guest memory as a monitor has it, which does what
//! lines on its standard input say.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use rustix::process::Pid;
use serde_json::Value;
use varve_memory_tiers::{GuestRam, Hooks, Offload, OffloadError, Policy, Restore, Strategy, open};
use varve_pool::client::Transport;
use varve_pool::{BackingStoreConfig, Key, PoolBackingStore};
use varve_snapshot::{ManifestReader, PageRange, chain};
use varve_tests::services::KEY;
use vm_memory::{Bytes, GuestAddress};

use crate::world::{PAGES, PATIENCE, World, memory, word};

/// Pages of a machine that has booted.
pub const BOOTED: u64 = 2 * PAGES;
/// Set for the process that is a machine: `restored SNAPSHOT PAGER` or `booted`.
const ROLE: &str = "VARVE_KILL_MATRIX_MACHINE";

fn fail(error: &dyn std::error::Error, code: i32) -> ! {
    let causes = std::iter::successors(error.source(), |&e| e.source());
    eprintln!("{}", causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}")));
    std::process::exit(code)
}

/// What a machine consists of.
struct Parts {
    // Dropped in this order.
    offload: Option<Offload>,
    restore: Option<Restore>,
    ram: Arc<GuestRam>,
}

/// As the monitor does.
fn hooks() -> Hooks {
    Hooks { stage2: None, on_fatal: Box::new(|e| fail(&e, 5)) }
}

impl Parts {
    fn restored(snapshot: &str, pager: &str) -> Parts {
        let policy = Policy { pager: Some(pager.into()), ..Policy::new(Strategy::Tiered) };
        let manifest = ManifestReader::open(Path::new(snapshot)).unwrap();
        let (plan, sources) = open(&manifest, &policy, &()).unwrap();
        let ram = Arc::new(GuestRam::new(&[memory()], false).unwrap());
        let restore = match Restore::start(ram.clone(), plan, sources, hooks()) {
            Ok(restore) => restore,
            Err(e) => fail(&e, 1),
        };
        restore.populate_beside().unwrap();
        Parts { offload: None, restore: Some(restore), ram }
    }

    fn booted() -> Parts {
        let memory = PageRange::new(0, BOOTED << 12).unwrap();
        let ram = Arc::new(GuestRam::new(&[memory], false).unwrap());
        for page in (0..BOOTED).filter(|&page| word(page) != 0) {
            let bytes = word(page).to_le_bytes().repeat(512);
            ram.memory().write_slice(&bytes, GuestAddress(page << 12)).unwrap();
        }
        Parts { offload: None, restore: None, ram }
    }

    fn read(&self, first: u64, count: u64) {
        for page in first..first + count {
            for at in [0, 4088] {
                let address = GuestAddress((page << 12) + at);
                let found: u64 = self.ram.memory().read_obj(address).unwrap();
                assert_eq!(found, word(page), "page {page}");
            }
        }
    }

    fn begin(&mut self, store: PoolBackingStore, idle: Duration) -> Result<(), OffloadError> {
        let offload = Offload::new(self.ram.clone(), self.restore.as_ref(), hooks())?;
        self.offload.insert(offload).begin(Arc::new(store), idle, u64::MAX)
    }

    /// Does what a line says, and says what came of it.
    fn carry_out(&mut self, line: &str) -> String {
        let words: Vec<&str> = line.split(' ').collect();
        let number = |at: usize| words[at].parse::<u64>().unwrap();
        match (words[0], &self.offload) {
            ("read", _) => {
                self.read(number(1), number(2));
                line.to_owned()
            }
            // COPIES IDLE_MS TRY_MS NODES
            ("begin", _) => {
                let store = PoolBackingStore::new(BackingStoreConfig {
                    nodes: words[4].split(',').map(str::to_owned).collect(),
                    copies: number(1) as usize,
                    tenant: "acme".to_owned().try_into().unwrap(),
                    key: Key::from_hex(KEY).unwrap(),
                    transport: Transport::Tcp,
                });
                let store = store.unwrap().trying_for(Duration::from_millis(number(3)));
                match self.begin(store, Duration::from_millis(number(2))) {
                    Ok(()) => "begun".into(),
                    Err(e) => format!("refused: {}", chain(&e)),
                }
            }
            ("take", Some(offload)) => {
                offload.take_some().unwrap();
                "took".into()
            }
            ("report", Some(offload)) => {
                format!("report {}", serde_json::to_string(&offload.report()).unwrap())
            }
            ("recall", Some(offload)) => {
                offload.recall();
                "recalls".into()
            }
            other => panic!("{other:?}", other = other.0),
        }
    }
}

/// A machine, in a process of its own. On its own this test does nothing.
#[test]
fn a_machine() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let mut parts = match role.split(' ').collect::<Vec<_>>()[..] {
        ["restored", snapshot, pager] => Parts::restored(snapshot, pager),
        _ => Parts::booted(),
    };
    println!("\nmachine: ready");
    for line in std::io::stdin().lines() {
        println!("machine: {}", parts.carry_out(&line.unwrap()));
    }
    drop(parts);
    println!("machine: ends");
    std::process::exit(0);
}

/// A machine's process.
pub struct Machine {
    pub child: Child,
    /// It ends when this is closed.
    pub stdin: Option<ChildStdin>,
    said: Receiver<String>,
    err: PathBuf,
}

impl Machine {
    /// One that restores the snapshot, with the pager.
    pub fn start(world: &World) -> Machine {
        let (snapshot, socket) = (world.snapshot.display(), world.socket.display());
        Machine::of_role(world, &format!("restored {snapshot} {socket}"))
    }

    /// One that has booted.
    pub fn booted(world: &World) -> Machine {
        Machine::of_role(world, "booted")
    }

    fn of_role(world: &World, role: &str) -> Machine {
        let err = world.dir.path().join("machine-said");
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["machine::a_machine", "--exact", "--nocapture"])
            .env(ROLE, role)
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

    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Has it do something, without waiting for it.
    pub fn tell(&mut self, what: &str) {
        // One that has ended says why later.
        let _ = writeln!(self.stdin.as_mut().unwrap(), "{what}");
    }

    /// What it says next, unless it ends.
    pub fn says(&mut self) -> Option<String> {
        match self.said.recv_timeout(PATIENCE) {
            Ok(said) => Some(said),
            Err(RecvTimeoutError::Disconnected) => None,
            Err(e) => panic!("nothing came ({e}): {}", self.words()),
        }
    }

    /// Waits until it says so.
    pub fn expect(&mut self, what: &str) {
        let said = self.says();
        assert_eq!(said.as_deref(), Some(what), "{}", self.words());
    }

    /// Has it read pages, without waiting for it.
    pub fn ask(&mut self, first: u64, count: u64) {
        self.tell(&format!("read {first} {count}"));
    }

    pub fn reads(&mut self, first: u64, count: u64) {
        self.ask(first, count);
        self.expect(&format!("read {first} {count}"));
    }

    /// Has it take pages out of its memory, while it stands still.
    pub fn takes(&mut self) {
        self.tell("take");
        self.expect("took");
    }

    /// What became of its pages.
    pub fn report(&mut self) -> Value {
        self.tell("report");
        let said = self.says().unwrap_or_else(|| panic!("it ended: {}", self.words()));
        serde_json::from_str(said.strip_prefix("report ").unwrap()).unwrap()
    }

    pub fn words(&self) -> String {
        fs::read_to_string(&self.err).unwrap_or_default()
    }

    pub fn wait(&mut self) -> ExitStatus {
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
    pub fn end(&mut self) {
        self.stdin.take();
        self.expect("ends");
        let status = self.wait();
        assert!(status.success(), "{status}: {}", self.words());
    }

    pub fn ends_without_its_pager(&mut self) {
        let status = self.wait();
        assert_eq!(status.code(), Some(5), "{}", self.words());
        assert!(
            self.words().contains("has ended; missing pages have no source"),
            "{}",
            self.words()
        );
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
