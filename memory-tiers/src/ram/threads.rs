//! Starts the threads of this crate: each has a name, and is first confined by a hook of the process.

use std::sync::OnceLock;
use std::thread::{Builder, JoinHandle};

use crate::ram::error::RamError;

static CONFINE: OnceLock<fn()> = OnceLock::new();

/// Has `with` called first on each thread that this crate starts from now on, to take from it what
/// such threads do not need. The process has one such rule: only the first call counts.
pub fn confine_threads(with: fn()) {
    let _ = CONFINE.set(with);
}

/// To be called first on a thread.
pub(crate) fn begin() {
    if let Some(confine) = CONFINE.get() {
        confine();
    }
}

/// Starts a thread.
pub(crate) fn spawn<T: Send + 'static>(
    name: &str,
    run: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>, RamError> {
    let run = move || {
        begin();
        run()
    };
    Builder::new().name(name.into()).spawn(run).map_err(RamError::Thread)
}
