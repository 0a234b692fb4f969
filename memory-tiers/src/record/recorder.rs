//! Recording exactly: a restore in which every page starts missing and is put in place
//! write-protected, so that the first access of each page and the first write to it are both seen.
//!
//! A missing page's fault says whether it was a write, and over-reports: so every page is installed
//! protected, and one counts as written when its protection faults. At a mark, all pages are made
//! missing again (what was written is kept aside), so that each invocation's accesses are seen anew.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use varve_snapshot::{FlatOrder, PAGE_SIZE, PageRange, RegionMap, Trace};

use crate::error::TierError;
use crate::fault::watched::Watched;
use crate::plan::stored::stored_at;
use crate::ram::error::RamError;
use crate::ram::guest_ram::GuestRam;
use crate::ram::sys::uffd::{Fault, Install, Installed, Watch};
use crate::ram::threads::spawn;
use crate::record::access_log::{Page, Record};
use crate::source::page_source::Sources;
use crate::source::verified::Verified;

/// What the machine gives to a recording.
pub struct RecorderHooks {
    /// Called when a page cannot be had; see [`crate::Hooks::on_fatal`].
    pub on_fatal: Box<dyn Fn(TierError) + Send + Sync>,
    /// Whether a thread is one of the monitor's own, not a vCPU: its accesses are marked so.
    pub is_monitor: Box<dyn Fn(u32) -> bool + Send + Sync>,
}

/// A recording restore. It answers for all of guest memory until it is dropped, which must be after
/// the vCPUs and devices are gone. Devices must not have the kernel write to guest memory past its
/// page tables (direct I/O) while a mark is made.
pub struct Recorder {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    stop: Arc<OwnedFd>,
}

struct Shared {
    ram: Arc<GuestRam>,
    watched: Arc<Watched>,
    layout: RegionMap,
    order: FlatOrder,
    hooks: RecorderHooks,
    // Locked before `watched.discarded`.
    state: Mutex<State>,
}

struct State {
    record: Record,
    content: Verified,
    sealed: bool,
}

impl Recorder {
    /// Restores `ram`, which is fresh, so that all is seen. `layout` says where each page's content
    /// is in `sources`.
    pub fn start(
        ram: Arc<GuestRam>,
        layout: RegionMap,
        sources: Sources,
        hooks: RecorderHooks,
    ) -> Result<Recorder, TierError> {
        let memory: Vec<PageRange> = ram.regions().iter().map(|r| r.pages).collect();
        let watched = Arc::new(Watched::open(Watch::MissingAndWrites)?);
        ram.watch(watched.clone())?;
        for &range in &memory {
            watched.add(&ram, range, Watch::MissingAndWrites)?;
        }
        let order = FlatOrder::new(&memory);
        let record = Record::new(order.pages() as usize);
        let state = Mutex::new(State { record, content: Verified::new(sources), sealed: false });
        let shared = Arc::new(Shared { ram, watched, layout, order, hooks, state });
        let stop = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|e| RamError::Thread(e.into()))?;
        let stop = Arc::new(stop);
        let (of_thread, stop_of_thread) = (shared.clone(), stop.clone());
        let run = move || {
            let _end = crate::fault::threads::EndTogether;
            of_thread.run(&stop_of_thread);
        };
        Ok(Recorder { shared, thread: Some(spawn("recorder", run)?), stop })
    }

    /// An invocation named `label` begins. What was accessed since the last mark is one invocation's;
    /// what was before the first counts as `resume`, in the same run as the first.
    pub fn mark(&self, label: &str) -> Result<(), TierError> {
        let mut state = self.shared.state();
        if state.record.begin(label) && !state.sealed {
            self.shared.rearm(&mut state)?;
        }
        Ok(())
    }

    /// Pages seen up to now: accessed, and among them written.
    pub fn seen(&self) -> (u64, u64) {
        self.shared.state().record.seen()
    }

    /// Ends the recording and hands out the trace. To be called before anything but the guest and its
    /// devices looks at guest memory, such as a snapshot; pages still come as they are touched.
    pub fn seal(&self) -> Result<Trace, TierError> {
        let mut state = self.shared.state();
        state.sealed = true;
        for region in self.shared.ram.regions() {
            self.shared.protect(region.pages, false)?;
        }
        let frames = self.shared.ram.regions().iter();
        let frames = frames.flat_map(|r| r.pages.start() / PAGE_SIZE..r.pages.end() / PAGE_SIZE);
        state.record.trace(frames).map_err(|e| TierError::Plan(e.to_string()))
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        let _ = rustix::io::write(&*self.stop, &1u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, stop: &OwnedFd) {
        let uffd = &self.watched.uffd;
        loop {
            let mut fds = [
                PollFd::from_borrowed_fd(uffd.as_fd(), PollFlags::IN),
                PollFd::new(stop, PollFlags::IN),
            ];
            if let Err(e) = poll(&mut fds, None)
                && e != rustix::io::Errno::INTR
            {
                let source = e.into();
                return (self.hooks.on_fatal)(TierError::Fault { address: 0, source });
            }
            if !fds[1].revents().is_empty() {
                return;
            }
            let answered = uffd
                .read()
                .map_err(|source| TierError::Fault { address: 0, source })
                .and_then(|faults| faults.into_iter().try_for_each(|fault| self.answer(fault)));
            if let Err(error) = answered {
                (self.hooks.on_fatal)(error);
            }
        }
    }

    fn answer(&self, fault: Fault) -> Result<(), TierError> {
        let gone = || TierError::Fault {
            address: fault.address,
            source: std::io::ErrorKind::AddrNotAvailable.into(),
        };
        let page = self.ram.guest_address(fault.address).ok_or_else(gone)?;
        let index = self.order.of_frame(page / PAGE_SIZE).ok_or_else(gone)? as usize;
        let pages = PageRange::new(page, PAGE_SIZE).map_err(|_| gone())?;
        let mut state = self.state();
        if fault.protected {
            if !state.sealed {
                let monitor = (self.hooks.is_monitor)(fault.thread);
                state.record.written(index, monitor);
            }
            return self.protect(pages, false);
        }
        let placed = self.place(&mut state, index, pages)?;
        if let (Some(page), false) = (placed, state.sealed) {
            let monitor = (self.hooks.is_monitor)(fault.thread);
            state.record.touched(index, page, fault.write, monitor);
        }
        Ok(())
    }

    /// Puts the page in place as it should be, and wakes who waits; `None` if it was there.
    fn place(
        &self,
        state: &mut State,
        index: usize,
        pages: PageRange,
    ) -> Result<Option<Page>, TierError> {
        let at = self.ram.places().host(pages)?;
        // Held until it is in place: it cannot be given back in between.
        let discarded = self.watched.discarded.read().unwrap_or_else(PoisonError::into_inner);
        let kept = state.record.take_kept(index);
        let mut data = [0; PAGE_SIZE as usize];
        let mut page = Page::Clean;
        if !discarded.has(pages.start()) {
            match (kept, stored_at(&self.layout, pages.start())) {
                (Some(kept), _) => (page, data) = (Page::Written, *kept),
                (None, Some(from)) => state.content.page(from, pages, &mut data)?,
                (None, None) => {}
            }
        }
        let how = if state.sealed { Install::Plain } else { Install::Protected };
        loop {
            let call = |source| RamError::Call { what: "install", range: pages, source };
            match self.watched.uffd.copy(at, &data, how).map_err(call)? {
                Installed::Part(_) => continue,
                Installed::All => return Ok(Some(page)),
                // Two threads asked for it.
                Installed::Present => {
                    self.watched.uffd.wake(at, data.len()).map_err(call)?;
                    return Ok(None);
                }
            }
        }
    }

    fn protect(&self, pages: PageRange, protect: bool) -> Result<(), TierError> {
        let at = self.ram.places().host(pages)?;
        let call = |source| RamError::Call { what: "protect", range: pages, source };
        Ok(self.watched.uffd.protect(at, pages.len() as usize, protect).map_err(call)?)
    }

    /// Makes all pages missing again, so that their next access is seen.
    fn rearm(&self, state: &mut State) -> Result<(), TierError> {
        let mut discarded = self.watched.discarded.write().unwrap_or_else(PoisonError::into_inner);
        let mut index = 0;
        for region in self.ram.regions() {
            // From here on nobody writes: a write waits for this to end, and then finds the page
            // missing.
            self.protect(region.pages, true)?;
            let present = self.ram.page_states(region.pages)?;
            let pages = (region.pages.start()..).step_by(PAGE_SIZE as usize);
            for (start, present) in pages.zip(present) {
                let written = state.record.state(index) == Page::Written;
                if written && (present.present() || present.swapped()) {
                    let pages = PageRange::new(start, PAGE_SIZE)
                        .map_err(|e| TierError::Plan(e.to_string()))?;
                    let mut data = Box::new([0; PAGE_SIZE as usize]);
                    self.ram.call("read", pages, |r, o, len| {
                        r.slice(o, len)?.copy_to(&mut data[..]);
                        Ok(())
                    })?;
                    // What was given back and written since is no longer empty.
                    discarded.remove(pages);
                    state.record.keep(index, data);
                }
                state.record.missing(index);
                index += 1;
            }
            self.ram.call("give back", region.pages, |r, o, len| r.discard(o, len))?;
        }
        Ok(())
    }
}
