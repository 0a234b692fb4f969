//! A balloon from outside: its size, its statistics and free page hinting.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::features::{FREE_PAGE_HINT, STATS};
use super::stats::{BalloonStats, Values};
use super::{BalloonError, PAGES_PER_MIB};

/// Command of the host that ends hinting: the guest takes the hinted pages back into use.
pub(super) const CMD_DONE: u32 = 1;
/// Command of the guest that ends a run; also the host's before the first run.
pub(super) const CMD_STOP: u32 = 0;

/// Free page hinting (virtio 1.2, 5.5.6.5): a run has an id, which the host shows in the
/// configuration space and the guest repeats before its hints.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Hinting {
    /// What the configuration space shows.
    pub(super) host_cmd: u32,
    /// Id of the latest run.
    pub(super) last_run: u32,
    /// What the guest sent last.
    pub(super) guest_cmd: Option<u32>,
    /// End the run by itself when the guest has sent all its hints.
    pub(super) acknowledge_on_stop: bool,
}

/// How far free page hinting is, under the names of Firecracker's API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct HintingStatus {
    /// The host's command: 0 none yet, 1 done, else the id of the run that it asks for.
    pub host_cmd: u32,
    /// The guest's latest: 0 it has sent all its hints, else the id of the run it is in.
    pub guest_cmd: Option<u32>,
}

/// What both sides share.
#[derive(Debug, Default)]
pub(super) struct Control {
    pub(super) target_pages: u32,
    pub(super) actual_pages: u32,
    pub(super) stats_interval_s: u16,
    pub(super) stats: Values,
    pub(super) hinting: Hinting,
    /// Features on offer.
    pub(super) offered: u64,
    /// Features that the driver took; 0 while there is none.
    pub(super) negotiated: u64,
    /// The configuration space changed and the driver does not know yet.
    pub(super) config_changed: bool,
}

/// The handle by which the monitor controls a balloon, from any thread and at any time.
///
/// Its lock is held for a few loads and stores and never together with another one that it could
/// wait for, so a vCPU that reads the configuration space does not wait for I/O.
#[derive(Clone, Debug)]
pub struct BalloonHandle {
    control: Arc<Mutex<Control>>,
    event: Arc<EventFd>,
}

impl AsRawFd for BalloonHandle {
    /// Becomes readable when something changed that the device has to act on.
    fn as_raw_fd(&self) -> RawFd {
        self.event.as_raw_fd()
    }
}

impl BalloonHandle {
    pub(super) fn new(control: Control) -> io::Result<BalloonHandle> {
        let event = Arc::new(EventFd::new(EFD_NONBLOCK)?);
        Ok(BalloonHandle { control: Arc::new(Mutex::new(control)), event })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Control> {
        // Plain data: a panic of another holder leaves nothing half done.
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn acknowledge(&self) {
        let _ = self.event.read();
    }

    pub(super) fn notify(&self) {
        // Can fail only when the counter is full, and then the device is told already.
        let _ = self.event.write(1);
    }

    /// Asks the guest for a balloon of `mib` MiB: it gives memory up or takes it back, in its own
    /// time, and no more than it can spare.
    pub fn set_target(&self, mib: u32) -> Result<(), BalloonError> {
        let pages = mib.checked_mul(PAGES_PER_MIB).ok_or(BalloonError::TooLarge(mib))?;
        let mut control = self.lock();
        control.target_pages = pages;
        control.config_changed = true;
        drop(control);
        self.notify();
        Ok(())
    }

    /// The size that was asked for, in MiB.
    pub fn target(&self) -> u32 {
        self.lock().target_pages / PAGES_PER_MIB
    }

    /// The size that the guest says the balloon has, in pages of 4 KiB.
    pub fn actual_pages(&self) -> u32 {
        self.lock().actual_pages
    }

    /// The sizes and the latest statistics of the guest.
    pub fn stats(&self) -> Result<BalloonStats, BalloonError> {
        let control = self.lock();
        if control.offered & STATS == 0 {
            return Err(BalloonError::StatsDisabled);
        }
        Ok(BalloonStats::new(control.target_pages, control.actual_pages, control.stats))
    }

    /// Seconds between two requests for statistics; 0: statistics are off.
    pub fn stats_interval(&self) -> u16 {
        self.lock().stats_interval_s
    }

    /// Sets the seconds between two requests for statistics. They cannot be switched on or off
    /// here: whether there are any is part of the device that the guest has seen.
    pub fn set_stats_interval(&self, seconds: u16) -> Result<(), BalloonError> {
        let mut control = self.lock();
        if (control.stats_interval_s == 0) != (seconds == 0) {
            return Err(BalloonError::StatsSwitch);
        }
        control.stats_interval_s = seconds;
        drop(control);
        self.notify();
        Ok(())
    }

    /// Starts a run of free page hinting: the guest tells which pages are free and leaves them
    /// alone until the run ends. With `acknowledge_on_stop` it ends when all are told.
    pub fn start_hinting(&self, acknowledge_on_stop: bool) -> Result<(), BalloonError> {
        self.hint(|hinting| {
            // The ids below 2 have their own meaning.
            hinting.last_run = hinting.last_run.wrapping_add(1).max(CMD_DONE + 1);
            hinting.host_cmd = hinting.last_run;
            hinting.acknowledge_on_stop = acknowledge_on_stop;
        })
    }

    /// Ends a run of free page hinting.
    pub fn stop_hinting(&self) -> Result<(), BalloonError> {
        self.hint(|hinting| hinting.host_cmd = CMD_DONE)
    }

    /// How far free page hinting is.
    pub fn hinting_status(&self) -> Result<HintingStatus, BalloonError> {
        let control = self.lock();
        if control.offered & FREE_PAGE_HINT == 0 {
            return Err(BalloonError::HintingDisabled);
        }
        let Hinting { host_cmd, guest_cmd, .. } = control.hinting;
        Ok(HintingStatus { host_cmd, guest_cmd })
    }

    fn hint(&self, change: impl FnOnce(&mut Hinting)) -> Result<(), BalloonError> {
        let mut control = self.lock();
        if control.offered & FREE_PAGE_HINT == 0 {
            return Err(BalloonError::HintingDisabled);
        }
        if control.negotiated & FREE_PAGE_HINT == 0 {
            return Err(BalloonError::HintingUnused);
        }
        change(&mut control.hinting);
        control.config_changed = true;
        drop(control);
        self.notify();
        Ok(())
    }
}
