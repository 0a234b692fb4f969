//! Putting a machine together: the one construction path.
//!
//! Order matters and is this: memory, KVM machine, platform devices, virtio devices, vCPUs, boot
//! state. A machine that boots and one that is restored differ in where memory and states come from,
//! not in how they are built.

mod builder;
mod controls;
pub mod lineage;
pub mod memory;
pub mod offload;
pub mod offload_request;
pub mod recording;
pub mod saved;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use event_manager::{EventManager, SubscriberId, SubscriberOps};
use varve_devices::i8042::I8042;
use varve_devices::mmds::Mmds;
use varve_devices::virtio::balloon::BalloonHandle;
use varve_devices::virtio::mmio::Transport;
use varve_devices::virtio::vsock::{Vsock, VsockConfig};
use varve_memory_tiers::{GuestRam, Stage2, take_dirty};
use varve_snapshot::{HostIdentity, PageRange};

use crate::arch::cpu_template::TemplateError;
use crate::arch::{cpu_template, cpuid, vcpu_state};
use crate::boot;
use crate::config::VmConfig;
use crate::device_set::DeviceSet;
use crate::end::EndSignal;
use crate::error::VmmError;
use crate::faults::VcpuFaults;
use crate::io_thread::{IoThread, Subscriber};
use crate::kvm::{KvmVm, Watching};
use crate::lost::{self, LengthCheck};
use crate::machine::lineage::Lineage;
use crate::machine::memory::{Fatal, Restored};
use crate::machine::saved::{Saved, SavedMachine};
use crate::metrics::Metrics;
use crate::vcpu::VcpuHandle;
use builder::Builder;
use offload::Offloading;

/// What a machine needs of the process around it.
pub struct Host {
    /// The event loop.
    pub events: EventManager<Subscriber>,
    /// Who of a machine that is being built waits on the loop already.
    pub waiting: Vec<SubscriberId>,
    /// Where the machine's end is announced.
    pub end: Arc<EndSignal>,
    /// Told of the guest's marks on the boot timer.
    pub boot_timer: Arc<dyn Fn(u8, Duration) + Send + Sync>,
    /// When the process, or the machine's start, began: the boot timer's zero.
    pub start: Instant,
    /// What the process counts.
    pub metrics: Arc<Metrics>,
    /// What network interfaces with a metadata service serve.
    pub mmds: Arc<Mmds>,
    /// A vsock device that was made ahead of the machine, so that host programs can connect already.
    pub vsock: Option<(VsockConfig, Vsock)>,
    /// Called from any thread when a page of guest memory cannot be had.
    pub fatal: Fatal,
}

impl Host {
    /// Adds a device to those who wait for events.
    fn wait(&mut self, device: Subscriber) {
        self.waiting.push(self.events.add_subscriber(device));
    }
}

/// Where a machine's state comes from.
pub enum Start {
    /// A kernel's first instruction.
    Boot,
    /// A machine that was saved, and how its memory comes back.
    Saved(Box<Saved>),
}

/// A machine, with its vCPUs paused until [`Machine::resume`].
///
/// Field order is drop order: vCPUs stop before the devices they call, and those before the memory.
pub struct Machine {
    vcpus: Vec<VcpuHandle>,
    io_threads: Vec<IoThread>,
    devices: DeviceSet,
    /// Both answer faults for as long as anyone above may touch memory.
    offloading: Option<Offloading>,
    restored: Option<Restored>,
    transports: Vec<Arc<Transport>>,
    keyboard: Arc<I8042>,
    balloon: Option<BalloonHandle>,
    tracks_writes: bool,
    /// Model-specific registers that a CPU template changed.
    template_msrs: Vec<u32>,
    given_back: Mutex<Vec<PageRange>>,
    /// The last snapshot, since which writes are tracked.
    lineage: Mutex<Option<Lineage>>,
    vm: KvmVm,
    ram: Arc<GuestRam>,
}

impl Machine {
    /// Builds the machine that `config` describes over `ram`; its devices wait for their events on
    /// `host`'s loop.
    pub fn build(
        config: &VmConfig,
        ram: Arc<GuestRam>,
        from: Start,
        host: &mut Host,
    ) -> Result<Machine, VmmError> {
        let accesses =
            matches!(&from, Start::Saved(saved) if saved.memory.shows_the_guests_accesses());
        let watch = Watching { writes: config.track_dirty_pages, accesses };
        let vm = KvmVm::new(ram.clone(), config.vcpus, watch)?;
        let needed = config.cpu.iter().flat_map(cpu_template::needed_capabilities);
        if let Some(number) = needed.into_iter().find(|number| !vm.has_capability(*number)) {
            return Err(TemplateError::Capability(number).into());
        }
        let (devices, saved, restore) = match from {
            Start::Boot => {
                lost::watch(&ram, None);
                (DeviceSet::new(), None, None)
            }
            Start::Saved(saved) => {
                let Saved { machine, memory, stage2 } = *saved;
                let SavedMachine { vm: state, vcpus, devices } = machine;
                saved::check_processor(&vm, &vcpus)?;
                let helpers = saved::prefault(&vm, &vcpus, stage2);
                let stage2 = helpers.clone().map(|h| Box::new(h) as Box<dyn Stage2>);
                let restore = memory.start(ram.clone(), stage2, host.fatal.clone())?;
                lost::watch(&ram, restore.planned().map(|planned| planned.mapped_pages()));
                if let Some(planned) = restore.planned() {
                    let (check, fatal) = (planned.watch_lengths(), host.fatal.clone());
                    let check = LengthCheck::start(Box::new(move || {
                        if let Err(error) = check() {
                            fatal(error);
                        }
                    }));
                    host.wait(Arc::new(check.map_err(|e| VmmError::System("timer", e))?));
                    host.metrics.watch_restore(Box::new(planned.watch_counters()));
                    // Threads start while vCPUs and devices get their state.
                    planned.prepare_beside()?;
                }
                (DeviceSet::restoring(devices), Some((state, vcpus, helpers)), Some(restore))
            }
        };
        let mut builder = Builder::new(vm, ram, devices, host);
        builder.tracks_writes = config.track_dirty_pages;
        let keyboard = builder.platform(config)?;
        builder.virtio(config)?;
        let vmgenid = builder.vmgenid()?;
        builder.devices.complete()?;
        // A copy of a machine is another machine.
        vmgenid.renew(builder.ram.memory())?;
        let restored = saved.is_some();
        let fds = match saved {
            None => boot::load(config, &builder.vm, &builder.ram, &builder.slots)?,
            Some((state, vcpus, helpers)) => {
                let metrics = &builder.host.metrics.vcpu;
                let (vm, ram) = (&builder.vm, builder.ram.memory());
                saved::restore_vcpus(vm, ram, &state, vcpus, helpers.as_ref(), metrics)?
            }
        };
        let mut machine = builder.finish(fds, restore, keyboard)?;
        machine.template_msrs = config.cpu.iter().flat_map(cpu_template::msr_indices).collect();
        if let Some(planned) = machine.restored.as_ref().and_then(Restored::planned) {
            // Once each vCPU's thread has all its mappings.
            machine.vcpus.iter().try_for_each(|v| v.call(|_| ()))?;
            planned.populate_beside()?;
        }
        if restored {
            machine.transports.iter().for_each(|t| t.kick());
            vmgenid.notify()?;
        }
        Ok(machine)
    }

    /// The state of everything but memory. Only while the machine is paused.
    pub fn save(&self) -> Result<SavedMachine, VmmError> {
        let mut indices = self.vm.msr_indices()?;
        let more = self.template_msrs.iter().filter(|index| !indices.contains(index));
        indices.extend(more.copied().collect::<Vec<_>>());
        let indices: Arc<[u32]> = indices.into();
        let mut vcpus = Vec::with_capacity(self.vcpus.len());
        for (id, vcpu) in self.vcpus.iter().enumerate() {
            let indices = indices.clone();
            let mut state = vcpu.call(move |fd| vcpu_state::save(fd, &indices))??;
            if let Some(faults) = self.vm.async_faults() {
                faults.give_back(id, &mut state);
            }
            vcpus.push(state);
        }
        Ok(SavedMachine { vm: self.vm.save()?, vcpus, devices: self.devices.save() })
    }

    /// The host as far as it matters to where a snapshot can be restored.
    pub fn host_identity(&self) -> Result<HostIdentity, VmmError> {
        let cpuid = self.vm.supported_cpuid()?;
        Ok(HostIdentity {
            arch: std::env::consts::ARCH.into(),
            cpu_vendor: cpuid::vendor(cpuid.as_slice()),
            features: Vec::new(),
        })
    }

    /// Lets all vCPUs run.
    pub fn resume(&self) -> Result<(), VmmError> {
        self.io_threads.iter().for_each(IoThread::resume);
        self.vcpus.iter().try_for_each(|v| v.resume()).map_err(VmmError::from)
    }

    /// Makes all vCPUs leave the guest, and waits until they have; nothing but the main thread serves
    /// devices then.
    pub fn pause(&self) -> Result<(), VmmError> {
        self.vcpus.iter().try_for_each(VcpuHandle::pause)?;
        self.vcpus.iter().try_for_each(|v| v.call(|_| ()))?;
        self.io_threads.iter().for_each(IoThread::pause);
        Ok(())
    }

    /// The restore that this machine came from, if it did.
    pub fn restored(&self) -> Option<&Restored> {
        self.restored.as_ref()
    }

    /// The pages written since the last call, if they are tracked. Only while the machine is paused.
    pub fn take_dirty(&self) -> Result<Option<Vec<PageRange>>, VmmError> {
        if !self.tracks_writes {
            return Ok(None);
        }
        let logs = self.vm.take_write_log()?;
        let logs: Vec<&[u64]> = logs.iter().map(Vec::as_slice).collect();
        let dirty = take_dirty(&self.ram, &logs)?;
        let mut all = self.given_back.lock().unwrap_or_else(PoisonError::into_inner).split_off(0);
        all.extend(dirty);
        Ok(Some(PageRange::union(all)))
    }

    /// Pages that were taken, but not saved: the next call of [`Machine::take_dirty`] names them
    /// again.
    pub fn give_back_dirty(&self, pages: Vec<PageRange>) {
        self.given_back.lock().unwrap_or_else(PoisonError::into_inner).extend(pages);
    }

    /// The last snapshot that was made of this machine, or that it came from.
    pub fn lineage(&self) -> Option<Lineage> {
        self.lineage.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Says which that is now.
    pub fn set_lineage(&self, last: Option<Lineage>) {
        *self.lineage.lock().unwrap_or_else(PoisonError::into_inner) = last;
    }

    /// Page faults that the kernel answered for the vCPUs since the machine was built. Interrupts the
    /// vCPUs for a moment.
    pub fn vcpu_faults(&self) -> Result<VcpuFaults, VmmError> {
        let of = |vcpu: &VcpuHandle| vcpu.call(|fd| VcpuFaults::of_this_thread(fd));
        let all =
            self.vcpus.iter().map(|vcpu| Ok(of(vcpu)?)).collect::<Result<Vec<_>, VmmError>>()?;
        let all = all.into_iter().collect::<Result<Vec<_>, _>>();
        let all = all.map_err(|e| VmmError::System("fault counters of a vCPU", e))?;
        Ok(all.into_iter().sum())
    }

    /// Whether the guest can read its clock without system calls.
    ///
    /// # Errors
    ///
    /// If KVM does not tell.
    pub fn clock_is_stable(&self) -> Result<bool, VmmError> {
        Ok(self.vm.clock_is_stable()?)
    }

    /// The devices, by name.
    pub fn devices(&self) -> &DeviceSet {
        &self.devices
    }

    /// Guest memory.
    pub fn ram(&self) -> &Arc<GuestRam> {
        &self.ram
    }
}
