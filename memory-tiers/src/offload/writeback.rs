//! The thread that sends set-aside pages to a store, and brings pages back.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use varve_snapshot::chain;

use crate::error::TierError;
use crate::fault::backing_store::BackingStore;
use crate::fault::evicted::{Back, Part};
use crate::fault::watched::Watched;
use crate::offload::control::Phase;
use crate::ram::guest_ram::GuestRam;
use crate::source::page_source::SourceError;

/// Pages of a batch.
const BATCH_PAGES: usize = 64;

/// What the thread is told.
#[derive(Debug)]
pub(crate) enum Message {
    /// Send what is set aside once it is this late.
    Send(Instant),
    /// Bring all back.
    Recall,
    /// Parcels are wanted no more.
    Freed,
    /// The machine ends.
    End,
}

/// What the thread works on.
pub(crate) struct Work {
    pub ram: Arc<GuestRam>,
    pub watched: Arc<Watched>,
    status: Mutex<Status>,
    /// Sending ends early.
    pub cancelled: AtomicBool,
    pub ending: AtomicBool,
    /// The thread may be waiting for a node.
    pub asking: AtomicBool,
}

#[derive(Default)]
pub(crate) struct Status {
    pub phase: Phase,
    pub clean: u64,
    pub left: u64,
    pub refused: u64,
    pub error: Option<String>,
}

/// What ended a wait.
enum Next {
    Send,
    Recall,
    End,
}

impl Work {
    /// Nothing is to be done yet.
    pub fn new(ram: Arc<GuestRam>, watched: Arc<Watched>) -> Work {
        let (cancelled, ending, asking) = Default::default();
        Work { ram, watched, status: Mutex::default(), cancelled, ending, asking }
    }

    /// What is told of it.
    pub fn status(&self) -> MutexGuard<'_, Status> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does what it is told until that is the end.
    pub fn run(&self, told: &Receiver<Message>) {
        let _end = crate::fault::threads::EndTogether;
        while let Ok(message) = told.recv() {
            let next = match message {
                Message::Send(at) => self.wait(told, at),
                Message::Recall => Next::Recall,
                Message::Freed => {
                    self.free();
                    continue;
                }
                Message::End => Next::End,
            };
            match next {
                Next::Send => self.send(),
                Next::Recall => self.recall(),
                Next::End => return,
            }
            self.free();
        }
    }

    /// Waits for the time to send.
    fn wait(&self, told: &Receiver<Message>, at: Instant) -> Next {
        loop {
            let rest = at.saturating_duration_since(Instant::now());
            match told.recv_timeout(rest) {
                Err(RecvTimeoutError::Timeout) => return Next::Send,
                Ok(Message::Freed) => self.free(),
                Ok(Message::Recall) => return Next::Recall,
                Ok(Message::Send(_)) => {}
                Ok(Message::End) | Err(RecvTimeoutError::Disconnected) => return Next::End,
            }
        }
    }

    /// Calls the store.
    fn ask<T>(&self, call: impl FnOnce(&dyn BackingStore) -> T) -> Option<T> {
        let store = self.watched.evicted.store()?;
        self.asking.store(true, Relaxed);
        let answer = call(&*store);
        self.asking.store(false, Relaxed);
        Some(answer)
    }

    fn free(&self) {
        let freed = self.watched.evicted.take_freed();
        if !freed.is_empty() {
            self.ask(|store| store.free(&freed));
        }
    }

    /// Sends what nobody has touched. All of it is at the store before any of it is let go.
    fn send(&self) {
        if !self.goes_on(Phase::Sending) {
            return;
        }
        let away = &self.watched.evicted;
        let mut sent = Vec::new();
        let outcome = self.ask(|store| self.send_to(store, &mut sent)).unwrap_or(Ok(true));
        let error = match outcome {
            Ok(true) => {
                sent.into_iter().for_each(|(batch, pages)| away.commit(batch, pages));
                None
            }
            // A recall follows, or the end.
            Ok(false) => {
                let batches: Vec<u64> = sent.iter().map(|(batch, _)| *batch).collect();
                self.ask(|store| store.free(&batches));
                return;
            }
            Err(error) => {
                let batches: Vec<u64> = sent.iter().map(|(batch, _)| *batch).collect();
                self.ask(|store| store.free(&batches));
                let text = chain(&*error);
                log::warn!("offloading: {text}; the pages stay");
                self.status().refused += away.counts().0;
                Some(self.put_back().err().map_or(text, |e| chain(&e)))
            }
        };
        self.end(Phase::Sending, error);
    }

    /// Whether all was sent; otherwise it was cancelled.
    fn send_to(
        &self,
        store: &dyn BackingStore,
        sent: &mut Vec<(u64, Vec<u64>)>,
    ) -> Result<bool, SourceError> {
        let mut data = Vec::new();
        for pages in self.watched.evicted.staged().chunks(BATCH_PAGES) {
            if self.cancelled.load(Relaxed) {
                return Ok(false);
            }
            let found = self.watched.evicted.copy_staged(pages, &mut data)?;
            if !found.is_empty() {
                sent.push((store.put(&data)?, found));
            }
        }
        store.confirm()?;
        Ok(true)
    }

    /// Brings back what is set aside.
    fn put_back(&self) -> Result<(), TierError> {
        for page in self.watched.evicted.staged() {
            if self.ending.load(Relaxed) {
                break;
            }
            self.watched.put_staged(self.ram.places(), page, Back::Called)?;
        }
        Ok(())
    }

    fn recall(&self) {
        self.status().phase = Phase::Recalling;
        let recalled = self.put_back().and_then(|()| self.fetch_all());
        let ended = recalled.and_then(|()| Ok(self.watched.end_lazy_registration(&self.ram)?));
        let error = ended.err().map(|e| chain(&e));
        if let Some(error) = &error {
            log::warn!("recalling pages: {error}");
        }
        self.end(Phase::Recalling, error);
    }

    fn fetch_all(&self) -> Result<(), TierError> {
        let mut buffer = Vec::new();
        while let Some((batch, wanted, pages)) = self.watched.evicted.some_batch() {
            if self.ending.load(Relaxed) {
                break;
            }
            self.ask(|store| {
                let Work { ram, watched, .. } = self;
                let whole = Part { batch, first: 0, pages: &pages };
                watched.fetch(ram.places(), whole, wanted, store, &mut buffer, Back::Called)
            })
            .unwrap_or(Ok(()))?;
            self.free();
        }
        Ok(())
    }

    /// Begins a phase, unless a recall is to come.
    fn goes_on(&self, phase: Phase) -> bool {
        let mut status = self.status();
        let goes_on = status.phase != Phase::Recalling;
        if goes_on {
            status.phase = phase;
        }
        goes_on
    }

    /// Ends a phase; an earlier error stays.
    fn end(&self, phase: Phase, error: Option<String>) {
        let mut status = self.status();
        if status.phase == phase {
            status.phase = Phase::Idle;
        }
        if error.is_some() {
            status.error = error;
        }
    }
}
