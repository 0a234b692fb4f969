//! virtio memory balloon (virtio 1.2, 5.5): inflate and deflate, statistics, free page reporting
//! and free page hinting. Who gives the pages back to the host is not known here ([`Reclaim`]).
//!
//! The number of a queue depends on the features that the driver took (`queues.rs`).

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use event_manager::EventSet;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_ids::VIRTIO_ID_BALLOON;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use super::buffers::ChainError;
use super::{
    BrokenQueue, Chain, DeviceIo, Done, Failure, Source, Turn, VirtioDevice, read_config_bytes,
};
use crate::memory::{DeviceMemory, Reclaim};
use crate::metrics::{BalloonMetrics, Count};
use crate::state::{self, Savable, StateError};

mod control;
mod error;
mod pages;
mod queues;
mod requests;
mod stats;

pub use control::{BalloonHandle, HintingStatus};
pub use error::BalloonError;
pub use stats::BalloonStats;

use control::{Control, Hinting};
use pages::Given;
use queues::{Role, roles};

/// Feature bits (virtio 1.2, 5.5.3).
mod features {
    pub(super) const STATS: u64 = 1 << 1;
    pub(super) const DEFLATE_ON_OOM: u64 = 1 << 2;
    pub(super) const FREE_PAGE_HINT: u64 = 1 << 3;
    pub(super) const PAGE_REPORTING: u64 = 1 << 5;
}

const VERSION: u32 = 1;
const QUEUE_SIZES: [u16; 5] = [256; 5];
/// Pages of 4 KiB in a MiB.
const PAGES_PER_MIB: u32 = 256;

const SOURCE_CONTROL: u32 = 0;
const SOURCE_TIMER: u32 = 1;

/// What the user asked for; the names are those of Firecracker's API.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BalloonConfig {
    /// Size to ask the guest for, in MiB.
    pub amount_mib: u32,
    /// The guest may take memory back before it kills a process for want of it.
    pub deflate_on_oom: bool,
    /// Seconds between two requests for statistics; 0: no statistics.
    pub stats_polling_interval_s: u16,
    /// The guest reports pages that became free, by itself.
    pub free_page_reporting: bool,
    /// The guest tells which pages are free when asked to.
    pub free_page_hinting: bool,
}

/// Carries out a request, or a part of it.
type Request = fn(&Balloon, Chain, Part) -> Result<Given, ChainError>;

/// The part of a request that a turn may do.
struct Part<'a> {
    mem: &'a DeviceMemory,
    turn: &'a Turn,
    /// How far it was carried out before.
    done: u64,
}

/// A balloon.
pub struct Balloon {
    offered: u64,
    /// Number of queues that the features on offer need.
    queues: usize,
    /// The queues that the driver uses; empty while there is none.
    roles: Vec<Role>,
    reclaim: Box<dyn Reclaim>,
    handle: BalloonHandle,
    timer: OwnedFd,
    /// Seconds that the timer is set to.
    armed_s: u16,
    /// By queue: the first chain of the ring and how far it was carried out, if in part.
    begun: [Option<(u16, u64)>; QUEUE_SIZES.len()],
    metrics: Arc<BalloonMetrics>,
}

#[derive(Serialize, Deserialize)]
struct BalloonStateV1 {
    target_pages: u32,
    actual_pages: u32,
    stats_interval_s: u16,
    stats: stats::Values,
    hinting: Hinting,
}

impl Balloon {
    /// A balloon that gives pages back through `reclaim`.
    pub fn new(config: BalloonConfig, reclaim: Box<dyn Reclaim>) -> Result<Balloon, BalloonError> {
        let BalloonConfig {
            amount_mib,
            deflate_on_oom,
            stats_polling_interval_s,
            free_page_reporting,
            free_page_hinting,
        } = config;
        let offered = [
            (deflate_on_oom, features::DEFLATE_ON_OOM),
            (stats_polling_interval_s > 0, features::STATS),
            (free_page_reporting, features::PAGE_REPORTING),
            (free_page_hinting, features::FREE_PAGE_HINT),
        ]
        .into_iter()
        .filter_map(|(on, bit)| on.then_some(bit))
        .sum();
        let target_pages =
            amount_mib.checked_mul(PAGES_PER_MIB).ok_or(BalloonError::TooLarge(amount_mib))?;
        let handle = BalloonHandle::new(Control {
            target_pages,
            stats_interval_s: stats_polling_interval_s,
            offered,
            ..Control::default()
        })
        .map_err(BalloonError::Descriptor)?;
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)
            .map_err(|e| BalloonError::Descriptor(e.into()))?;
        let queues = roles(offered).len();
        Ok(Balloon {
            offered,
            queues,
            roles: Vec::new(),
            reclaim,
            handle,
            timer,
            armed_s: 0,
            begun: [None; QUEUE_SIZES.len()],
            metrics: Arc::default(),
        })
    }

    /// What it counts.
    pub fn metrics(&self) -> Arc<BalloonMetrics> {
        self.metrics.clone()
    }

    /// The handle by which this balloon is controlled.
    pub fn handle(&self) -> BalloonHandle {
        self.handle.clone()
    }

    /// Sets the timer to `seconds`, first and between; 0 stops it.
    fn arm(&mut self, seconds: u16) {
        if std::mem::replace(&mut self.armed_s, seconds) == seconds {
            return;
        }
        let time = Timespec { tv_sec: seconds.into(), tv_nsec: 0 };
        let spec = Itimerspec { it_interval: time, it_value: time };
        if let Err(e) = timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &spec) {
            log::error!("balloon: timer: {e}");
        }
    }

    /// The driver's interval for statistics; 0 if it takes none.
    fn wanted_interval(&self) -> u16 {
        let control = self.handle.lock();
        if control.negotiated & features::STATS != 0 { control.stats_interval_s } else { 0 }
    }

    fn signal_config(&self, io: &mut DeviceIo) {
        if std::mem::take(&mut self.handle.lock().config_changed) {
            io.signal_config();
        }
    }
}

impl VirtioDevice for Balloon {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_BALLOON
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES[..self.queues]
    }

    fn features(&self) -> u64 {
        self.offered | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        // virtio 1.2, 5.5.4: num_pages, actual, free_page_hint_cmd_id, poison_val (not offered).
        let control = self.handle.lock();
        let words = [control.target_pages, control.actual_pages, control.hinting.host_cmd, 0];
        read_config_bytes(words.map(u32::to_le_bytes).as_flattened(), offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        // Only `actual` is the driver's, and drivers write it whole.
        if let (4, Ok(bytes)) = (offset, data.try_into()) {
            self.handle.lock().actual_pages = u32::from_le_bytes(bytes);
        }
    }

    fn activate(&mut self, features: u64) {
        self.roles = roles(features);
        self.handle.lock().negotiated = features;
        self.arm(self.wanted_interval());
    }

    fn reset(&mut self) {
        let mut control = self.handle.lock();
        control.negotiated = 0;
        control.actual_pages = 0;
        control.stats = stats::Values::default();
        control.hinting = Hinting::default();
        drop(control);
        self.begun = [None; QUEUE_SIZES.len()];
        self.roles.clear();
        self.arm(0);
    }

    fn sources(&self) -> Vec<Source> {
        let source = |fd, token| Source { fd, token, events: EventSet::IN };
        vec![
            source(self.handle.as_raw_fd(), SOURCE_CONTROL),
            source(self.timer.as_raw_fd(), SOURCE_TIMER),
        ]
    }

    fn queue_event(&mut self, queue: usize, io: &mut DeviceIo) -> Result<(), BrokenQueue> {
        let Some(&role) = self.roles.get(queue) else { return Ok(()) };
        let metrics = &*self.metrics.clone();
        // The third and fourth count what is given back and what is malformed.
        let unread = Count::default();
        let (request, count, freed, fails): (Request, _, _, _) = match role {
            Role::Inflate => {
                (Balloon::inflate, &metrics.inflate_count, &unread, &metrics.event_fails)
            }
            // The pages are the guest's again as they are; it finds them zeroed.
            Role::Deflate => (
                |_, _, _| Ok(Given { freed: 0, rest: None }),
                &metrics.deflate_count,
                &unread,
                &metrics.event_fails,
            ),
            Role::Hint => (
                Balloon::hint,
                &metrics.free_page_hint_count,
                &metrics.free_page_hint_freed,
                &metrics.free_page_hint_fails,
            ),
            Role::Report => (
                Balloon::report,
                &metrics.free_page_report_count,
                &metrics.free_page_report_freed,
                &metrics.free_page_report_fails,
            ),
            Role::Stats => return self.take_stats(queue, io),
        };
        let turn = io.turn;
        let result = io.drain(queue, |chain, mem| {
            let head = chain.head_index();
            let begun = self.begun[queue].take().filter(|(of, _)| *of == head);
            if begun.is_none() {
                count.inc();
            }
            let part = Part { mem, turn, done: begun.map_or(0, |(_, done)| done) };
            match request(self, chain, part) {
                Ok(given) => {
                    freed.add(given.freed);
                    if let Some(done) = given.rest {
                        self.begun[queue] = Some((head, done));
                        return Done::InPart;
                    }
                }
                Err(e) => {
                    log::debug!("balloon: malformed request: {e}");
                    fails.inc();
                }
            }
            Done::Used(0)
        });
        self.signal_config(io);
        result
    }

    fn failed(&self, failure: Failure) {
        match failure {
            Failure::Activation => self.metrics.activate_fails.inc(),
            Failure::Queue(_) => self.metrics.event_fails.inc(),
        }
    }

    fn source_event(
        &mut self,
        token: u32,
        _events: EventSet,
        io: &mut DeviceIo,
    ) -> Result<(), BrokenQueue> {
        if token == SOURCE_CONTROL {
            self.handle.acknowledge();
            self.arm(self.wanted_interval());
            self.signal_config(io);
            return Ok(());
        }
        let mut expirations = [0; 8];
        match rustix::io::read(&self.timer, &mut expirations) {
            Ok(_) => self.ask_stats(io),
            // Set anew between the event and now.
            Err(_) => Ok(()),
        }
    }
}

impl Savable for Balloon {
    fn version(&self) -> u32 {
        VERSION
    }

    fn save(&self) -> Vec<u8> {
        let control = self.handle.lock();
        let Control {
            target_pages,
            actual_pages,
            stats_interval_s,
            stats,
            ref hinting,
            offered: _,        // from the config
            negotiated: _,     // kept by the transport
            config_changed: _, // a restored machine tells the driver anyway
        } = *control;
        state::encode(&BalloonStateV1 {
            target_pages,
            actual_pages,
            stats_interval_s,
            stats,
            hinting: hinting.clone(),
        })
    }

    fn restore(&mut self, version: u32, bytes: &[u8]) -> Result<(), StateError> {
        let BalloonStateV1 { target_pages, actual_pages, stats_interval_s, stats, hinting } =
            state::decode(version, VERSION, bytes)?;
        if (stats_interval_s > 0) != (self.offered & features::STATS != 0) {
            let have = self.handle.stats_interval();
            return Err(StateError::Invalid(format!(
                "the balloon asked for statistics every {stats_interval_s} s, here every {have} s \
                 (0 is never): they cannot be switched on or off"
            )));
        }
        let mut control = self.handle.lock();
        control.target_pages = target_pages;
        control.actual_pages = actual_pages;
        control.stats_interval_s = stats_interval_s;
        control.stats = stats;
        control.hinting = hinting;
        // A change that the driver had not been told of when the state was saved.
        control.config_changed = true;
        drop(control);
        self.handle.notify();
        Ok(())
    }
}

#[cfg(test)]
mod tests;
