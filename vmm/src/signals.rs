//! Signals that end the machine, as events of the loop.

use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use event_manager::{EventOps, EventSet, EventSubscriber, Events};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::end::{End, EndSignal};
use crate::metrics::Metrics;

/// Ends the machine at SIGINT, SIGTERM or SIGHUP.
pub struct Signals {
    sources: Vec<(UnixStream, &'static str)>,
    end: Arc<EndSignal>,
    metrics: Arc<Metrics>,
}

impl Signals {
    /// Takes the signals over.
    pub fn install(end: Arc<EndSignal>, metrics: Arc<Metrics>) -> io::Result<Signals> {
        let wanted = [(SIGINT, "SIGINT"), (SIGTERM, "SIGTERM"), (SIGHUP, "SIGHUP")];
        let mut sources = Vec::with_capacity(wanted.len());
        for (signal, name) in wanted {
            let (read, write) = UnixStream::pair()?;
            read.set_nonblocking(true)?;
            signal_hook::low_level::pipe::register(signal, write)?;
            sources.push((read, name));
        }
        Ok(Signals { sources, end, metrics })
    }
}

impl EventSubscriber for Signals {
    fn init(&self, ops: &mut EventOps) {
        for ((source, name), index) in self.sources.iter().zip(0u32..) {
            let events = Events::with_data_raw(source.as_raw_fd(), index, EventSet::IN);
            if let Err(e) = ops.add(events) {
                log::error!("{name}: {e}");
            }
        }
    }

    fn process(&self, events: Events, _ops: &mut EventOps) {
        if let Some((source, name)) = self.sources.get(events.data() as usize) {
            let _ = (&mut &*source).read(&mut [0; 16]);
            if *name == "SIGHUP" {
                self.metrics.signals.sighup.set(1);
            }
            self.end.announce(End::Signal(name));
        }
    }
}
