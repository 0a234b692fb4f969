//! Recording cheaply: looking again and again at what is in memory, beside a machine that was
//! restored by mappings. Nothing traps, so it costs the guest nothing; but neighbours that the kernel
//! brought in along count as touched, and the order is that of the looks.

use std::fs::File;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::process::geteuid;
use varve_snapshot::{Access, Mechanism, PAGE_SIZE, PageAccess, SnapshotError, Trace};

use crate::error::TierError;
use crate::ram::guest_ram::GuestRam;
use crate::ram::sys::pagemap;
use crate::source::residency;

/// What is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScanBy {
    /// Which pages of the memory file are in the page cache (FaaSnap). Sees no writes, and only what
    /// was not cached before: drop the file from the cache first.
    Mincore,
    /// The process's page tables. A page that this process has to itself was written; for that, the
    /// restore must not populate for writing or copy (`lazy`).
    Pagemap,
}

impl ScanBy {
    /// Checks that this process sees what is to be looked at, for guest memory that comes from `file`.
    ///
    /// # Errors
    ///
    /// If the recording would be wrong or empty: with the reason and the cure.
    pub fn can_see(self, file: &Path) -> Result<(), TierError> {
        match self {
            ScanBy::Mincore => {
                let opened =
                    File::open(file).map_err(SnapshotError::io("open memory file", file))?;
                match residency::mincore_tells(&opened).map_err(SnapshotError::io("map", file))? {
                    true => Ok(()),
                    false => Err(TierError::Foreign(file.to_owned(), geteuid().as_raw())),
                }
            }
            ScanBy::Pagemap => match File::open(pagemap::PATH) {
                Ok(_) => Ok(()),
                Err(e) => Err(TierError::NoPagemap(e)),
            },
        }
    }
}

/// Looks at guest memory until it is sealed.
pub struct Scanner {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    ram: Arc<GuestRam>,
    by: ScanBy,
    state: Mutex<State>,
    ended: Condvar,
}

struct State {
    pages: Vec<Seen>,
    labels: Vec<String>,
    /// Looks taken: pages that one look finds are of one group, and have one order.
    looks: u32,
    ended: bool,
    failed: Option<TierError>,
}

#[derive(Clone, Copy, Default)]
struct Seen {
    /// It was there before anything was touched.
    before: bool,
    access: Access,
    order: u32,
    invocation: u32,
}

impl Scanner {
    /// Looks at what is there, to leave it out, and then again every `period`.
    pub fn start(ram: Arc<GuestRam>, by: ScanBy, period: Duration) -> Result<Scanner, TierError> {
        let mut pages = Vec::new();
        for (present, _) in look(&ram, by)? {
            pages.push(Seen { before: present, ..Seen::default() });
        }
        let labels = vec!["resume".to_owned()];
        let state = State { pages, labels, looks: 0, ended: false, failed: None };
        let shared = Arc::new(Shared { ram, by, state: Mutex::new(state), ended: Condvar::new() });
        let of_thread = shared.clone();
        let run = move || of_thread.run(period);
        Ok(Scanner { shared, thread: Some(crate::ram::threads::spawn("scanner", run)?) })
    }

    /// An invocation named `label` begins. What is already there cannot be seen to be touched again:
    /// all invocations are one run.
    pub fn mark(&self, label: &str) -> Result<(), TierError> {
        let mut state = self.shared.state();
        self.shared.look(&mut state)?;
        state.labels.push(label.to_owned());
        Ok(())
    }

    /// Looks a last time and hands out the trace. To be called before anything but the guest and its
    /// devices looks at guest memory.
    pub fn seal(mut self) -> Result<Trace, TierError> {
        self.end();
        let mut state = self.shared.state();
        if let Some(error) = state.failed.take() {
            return Err(error);
        }
        self.shared.look(&mut state)?;
        let regions = self.shared.ram.regions().iter();
        let frames = regions.flat_map(|r| r.pages.start() / PAGE_SIZE..r.pages.end() / PAGE_SIZE);
        let pages = frames.zip(&state.pages).filter(|(_, p)| p.access != Access::default());
        let pages = pages.map(|(gfn, p)| PageAccess {
            gfn,
            order: p.order,
            access: p.access,
            invocation: p.invocation,
            runs: 1,
            runs_written: p.access.has(Access::WRITTEN).into(),
        });
        let mechanism = match self.shared.by {
            ScanBy::Mincore => Mechanism::Mincore,
            ScanBy::Pagemap => Mechanism::Pagemap,
        };
        Trace::new(mechanism, 1, state.labels.clone(), pages.collect())
            .map_err(|e| TierError::Plan(e.to_string()))
    }

    fn end(&mut self) {
        self.shared.state().ended = true;
        self.shared.ended.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Scanner {
    fn drop(&mut self) {
        self.end();
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, period: Duration) {
        let mut state = self.state();
        loop {
            let waited = self.ended.wait_timeout_while(state, period, |s| !s.ended);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
            if state.ended {
                return;
            }
            if let Err(error) = self.look(&mut state) {
                state.failed = Some(error);
                return;
            }
        }
    }

    /// Notes what is new.
    fn look(&self, state: &mut State) -> Result<(), TierError> {
        let (order, invocation) = (state.looks, state.labels.len() as u32 - 1);
        state.looks = state.looks.saturating_add(1);
        for (seen, (present, private)) in state.pages.iter_mut().zip(look(&self.ram, self.by)?) {
            let touched = present && !seen.before;
            if !touched && !private {
                continue;
            }
            if seen.access == Access::default() {
                (seen.order, seen.invocation) = (order, invocation);
                seen.access = Access::READ;
            }
            if private {
                seen.access = seen.access.with(Access::WRITTEN);
            }
        }
        Ok(())
    }
}

/// For each page, whether it is there and whether it was written.
fn look(ram: &GuestRam, by: ScanBy) -> Result<Vec<(bool, bool)>, TierError> {
    let mut pages = Vec::new();
    for region in ram.regions() {
        match by {
            ScanBy::Mincore => {
                let there = ram.call("look at", region.pages, |r, o, len| r.in_core(o, len))?;
                pages.extend(there.into_iter().map(|there| (there, false)));
            }
            ScanBy::Pagemap => {
                let states = ram.page_states(region.pages)?;
                pages.extend(states.iter().map(|s| (s.present(), s.private())));
            }
        }
    }
    Ok(pages)
}
