//! What the matrix has no cell for: all copies lost, and no room left.

use std::fs;
use std::os::unix::net::UnixStream;
use std::process::Command;

use varve_pool::client::NodeClient;
use varve_pool::{Key, Places};
use varve_tests::command;
use varve_tests::services::{KEY, Service, key_file};

use crate::has_uffd;
use crate::machine::Machine;
use crate::world::{HOT, PAGES, World, published, tiered, until};

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
    let pages = format!("cannot read guest pages {address:#x}..{:#x}", address + 4096);
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
    // ImageResolver there is room.
    let other = Service::node("127.0.0.1", &keys);
    published(&publish("1", &other.place));
    assert!(Places::read(&snapshot).unwrap().images["cold"].complete);
}

/// With the filters of a pager that has no pool: it ends the oldest of too many that say nothing, and
/// goes on.
#[test]
fn strangers_keep_no_machine_from_a_pager() {
    if !has_uffd() {
        return;
    }
    let mut world = World::new();
    world.pager().kill();
    world.pager = Some(Service::pager(&world.socket, &world.snapshot, &[]));
    let connect = || UnixStream::connect(&world.socket).unwrap();
    let strangers: Vec<_> = (0..100).map(|_| connect()).collect();
    world.a_machine_lives();
    assert!(world.machines_of_pager() < 100, "the oldest are gone");
    drop(strangers);
    until("no stranger is left", || world.machines_of_pager() == 0);
}
