//! virtio: the device contract, the transport, and one file or folder per device.
//!
//! Adding a device: its file, one line here, one arm where the monitor reads its configuration.

use std::any::Any;
use std::os::fd::RawFd;

use event_manager::EventSet;

use crate::state::Savable;

pub mod balloon;
pub mod block;
pub mod buffers;
mod handle;
mod io;
pub mod iov;
pub mod mmio;
pub mod net;
mod queue_state;
pub mod rng;
mod transport;
mod turn;
pub mod vsock;

#[cfg(test)]
pub(crate) mod conformance;
#[cfg(test)]
mod probe;
#[cfg(test)]
pub(crate) mod testing;

pub use handle::DeviceHandle;
pub use io::{Chain, DeviceIo, Done};
pub use turn::{Turn, Work};

/// A queue that can no longer be used: the driver broke its rules, or its memory is gone. The
/// transport answers with `DEVICE_NEEDS_RESET` (virtio 1.2, 2.1.1).
#[derive(Debug, thiserror::Error)]
#[error("queue {queue}: {cause}")]
pub struct BrokenQueue {
    /// Index of the queue.
    pub queue: usize,
    /// What is wrong with it.
    pub cause: virtio_queue::Error,
}

/// A descriptor of the device itself that the event loop watches while the device is active.
///
/// Watched level-triggered: a handler reads or disarms it, or is called again at once. A device
/// with many changing descriptors keeps its own epoll instance and gives that one here.
#[derive(Clone, Copy, Debug)]
pub struct Source {
    /// The descriptor; stays open as long as the device lives.
    pub fd: RawFd,
    /// Handed back in [`VirtioDevice::source_event`].
    pub token: u32,
    /// What to wait for.
    pub events: EventSet,
}

/// What the transport found wrong; for the device to count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The driver wants to start with queues that cannot be used.
    Activation,
    /// This queue is broken.
    Queue(usize),
}

/// One kind of virtio device, behind any transport.
///
/// The transport owns the queues, the negotiated features, the interrupt and the lock; a device
/// owns what is its own. All calls are made with the transport's lock held, so none may wait for
/// another device or a vCPU. Queue and source events come on the event loop's thread, register
/// accesses (`read_config`, `write_config`, `reset`, `activate`) on a vCPU's.
///
/// State of [`Savable`]: only what is not in the config, the queues or the transport.
pub trait VirtioDevice: Savable + Any + Send {
    /// Device id (virtio 1.2, 5).
    fn device_type(&self) -> u32;
    /// Largest size of each queue; their number is the number of queues.
    fn queue_sizes(&self) -> &[u16];
    /// Feature bits on offer. The transport adds `VIRTIO_F_VERSION_1`.
    fn features(&self) -> u64;
    /// Reads the device's configuration space; `data` is zeroed, bytes past its end stay zero.
    fn read_config(&self, offset: u64, data: &mut [u8]);
    /// Writes the configuration space.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}
    /// The driver is ready, with these features.
    fn activate(&mut self, features: u64);
    /// The driver resets the device: back to the state after construction.
    fn reset(&mut self);
    /// Descriptors to watch while active. They do not change over a device's life.
    fn sources(&self) -> Vec<Source> {
        Vec::new()
    }
    /// The driver notified `queue`, or the device was just activated or restored and must look at
    /// all its queues by itself.
    fn queue_event(&mut self, queue: usize, io: &mut DeviceIo) -> Result<(), BrokenQueue>;
    /// Something is wrong with the driver's side; the transport deals with it.
    fn failed(&self, _failure: Failure) {}
    /// A source of the device is ready.
    fn source_event(
        &mut self,
        _token: u32,
        _events: EventSet,
        _io: &mut DeviceIo,
    ) -> Result<(), BrokenQueue> {
        Ok(())
    }
}

/// Copies the part of a configuration space `config` that a read at `offset` asks for.
pub fn read_config_bytes(config: &[u8], offset: u64, data: &mut [u8]) {
    let Some(rest) = usize::try_from(offset).ok().and_then(|o| config.get(o..)) else { return };
    let n = rest.len().min(data.len());
    data[..n].copy_from_slice(&rest[..n]);
}
