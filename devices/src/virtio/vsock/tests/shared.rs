//! A device that a test can look into while a transport owns it.

use std::sync::{Arc, Mutex};

use event_manager::EventSet;

use super::super::{QUEUE_SIZES, Vsock};
use crate::state::{Savable, StateError};
use crate::virtio::{BrokenQueue, DeviceIo, Source, VirtioDevice};

#[derive(Clone)]
pub struct Shared(pub Arc<Mutex<Vsock>>);

impl Shared {
    pub fn new(device: Vsock) -> Shared {
        Shared(Arc::new(Mutex::new(device)))
    }

    fn with<R>(&self, f: impl FnOnce(&mut Vsock) -> R) -> R {
        f(&mut self.0.lock().unwrap())
    }

    /// Connections, callers, connections in line, resets, bytes that wait for host programs.
    pub fn holds(&self) -> [usize; 5] {
        self.with(|device| device.muxer.holds())
    }
}

impl VirtioDevice for Shared {
    fn device_type(&self) -> u32 {
        self.with(|d| d.device_type())
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        self.with(|d| d.features())
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.with(|d| d.read_config(offset, data));
    }

    fn activate(&mut self, features: u64) {
        self.with(|d| d.activate(features));
    }

    fn reset(&mut self) {
        self.with(VirtioDevice::reset);
    }

    fn sources(&self) -> Vec<Source> {
        self.with(|d| d.sources())
    }

    fn queue_event(&mut self, queue: usize, io: &mut DeviceIo) -> Result<(), BrokenQueue> {
        self.with(|d| d.queue_event(queue, io))
    }

    fn source_event(
        &mut self,
        token: u32,
        events: EventSet,
        io: &mut DeviceIo,
    ) -> Result<(), BrokenQueue> {
        self.with(|d| d.source_event(token, events, io))
    }
}

impl Savable for Shared {
    fn version(&self) -> u32 {
        self.with(|d| d.version())
    }

    fn save(&self) -> Vec<u8> {
        self.with(|d| d.save())
    }

    fn restore(&mut self, version: u32, bytes: &[u8]) -> Result<(), StateError> {
        self.with(|d| d.restore(version, bytes))
    }
}
