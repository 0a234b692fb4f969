//! The process around a machine: event loop, signals, control socket, and the way to its end.
//!
//! There need not be a machine yet: requests can describe it piece by piece, and then start it.

use std::borrow::Cow;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use event_manager::{EventManager, EventSubscriber, SubscriberOps};
use varve_devices::mmds::Mmds;
use varve_devices::virtio::vsock::{Vsock, VsockConfig, VsockError};
use varve_memory_tiers::GuestRam;

use crate::arch::layout;
use crate::config::firecracker::Resources;
use crate::config::{Console, MAX_BODY, VmConfig};
use crate::end::{End, EndSignal};
use crate::error::VmmError;
use crate::instance::InstanceId;
use crate::io_thread::Subscriber;
use crate::lost;
use crate::machine::memory::{Fatal, Restored};
use crate::machine::offload_request::OffloadRequest;
use crate::machine::{Host, Machine, Start};
use crate::metrics::{self, FlushTimer, Metrics};
use crate::seccomp;
use crate::signals::Signals;
use crate::snapshot::flat::{self, Extent, Saving};
use crate::snapshot::restore::{Prepared, Wanted, prepare};
use crate::snapshot::saver::Saver;
use crate::stdio;
use crate::terminal::RawTerminal;

/// What the machine is doing, as the API names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunState {
    /// There is no machine yet.
    NotStarted,
    /// The vCPUs run.
    Running,
    /// The vCPUs stand still.
    Paused,
}

/// Requests from outside of the process, such as those of the API's clients.
pub trait Control {
    /// Whether a request waits.
    fn has_requests(&self) -> bool;

    /// Carries out the next request, if one waits.
    fn serve_next(&self, monitor: &mut Monitor);
}

/// A machine and the process that runs it. Field order is drop order: the machine goes before the
/// loop that its devices wait on.
pub struct Monitor {
    machine: Option<Machine>,
    config: Option<VmConfig>,
    /// The machine that is being described, until there is one.
    resources: Resources,
    /// Something was described, or tried to be.
    configured: bool,
    id: InstanceId,
    state: RunState,
    /// System calls that only making the machine took are forbidden.
    settled: bool,
    host: Host,
    control: Option<Arc<dyn Control>>,
    timer: Option<Arc<FlushTimer>>,
    signals: Signals,
    /// Where the process may save.
    saver: Option<Saver>,
    _terminal: Option<RawTerminal>,
}

impl Monitor {
    /// A monitor without a machine. `start` is when the process began; `boot_timer` is told of the
    /// guest's marks.
    pub fn new(
        id: InstanceId,
        start: Instant,
        boot_timer: Arc<dyn Fn(u8, Duration) + Send + Sync>,
    ) -> Result<Monitor, VmmError> {
        crate::heap::share();
        let mut events: EventManager<Subscriber> =
            EventManager::new().map_err(|e| VmmError::Events(e.to_string()))?;
        let system = |what| move |e| VmmError::System(what, e);
        let end = Arc::new(EndSignal::new().map_err(system("event descriptor"))?);
        events.add_subscriber(end.clone());
        let metrics = Arc::<Metrics>::default();
        let signals = Signals::start(end.clone(), metrics.clone());
        let signals = signals.map_err(system("thread of signals"))?;
        let saver = seccomp::saves().then(Saver::start).transpose();
        let saver = saver.map_err(system("thread that saves"))?;
        let mmds = Mmds::new(MAX_BODY, metrics.mmds.clone()).map_err(system("random numbers"))?;
        Ok(Monitor {
            machine: None,
            config: None,
            resources: Resources::default(),
            configured: false,
            id,
            state: RunState::NotStarted,
            settled: false,
            host: Host {
                events,
                waiting: Vec::new(),
                end,
                boot_timer,
                start,
                mmds: Arc::new(mmds),
                vsock: None,
                fatal: page_lost(&metrics),
                metrics,
            },
            control: None,
            timer: None,
            signals,
            saver,
            _terminal: None,
        })
    }

    /// Carries out the requests of `control` from now on.
    pub fn take_control(&mut self, control: Arc<impl Control + EventSubscriber + 'static>) {
        self.host.events.add_subscriber(control.clone());
        self.control = Some(control);
    }

    /// Boots the machine that `config` describes; its boot timer counts from `since`.
    pub fn boot(&mut self, config: VmConfig, since: Instant) -> Result<(), VmmError> {
        config.validate()?;
        log::info!(
            "booting {:?}: {} vCPUs, {} MiB",
            config.boot.kernel,
            config.vcpus,
            config.memory >> 20
        );
        self.host.start = since;
        let ranges = layout::memory_ranges(config.memory);
        let ram = GuestRam::with_pages(&ranges, config.track_dirty_pages, config.huge_pages)?;
        let ram = Arc::new(ram);
        self.adopt(config, ram, Start::Boot)?;
        self.resume()
    }

    /// Builds a machine, paused. If that fails, all is as before.
    pub fn adopt(
        &mut self,
        config: VmConfig,
        ram: Arc<GuestRam>,
        from: Start,
    ) -> Result<(), VmmError> {
        let machine = Machine::build(&config, ram, from, &mut self.host);
        let waiting = std::mem::take(&mut self.host.waiting);
        let machine = machine.inspect_err(|_| {
            for id in waiting {
                // It was added a moment ago, so it is there.
                let _ = self.host.events.remove_subscriber(id);
            }
        })?;
        self._terminal = (config.console == Console::Stdio).then(RawTerminal::enter);
        self.machine = Some(machine);
        self.config = Some(config);
        self.state = RunState::Paused;
        self.start_metrics()
    }

    /// Writes the first line of metrics, and one each minute.
    fn start_metrics(&mut self) -> Result<(), VmmError> {
        if self.timer.is_none() {
            let timer = FlushTimer::start(self.metrics().clone(), metrics::PERIOD)
                .map_err(|e| VmmError::System("timer", e))?;
            let timer = Arc::new(timer);
            self.host.events.add_subscriber(timer.clone());
            self.timer = Some(timer);
            self.flush_metrics();
        }
        Ok(())
    }

    /// What the process counts.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.host.metrics
    }

    fn flush_metrics(&self) {
        if let Err(e) = self.metrics().flush() {
            log::warn!("metrics: {}", crate::error::chain(&e));
        }
    }

    /// Restores a machine from a snapshot; it is paused.
    ///
    /// # Errors
    ///
    /// If the snapshot cannot be restored here; all is as before then.
    pub fn restore(&mut self, wanted: Wanted) -> Result<(), VmmError> {
        let started = Instant::now();
        let Prepared { config, ram, start, lineage } = prepare(wanted)?;
        self.adopt(config, ram, start)?;
        self.machine()?.set_lineage(Some(lineage));
        metrics::took(&self.metrics().latencies.vmm_load_snapshot, started);
        let method = self.machine()?.restored().map_or("nothing", |r| r.method());
        log::info!("restored in {:.3?}, memory by {method}", started.elapsed());
        Ok(())
    }

    /// Writes a snapshot of the paused machine; see [`flat::create`].
    ///
    /// # Errors
    ///
    /// If there is no machine, or the snapshot cannot be written.
    pub fn save(&self, extent: Extent, state: &Path, memory: &Path) -> Result<(), VmmError> {
        let (machine, config) = (self.machine()?, self.config()?);
        let of = Saving {
            machine,
            config,
            metrics: self.metrics(),
            end: self.end(),
            saver: self.saver()?,
        };
        flat::create(&of, extent, state, memory)
    }

    fn saver(&self) -> Result<&Saver, VmmError> {
        let missing = || VmmError::System("thread that saves", ErrorKind::Unsupported.into());
        self.saver.as_ref().ok_or_else(missing)
    }

    /// Lets the vCPUs run, if they do not.
    pub fn resume(&mut self) -> Result<(), VmmError> {
        if self.state == RunState::Paused {
            let start = Instant::now();
            self.machine()?.resume()?;
            metrics::took(&self.metrics().latencies.vmm_resume_vm, start);
            self.state = RunState::Running;
            log::info!("the vCPUs run, {:.3?} after the start", self.host.start.elapsed());
        }
        Ok(())
    }

    /// Stops the vCPUs, if they run.
    pub fn pause(&mut self) -> Result<(), VmmError> {
        if self.state == RunState::Running {
            let start = Instant::now();
            self.machine()?.pause()?;
            metrics::took(&self.metrics().latencies.vmm_pause_vm, start);
            log::info!("the vCPUs stand still");
            self.state = RunState::Paused;
        }
        Ok(())
    }

    /// Begins to offload idle pages of the machine. They are taken out between two rounds of events, and
    /// sent by a thread.
    pub fn offload(&mut self, request: OffloadRequest) -> Result<(), VmmError> {
        let machine = self.machine.as_mut().ok_or(VmmError::NoMachine)?;
        machine.offload(request, &self.host.fatal)
    }

    fn is_taking(&self) -> bool {
        self.machine.as_ref().is_some_and(Machine::is_taking)
    }

    /// Takes some pages out of the machine's memory, which stands still for that.
    fn take_some(&self) -> Result<(), VmmError> {
        let machine = self.machine()?;
        let running = self.state == RunState::Running;
        if running {
            machine.pause()?;
        }
        if let Err(error) = machine.take_some() {
            // It is told who asks what became of the pages; they are all there.
            log::warn!("offloading: {}", crate::error::chain(&error));
        }
        if running { machine.resume() } else { Ok(()) }
    }

    /// Ends a recording, if there is one, and writes its trace unless that was done before; tells pages
    /// that it saw touched, and among them written.
    pub fn save_trace(&self) -> Result<Option<(u64, u64)>, VmmError> {
        let restored = self.machine.as_ref().and_then(Machine::restored);
        let Some(recording) = restored.and_then(Restored::recording) else { return Ok(None) };
        let saver = self.saver()?;
        recording.save(|path, trace| saver.write_trace(path, trace)).map(Some)
    }

    /// The machine as it is described so far, to be changed.
    pub fn configure(&mut self) -> &mut Resources {
        self.configured = true;
        &mut self.resources
    }

    /// Makes the vsock device ahead of its machine, in place of one that was made before: host
    /// programs can connect from now on. If that fails, the one before stays.
    pub fn make_vsock(&mut self, config: VsockConfig) -> Result<(), VsockError> {
        // One at the same place has to go first.
        let before = self.host.vsock.take_if(|(made, _)| made.uds_path == config.uds_path);
        let before = before.map(|(made, _)| made);
        let made = Vsock::new(config.clone());
        if let (Err(_), Some(before)) = (&made, before) {
            self.host.vsock = Vsock::new(before.clone()).ok().map(|device| (before, device));
        }
        self.host.vsock = Some((config, made?));
        Ok(())
    }

    /// The same for what a process that loads a snapshot may be told before.
    pub fn prepare(&mut self) -> &mut Resources {
        &mut self.resources
    }

    /// Whether [`Monitor::configure`] was called.
    pub fn is_configured(&self) -> bool {
        self.configured
    }

    /// Where a description begins: what the command line says of any machine.
    pub fn set_defaults(&mut self, resources: Resources) {
        self.resources = resources;
    }

    /// The machine in Firecracker's terms: as it is, or as it is described so far.
    pub fn resources(&self) -> Cow<'_, Resources> {
        let Some(config) = &self.config else { return Cow::Borrowed(&self.resources) };
        let mut resources = Resources::from(config);
        let live = self.machine.as_ref().and_then(Machine::balloon);
        if let (Some(balloon), Some(live)) = (&mut resources.balloon, live) {
            balloon.amount_mib = live.target();
            balloon.stats_polling_interval_s = live.stats_interval();
        }
        Cow::Owned(resources)
    }

    /// The metadata service's document.
    pub fn mmds(&self) -> &Mmds {
        &self.host.mmds
    }

    /// Name of the machine.
    pub fn id(&self) -> &InstanceId {
        &self.id
    }

    /// What the machine is doing.
    pub fn state(&self) -> RunState {
        self.state
    }

    /// The machine.
    pub fn machine(&self) -> Result<&Machine, VmmError> {
        self.machine.as_ref().ok_or(VmmError::NoMachine)
    }

    /// The machine's configuration.
    pub fn config(&self) -> Result<&VmConfig, VmmError> {
        self.config.as_ref().ok_or(VmmError::NoMachine)
    }

    /// Notes changes that were made to the machine.
    pub fn set_config(&mut self, config: VmConfig) {
        self.config = Some(config);
    }

    /// Where the machine's end is announced.
    pub fn end(&self) -> &Arc<EndSignal> {
        &self.host.end
    }

    /// When the process began.
    pub fn start(&self) -> Instant {
        self.host.start
    }

    /// Once there is a machine, takes from this thread the system calls that only making it took.
    fn settle(&mut self) {
        if self.machine.is_some() && !std::mem::replace(&mut self.settled, true) {
            seccomp::settle();
        }
    }

    /// Adds someone who waits for events.
    pub fn subscribe(&mut self, subscriber: Subscriber) {
        self.host.events.add_subscriber(subscriber);
    }

    /// Handles events and requests until the machine ends. After each round `each` may act on the
    /// monitor.
    pub fn run(
        &mut self,
        mut each: impl FnMut(&mut Monitor) -> Result<(), VmmError>,
    ) -> Result<End, VmmError> {
        loop {
            self.settle();
            // Devices are served between two requests, however many of them a client has sent ahead.
            let asked = self.is_taking() || self.control.as_ref().is_some_and(|c| c.has_requests());
            let events = &mut self.host.events;
            let handled = if asked { events.run_with_timeout(0) } else { events.run() };
            handled.map_err(|e| VmmError::Events(e.to_string()))?;
            if let Some(control) = self.control.clone() {
                control.serve_next(self);
            }
            if self.is_taking() {
                self.take_some()?;
            }
            each(self)?;
            if let Some(end) = self.host.end.get() {
                self.signals.seen();
                let restored = self.machine.as_ref().and_then(Machine::restored);
                let end = lost::named(end, || restored?.planned()?.find_lost());
                log::info!("the machine has ended: {end}");
                return Ok(end);
            }
        }
    }
}

/// However it ends, what was counted up to now is written while the machine is there to ask.
impl Drop for Monitor {
    fn drop(&mut self) {
        if let Some(End::Signal(_)) = self.host.end.get() {
            self.signals.ends();
        }
        self.flush_metrics();
    }
}

/// What is done when a page of guest memory cannot be had. Whoever touched it waits for it for ever,
/// perhaps the main thread itself, and nothing but the right content may let them go on: the process
/// ends here.
fn page_lost(metrics: &Arc<Metrics>) -> Fatal {
    let metrics = metrics.clone();
    Arc::new(move |error| {
        let exit = End::Memory(crate::error::chain(&error));
        crate::terminal::restore();
        stdio::last_words(&format!("varve: {exit}"));
        log::info!("the machine has ended: {exit}");
        metrics.flush_last();
        std::process::exit(exit.exit_code().into());
    })
}
