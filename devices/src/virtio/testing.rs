//! A driver for tests: sets a device up through its registers, as a guest does, and works its
//! queues in guest memory.
#![allow(dead_code, reason = "each device's tests use a part of it")]

use std::sync::Arc;

use event_manager::{EventManager, SubscriberOps};
use vm_memory::bitmap::AtomicBitmap;
use vm_memory::{Bytes, GuestAddress};

use super::VirtioDevice;
use super::mmio::{MmioTransport, Transport};
use super::transport::status;
use crate::bus::BusDevice;
use crate::interrupt::IrqLine;
use crate::memory::DeviceMemory;

/// Guest memory of the rig.
pub const MEM: u64 = 1 << 22;
/// First address that the rig does not use for rings: tests put their buffers here and above.
pub const BUFFERS: u64 = 0x10_0000;
/// Ring space per queue.
const RINGS: u64 = 0x1_0000;

/// Status bit: the guest noticed the device.
pub const ACKNOWLEDGE: u32 = 1;
/// Descriptor flags.
pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

/// One buffer of a request: address, length, device-writable.
pub type Buf = (u64, u32, bool);

/// A device on a transport with a driver that has set up all its queues, and an event loop.
pub struct Rig {
    pub mem: DeviceMemory,
    pub transport: Arc<Transport>,
    pub bus: MmioTransport,
    pub features: u64,
    events: EventManager<Arc<Transport>>,
    sizes: Vec<u16>,
    avail: Vec<u16>,
    used: Vec<u16>,
    next_desc: Vec<u16>,
}

pub fn memory() -> DeviceMemory {
    memory_of(MEM as usize)
}

/// Guest memory of `len` bytes from address 0.
pub fn memory_of(len: usize) -> DeviceMemory {
    use vm_memory::{GuestRegionMmap, MmapRegion, mmap::MmapRegionBuilder};
    let bitmap = Some(AtomicBitmap::new(len, std::num::NonZeroUsize::new(4096).unwrap()));
    let region: MmapRegion<_> = MmapRegionBuilder::new_with_bitmap(len, bitmap)
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
        .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE)
        .build()
        .unwrap();
    let region = GuestRegionMmap::new(region, GuestAddress(0)).unwrap();
    DeviceMemory::from_regions(vec![region]).unwrap()
}

impl Rig {
    /// A rig whose driver takes every feature on offer but event index.
    pub fn new(device: Box<dyn VirtioDevice>) -> Rig {
        Rig::with_features(device, |offered| offered & !(1 << 29))
    }

    /// A rig whose driver picks features.
    pub fn with_features(device: Box<dyn VirtioDevice>, pick: impl Fn(u64) -> u64) -> Rig {
        let mut rig = Rig::unconfigured(device, memory());
        rig.configure(pick);
        rig
    }

    /// A rig with a device that no driver has touched.
    pub fn unconfigured(device: Box<dyn VirtioDevice>, mem: DeviceMemory) -> Rig {
        let sizes = device.queue_sizes().to_vec();
        let n = sizes.len();
        let line = IrqLine::new().unwrap();
        let transport = Arc::new(Transport::new("test".into(), device, mem.clone(), line).unwrap());
        let mut events = EventManager::new().unwrap();
        events.add_subscriber(transport.clone());
        let bus = MmioTransport(transport.clone());
        let (avail, used, next_desc) = (vec![0; n], vec![0; n], vec![0; n]);
        Rig { mem, transport, bus, features: 0, events, sizes, avail, used, next_desc }
    }

    /// How many queues the device has.
    pub fn queues(&self) -> usize {
        self.sizes.len()
    }

    /// The same driver, which goes on with `device` after a snapshot and a restore.
    pub fn restored(&self, device: Box<dyn VirtioDevice>) -> Rig {
        let mut rig = Rig::unconfigured(device, self.mem.clone());
        rig.transport.restore(self.transport.version(), &self.transport.save()).unwrap();
        rig.features = self.features;
        rig.avail.clone_from(&self.avail);
        rig.used.clone_from(&self.used);
        rig.next_desc.clone_from(&self.next_desc);
        rig.transport.kick();
        rig
    }

    pub fn read(&self, offset: u64) -> u32 {
        let mut b = [0; 4];
        self.bus.read(offset, &mut b);
        u32::from_le_bytes(b)
    }

    pub fn write(&self, offset: u64, value: u32) {
        self.bus.write(offset, &value.to_le_bytes());
    }

    pub fn status(&self) -> u32 {
        self.read(0x70)
    }

    /// The driver's initialisation sequence (virtio 1.2, 3.1.1).
    pub fn configure(&mut self, pick: impl Fn(u64) -> u64) {
        self.write(0x70, 0);
        self.write(0x70, ACKNOWLEDGE);
        self.write(0x70, ACKNOWLEDGE | status::DRIVER);
        self.write(0x14, 0);
        let low = self.read(0x10);
        self.write(0x14, 1);
        let offered = u64::from(self.read(0x10)) << 32 | u64::from(low);
        self.features = pick(offered);
        self.write(0x24, 0);
        self.write(0x20, self.features as u32);
        self.write(0x24, 1);
        self.write(0x20, (self.features >> 32) as u32);
        let up = ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK;
        self.write(0x70, up);
        for q in 0..self.sizes.len() {
            let base = q as u64 * RINGS;
            self.write(0x30, q as u32);
            self.write(0x38, self.sizes[q].into());
            for (reg, address) in [(0x80, base), (0x90, base + 0x8000), (0xa0, base + 0xa000)] {
                self.write(reg, address as u32);
                self.write(reg + 4, (address >> 32) as u32);
            }
            self.mem.write_slice(&vec![0; RINGS as usize], GuestAddress(base)).unwrap();
            self.write(0x44, 1);
            (self.avail[q], self.used[q], self.next_desc[q]) = (0, 0, 0);
        }
        self.write(0x70, up | status::DRIVER_OK);
        self.run();
    }

    /// Writes one raw descriptor.
    pub fn descriptor(&self, queue: usize, index: u16, addr: u64, len: u32, flags: u16, next: u16) {
        let at = GuestAddress(queue as u64 * RINGS + 16 * u64::from(index));
        self.raw_descriptor(at.0, addr, len, flags, next);
    }

    /// Writes one raw descriptor anywhere (indirect tables).
    pub fn raw_descriptor(&self, at: u64, addr: u64, len: u32, flags: u16, next: u16) {
        let mut bytes = addr.to_le_bytes().to_vec();
        bytes.extend(len.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        self.mem.write_slice(&bytes, GuestAddress(at)).unwrap();
    }

    /// Writes an indirect table of `bufs` at `at`; returns its length in bytes.
    pub fn table(&self, at: u64, bufs: &[Buf]) -> u32 {
        for (index, &(addr, len, write)) in bufs.iter().enumerate() {
            let next = if index + 1 < bufs.len() { NEXT } else { 0 };
            let flags = next | if write { WRITE } else { 0 };
            self.raw_descriptor(at + 16 * index as u64, addr, len, flags, index as u16 + 1);
        }
        16 * bufs.len() as u32
    }

    /// Entries of `queue`.
    pub fn size(&self, queue: usize) -> u16 {
        self.sizes[queue]
    }

    /// Where the device asks for its next notification, if event index is negotiated.
    pub fn avail_event(&self, queue: usize) -> u16 {
        let ring = queue as u64 * RINGS + 0xa000;
        let at = ring + 4 + 8 * u64::from(self.sizes[queue]);
        self.mem.read_obj(GuestAddress(at)).unwrap()
    }

    /// Makes the chain that starts at `head` available, without a notification.
    pub fn publish(&mut self, queue: usize, head: u16) {
        let ring = queue as u64 * RINGS + 0x8000;
        let slot = ring + 4 + 2 * u64::from(self.avail[queue] % self.sizes[queue]);
        self.mem.write_obj(head, GuestAddress(slot)).unwrap();
        self.avail[queue] = self.avail[queue].wrapping_add(1);
        self.mem.write_obj(self.avail[queue], GuestAddress(ring + 2)).unwrap();
    }

    /// Lies about how many chains are available.
    pub fn set_avail_index(&mut self, queue: usize, index: u16) {
        self.avail[queue] = index;
        let ring = queue as u64 * RINGS + 0x8000;
        self.mem.write_obj(index, GuestAddress(ring + 2)).unwrap();
    }

    /// Queues a chain of `bufs`; returns its head.
    pub fn push(&mut self, queue: usize, bufs: &[Buf]) -> u16 {
        let size = self.sizes[queue];
        let head = self.next_desc[queue];
        for (i, &(addr, len, write)) in bufs.iter().enumerate() {
            let index = (head + i as u16) % size;
            let next = (index + 1) % size;
            let mut flags = if write { WRITE } else { 0 };
            if i + 1 < bufs.len() {
                flags |= NEXT;
            }
            self.descriptor(queue, index, addr, len, flags, next);
        }
        self.next_desc[queue] = (head + bufs.len() as u16) % size;
        self.publish(queue, head);
        head
    }

    /// Rings the doorbell and lets the event loop run until nothing is ready.
    pub fn notify(&mut self, queue: usize) {
        self.write(0x50, queue as u32);
        self.run();
    }

    /// Lets the event loop run until nothing is ready (bounded, so that a spin fails the test).
    pub fn run(&mut self) {
        for _ in 0..10_000 {
            if self.events.run_with_timeout(0).unwrap() == 0 {
                return;
            }
        }
        panic!("the device spins");
    }

    /// Waits up to `ms` for events, and handles them; for devices with real descriptors.
    pub fn wait(&mut self, ms: i32) -> usize {
        self.events.run_with_timeout(ms).unwrap()
    }

    /// Chains handed back since the last call: head and bytes written.
    pub fn used(&mut self, queue: usize) -> Vec<(u32, u32)> {
        let ring = queue as u64 * RINGS + 0xa000;
        let index: u16 = self.mem.read_obj(GuestAddress(ring + 2)).unwrap();
        let mut out = Vec::new();
        while self.used[queue] != index {
            let slot = ring + 4 + 8 * u64::from(self.used[queue] % self.sizes[queue]);
            let id: u32 = self.mem.read_obj(GuestAddress(slot)).unwrap();
            let len: u32 = self.mem.read_obj(GuestAddress(slot + 4)).unwrap();
            out.push((id, len));
            self.used[queue] = self.used[queue].wrapping_add(1);
        }
        out
    }

    pub fn put(&self, addr: u64, data: &[u8]) {
        self.mem.write_slice(data, GuestAddress(addr)).unwrap();
    }

    pub fn get(&self, addr: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        self.mem.read_slice(&mut data, GuestAddress(addr)).unwrap();
        data
    }

    /// Interrupts raised since the last call.
    pub fn interrupts(&self) -> u64 {
        self.transport.irq_line().event().read().unwrap_or(0)
    }
}
