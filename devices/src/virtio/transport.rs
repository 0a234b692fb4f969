//! A virtio device with its queues, as the event loop drives it.
//!
//! [`Core`] is what both sides share under one lock: the register side (`mmio.rs`, vCPU threads)
//! and the event side (here, the event loop's thread). Activation and reset happen on a vCPU;
//! the event loop learns of them through the `changed` descriptor and then adds or removes the
//! device's own sources.

use std::sync::{Mutex, MutexGuard, PoisonError};

use event_manager::{EventOps, EventSet, EventSubscriber, Events};
use serde::{Deserialize, Serialize};
use virtio_queue::{Queue, QueueT};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::queue_state::QueueStateV1;
use super::turn::Turn;
use super::{BrokenQueue, DeviceIo, Failure, VirtioDevice};
use crate::interrupt::{IrqLine, STATUS_CONFIG, STATUS_USED, VirtioInterrupt};
use crate::memory::DeviceMemory;
use crate::state::{self, Savable, StateError};

/// Device status bits that mean something to the device (virtio 1.2, 2.1).
pub mod status {
    /// The guest has a driver for it.
    pub const DRIVER: u32 = 2;
    /// The driver is set up.
    pub const DRIVER_OK: u32 = 4;
    /// Feature negotiation is complete.
    pub const FEATURES_OK: u32 = 8;
    /// The device met an error that it cannot recover from.
    pub const DEVICE_NEEDS_RESET: u32 = 64;
    /// The guest gave up.
    pub const FAILED: u32 = 128;
}

/// Feature bit 32: the driver follows virtio 1.0 and later.
pub const VIRTIO_F_VERSION_1: u64 = 1 << 32;

const VERSION: u32 = 1;
/// Event data at and above this are queue indices below it are source tokens.
const TOKEN_QUEUE: u32 = 1 << 16;
const TOKEN_CHANGED: u32 = 1 << 17;

/// What register accesses and events share.
pub(super) struct Core {
    pub(super) device: Box<dyn VirtioDevice>,
    pub(super) queues: Vec<Queue>,
    pub(super) status: u32,
    pub(super) features_select: u32,
    pub(super) driver_features_select: u32,
    pub(super) driver_features: u64,
    pub(super) queue_select: u32,
    pub(super) config_generation: u32,
    sources_watched: bool,
    /// The most that one turn has done.
    #[cfg(test)]
    longest: std::cell::Cell<super::turn::Work>,
}

/// A virtio device on a transport. Shared by the bus and the event loop.
pub struct Transport {
    pub(super) core: Mutex<Core>,
    pub(super) interrupt: VirtioInterrupt,
    mem: DeviceMemory,
    queue_events: Vec<EventFd>,
    changed: EventFd,
    name: String,
}

#[derive(Serialize, Deserialize)]
struct TransportStateV1 {
    status: u32,
    features_select: u32,
    driver_features_select: u32,
    driver_features: u64,
    queue_select: u32,
    config_generation: u32,
    interrupt_status: u32,
    queues: Vec<QueueStateV1>,
    device_version: u32,
    device: Vec<u8>,
}

impl Core {
    pub(super) fn offered_features(&self) -> u64 {
        self.device.features() | VIRTIO_F_VERSION_1
    }

    pub(super) fn active(&self) -> bool {
        self.status & (status::DRIVER_OK | status::DEVICE_NEEDS_RESET) == status::DRIVER_OK
    }

    pub(super) fn reset(&mut self) {
        self.device.reset();
        self.queues.iter_mut().for_each(Queue::reset);
        self.status = 0;
        self.features_select = 0;
        self.driver_features_select = 0;
        self.driver_features = 0;
        self.queue_select = 0;
    }
}

impl Transport {
    /// Puts `device` on a transport that raises `line`. `name` appears in log messages.
    pub fn new(
        name: String,
        device: Box<dyn VirtioDevice>,
        mem: DeviceMemory,
        line: IrqLine,
    ) -> std::io::Result<Transport> {
        let queues: Vec<Queue> = device
            .queue_sizes()
            .iter()
            .map(|&size| Queue::new(size).expect("queue sizes are powers of two up to 32768"))
            .collect();
        let event = || EventFd::new(EFD_NONBLOCK);
        let queue_events = queues.iter().map(|_| event()).collect::<Result<_, _>>()?;
        Ok(Transport {
            core: Mutex::new(Core {
                device,
                queues,
                status: 0,
                features_select: 0,
                driver_features_select: 0,
                driver_features: 0,
                queue_select: 0,
                config_generation: 0,
                sources_watched: false,
                #[cfg(test)]
                longest: std::cell::Cell::default(),
            }),
            interrupt: VirtioInterrupt::new(line),
            mem,
            queue_events,
            changed: event()?,
            name,
        })
    }

    /// The doorbells, one per queue: the monitor makes the guest's notifications write to them.
    pub fn queue_events(&self) -> &[EventFd] {
        &self.queue_events
    }

    /// The interrupt line.
    pub fn irq_line(&self) -> &IrqLine {
        self.interrupt.line()
    }

    /// The device's name in messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn core(&self) -> MutexGuard<'_, Core> {
        // A panic under the lock ends the process; the data is plain in any case.
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The doorbell of `queue`, rung by hand (where the monitor has no ioeventfd for it).
    pub(super) fn ring(&self, queue: u32) {
        if let Some(event) = self.queue_events.get(queue as usize) {
            let _ = event.write(1);
        }
    }

    /// The driver set `DRIVER_OK`: checks its queues and starts the device.
    pub(super) fn activate(&self, core: &mut Core) {
        let bad = core.queues.iter().position(|q| q.ready() && !q.is_valid(&self.mem));
        if let Some(queue) = bad {
            log::warn!("{}: queue {queue} has rings outside of guest memory", self.name);
            core.device.failed(Failure::Activation);
            self.mark_broken(core);
            return;
        }
        let features = core.driver_features;
        let event_idx =
            features & (1 << virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX) != 0;
        core.queues.iter_mut().for_each(|q| q.set_event_idx(event_idx));
        core.device.activate(features);
        self.notify_changed();
    }

    /// Whether the device runs or not has changed: the event loop updates what it watches.
    pub(super) fn notify_changed(&self) {
        let _ = self.changed.write(1);
    }

    fn mark_broken(&self, core: &mut Core) {
        core.status |= status::DEVICE_NEEDS_RESET;
        self.interrupt.raise(STATUS_CONFIG);
        self.notify_changed();
    }

    /// Runs one handler of the device, if it is active.
    fn handle(
        &self,
        core: &mut Core,
        call: impl FnOnce(&mut dyn VirtioDevice, &mut DeviceIo) -> Result<(), BrokenQueue>,
    ) {
        if !core.active() {
            return;
        }
        if let Err(e) = self.call(core, call) {
            log::warn!("{}: needs a reset: {e}", self.name);
            core.device.failed(Failure::Queue(e.queue));
            self.mark_broken(core);
        }
    }

    /// Runs `f` with the device, and does what it asked its [`DeviceIo`] for.
    fn call<R>(
        &self,
        core: &mut Core,
        f: impl FnOnce(&mut dyn VirtioDevice, &mut DeviceIo) -> R,
    ) -> R {
        let turn = Turn::default();
        let mut io = DeviceIo::new(&self.mem, &mut core.queues, &self.interrupt, &turn);
        let result = f(&mut *core.device, &mut io);
        let (again, config_changed) = (io.again, io.config_changed);
        #[cfg(test)]
        core.longest.set(core.longest.get().most(turn.work()));
        core.config_generation = core.config_generation.wrapping_add(config_changed.into());
        (0..self.queue_events.len() as u32)
            .filter(|q| again >> q & 1 != 0)
            .for_each(|q| self.ring(q));
        result
    }

    /// Has the device look at all its queues, and interrupts the guest: after a restore, whatever
    /// was on its way is found again. A spurious interrupt does no harm.
    pub fn kick(&self) {
        let core = self.core();
        if core.active() {
            (0..self.queue_events.len() as u32).for_each(|q| self.ring(q));
            self.interrupt.raise(STATUS_USED);
            self.notify_changed();
        }
    }

    /// Adds or removes the device's sources, so that they are watched while it is active.
    fn update_sources(&self, core: &mut Core, ops: &mut EventOps) {
        let active = core.active();
        if active == core.sources_watched {
            return;
        }
        for source in core.device.sources() {
            let events = Events::with_data_raw(source.fd, source.token, source.events);
            let result = if active { ops.add(events) } else { ops.remove(events) };
            if let Err(e) = result {
                log::error!("{}: event source {}: {e}", self.name, source.token);
            }
        }
        core.sources_watched = active;
    }

    /// The most that one turn has done, and from now on.
    #[cfg(test)]
    pub(crate) fn longest_turn(&self) -> super::turn::Work {
        self.core().longest.take()
    }

    /// Runs `f` with the device, active or not; see [`DeviceHandle`](super::DeviceHandle).
    pub fn with_device<R>(&self, f: impl FnOnce(&mut dyn VirtioDevice, &mut DeviceIo) -> R) -> R {
        self.call(&mut self.core(), f)
    }
}

impl EventSubscriber for Transport {
    fn init(&self, ops: &mut EventOps) {
        let queues = self.queue_events.iter().zip(TOKEN_QUEUE..);
        let events = queues.chain([(&self.changed, TOKEN_CHANGED)]);
        for (event, token) in events {
            if let Err(e) = ops.add(Events::with_data(event, token, EventSet::IN)) {
                log::error!("{}: {e}", self.name);
            }
        }
        self.update_sources(&mut self.core(), ops);
    }

    fn process(&self, events: Events, ops: &mut EventOps) {
        let core = &mut *self.core();
        match events.data() {
            TOKEN_CHANGED => {
                let _ = self.changed.read();
                self.update_sources(core, ops);
            }
            token @ TOKEN_QUEUE.. => {
                let queue = (token - TOKEN_QUEUE) as usize;
                let _ = self.queue_events[queue].read();
                self.handle(core, |device, io| device.queue_event(queue, io));
            }
            token => {
                let set = events.event_set();
                self.handle(core, |device, io| device.source_event(token, set, io));
            }
        }
    }
}

impl Transport {
    /// Version of what [`Transport::save`] writes.
    pub fn version(&self) -> u32 {
        VERSION
    }

    /// The state of transport, queues and device.
    pub fn save(&self) -> Vec<u8> {
        let core = self.core();
        state::encode(&TransportStateV1 {
            status: core.status,
            features_select: core.features_select,
            driver_features_select: core.driver_features_select,
            driver_features: core.driver_features,
            queue_select: core.queue_select,
            config_generation: core.config_generation,
            interrupt_status: self.interrupt.status(),
            queues: core.queues.iter().map(QueueStateV1::from).collect(),
            device_version: core.device.version(),
            device: core.device.save(),
        })
    }

    /// Takes over a saved state. The lock makes this possible for a device that is shared already.
    pub fn restore(&self, version: u32, bytes: &[u8]) -> Result<(), StateError> {
        let TransportStateV1 {
            status,
            features_select,
            driver_features_select,
            driver_features,
            queue_select,
            config_generation,
            interrupt_status,
            queues,
            device_version,
            device,
        } = state::decode(version, VERSION, bytes)?;
        let mut core = self.core();
        if queues.len() != core.queues.len() {
            let (got, want) = (queues.len(), core.queues.len());
            return Err(StateError::Invalid(format!("{got} queues where the device has {want}")));
        }
        let (accepted, running) = (status & status::FEATURES_OK, status & status::DRIVER_OK);
        // Until they are accepted, a driver may have written any.
        let lost = driver_features & !core.offered_features();
        if accepted != 0 && lost != 0 {
            return Err(StateError::Invalid(format!("features {lost:#x} are not on offer")));
        }
        if running != 0 && accepted == 0 {
            return Err(StateError::Invalid("a driver runs without features".into()));
        }
        let live = queues
            .into_iter()
            .zip(&core.queues)
            .map(|(saved, queue)| saved.into_queue(queue.max_size(), &self.mem))
            .collect::<Result<Vec<_>, _>>()?;
        core.queues = live;
        core.status = status;
        core.features_select = features_select;
        core.driver_features_select = driver_features_select;
        core.driver_features = driver_features;
        core.queue_select = queue_select;
        core.config_generation = config_generation;
        self.interrupt.set_status(interrupt_status);
        if core.active() {
            core.device.activate(driver_features);
        }
        core.device.restore(device_version, &device)
    }
}

impl Savable for Transport {
    fn version(&self) -> u32 {
        Transport::version(self)
    }

    fn save(&self) -> Vec<u8> {
        Transport::save(self)
    }

    fn restore(&mut self, version: u32, bytes: &[u8]) -> Result<(), StateError> {
        Transport::restore(self, version, bytes)
    }
}

#[cfg(test)]
#[path = "transport_tests.rs"]
mod tests;
