//! The kill matrix: each process (monitor, pager, pool node) in each phase of a snapshot's life in the
//! pool is killed, stopped for a while, and killed and started again. Nothing may be lost: whoever
//! goes on has the right memory, whoever cannot says why. Nothing may leak: memory and objects of
//! nodes, machines and descriptors of the pager, sockets, files.
//!
//! The pager and the nodes are the real processes. The monitor is a process of this test's own that
//! restores or offloads guest memory as a monitor does, and touches it in place of a guest, so that all of
//! it runs where KVM does not; with guests, `tests/tests/pager.rs`, `pool.rs` and `offload.rs` do part of
//! it.
//!
//! A process is stopped for 0.3 s, or as many seconds as VARVE_STOP_SECONDS says.
#![allow(clippy::unwrap_used)]

mod alone;
mod cells;
mod machine;
mod offload;
mod report;
mod world;

use std::fmt;
use std::fs::File;

use offload::{STAGES, Stage};
use report::Table;
use world::World;

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
    /// In a stage, with so many copies.
    Offload(Stage, usize),
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
const ACTIONS: [Action; 3] = [Kill, Stop, Restart];

/// Phases that a process may be in. A monitor goes the same way with all its nodes; under a pager
/// nothing is ever taken out.
fn phases(process: Process) -> Vec<Phase> {
    let offload = |copies| STAGES.map(|stage| Offload(stage, copies));
    let offload = match process {
        Monitor => offload(2).to_vec(),
        Pager => vec![Offload(Stage::Taking, 1)],
        Node => [offload(2), offload(1)].concat(),
    };
    [vec![Publish, Attach, Phase::Restore, Run], offload, vec![Detach]].concat()
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Offload(stage, copies) => {
                f.write_str(&format!("offload, {stage:?} x{copies}").to_lowercase())
            }
            other => f.write_str(&format!("{other:?}").to_lowercase()),
        }
    }
}

/// Why a cell has no meaning, if it has none.
fn meaningless(process: Process, phase: Phase) -> Option<&'static str> {
    // Publishing is between the command and the nodes.
    (phase == Publish && process != Node).then_some("- (not part of it)")
}

/// Carries a cell out, and tells what happened.
fn cell(world: &mut World, process: Process, phase: Phase, action: Action) -> &'static str {
    let done = match phase {
        Publish => cells::publish(world, action),
        Attach => cells::attach(world, process, action),
        Phase::Restore => cells::touch(world, process, action, true),
        Run => cells::touch(world, process, action, false),
        Offload(stage, copies) => offload::offload(world, process, (stage, copies), action),
        Detach => cells::detach(world, process, action),
    };
    world.nothing_is_lost_or_leaked(process, action);
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
fn nothing_is_lost_and_nothing_leaks() {
    if !has_uffd() {
        return;
    }
    let mut world = World::new();
    let mut table = Table::new();
    for process in PROCESSES {
        for phase in phases(process) {
            let done = ACTIONS.map(|action| match meaningless(process, phase) {
                Some(why) => why,
                None => {
                    table.at(format!("{process:?}, {phase}, {action:?}"));
                    cell(&mut world, process, phase, action)
                }
            });
            table.row(&format!("{process:?}").to_lowercase(), &phase.to_string(), done);
        }
    }
    let said = world.pager.take().unwrap().end();
    assert!(!said.contains("panicked"), "{said}");
    assert!(!world.socket.exists(), "a pager that ends takes its socket along");
}
