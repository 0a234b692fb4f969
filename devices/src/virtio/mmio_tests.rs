//! The register file: what may be written when, and what is read back.

use super::*;
use crate::interrupt::{STATUS_CONFIG, STATUS_USED};
use crate::virtio::probe::Told::{Activate, Config, Reset};
use crate::virtio::probe::{ACCEPTED, DRIVER, EVENT_IDX, FEATURES, Probe, RUNNING, write_features};
use crate::virtio::testing::{BUFFERS, Rig};

#[test]
fn says_what_it_is() {
    let rig = Probe::new().rig();
    assert_eq!(rig.read(0), 0x7472_6976);
    assert_eq!((rig.read(4), rig.read(8)), (2, 42));
    let halves = [0, 1, 2].map(|half| {
        rig.write(0x14, half);
        rig.read(0x10)
    });
    assert_eq!(halves, [1 << 29 | 1 << 28 | 1 << 3, 1 << 8 | 1, 0], "with VERSION_1");
    let sizes = [0, 1, 2, u32::MAX].map(|queue| {
        rig.write(0x30, queue);
        rig.read(0x34)
    });
    assert_eq!(sizes, [16, 8, 0, 0]);
    // No shared memory, no reset of single queues.
    assert_eq!((rig.read(0xb0), rig.read(0xb4), rig.read(0xc0)), (u32::MAX, u32::MAX, 0));
}

#[test]
fn registers_are_32_bits_wide() {
    let rig = Probe::new().rig();
    for (offset, len) in [(0, 1), (0, 2), (0, 8), (2, 4), (1, 1)] {
        let mut data = vec![0xee; len];
        rig.bus.read(offset, &mut data);
        assert_eq!(data, vec![0; len], "{len} bytes at {offset}");
    }
    rig.bus.write(0x70, &[1]);
    rig.bus.write(0x70, &[1, 0, 0, 0, 0, 0, 0, 0]);
    rig.bus.write(0x71, &[1, 0, 0, 0]);
    assert_eq!(rig.status(), 0);
}

#[test]
fn keeps_to_the_order_of_initialisation() {
    let probe = Probe::new();
    let rig = probe.rig();
    let good = FEATURES | VIRTIO_F_VERSION_1;
    let features = |rig: &Rig| rig.transport.core().driver_features;

    write_features(&rig, good);
    assert_eq!(features(&rig), 0, "before DRIVER");
    rig.write(0x70, DRIVER);
    write_features(&rig, good);
    rig.write(0x24, 2);
    rig.write(0x20, u32::MAX);
    assert_eq!(features(&rig), good);

    let size = |rig: &Rig| rig.transport.core().queues[0].size();
    rig.write(0x38, 4);
    rig.write(0x44, 1);
    assert_eq!((size(&rig), rig.read(0x44)), (16, 0), "before FEATURES_OK");
    rig.write(0x70, DRIVER | status::DRIVER_OK);
    assert_eq!(rig.status(), DRIVER, "DRIVER_OK before FEATURES_OK");
    assert_eq!(probe.told(), []);

    rig.write(0x70, ACCEPTED);
    assert_eq!(rig.status(), ACCEPTED);
    write_features(&rig, VIRTIO_F_VERSION_1);
    assert_eq!(features(&rig), good, "after FEATURES_OK");
    // Sizes and addresses that break the rules leave what was there.
    for bad in [0, 3, 32, 0x1_0004] {
        rig.write(0x38, bad);
        assert_eq!(size(&rig), 16);
    }
    rig.write(0x38, 4);
    assert_eq!(size(&rig), 4);
    for (register, address) in [(0x80, 0x1000), (0x90, 0x2000), (0xa0, 0x3000)] {
        rig.write(register, address);
        rig.write(register, address + 1);
    }
    let core = rig.transport.core();
    let queue = &core.queues[0];
    assert_eq!(
        (queue.desc_table(), queue.avail_ring(), queue.used_ring()),
        (0x1000, 0x2000, 0x3000)
    );
    drop(core);
    rig.write(0x44, 2);
    assert_eq!(rig.read(0x44), 0);
    rig.write(0x44, 1);
    assert_eq!(rig.read(0x44), 1);
    rig.write(0x30, 9);
    rig.write(0x44, 1);

    rig.write(0x70, RUNNING);
    assert_eq!((rig.status(), probe.told()), (RUNNING, vec![Activate(good)]));
    rig.write(0x30, 0);
    rig.write(0x38, 8);
    rig.write(0x44, 0);
    assert_eq!((size(&rig), rig.read(0x44)), (4, 1), "after DRIVER_OK");
    // Bits stay until a reset, none starts the device twice, and the device's bit is its own.
    rig.write(0x70, 1);
    rig.write(0x70, RUNNING | status::DEVICE_NEEDS_RESET);
    assert_eq!((rig.status(), probe.told()), (RUNNING, vec![]));
}

#[test]
fn refuses_features_that_are_not_on_offer() {
    let probe = Probe::new();
    let rig = probe.rig();
    for bad in [FEATURES, VIRTIO_F_VERSION_1 | 1 << 4, VIRTIO_F_VERSION_1 | 1 << 63, 0] {
        rig.write(0x70, 0);
        rig.write(0x70, DRIVER);
        write_features(&rig, bad);
        rig.write(0x70, ACCEPTED);
        assert_eq!(rig.status(), DRIVER, "{bad:#x}");
        rig.write(0x70, RUNNING);
        assert_eq!(rig.status(), DRIVER, "{bad:#x}, all at once");
        // It may think again.
        write_features(&rig, VIRTIO_F_VERSION_1);
        rig.write(0x70, ACCEPTED);
        assert_eq!(rig.status(), ACCEPTED);
        assert_eq!(probe.told(), [Reset]);
    }
    rig.write(0x70, 0);
    rig.write(0x70, DRIVER | status::FAILED);
    write_features(&rig, VIRTIO_F_VERSION_1);
    assert_eq!(rig.transport.core().driver_features, 0, "after FAILED");
}

#[test]
fn interrupts_say_why_until_acknowledged() {
    let probe = Probe::new();
    let mut rig = probe.rig();
    rig.configure(|f| f & !EVENT_IDX);
    assert_eq!((rig.read(0x60), rig.interrupts()), (0, 0));
    rig.push(0, &[(BUFFERS, 8, true)]);
    rig.notify(0);
    assert_eq!((rig.read(0x60), rig.interrupts()), (STATUS_USED, 1));
    let generation = rig.read(0xfc);
    probe.source.write(1).unwrap();
    rig.run();
    assert_eq!((rig.read(0x60), rig.interrupts()), (STATUS_USED | STATUS_CONFIG, 1));
    assert_eq!(rig.read(0xfc), generation + 1);
    rig.write(0x64, STATUS_USED);
    assert_eq!(rig.read(0x60), STATUS_CONFIG);
    rig.write(0x64, u32::MAX);
    assert_eq!(rig.read(0x60), 0);
    rig.notify(0);
    assert_eq!(rig.interrupts(), 0, "nothing new, nothing to say");
}

#[test]
fn configuration_space_takes_any_width() {
    let probe = Probe::new();
    let rig = probe.rig();
    for (offset, expected) in
        [(0x100, &[1u8, 2, 3, 4][..]), (0x101, &[2]), (0x104, &[5, 6, 0, 0]), (0x106, &[0, 0])]
    {
        let mut data = vec![0xff; expected.len()];
        rig.bus.read(offset, &mut data);
        assert_eq!(data, expected, "at {offset:#x}");
    }
    rig.bus.write(0x101, &[7]);
    assert_eq!(probe.told(), [], "before there is a driver");
    rig.write(0x70, DRIVER);
    rig.bus.write(0x101, &[7, 8]);
    assert_eq!(probe.told(), [Config(1, vec![7, 8])]);
}
