//! What happened in this process, in numbers, in the shape of Firecracker's metrics.
//!
//! ```text
//!  devices, vCPUs, API ── count ──> totals ──> output: one line each minute, on demand, at the end
//!                                        └───> GET /metrics, `varve metrics`: prometheus
//! ```
//!
//! Counters only grow; that a line holds what was added since the line before is the output's
//! business.

mod config;
pub mod file;
mod groups;
mod output;
pub mod prometheus;
mod shape;
mod timer;
mod tree;

pub use config::{MetricsConfig, MetricsError};
pub use groups::{
    ApiServer, DeprecatedApi, Flushes, GetRequests, Latencies, PatchRequests, PutRequests, Seccomp,
    Signals, Vcpu, Vmm,
};
pub use shape::DeviceMetrics;
pub use timer::{FlushTimer, PERIOD};
pub use tree::Tree;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use varve_devices::metrics::{Count, MmdsMetrics};
use varve_memory_tiers::Counters;

use output::Output;

/// What a restore has done up to now; nothing once its machine is gone.
pub type RestoreCounters = Box<dyn Fn() -> Option<Counters> + Send + Sync>;

/// The process's metrics.
#[derive(Default)]
pub struct Metrics {
    /// `api_server`.
    pub api_server: ApiServer,
    /// `deprecated_api`.
    pub deprecated_api: DeprecatedApi,
    /// `get_api_requests`.
    pub get_requests: GetRequests,
    /// `put_api_requests`.
    pub put_requests: PutRequests,
    /// `patch_api_requests`.
    pub patch_requests: PatchRequests,
    /// `latencies_us`.
    pub latencies: Latencies,
    /// A part of `logger`.
    pub flushes: Flushes,
    /// `mmds`.
    pub mmds: Arc<MmdsMetrics>,
    /// `seccomp`.
    pub seccomp: Seccomp,
    /// `signals`.
    pub signals: Signals,
    /// `vcpu`.
    pub vcpu: Arc<Vcpu>,
    /// `vmm`.
    pub vmm: Vmm,
    devices: RwLock<DeviceMetrics>,
    restore: RwLock<Option<RestoreCounters>>,
    output: Mutex<Option<Output>>,
}

impl Metrics {
    /// Lets a machine that is being built add its devices.
    pub fn devices(&self) -> impl std::ops::DerefMut<Target = DeviceMetrics> {
        self.devices.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on the counters of this restore are among the metrics.
    pub fn watch_restore(&self, counters: RestoreCounters) {
        *self.restore.write().unwrap_or_else(PoisonError::into_inner) = Some(counters);
    }

    /// Opens the file or pipe that lines go to. `id` is the machine's.
    pub fn configure(
        self: &Arc<Metrics>,
        config: &MetricsConfig,
        id: &str,
    ) -> Result<(), MetricsError> {
        let mut output = self.output();
        if output.is_some() {
            return Err(MetricsError::Configured);
        }
        *output = Some(Output::open(config, id)?);
        drop(output);
        self.note_panics();
        Ok(())
    }

    /// Writes a line, if there is somewhere to write it to.
    pub fn flush(&self) -> Result<(), MetricsError> {
        self.write(&mut self.output())
    }

    /// As [`Metrics::flush`], for a process that ends in the middle of something: without waiting
    /// for a lock, and without anyone to tell of an error.
    pub fn flush_last(&self) {
        if let Ok(mut output) = self.output.try_lock() {
            let _ = self.write(&mut output);
        }
    }

    /// All numbers now, with the time.
    pub fn totals_now(&self) -> Tree {
        let mut totals = self.totals();
        totals.insert("utc_timestamp_ms".into(), output::now_ms().into());
        totals
    }

    fn write(&self, output: &mut Option<Output>) -> Result<(), MetricsError> {
        let Some(output) = output else { return Ok(()) };
        output.write(self.totals()).inspect_err(|e| match e {
            MetricsError::Write(_) => self.flushes.missed_metrics_count.inc(),
            _ => self.flushes.metrics_fails.inc(),
        })
    }

    fn output(&self) -> MutexGuard<'_, Option<Output>> {
        self.output.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts panics of any thread, and writes a last line, since one may end the process.
    fn note_panics(self: &Arc<Metrics>) {
        let metrics = self.clone();
        let previous = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            metrics.vmm.panic_count.set(1);
            metrics.flush_last();
            previous(info);
        }));
    }
}

/// A duration as latencies are kept, in microseconds.
pub fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// Keeps how long something took that succeeded, from `start` until now.
pub fn took(latency: &Count, start: Instant) {
    latency.set(micros(start.elapsed()));
}
