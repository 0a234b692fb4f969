//! What every virtio device must keep to, as tests that a device's own tests include with
//! `device_conformance!`. What a device does with a good request is tested beside the device.

use std::cell::{Cell, RefCell};
use std::sync::Arc;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use virtio_queue::QueueT;

use super::VirtioDevice;
use super::mmio::Transport;
use super::testing::{BUFFERS, INDIRECT, MEM, Rig, memory};
use super::transport::status;
use super::turn::MAX_CHAIN;
use crate::bus::BusDevice;
use crate::interrupt::IrqLine;

/// Makes a device; `None` where the machine lacks what it needs (the test then says "skipped").
pub type Make = fn() -> Option<Box<dyn VirtioDevice>>;

/// The conformance tests of the device that `$make` (a [`Make`]) returns, as module `conformance`.
/// Every call must return an equal device.
macro_rules! device_conformance {
    ($make:expr) => {
        mod conformance {
            use super::*;
            use $crate::virtio::conformance as check;

            #[test]
            fn save_restore_save_is_equal() {
                check::save_restore_save($make);
            }
            #[test]
            fn reset_returns_to_the_start() {
                check::reset($make);
            }
            #[test]
            fn configuration_space_ends() {
                check::config_ends($make);
            }
            #[test]
            fn cut_states_are_refused() {
                check::cut_states($make);
            }
            #[test]
            fn any_register_access_is_survived() {
                check::registers($make);
            }
            #[test]
            fn a_turn_is_bounded() {
                check::turns($make);
            }
            #[test]
            fn any_chain_is_survived() {
                check::chains($make);
            }
        }
    };
}

pub(crate) use device_conformance;

fn made(make: Make) -> Option<Box<dyn VirtioDevice>> {
    let device = make();
    if device.is_none() {
        varve_skip::skip!("net", "the device cannot be made");
    }
    device
}

/// A transport with a new device over `rig`'s memory.
fn fresh(make: Make, rig: &Rig) -> Option<Arc<Transport>> {
    let line = IrqLine::new().unwrap();
    Some(Arc::new(Transport::new("fresh".into(), make()?, rig.mem.clone(), line).unwrap()))
}

/// A saved state restored into a new device and saved again is the same.
pub fn save_restore_save(make: Make) {
    let Some(device) = made(make) else { return };
    let mut rig = Rig::unconfigured(device, memory());
    for step in 0..3 {
        match step {
            1 => rig.configure(|offered| offered),
            2 => {
                for queue in 0..rig.queues() {
                    rig.push(queue, &[(BUFFERS, 64, queue % 2 == 0)]);
                    rig.notify(queue);
                }
            }
            _ => {}
        }
        let saved = rig.transport.save();
        let other = fresh(make, &rig).expect("made once already");
        other.restore(rig.transport.version(), &saved).expect("own state");
        assert_eq!(other.save(), saved, "step {step}");
        assert!(other.restore(rig.transport.version() + 1, &saved).is_err());
    }
}

/// Whatever a driver did, a reset brings back what construction left.
pub fn reset(make: Make) {
    let Some(device) = made(make) else { return };
    let mut rig = Rig::unconfigured(device, memory());
    let first = rig.transport.save();
    rig.configure(|offered| offered);
    assert_eq!(rig.status() & status::DRIVER_OK, status::DRIVER_OK);
    for queue in 0..rig.queues() {
        rig.push(queue, &[(BUFFERS, 64, queue % 2 == 0)]);
        rig.notify(queue);
    }
    assert_ne!(rig.transport.save(), first);
    rig.write(0x70, 0);
    rig.run();
    assert_eq!(rig.transport.save(), first);
    // And it can be used again.
    rig.configure(|offered| offered & !(1 << 29));
    assert_eq!(rig.status() & status::DRIVER_OK, status::DRIVER_OK);
}

/// Reads of the configuration space at any place are bounded and zero past its end.
pub fn config_ends(make: Make) {
    let Some(device) = made(make) else { return };
    for offset in [0x1000, u64::from(u32::MAX), u64::MAX - 7, u64::MAX] {
        let mut data = [0; 8];
        device.read_config(offset, &mut data);
        assert_eq!(data, [0; 8], "at {offset:#x}");
    }
    let mut whole = [0; 256];
    device.read_config(0, &mut whole);
    for offset in 0..256 {
        for len in 1..=8.min(256 - offset) {
            let mut data = [0; 8];
            device.read_config(offset as u64, &mut data[..len]);
            assert_eq!(data[..len], whole[offset..offset + len], "{len} bytes at {offset}");
        }
    }
}

/// Full rings of the longest chains do not hold the event loop, whatever they are for; chains that are
/// longer than that are cut.
pub fn turns(make: Make) {
    let Some(device) = made(make) else { return };
    let mut rig = Rig::unconfigured(device, memory());
    let data = BUFFERS + 0x10_0000;
    for len in [MAX_CHAIN, 4 * MAX_CHAIN] {
        for write in [false, true] {
            for queue in 0..rig.queues() {
                rig.configure(|offered| offered & !(1 << 29));
                let chain = vec![(data, 0x1_0000, write); len as usize];
                let table = rig.table(BUFFERS, &chain);
                for index in 0..rig.size(queue) {
                    rig.descriptor(queue, index, BUFFERS, table, INDIRECT, 0);
                    rig.publish(queue, index);
                }
                rig.notify(queue);
                rig.transport.longest_turn().assert_bounded(64 << 20);
            }
        }
    }
}

/// A state that is cut short or has bytes too many is refused, without a panic.
pub fn cut_states(make: Make) {
    let Some(mut device) = made(make) else { return };
    let (version, saved) = (device.version(), device.save());
    device.restore(version, &saved).expect("own state");
    let mut long = saved.clone();
    long.push(0);
    assert!(device.restore(version, &long).is_err());
    assert!(device.restore(version + 1, &saved).is_err());
    for len in 0..saved.len() {
        assert!(device.restore(version, &saved[..len]).is_err(), "{len} bytes");
    }
}

/// A rig that serves one case after another, reset in between, since some devices take long to
/// make. A case that fails does not give it back, so what follows a failure has a new one.
struct Kept {
    make: Make,
    rig: RefCell<Option<Rig>>,
}

impl Kept {
    fn new(make: Make) -> Kept {
        Kept { make, rig: RefCell::new(None) }
    }

    fn take(&self) -> Rig {
        let new = || Rig::unconfigured((self.make)().expect("made once already"), memory());
        let rig = self.rig.take().unwrap_or_else(new);
        rig.write(0x70, 0);
        rig
    }

    fn put(&self, rig: Rig) {
        self.rig.replace(Some(rig));
    }
}

fn runner(cases: u32) -> TestRunner {
    // Fixed, so that a failure comes again; no files are left beside the sources.
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    TestRunner::new_with_rng(
        config,
        proptest::test_runner::TestRng::deterministic_rng(
            proptest::test_runner::RngAlgorithm::ChaCha,
        ),
    )
}

/// Register offsets: mostly those that mean something, in the transport and in the config.
fn offset() -> impl Strategy<Value = u64> {
    prop_oneof![
        8 => (0u64..0x40).prop_map(|n| n * 4),
        3 => 0x100u64..0x140,
        1 => 0u64..0x1000,
    ]
}

/// Register values: status bits, small numbers, addresses in memory, anything.
fn value() -> impl Strategy<Value = u64> {
    prop_oneof![
        Just(0u64),
        Just(3u64),
        Just(11u64),
        Just(15u64),
        0u64..8,
        (0u64..16).prop_map(|n| 1 << n),
        (0u64..MEM / 4096).prop_map(|n| n * 4096),
        any::<u64>(),
    ]
}

/// No sequence of register accesses panics or makes the event loop spin.
pub fn registers(make: Make) {
    if made(make).is_none() {
        return;
    }
    let access =
        (offset(), prop::sample::select(vec![1usize, 2, 4, 4, 4, 4, 8]), value(), any::<bool>());
    let accesses = (any::<bool>(), prop::collection::vec(access, 1..80));
    let kept = Kept::new(make);
    let run = runner(256).run(&accesses, |(configured, accesses)| {
        let mut rig = kept.take();
        if configured {
            rig.configure(|offered| offered);
        }
        for (offset, len, value, write) in accesses {
            let mut bytes = value.to_le_bytes();
            if write {
                rig.bus.write(offset, &bytes[..len]);
            } else {
                rig.bus.read(offset, &mut bytes[..len]);
            }
            rig.run();
        }
        // Whatever state it is in, it can be reset and used.
        rig.configure(|offered| offered & !(1 << 29));
        prop_assert_eq!(rig.status() & status::DRIVER_OK, status::DRIVER_OK);
        kept.put(rig);
        Ok(())
    });
    run.unwrap_or_else(|e| panic!("{e}"));
}

/// One descriptor of a hostile table.
#[derive(Clone, Debug)]
struct Desc {
    addr: u64,
    len: u32,
    flags: u16,
    next: u16,
}

fn desc() -> impl Strategy<Value = Desc> {
    let addr = prop_oneof![
        4 => (0u64..0x100).prop_map(|n| BUFFERS + n * 24),
        // Into the rings, a table for an indirect descriptor, the end of memory, nowhere.
        2 => (0u64..0x2_0000).prop_map(|n| n & !15),
        2 => MEM - 64..MEM + 64,
        1 => any::<u64>(),
        1 => u64::MAX - 64..=u64::MAX,
    ];
    let len = prop_oneof![
        3 => 0u32..64,
        2 => (0u32..64).prop_map(|n| n * 16),
        1 => 0u32..0x2_0000,
        1 => any::<u32>(),
        1 => u32::MAX - 16..=u32::MAX,
    ];
    let flags = prop_oneof![6 => 0u16..4, 2 => 4u16..8, 1 => any::<u16>()];
    let next = prop_oneof![6 => 0u16..16, 1 => any::<u16>()];
    (addr, len, flags, next).prop_map(|(addr, len, flags, next)| Desc { addr, len, flags, next })
}

/// What a hostile driver does to one queue.
#[derive(Clone, Debug)]
struct Attack {
    queue: usize,
    table: Vec<Desc>,
    heads: Vec<u16>,
    index: Option<u16>,
}

fn attack() -> impl Strategy<Value = Attack> {
    let head = prop_oneof![8 => 0u16..16, 1 => any::<u16>()];
    (
        0usize..8,
        prop::collection::vec(desc(), 16),
        prop::collection::vec(head, 1..20),
        prop::option::weighted(0.2, any::<u16>()),
    )
        .prop_map(|(queue, table, heads, index)| Attack { queue, table, heads, index })
}

/// No content of tables and rings panics, spins, or leaves a chain neither used nor waiting:
/// either all go on, or the device asks for a reset.
pub fn chains(make: Make) {
    if made(make).is_none() {
        return;
    }
    let attacks = (any::<bool>(), prop::collection::vec(attack(), 1..4));
    let kept = Kept::new(make);
    let restores = Cell::new(0);
    let run = runner(512).run(&attacks, |(event_idx, attacks)| {
        let mut rig = kept.take();
        rig.configure(|offered| if event_idx { offered } else { offered & !(1 << 29) });
        for Attack { queue, table, heads, index } in attacks {
            let queue = queue % rig.queues();
            for (i, d) in (0u16..).zip(&table) {
                rig.descriptor(queue, i, d.addr, d.len, d.flags, d.next);
                // The same table where indirect descriptors are likely to point.
                let at = BUFFERS + 0x2000 + 16 * u64::from(i);
                rig.raw_descriptor(at, d.addr, d.len, d.flags, d.next);
            }
            heads.iter().for_each(|&head| rig.publish(queue, head));
            if let Some(index) = index {
                rig.set_avail_index(queue, index);
            }
            rig.notify(queue);
            let broken = rig.status() & status::DEVICE_NEEDS_RESET != 0;
            let core = rig.transport.core();
            let (avail, used) = (core.queues[queue].next_avail(), core.queues[queue].next_used());
            drop(core);
            prop_assert!(broken || avail == used, "taken {avail}, handed back {used}");
        }
        restores.set(restores.get() + 1);
        if restores.get() % 16 == 0 {
            let saved = rig.transport.save();
            let other = fresh(make, &rig).expect("made once already");
            prop_assert_eq!(other.restore(rig.transport.version(), &saved), Ok(()));
            prop_assert_eq!(other.save(), saved);
        }
        rig.configure(|offered| offered & !(1 << 29));
        prop_assert_eq!(rig.status() & status::DRIVER_OK, status::DRIVER_OK);
        kept.put(rig);
        Ok(())
    });
    run.unwrap_or_else(|e| panic!("{e}"));
}
