//! A device for tests of the transport: it writes down what it is told.

use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex};

use event_manager::EventSet;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::testing::{ACKNOWLEDGE, Rig, memory};
use super::transport::status;
use super::{BrokenQueue, DeviceIo, Source, VirtioDevice, read_config_bytes};
use crate::state::{Savable, StateError};
use Told::*;

/// Feature bit: event index.
pub const EVENT_IDX: u64 = 1 << 29;
/// What the probe offers, without VERSION_1.
pub const FEATURES: u64 = EVENT_IDX | 1 << 28 | 1 << 3 | 1 << 40;
/// Status of a device at the steps of its initialisation.
pub const DRIVER: u32 = ACKNOWLEDGE | status::DRIVER;
/// Features are accepted.
pub const ACCEPTED: u32 = DRIVER | status::FEATURES_OK;
/// The driver runs.
pub const RUNNING: u32 = ACCEPTED | status::DRIVER_OK;

/// What a device can be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    Activate(u64),
    Reset,
    Queue(usize),
    Source(u32),
    Config(u64, Vec<u8>),
}
/// Watches its `source`; serves its queues without a look at the chains.
#[derive(Clone)]
pub struct Probe {
    pub told: Arc<Mutex<Vec<Told>>>,
    pub source: Arc<EventFd>,
    pub features: u64,
    pub sizes: &'static [u16],
}

impl Probe {
    /// A probe with two queues.
    pub fn new() -> Probe {
        let source = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
        Probe { told: Arc::default(), source, features: FEATURES, sizes: &[16, 8] }
    }

    /// What it was told since the last look.
    pub fn told(&self) -> Vec<Told> {
        std::mem::take(&mut self.told.lock().unwrap())
    }

    fn note(&self, what: Told) {
        self.told.lock().unwrap().push(what);
    }

    /// It on a transport, with a driver that has done nothing yet.
    pub fn rig(&self) -> Rig {
        Rig::unconfigured(Box::new(self.clone()), memory())
    }
}

impl VirtioDevice for Probe {
    fn device_type(&self) -> u32 {
        42
    }
    fn queue_sizes(&self) -> &[u16] {
        self.sizes
    }
    fn features(&self) -> u64 {
        self.features
    }
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&[1, 2, 3, 4, 5, 6], offset, data);
    }
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        self.note(Config(offset, data.to_vec()));
    }
    fn activate(&mut self, features: u64) {
        self.note(Activate(features));
    }
    fn reset(&mut self) {
        self.note(Reset);
    }
    fn sources(&self) -> Vec<Source> {
        vec![Source { fd: self.source.as_raw_fd(), token: 7, events: EventSet::IN }]
    }
    fn queue_event(&mut self, queue: usize, io: &mut DeviceIo) -> Result<(), BrokenQueue> {
        self.note(Queue(queue));
        io.drain(queue, |_, _| 0)
    }
    fn source_event(
        &mut self,
        token: u32,
        _: EventSet,
        io: &mut DeviceIo,
    ) -> Result<(), BrokenQueue> {
        self.source.read().unwrap();
        self.note(Source(token));
        io.signal_config();
        Ok(())
    }
}

impl Savable for Probe {
    fn version(&self) -> u32 {
        3
    }
    fn save(&self) -> Vec<u8> {
        vec![9]
    }
    fn restore(&mut self, version: u32, bytes: &[u8]) -> Result<(), StateError> {
        assert_eq!((version, bytes), (3, &[9][..]));
        Ok(())
    }
}

/// Writes the driver's features, both halves.
pub fn write_features(rig: &Rig, features: u64) {
    for half in 0..2 {
        rig.write(0x24, half);
        rig.write(0x20, (features >> (32 * half)) as u32);
    }
}
