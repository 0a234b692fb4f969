//! Offloading in its stages: pages are taken out, wait, are sent, are out. A machine that booted offloads
//! all of its memory to one node, or to two with two copies.

use serde_json::Value;

use crate::machine::{BOOTED, Machine};
use crate::world::{HOT, PAGES, STORED, World, stopped, stopped_for, until};
use crate::{
    Action::{self, Kill, Restart, Stop},
    Process::{self, Monitor, Node, Pager},
};

/// Pages that a machine has to give away: it has twice [`PAGES`], two windows of taking.
const GIVEN: u64 = 2 * STORED;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// One window of two is set aside.
    Taking,
    /// All is set aside.
    Waiting,
    /// Some has come to a node.
    Sending,
    /// All is at the nodes.
    Out,
}

use Stage::{Out, Sending, Taking, Waiting};

/// All of them.
pub const STAGES: [Stage; 4] = [Taking, Waiting, Sending, Out];

pub fn offload(
    world: &mut World,
    process: Process,
    (stage, copies): (Stage, usize),
    action: Action,
) -> &'static str {
    if process == Pager {
        return handled(world, action);
    }
    let mut machine = Machine::booted(world);
    machine.expect("ready");
    // Where a page may be lost for good, that need not take long.
    let try_ms = if copies == 1 && action != Stop { 500 } else { 8000 };
    let idle_ms = if stage == Waiting { 300 } else { 0 };
    let nodes = world.addresses[..copies].join(",");
    machine.tell(&format!("begin {copies} {idle_ms} {try_ms} {nodes}"));
    machine.expect("begun");
    machine.takes();
    if stage != Taking {
        machine.takes();
    }
    match stage {
        Taking => assert_eq!(machine.report()["set_aside"], STORED),
        Waiting => {}
        Sending => {
            until("something has come", || world.holds(0) || machine.report()["phase"] == "idle")
        }
        Out => {
            let report = idle(&mut machine);
            assert_eq!((&report["out"], &report["error"]), (&GIVEN.into(), &Value::Null));
            assert!((0..copies).all(|node| world.holds(node)));
        }
    }
    match process {
        Monitor => of_monitor(world, machine, stage, action),
        _ => of_node(world, machine, (stage, copies), action),
    }
}

impl World {
    fn is_up(&self, node: usize) -> bool {
        self.client(node).status().is_ok()
    }

    /// Whether a node holds what a machine gave away.
    fn holds(&self, node: usize) -> bool {
        self.status(node).used > self.used
    }
}

/// Waits until nothing is under way, and tells what became of it.
fn idle(machine: &mut Machine) -> Value {
    let mut report = Value::Null;
    until("offloading is done", || {
        report = machine.report();
        report["phase"] == "idle"
    });
    report
}

fn recalled(machine: &mut Machine) -> Value {
    machine.tell("recall");
    machine.expect("recalls");
    idle(machine)
}

/// Memory in the pager's care is not offloaded, whatever the pager does.
fn handled(world: &mut World, action: Action) -> &'static str {
    let mut machine = Machine::start(world);
    machine.expect("ready");
    machine.reads(0, HOT);
    let to = world.addresses[0].clone();
    let mut is_refused = || {
        machine.tell(&format!("begin 1 0 8000 {to}"));
        machine.expect(
            "refused: guest memory is served by another process (page fault handler), which alone \
             can evict its pages",
        );
    };
    if action == Stop {
        stopped(world.pager().pid(), || {
            is_refused();
            std::thread::sleep(stopped_for());
        });
        machine.reads(0, PAGES);
        machine.end();
        return "refused by name";
    }
    is_refused();
    world.act(Pager, action, None);
    machine.ends_without_its_pager();
    "refused by name; ends as in run"
}

/// What nodes hold for a machine lives as long as that.
fn of_monitor(
    world: &mut World,
    mut machine: Machine,
    stage: Stage,
    action: Action,
) -> &'static str {
    if stage == Out && action == Stop {
        machine.ask(0, BOOTED);
    }
    world.act(Monitor, action, Some(&mut machine));
    if action == Stop {
        match stage {
            Taking => machine.takes(),
            Out => machine.expect(&format!("read 0 {BOOTED}")),
            Waiting | Sending => {}
        }
        return ends_well(world, machine);
    }
    until("what it gave away is freed", || (0..2).all(|node| !world.holds(node)));
    if action == Kill {
        return "is gone; its pages are freed";
    }
    let mut machine = Machine::booted(world);
    machine.expect("ready");
    machine.tell(&format!("begin 2 0 8000 {}", world.addresses.join(",")));
    machine.expect("begun");
    machine.takes();
    machine.takes();
    assert_eq!(idle(&mut machine)["out"], GIVEN);
    ends_well(world, machine);
    "is gone; a new one offloads"
}

/// The first node, where all pages are to be, or are.
fn of_node(
    world: &mut World,
    mut machine: Machine,
    (stage, copies): (Stage, usize),
    action: Action,
) -> &'static str {
    let reads = stage == Out && (copies == 2 || action == Stop);
    match (stage, reads) {
        (_, true) => machine.ask(0, PAGES),
        (Out, false) => machine.reads(0, 16),
        _ => {}
    }
    if stage == Sending && action != Stop {
        // In the midst of it, and no later.
        stopped(machine.pid(), || world.act(Node, action, None));
    } else {
        world.act(Node, action, None);
    }
    if stage == Taking {
        machine.takes();
    }
    if reads {
        match machine.says() {
            Some(said) => assert_eq!(said, format!("read 0 {PAGES}")),
            // Longer than a page is waited for.
            None => {
                assert!(copies == 1 && stopped_for().as_secs() > 5, "{}", machine.words());
                return ends_by_name(world, machine);
            }
        }
    }
    let report = idle(&mut machine);
    if copies == 1 && report["out"] != 0 && !(world.is_up(0) && world.holds(0)) {
        return is_lost(world, machine);
    }
    let done = ends_well(world, machine);
    match done {
        "goes on" if action == Kill || (action == Restart && stage == Out) => {
            "goes on from the copy"
        }
        done => done,
    }
}

/// All pages are out, or none, because a node did not take them; whichever it is, all comes back right,
/// and the nodes have nothing of it any more while the machine still lives.
fn ends_well(world: &World, mut machine: Machine) -> &'static str {
    let report = idle(&mut machine);
    let done = match report["error"].as_str() {
        None => {
            let gone = ["out", "fetched"].map(|name| report[name].as_u64().unwrap());
            assert_eq!(gone.iter().sum::<u64>(), GIVEN, "{report}");
            "goes on"
        }
        Some(error) => {
            assert!(error.contains(&world.addresses[0]), "{report}");
            assert_eq!((&report["out"], &report["recalled"]), (&0.into(), &GIVEN.into()));
            "pages stay; refused by name"
        }
    };
    assert_eq!(report["set_aside"], 0, "{report}");
    machine.reads(0, PAGES / 2);
    let report = recalled(&mut machine);
    assert_eq!((&report["out"], &report["set_aside"]), (&0.into(), &0.into()), "{report}");
    machine.reads(0, BOOTED);
    for node in (0..2).filter(|&node| world.is_up(node)) {
        until("pages that are back are freed", || !world.holds(node));
    }
    machine.end();
    done
}

/// The one copy is lost: what is in memory is of use, and all is kept as it is, until a page is asked for
/// that nobody has.
fn is_lost(world: &World, mut machine: Machine) -> &'static str {
    let out = machine.report()["out"].clone();
    machine.reads(STORED, PAGES - STORED);
    let report = recalled(&mut machine);
    assert_eq!(report["out"], out, "{report}");
    assert!(report["error"].as_str().unwrap().contains(&world.addresses[0]), "{report}");
    machine.ask(STORED / 2, 1);
    ends_by_name(world, machine);
    "recall refused, then exit 5, by name"
}

fn ends_by_name(world: &World, mut machine: Machine) -> &'static str {
    let status = machine.wait();
    assert_eq!(status.code(), Some(5), "{}", machine.words());
    for part in ["cannot read back offloaded", "no copy has it", &world.addresses[0]] {
        assert!(machine.words().contains(part), "{part:?}: {}", machine.words());
    }
    "ends by name (exit 5)"
}
