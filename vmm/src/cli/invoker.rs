//! Calls of functions while the machine runs: on a thread of their own, because the main thread
//! carries their bytes. When they are done, the event loop is told.

use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use event_manager::{EventOps, EventSet, EventSubscriber, Events};
use serde::Serialize;
use serde_json::Value;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::agent::{Agent, Invocation};
use crate::seccomp;

/// One call that was answered.
#[derive(Clone, Debug, Serialize)]
pub struct Invoked {
    /// The function.
    pub function: String,
    /// Its input.
    pub seed: u64,
    /// Of its result.
    pub checksum: String,
    /// Milliseconds from the process's start to the answer.
    pub answered_at_ms: f64,
    /// Milliseconds from the request to the answer.
    pub took_ms: f64,
    /// The agent's whole answer.
    pub reply: Value,
}

/// What came of the calls.
pub type Outcome = Result<Vec<Invoked>, String>;

/// The calls under way.
pub struct Invoker {
    done: EventFd,
    outcome: Mutex<Option<Outcome>>,
}

impl Invoker {
    /// Starts the calls, one after another, through the socket at `uds`. `before` is called ahead of
    /// each.
    pub fn start(
        uds: PathBuf,
        calls: Vec<Invocation>,
        start: Instant,
        before: impl Fn(&Invocation) -> Result<(), String> + Send + 'static,
    ) -> std::io::Result<Arc<Invoker>> {
        let done = EventFd::new(EFD_NONBLOCK)?;
        let invoker = Arc::new(Invoker { done, outcome: Mutex::new(None) });
        let own = invoker.clone();
        std::thread::Builder::new().name("invoker".into()).spawn(move || {
            seccomp::confine_or_die(seccomp::Thread::Client);
            let outcome = call_all(&uds, &calls, start, before).map_err(|e| e.to_string());
            *own.outcome.lock().unwrap_or_else(PoisonError::into_inner) = Some(outcome);
            let _ = own.done.write(1);
        })?;
        Ok(invoker)
    }

    /// What came of the calls, once they are done; only once.
    pub fn take(&self) -> Option<Outcome> {
        self.outcome.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

fn call_all(
    uds: &std::path::Path,
    calls: &[Invocation],
    start: Instant,
    before: impl Fn(&Invocation) -> Result<(), String>,
) -> std::io::Result<Vec<Invoked>> {
    let ms = |since: Instant| since.elapsed().as_secs_f64() * 1e3;
    let mut agent = Agent::connect(uds)?;
    let mut done = Vec::with_capacity(calls.len());
    for call in calls {
        before(call).map_err(std::io::Error::other)?;
        let asked = Instant::now();
        let reply = agent.invoke(call)?;
        done.push(Invoked {
            function: call.function.clone(),
            seed: call.seed,
            checksum: reply["checksum"].as_str().unwrap_or_default().into(),
            answered_at_ms: ms(start),
            took_ms: ms(asked),
            reply,
        });
    }
    Ok(done)
}

impl EventSubscriber for Invoker {
    fn init(&self, ops: &mut EventOps) {
        let events = Events::new_raw(self.done.as_raw_fd(), EventSet::IN);
        if let Err(e) = ops.add(events) {
            log::error!("invocations: {e}");
        }
    }

    /// Only wakes the loop; whoever runs it looks at [`Invoker::take`].
    fn process(&self, _events: Events, _ops: &mut EventOps) {
        let _ = self.done.read();
    }
}
