//! A device's life on its transport: events, interrupts, broken rings, save and restore.

use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::virtio::probe::Told::{Activate, Queue as Served, Reset, Source};
use crate::virtio::probe::{ACCEPTED, DRIVER, EVENT_IDX, FEATURES, Probe, RUNNING, write_features};
use crate::virtio::testing::{BUFFERS, MEM, NEXT, Rig, memory, memory_of};

#[test]
fn doorbells_and_sources_reach_an_active_device_only() {
    let probe = Probe::new();
    let mut rig = probe.rig();
    probe.source.write(1).unwrap();
    rig.notify(0);
    assert_eq!(probe.told(), []);
    rig.configure(|f| f);
    assert_eq!(probe.told(), [Reset, Activate(FEATURES | VIRTIO_F_VERSION_1), Source(7)]);
    for queue in [1, 0, 2, u32::MAX] {
        rig.write(0x50, queue);
        rig.run();
    }
    assert_eq!(probe.told(), [Served(1), Served(0)]);
    // A driver's own doorbell, as the monitor ties it to guest writes.
    rig.transport.queue_events()[1].write(1).unwrap();
    probe.source.write(1).unwrap();
    rig.run();
    let told = probe.told();
    assert!(told.len() == 2 && told.contains(&Served(1)) && told.contains(&Source(7)), "{told:?}");

    rig.write(0x50, 0);
    probe.source.write(1).unwrap();
    rig.write(0x70, 0);
    rig.run();
    assert_eq!(probe.told(), [Reset], "what was on its way is dropped");
    assert_eq!((rig.status(), rig.read(0x60)), (0, 0));
    rig.configure(|f| f & !EVENT_IDX);
    let activate = Activate(FEATURES & !EVENT_IDX | VIRTIO_F_VERSION_1);
    assert_eq!(probe.told(), [Reset, activate, Source(7)]);
}

#[test]
fn a_reset_and_a_new_start_in_one_turn_keep_the_sources() {
    let probe = Probe::new();
    let mut rig = probe.rig();
    rig.configure(|f| f);
    rig.configure(|f| f);
    probe.told();
    probe.source.write(1).unwrap();
    rig.run();
    assert_eq!(probe.told(), [Source(7)]);
}

#[test]
fn rings_outside_of_memory_ask_for_a_reset() {
    for (register, address) in [(0x80, MEM), (0x90, MEM - 4), (0xa0, MEM - 4), (0x84, 1), (0xa4, 1)]
    {
        let probe = Probe::new();
        let mut rig = probe.rig();
        rig.write(0x70, DRIVER);
        write_features(&rig, VIRTIO_F_VERSION_1);
        rig.write(0x70, ACCEPTED);
        for (register, address) in [(0x80, 0x1000), (0x90, 0x2000), (0xa0, 0x3000)] {
            rig.write(register, address);
        }
        rig.write(register, address as u32);
        rig.write(0x44, 1);
        rig.write(0x70, RUNNING);
        assert_eq!(rig.status(), RUNNING | status::DEVICE_NEEDS_RESET, "{register:#x}");
        assert_eq!((rig.read(0x60), rig.interrupts()), (STATUS_CONFIG, 1));
        rig.notify(0);
        assert_eq!(probe.told(), [], "never started");
        rig.configure(|f| f);
        assert_eq!(rig.status(), RUNNING);
    }
}

#[test]
fn a_lying_ring_asks_for_a_reset() {
    let probe = Probe::new();
    let mut rig = probe.rig();
    rig.configure(|f| f);
    rig.set_avail_index(0, 17);
    rig.notify(0);
    assert_eq!(rig.status(), RUNNING | status::DEVICE_NEEDS_RESET);
    assert_eq!((rig.read(0x60), rig.interrupts()), (STATUS_CONFIG, 1));
    probe.told();
    rig.notify(0);
    rig.notify(1);
    probe.source.write(1).unwrap();
    rig.run();
    assert_eq!(probe.told(), [], "the other queue is not served either");
    rig.configure(|f| f);
    rig.push(0, &[(BUFFERS, 8, true)]);
    rig.notify(0);
    assert_eq!(rig.used(0), [(0, 0)]);

    // A head that is no index of the table.
    rig.publish(0, 16);
    rig.notify(0);
    assert_eq!(rig.status(), RUNNING | status::DEVICE_NEEDS_RESET);
}

#[test]
fn event_index_decides_about_interrupts() {
    let probe = Probe::new();
    let mut rig = probe.rig();
    rig.configure(|f| f);
    let used_event = |rig: &Rig, index: u16| {
        rig.mem.write_obj(index, GuestAddress(0x8000 + 4 + 2 * 16)).unwrap();
    };
    used_event(&rig, 1);
    let mut seen = Vec::new();
    for _ in 0..4 {
        rig.push(0, &[(BUFFERS, 8, true)]);
        rig.notify(0);
        seen.push(rig.interrupts());
        assert_eq!(u32::from(rig.avail_event(0)), seen.len() as u32, "tells of the next chain");
    }
    assert_eq!(seen, [0, 1, 0, 0], "for the chain with index 1 alone");
    used_event(&rig, 5);
    for _ in 0..3 {
        rig.push(0, &[(BUFFERS, 8, true)]);
    }
    rig.notify(0);
    assert_eq!(rig.interrupts(), 1, "in the midst of a batch");
}

#[test]
fn chains_handed_back_together_interrupt_like_one_by_one() {
    for (event, expected) in [(0, 0), (1, 1), (2, 1), (3, 1), (4, 0)] {
        let mut rig = Probe::new().rig();
        rig.configure(|f| f);
        for _ in 0..4 {
            rig.push(0, &[(BUFFERS, 8, true)]);
        }
        rig.transport.with_device(|_, io| {
            let heads: Vec<u16> =
                (0..4).map(|_| io.pop(0).unwrap().unwrap().head_index()).collect();
            io.add_used(0, heads[0], 1).unwrap();
            io.signal_used(0).unwrap();
            let _ = io.interrupt.line().event().read();
            io.mem.write_obj(event as u16, GuestAddress(0x8000 + 4 + 2 * 16)).unwrap();
            io.add_used_together(0, &[(heads[1], 2), (heads[2], 3), (heads[3], 4)]).unwrap();
            io.signal_used_since(0, 1).unwrap();
            assert!(io.add_used_together(0, &[(16, 0), (0, 0)]).is_err());
            io.add_used_together(0, &[]).unwrap();
        });
        assert_eq!(rig.used(0), [(0, 1), (1, 2), (2, 3), (3, 4)]);
        assert_eq!(rig.interrupts(), expected, "driver waits for index {event}");
    }
}

#[test]
fn a_busy_queue_is_served_in_portions() {
    let probe = Probe::new();
    let mut rig = probe.rig();
    rig.configure(|f| f & !EVENT_IDX);
    for index in 0..16 {
        rig.descriptor(0, index, BUFFERS, 8, 0, 0);
    }
    // The device's own handler stands for a driver that refills while it is served.
    let mut refilled = 16u16;
    let ring = |rig: &Rig, index: u16| {
        rig.mem.write_obj(index, GuestAddress(0x8002)).unwrap();
    };
    ring(&rig, refilled);
    let mut served = 0;
    let mem = rig.mem.clone();
    rig.transport.with_device(|_, io| {
        io.drain(0, |_, _| {
            served += 1;
            refilled = refilled.wrapping_add(1);
            mem.write_obj(refilled, GuestAddress(0x8002)).unwrap();
            0
        })
        .unwrap();
        assert_eq!(io.again, 1, "to be continued");
    });
    assert_eq!(served, 32);
}

#[test]
fn a_saved_transport_goes_on_where_it_was() {
    let probe = Probe::new();
    let mut rig = probe.rig();
    rig.configure(|f| f);
    for _ in 0..20 {
        rig.push(0, &[(BUFFERS, 8, true)]);
        rig.notify(0);
    }
    rig.used(0);
    // On its way when the machine is saved: a chain without a doorbell, an interrupt.
    rig.push(0, &[(BUFFERS, 8, true)]);
    probe.source.write(1).unwrap();
    rig.run();
    let interrupt = rig.read(0x60);
    assert_ne!(interrupt, 0);

    let other = Probe::new();
    let mut restored = rig.restored(Box::new(other.clone()));
    assert_eq!(other.told(), [Activate(FEATURES | VIRTIO_F_VERSION_1)]);
    assert_eq!(restored.status(), RUNNING);
    assert_eq!(restored.read(0x60) & interrupt, interrupt);
    assert!(restored.interrupts() > 0, "kicked");
    restored.run();
    assert_eq!(other.told(), [Served(0), Served(1)]);
    assert_eq!(restored.used(0).len(), 1);
    other.source.write(1).unwrap();
    restored.run();
    assert_eq!(other.told(), [Source(7)]);
}

#[test]
fn half_way_negotiations_survive_too() {
    let probe = Probe::new();
    let rig = probe.rig();
    rig.write(0x70, DRIVER);
    // Nothing is decided yet: even what was refused may stand there.
    write_features(&rig, 1 << 63 | 1 << 4);
    rig.write(0x30, 1);
    let saved = rig.transport.save();
    let other = Probe::new();
    let restored = other.rig();
    restored.transport.restore(1, &saved).unwrap();
    restored.transport.kick();
    assert_eq!((restored.transport.save(), other.told()), (saved, vec![]));
    restored.write(0x70, ACCEPTED);
    assert_eq!(restored.status(), DRIVER);
    write_features(&restored, VIRTIO_F_VERSION_1);
    restored.write(0x70, ACCEPTED);
    assert_eq!((restored.status(), restored.read(0x34)), (ACCEPTED, 8));
}

#[test]
fn states_that_do_not_fit_are_refused() {
    let mut rig = Probe::new().rig();
    rig.configure(|f| f);
    let saved = rig.transport.save();
    let refusal = |probe: Probe, mem: DeviceMemory, saved: &[u8]| {
        let line = IrqLine::new().unwrap();
        let device = Box::new(probe);
        let transport = Transport::new("other".into(), device, mem, line).unwrap();
        transport.restore(1, saved).err().map(|e| e.to_string()).unwrap_or_default()
    };
    assert_eq!(refusal(Probe::new(), memory(), &saved), "");
    let fewer = Probe { sizes: &[16], ..Probe::new() };
    assert!(refusal(fewer, memory(), &saved).contains("2 queues where the device has 1"));
    let smaller = Probe { sizes: &[8, 8], ..Probe::new() };
    assert!(refusal(smaller, memory(), &saved).contains("queue"));
    let less = Probe { features: FEATURES & !(1 << 40), ..Probe::new() };
    assert!(refusal(less, memory(), &saved).contains("0x10000000000"));
    let tiny = memory_of(0x4000);
    assert!(refusal(Probe::new(), tiny, &saved).contains("outside of memory"));
    // The first field is the status: DRIVER_OK without FEATURES_OK.
    let mut odd = saved.clone();
    assert_eq!(u32::from(odd[0]), RUNNING);
    odd[0] = (DRIVER | status::DRIVER_OK) as u8;
    assert!(refusal(Probe::new(), memory(), &odd).contains("without features"));
    assert!(refusal(Probe::new(), memory(), &saved[..9]).contains("does not decode"));
}

#[test]
fn chains_of_any_shape_are_one_run_of_bytes() {
    use crate::virtio::buffers::{Buffers, ChainError};
    let mut rig = Probe::new().rig();
    rig.configure(|f| f);
    // Direct, then an indirect table of three with an empty one between.
    rig.descriptor(0, 0, BUFFERS, 3, NEXT, 1);
    rig.descriptor(0, 1, BUFFERS + 0x1000, 48, 4, 0);
    rig.raw_descriptor(BUFFERS + 0x1000, BUFFERS + 3, 2, NEXT, 1);
    rig.raw_descriptor(BUFFERS + 0x1010, u64::MAX, 0, NEXT, 2);
    rig.raw_descriptor(BUFFERS + 0x1020, BUFFERS + 0x100, 4, 2, 0);
    rig.put(BUFFERS, b"hello");
    rig.publish(0, 0);
    // An indirect descriptor in an indirect table.
    rig.descriptor(0, 2, BUFFERS + 0x2000, 32, 4, 0);
    rig.raw_descriptor(BUFFERS + 0x2000, BUFFERS, 1, NEXT, 1);
    rig.raw_descriptor(BUFFERS + 0x2010, BUFFERS + 0x1000, 16, 4, 0);
    rig.publish(0, 2);
    // Readable after writable.
    rig.descriptor(0, 3, BUFFERS, 1, NEXT | 2, 4);
    rig.descriptor(0, 4, BUFFERS, 1, 0, 0);
    rig.publish(0, 3);
    rig.transport.with_device(|_, io| {
        let chain = io.pop(0).unwrap().unwrap();
        let Buffers { mut readable, mut writable } = Buffers::new(chain, io.mem).unwrap();
        let mut hello = [0; 5];
        readable.read_exact(&mut hello).unwrap();
        assert_eq!((&hello, readable.is_empty(), writable.len()), (b"hello", true, 4));
        writable.write_all(b"you").unwrap();
        assert!(matches!(writable.write_all(b"!!"), Err(ChainError::Short)));
        let second = io.pop(0).unwrap().unwrap();
        assert!(matches!(Buffers::new(second, io.mem), Err(ChainError::Endless)));
        let third = io.pop(0).unwrap().unwrap();
        assert!(matches!(Buffers::new(third, io.mem), Err(ChainError::Order)));
        io.undo_pop(0);
        assert_eq!(io.pop(0).unwrap().unwrap().head_index(), 3);
        assert!(io.pop(0).unwrap().is_none());
    });
    assert_eq!(rig.get(BUFFERS + 0x100, 4), *b"you\0");
}
