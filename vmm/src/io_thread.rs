//! A thread that serves one device apart from the event loop: a request that waits for a slow disk then
//! keeps nobody else waiting. What it does for the device, the loop would do in the same way.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Builder, JoinHandle};

use event_manager::{EventManager, EventOps, EventSet, EventSubscriber, Events, SubscriberOps};
use varve_devices::virtio::mmio::Transport;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::end::{End, EndSignal};
use crate::machine::Subscriber;

/// The thread; it ends when this is dropped, after the request that it is at.
#[derive(Debug)]
pub struct IoThread {
    stop: Arc<Stop>,
    thread: Option<JoinHandle<()>>,
}

/// Wakes the thread's loop to its end.
#[derive(Debug)]
struct Stop {
    event: EventFd,
    wanted: AtomicBool,
}

impl EventSubscriber for Stop {
    fn init(&self, ops: &mut EventOps) {
        if let Err(e) = ops.add(Events::new(&self.event, EventSet::IN)) {
            log::error!("end of a device's thread: {e}");
        }
    }

    /// Only wakes the loop, which looks at `wanted` each time.
    fn process(&self, _events: Events, _ops: &mut EventOps) {}
}

impl IoThread {
    /// Serves `device`; if that fails later, the machine ends.
    pub fn start(device: Arc<Transport>, end: Arc<EndSignal>) -> io::Result<IoThread> {
        let event = EventFd::new(EFD_NONBLOCK)?;
        let stop = Arc::new(Stop { event, wanted: AtomicBool::new(false) });
        let mine = stop.clone();
        // It keeps the main thread's filter of system calls: it does the same work.
        let thread = Builder::new().name("device".into()).spawn(move || {
            if let Err(e) = serve(device, &mine) {
                end.announce(End::Crash(format!("a device's thread cannot go on: {e}")));
            }
        })?;
        Ok(IoThread { stop, thread: Some(thread) })
    }
}

fn serve(device: Arc<Transport>, stop: &Arc<Stop>) -> Result<(), event_manager::Error> {
    let mut events: EventManager<Subscriber> = EventManager::new()?;
    events.add_subscriber(stop.clone());
    events.add_subscriber(device);
    while !stop.wanted.load(Ordering::Acquire) {
        events.run()?;
    }
    Ok(())
}

impl Drop for IoThread {
    fn drop(&mut self) {
        self.stop.wanted.store(true, Ordering::Release);
        let _ = self.stop.event.write(1);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
