//! A thread that serves one device apart from the event loop: a request that waits for a slow disk then
//! keeps nobody else waiting. What it does for the device, the loop would do in the same way.
//!
//! Unlike the loop, it runs beside the main thread. So it has a gate, which is closed while the machine
//! is paused: what is being saved must not change.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};

use event_manager::{EventManager, EventOps, EventSet, EventSubscriber, Events, SubscriberOps};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::end::{End, EndSignal};
use crate::seccomp;

/// A receiver of events of an event loop.
pub type Subscriber = Arc<dyn EventSubscriber>;

/// The thread. Its gate is closed at first; it ends when this is dropped, after the event that it is
/// at.
#[derive(Debug)]
pub struct IoThread {
    gate: Arc<Gate>,
    thread: Option<JoinHandle<()>>,
}

/// Whether the thread may serve its device. Held by it while it does.
#[derive(Debug)]
struct Gate {
    state: Mutex<State>,
    changed: Condvar,
    /// Wakes the thread's loop to its end.
    event: EventFd,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Closed,
    Open,
    /// Nothing is served any more.
    Ended,
}

impl Gate {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a device that is being served.
    fn set(&self, state: State) {
        *self.state() = state;
        self.changed.notify_all();
    }
}

impl EventSubscriber for Gate {
    fn init(&self, ops: &mut EventOps) {
        if let Err(e) = ops.add(Events::new(&self.event, EventSet::IN)) {
            log::error!("end of a device's thread: {e}");
        }
    }

    /// Only wakes the loop, which looks at the state each time.
    fn process(&self, _events: Events, _ops: &mut EventOps) {}
}

/// A device behind the gate.
struct Gated<D> {
    device: Arc<D>,
    gate: Arc<Gate>,
}

impl<D: EventSubscriber> EventSubscriber for Gated<D> {
    fn init(&self, ops: &mut EventOps) {
        self.device.init(ops);
    }

    fn process(&self, events: Events, ops: &mut EventOps) {
        let wait = self.gate.changed.wait_while(self.gate.state(), |s| *s == State::Closed);
        let state = wait.unwrap_or_else(PoisonError::into_inner);
        if *state == State::Open {
            self.device.process(events, ops);
        }
    }
}

impl IoThread {
    /// Serves `device` from the first [`IoThread::resume`] on; if that fails later, the machine ends.
    pub fn start<D>(device: Arc<D>, end: Arc<EndSignal>) -> io::Result<IoThread>
    where
        D: EventSubscriber + Send + Sync + 'static,
    {
        let event = EventFd::new(EFD_NONBLOCK)?;
        let (state, changed) = (Mutex::new(State::Closed), Condvar::new());
        let gate = Arc::new(Gate { state, changed, event });
        let mine = gate.clone();
        let thread = Builder::new().name("device".into()).spawn(move || {
            if let Err(e) = serve(device, &mine) {
                end.announce(End::Crash(format!("a device's thread cannot go on: {e}")));
            }
        })?;
        Ok(IoThread { gate, thread: Some(thread) })
    }

    /// The device is served.
    pub fn resume(&self) {
        self.gate.set(State::Open);
    }

    /// The device is not served any more when this returns; what comes waits.
    pub fn pause(&self) {
        self.gate.set(State::Closed);
    }
}

fn serve<D>(device: Arc<D>, gate: &Arc<Gate>) -> Result<(), event_manager::Error>
where
    D: EventSubscriber + 'static,
{
    let mut events: EventManager<Subscriber> = EventManager::new()?;
    events.add_subscriber(gate.clone());
    events.add_subscriber(Arc::new(Gated { device, gate: gate.clone() }));
    seccomp::confine_or_die(seccomp::Thread::Drive);
    while *gate.state() != State::Ended {
        events.run()?;
    }
    Ok(())
}

impl Drop for IoThread {
    fn drop(&mut self) {
        self.gate.set(State::Ended);
        let _ = self.gate.event.write(1);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::{Duration, Instant};

    /// Takes its time to count an event.
    struct Slow {
        event: EventFd,
        begun: AtomicU64,
        done: AtomicU64,
    }

    impl EventSubscriber for Slow {
        fn init(&self, ops: &mut EventOps) {
            ops.add(Events::new(&self.event, EventSet::IN)).unwrap();
        }

        fn process(&self, _events: Events, _ops: &mut EventOps) {
            let _ = self.event.read();
            self.begun.fetch_add(1, Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(50));
            self.done.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn wait_for(count: &AtomicU64, wanted: u64) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while count.load(Ordering::SeqCst) < wanted {
            assert!(Instant::now() < deadline, "{} of {wanted}", count.load(Ordering::SeqCst));
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn nothing_is_served_while_it_is_paused() {
        let device = Arc::new(Slow {
            event: EventFd::new(EFD_NONBLOCK).unwrap(),
            begun: AtomicU64::new(0),
            done: AtomicU64::new(0),
        });
        let end = Arc::new(EndSignal::new().unwrap());
        let thread = IoThread::start(device.clone(), end).unwrap();
        device.event.write(1).unwrap();
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(device.begun.load(Ordering::SeqCst), 0, "not before it is resumed");
        thread.resume();
        wait_for(&device.done, 1);
        // A pause in the middle waits; what comes later is kept.
        device.event.write(1).unwrap();
        wait_for(&device.begun, 2);
        thread.pause();
        assert_eq!(device.done.load(Ordering::SeqCst), 2);
        device.event.write(1).unwrap();
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(device.begun.load(Ordering::SeqCst), 2);
        thread.resume();
        wait_for(&device.done, 3);
        // A closed gate does not keep it from ending.
        thread.pause();
        device.event.write(1).unwrap();
        drop(thread);
        assert_eq!(device.begun.load(Ordering::SeqCst), 3);
    }
}
