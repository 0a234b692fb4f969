//! The thread that deals with signals, so that the process ends even if the event loop hangs.
//!
//! A signal that asks for the end is announced to the loop, which ends the machine. If the loop does
//! not react within [`GRACE`], or the machine does not go away within [`GRACE`], this thread ends the
//! process: it gives the terminal back, removes the sockets' files and writes a last line of metrics.
//! A file that was being written stays aside under its temporary name.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::Builder;
use std::time::{Duration, Instant};

use rustix::event::Timespec;
use varve_devices::socket_file::SocketFile;

use crate::end::{End, EndSignal};
use crate::logger;
use crate::metrics::Metrics;
use crate::seccomp;
use crate::signal_handlers::{self, Came, deal, exit_now, wait, wake};
use crate::stdio;

/// How long the event loop may take to react to a signal, and then the machine to go away.
const GRACE: Duration = Duration::from_secs(1);

/// The process's signals.
pub struct Signals {
    due: Due,
}

/// When the process is ended by force.
type Due = Arc<Mutex<Option<Instant>>>;

fn lock(due: &Due) -> MutexGuard<'_, Option<Instant>> {
    due.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Signals {
    /// Deals with signals from now on.
    pub fn start(end: Arc<EndSignal>, metrics: Arc<Metrics>) -> io::Result<Signals> {
        signal_handlers::install()?;
        let due = Due::default();
        let own = due.clone();
        let name = Builder::new().name("signals".into());
        name.spawn(move || {
            seccomp::confine_or_die(seccomp::Thread::Main);
            deal();
            loop {
                step(&end, &metrics, &own);
            }
        })?;
        Ok(Signals { due })
    }

    /// The event loop has seen the end. What it still does may take its time, unless another signal
    /// comes.
    pub fn seen(&self) {
        *lock(&self.due) = None;
    }

    /// The machine goes away now, because a signal said so.
    pub fn ends(&self) {
        *lock(&self.due) = Some(Instant::now() + GRACE);
        wake();
    }
}

fn step(end: &EndSignal, metrics: &Metrics, due: &Due) {
    let left = lock(due).map(|at| at.saturating_duration_since(Instant::now()));
    let left = left.map(|left| Timespec {
        tv_sec: left.as_secs() as i64,
        tv_nsec: left.subsec_nanos().into(),
    });
    match wait(left) {
        Some(Came::Asked(name)) => {
            if name == "SIGHUP" {
                metrics.signals.sighup.set(1);
            }
            *lock(due) = Some(Instant::now() + GRACE);
            end.announce(End::Signal(name));
        }
        Some(Came::Fatal { signal, code, exit }) => {
            match signal {
                libc::SIGSYS => metrics.seccomp.num_faults.set(1),
                signal => metrics.signals.ended_by(signal),
            }
            log::error!("Shutting down VM after intercepting signal {signal}, code {code}.");
            metrics.flush_last();
            SocketFile::remove_all();
            exit_now(exit);
        }
        None => {}
    }
    if lock(due).is_some_and(|at| at <= Instant::now()) {
        force(end, metrics);
    }
}

/// Ends the process. Nothing here waits for what another thread may hold.
fn force(end: &EndSignal, metrics: &Metrics) -> ! {
    crate::terminal::restore_if_free();
    SocketFile::remove_all();
    let end = end.get().cloned().unwrap_or(End::Done);
    stdio::last_words(&format!("varve: {end}"));
    if logger::is_free() {
        log::warn!("the machine has ended: {end}; it did not go away within {GRACE:?}");
    }
    metrics.flush_last();
    exit_now(end.exit_code())
}
