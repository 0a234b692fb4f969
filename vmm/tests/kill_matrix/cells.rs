//! What is done in each cell but those of offloading, and what then must happen.

use std::fs;
use std::io::Write;
use std::os::unix::net::UnixStream;

use varve_pool::Places;
use varve_tests::command;

use crate::machine::Machine;
use crate::world::{PAGES, STORED, World, published, quiet, stopped, stopped_for, until};
use crate::{
    Action::{self, Kill, Restart, Stop},
    Process::{self, Monitor, Node, Pager},
};

/// A node, while an image is sent to it.
pub fn publish(world: &mut World, action: Action) -> &'static str {
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
pub fn attach(world: &mut World, process: Process, action: Action) -> &'static str {
    if process != Monitor {
        if action == Stop {
            let socket = world.socket.clone();
            let pid = match process {
                Pager => world.pager().pid(),
                _ => world.nodes[0].as_ref().unwrap().pid(),
            };
            let mut machine = stopped(pid, || {
                let machine = Machine::start(world);
                std::thread::sleep(stopped_for());
                machine
            });
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
    // Half of a message without a descriptor, which is refused as soon as it comes.
    let refused =
        |world: &mut World| world.pager().counters()["machines"]["refused"].as_u64().unwrap();
    let before = refused(world);
    let mut stream = UnixStream::connect(&world.socket).unwrap();
    stream.write_all(b"[{\"base_host_virt_addr\":").unwrap();
    until("it is refused", || refused(world) == before + 1);
    drop(stream);
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
pub fn touch(world: &mut World, process: Process, action: Action, first: bool) -> &'static str {
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
pub fn detach(world: &mut World, process: Process, action: Action) -> &'static str {
    if process == Node {
        return forget(world, action);
    }
    let mut machine = Machine::start(world);
    machine.expect("ready");
    machine.reads(0, STORED / 2);
    match (process, action) {
        (Pager, Stop) => {
            stopped(world.pager().pid(), || {
                machine.end();
                std::thread::sleep(stopped_for());
            });
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
            let status = machine.wait();
            assert!(status.success(), "{status}: {}", machine.words());
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

fn forget(world: &mut World, action: Action) -> &'static str {
    let done = match action {
        Stop => {
            let child = stopped(world.nodes[0].as_ref().unwrap().pid(), || {
                let child = quiet(world.command("forget")).unwrap();
                std::thread::sleep(stopped_for());
                child
            });
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
