//! Two nodes and a pager as real processes, a snapshot that they serve, and what must be so when nothing
//! is under way.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use varve_pool::client::NodeClient;
use varve_pool::{Key, Places};
use varve_snapshot::{
    Access, HostIdentity, LocalFiles, Mechanism, PageAccess, PageRange, StateFile, TierInput,
    TierOptions, Trace, tier,
};
use varve_tests::Ended;
use varve_tests::command;
use varve_tests::services::{KEY, Service, key_file};

use crate::machine::Machine;
use crate::{
    Action::{self, Kill, Restart, Stop},
    Process::{self, Monitor, Node, Pager},
};

/// Pages of guest memory: the first ones are read and written by what was recorded, the next are cold,
/// of which there is more than a shard of 8 MiB; the rest is zero.
pub const PAGES: u64 = 4096;
pub const HOT: u64 = 128;
pub const STORED: u64 = HOT + 2560;
/// Longest that anything here may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(120);

pub fn stopped_for() -> Duration {
    let seconds = std::env::var("VARVE_STOP_SECONDS").ok().and_then(|s| s.parse().ok());
    seconds.map_or(Duration::from_millis(300), Duration::from_secs)
}

/// What a page holds; in larger memory, each [`PAGES`] pages are alike but for their words.
pub fn word(page: u64) -> u64 {
    if page % PAGES < STORED { (page + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1 } else { 0 }
}

pub fn memory() -> PageRange {
    PageRange::new(0, PAGES << 12).unwrap()
}

/// Two nodes with stores, a snapshot on both, and a pager for it.
pub struct World {
    pub dir: tempfile::TempDir,
    pub keys: PathBuf,
    pub snapshot: PathBuf,
    pub socket: PathBuf,
    pub nodes: [Option<Service>; 2],
    pub addresses: [String; 2],
    pub pager: Option<Service>,
    pub descriptors: usize,
    /// Bytes that a node uses for the image.
    pub used: u64,
}

impl World {
    pub fn new() -> World {
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

    pub fn start_node(&mut self, node: usize) {
        let store = self.dir.path().join(format!("store{node}"));
        let more = ["--store", store.to_str().unwrap()];
        let started = Service::node_with(&self.addresses[node], &self.keys, &more);
        self.addresses[node] = started.place.clone();
        self.nodes[node] = Some(started);
    }

    pub fn start_pager(&mut self) {
        let more = ["--pool-keys", self.keys.to_str().unwrap(), "--pool-transport", "tcp"];
        // A small cache, so that it is the pool that serves.
        let more = [&more[..], &["--cache", "1M"]].concat();
        self.pager = Some(Service::pager(&self.socket, &self.snapshot, &more));
    }

    pub fn pager(&mut self) -> &mut Service {
        self.pager.as_mut().unwrap()
    }

    /// The pager's descriptors, but for connections to nodes, of which it keeps some.
    pub fn pager_descriptors(&mut self) -> usize {
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

    pub fn machines_of_pager(&mut self) -> u64 {
        self.pager().counters()["machines"]["now"].as_u64().unwrap()
    }

    pub fn client(&self, node: usize) -> NodeClient {
        let tenant = "acme".to_owned().try_into().unwrap();
        NodeClient::new(&self.addresses[node], tenant, Key::from_hex(KEY).unwrap())
    }

    pub fn status(&self, node: usize) -> varve_pool::wire::Status {
        self.client(node).status().unwrap()
    }

    pub fn command(&self, verb: &str) -> Command {
        let mut command = Command::new(varve_tests::images::varve());
        command.args(["pool", verb]).arg(&self.snapshot).arg("--keys").arg(&self.keys);
        if verb == "publish" {
            command.args(["--copies", "2", "--to"]).arg(self.addresses.join(","));
        }
        command
    }

    pub fn publish(&self) -> Ended {
        command::finish(self.command("publish"))
    }

    /// Does it to the process, and tells when it is over.
    pub fn act(&mut self, process: Process, action: Action, machine: Option<&mut Machine>) {
        let service = match process {
            Pager => self.pager.as_mut(),
            Node => self.nodes[0].as_mut(),
            Monitor => None,
        };
        match (action, service, machine) {
            (Stop, service, machine) => {
                let own = |m: &mut Machine| m.pid();
                let pid = service.map(|s| s.pid()).or(machine.map(own)).unwrap();
                stopped(pid, || std::thread::sleep(stopped_for()));
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
    pub fn a_machine_lives(&mut self) {
        let mut machine = Machine::start(self);
        machine.expect("ready");
        machine.reads(0, PAGES);
        machine.end();
    }

    /// After a cell: what is down starts again, and then all is as it was.
    pub fn nothing_is_lost_or_leaked(&mut self, process: Process, action: Action) {
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

/// What the pager and the nodes said, where a cell failed.
impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let services = self.pager.iter().chain(self.nodes.iter().flatten());
            services.for_each(|service| eprintln!("{}: {}", service.place, service.said()));
        }
    }
}

pub fn published(end: &Ended) {
    assert_eq!(end.code, Some(0), "{end:?}");
}

/// Started, with what it says kept.
pub fn quiet(mut command: Command) -> std::io::Result<Child> {
    command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn()
}

/// Does something while a process stands still.
pub fn stopped<T>(pid: Pid, what: impl FnOnce() -> T) -> T {
    kill_process(pid, Signal::STOP).unwrap();
    let done = what();
    kill_process(pid, Signal::CONT).unwrap();
    done
}

pub fn until(what: &str, mut reached: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !reached() {
        assert!(Instant::now() < deadline, "{what}: not");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A tiered snapshot, made without a machine.
pub fn tiered(dir: &Path, out: &Path) {
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
        id: None,
        bases: Vec::new(),
        sums: None,
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
