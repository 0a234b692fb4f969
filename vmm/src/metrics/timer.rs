//! Writes metrics each minute, as an event of the loop.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use event_manager::{EventOps, EventSet, EventSubscriber, Events};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

use super::Metrics;

/// Time between two lines, as Firecracker's.
pub const PERIOD: Duration = Duration::from_secs(60);

/// The clock.
pub struct FlushTimer {
    timer: OwnedFd,
    metrics: Arc<Metrics>,
}

impl FlushTimer {
    /// Starts the clock; the first line is due after `period`.
    pub fn start(metrics: Arc<Metrics>, period: Duration) -> io::Result<FlushTimer> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        let time =
            Timespec { tv_sec: period.as_secs() as i64, tv_nsec: period.subsec_nanos().into() };
        let spec = Itimerspec { it_interval: time, it_value: time };
        timerfd_settime(&timer, TimerfdTimerFlags::empty(), &spec)?;
        Ok(FlushTimer { timer, metrics })
    }
}

impl EventSubscriber for FlushTimer {
    fn init(&self, ops: &mut EventOps) {
        if let Err(e) = ops.add(Events::new(&self.timer, EventSet::IN)) {
            log::error!("metrics: {e}");
        }
    }

    fn process(&self, _events: Events, _ops: &mut EventOps) {
        let _ = rustix::io::read(&self.timer, &mut [0; 8]);
        if let Err(e) = self.metrics.flush() {
            log::warn!("metrics: {}", varve_snapshot::chain(&e));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::MetricsConfig;
    use super::*;
    use event_manager::{EventManager, SubscriberOps};

    #[test]
    fn lines_come_by_themselves() {
        let dir = tempfile::tempdir().unwrap();
        let metrics_path = dir.path().join("m");
        let config =
            MetricsConfig { metrics_path: metrics_path.clone(), emit_id: false, properties: None };
        let metrics = Arc::new(Metrics::default());
        metrics.configure(&config, "x").unwrap();
        let mut events: EventManager<Arc<FlushTimer>> = EventManager::new().unwrap();
        let timer = FlushTimer::start(metrics, Duration::from_millis(5)).unwrap();
        events.add_subscriber(Arc::new(timer));
        for lines in 1..=2 {
            events.run_with_timeout(10_000).unwrap();
            assert_eq!(std::fs::read_to_string(&metrics_path).unwrap().lines().count(), lines);
        }
    }
}
