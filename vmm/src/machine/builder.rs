//! Puts a machine's devices, buses and vCPUs together. Boot and restore take the same way.

use std::io;
use std::sync::{Arc, Mutex};

use varve_devices::boot_timer::{BOOT_TIMER_LEN, BootTimer};
use varve_devices::bus::{Bus, BusDevice};
use varve_devices::i8042::{I8042, I8042_BASE, I8042_IRQ, I8042_LEN};
use varve_devices::interrupt::IrqLine;
use varve_devices::mmds::Station;
use varve_devices::power::{POWER_BASE, POWER_LEN, PowerRegisters};
use varve_devices::pvpanic::{PVPANIC_PORT, PvPanic};
use varve_devices::serial::{COM_LEN, COM1_BASE, COM1_IRQ, SerialPort};
use varve_devices::state::Savable;
use varve_devices::stop::SharedStopSink;
use varve_devices::virtio::VirtioDevice;
use varve_devices::virtio::balloon::{Balloon, BalloonHandle};
use varve_devices::virtio::block::Block;
use varve_devices::virtio::mmio::{MMIO_LEN, MmioTransport, QUEUE_NOTIFY, Transport};
use varve_devices::virtio::net::Net;
use varve_devices::virtio::rng::Rng;
use varve_devices::virtio::vsock::Vsock;
use varve_devices::vmgenid::VmGenId;
use varve_memory_tiers::GuestRam;
use vm_memory::GuestAddress;

use super::{Host, Machine};
use crate::arch::acpi::MmioSlot;
use crate::arch::layout;
use crate::config::VmConfig;
use crate::console;
use crate::console_output::ConsoleOutput;
use crate::device_set::DeviceSet;
use crate::error::VmmError;
use crate::io_thread::IoThread;
use crate::kvm::KvmVm;
use crate::machine::memory::Restored;
use crate::reclaim::RamReclaim;
use crate::vcpu::{Buses, VcpuHandle};

/// A machine that is being put together.
pub(super) struct Builder<'h> {
    pub(super) host: &'h mut Host,
    pub(super) vm: KvmVm,
    pub(super) ram: Arc<GuestRam>,
    ports: Bus,
    memory: Bus,
    pub(super) devices: DeviceSet,
    balloon: Option<BalloonHandle>,
    pub(super) tracks_writes: bool,
    pub(super) slots: Vec<MmioSlot>,
    transports: Vec<Arc<Transport>>,
    io_threads: Vec<IoThread>,
}

/// Interrupts, and so places, for virtio devices.
const MAX_VIRTIO: usize = (layout::VMGENID_GSI - layout::FIRST_GSI) as usize;

impl<'h> Builder<'h> {
    pub(super) fn new(
        vm: KvmVm,
        ram: Arc<GuestRam>,
        devices: DeviceSet,
        host: &'h mut Host,
    ) -> Builder<'h> {
        Builder {
            host,
            vm,
            ram,
            ports: Bus::new(),
            memory: Bus::new(),
            devices,
            balloon: None,
            tracks_writes: false,
            slots: Vec::new(),
            transports: Vec::new(),
            io_threads: Vec::new(),
        }
    }

    /// Serial port, keyboard controller, power registers, panic port, boot timer.
    pub(super) fn platform(&mut self, config: &VmConfig) -> Result<Arc<I8042>, VmmError> {
        let line = self.line(COM1_IRQ)?;
        let (output, input) = console::open(&config.console)?;
        let system = |e| VmmError::System("event descriptor", e);
        let output = output.map(ConsoleOutput::new).transpose().map_err(system)?;
        let writer = output.as_ref().map_or_else(|| Box::new(io::sink()) as _, |o| o.writer());
        let serial =
            SerialPort::new(line, writer, input, config.console_limiter).map_err(system)?;
        self.host.metrics.devices().uart = serial.metrics();
        if let Some(output) = output {
            output.count_in(serial.metrics());
            self.host.wait(output);
        }
        let serial = self.devices.admit("serial", serial)?;
        self.ports.insert(COM1_BASE, COM_LEN, serial.clone())?;
        self.host.wait(serial);

        let stop: SharedStopSink = self.host.end.clone();
        let keyboard = I8042::new(self.line(I8042_IRQ)?, stop.clone());
        self.host.metrics.devices().i8042 = keyboard.metrics();
        let keyboard = self.port("i8042", I8042_BASE, I8042_LEN, keyboard)?;
        self.port("power", POWER_BASE, POWER_LEN, PowerRegisters::new(stop.clone()))?;
        self.port("pvpanic", PVPANIC_PORT, 1, PvPanic::new(stop))?;
        if config.boot_timer {
            let report = self.host.boot_timer.clone();
            let timer = BootTimer::new(self.host.start, move |mark, time| report(mark, time));
            self.memory.insert(layout::BOOT_TIMER, BOOT_TIMER_LEN, Arc::new(timer))?;
        }
        Ok(keyboard)
    }

    fn port<D>(&mut self, name: &str, base: u64, len: u64, device: D) -> Result<Arc<D>, VmmError>
    where
        D: BusDevice + Savable + 'static,
    {
        let device = self.devices.admit(name, device)?;
        self.ports.insert(base, len, device.clone())?;
        Ok(device)
    }

    /// All virtio devices, in an order that a snapshot can rely on.
    pub(super) fn virtio(&mut self, config: &VmConfig) -> Result<(), VmmError> {
        for drive in &config.drives {
            let id = drive.id.clone();
            let device = Block::new(drive.clone())
                .map_err(|source| VmmError::Block { id: id.clone(), source })?;
            self.host.metrics.devices().block.insert(id.clone(), device.metrics());
            let transport = self.place(format!("block:{id}"), Box::new(device))?;
            match drive.apart {
                true => self.serve_apart(transport)?,
                false => self.host.wait(transport),
            }
        }
        for net in &config.nets {
            let id = net.id.clone();
            let mut device =
                Net::new(net.clone()).map_err(|source| VmmError::Net { id: id.clone(), source })?;
            self.host.metrics.devices().net.insert(id.clone(), device.metrics());
            if let Some(mmds) = config.mmds.as_ref().filter(|mmds| mmds.serves(&id)) {
                let station = Station::new(self.host.mmds.clone(), mmds, net.mtu)
                    .map_err(|e| VmmError::System("timer of the metadata service", e))?;
                device = device.with_detour(Box::new(station));
            }
            self.attach(format!("net:{id}"), Box::new(device))?;
        }
        if let Some(vsock) = &config.vsock {
            let device = match self.host.vsock.take() {
                Some((made, device)) if made == *vsock => device,
                _ => Vsock::new(vsock.clone())?,
            };
            self.host.metrics.devices().vsock = device.metrics();
            self.attach("vsock".into(), Box::new(device))?;
        }
        if let Some(balloon) = &config.balloon {
            let reclaim = Box::new(RamReclaim(self.ram.clone()));
            let device = Balloon::new(balloon.clone(), reclaim)?;
            self.balloon = Some(device.handle());
            self.host.metrics.devices().balloon = device.metrics();
            self.attach("balloon".into(), Box::new(device))?;
        }
        if config.entropy {
            let device = Rng::new(config.entropy_limiter)
                .map_err(|e| VmmError::System("timer of the entropy device", e))?;
            self.host.metrics.devices().entropy = device.metrics();
            self.attach("entropy".into(), Box::new(device))?;
        }
        Ok(())
    }

    /// Gives a virtio device its place, and has the event loop serve it.
    fn attach(&mut self, name: String, device: Box<dyn VirtioDevice>) -> Result<(), VmmError> {
        let transport = self.place(name, device)?;
        self.host.wait(transport);
        Ok(())
    }

    fn serve_apart(&mut self, transport: Arc<Transport>) -> Result<(), VmmError> {
        let thread = IoThread::start(transport, self.host.end.clone());
        self.io_threads.push(thread.map_err(|e| VmmError::System("thread of a drive", e))?);
        Ok(())
    }

    /// Gives a virtio device its window, interrupt and doorbells.
    fn place(
        &mut self,
        name: String,
        device: Box<dyn VirtioDevice>,
    ) -> Result<Arc<Transport>, VmmError> {
        let index = self.slots.len();
        if index == MAX_VIRTIO {
            return Err(VmmError::TooManyDevices(index + 1, MAX_VIRTIO));
        }
        let slot = MmioSlot {
            base: layout::VIRTIO_MMIO + MMIO_LEN * index as u64,
            gsi: layout::FIRST_GSI + index as u32,
        };
        let line = self.line(slot.gsi)?;
        let transport = Transport::new(name.clone(), device, self.ram.memory().clone(), line)
            .map_err(|e| VmmError::System("event descriptor", e))?;
        let transport = self.devices.admit(&name, transport)?;
        for (queue, event) in (0u32..).zip(transport.queue_events()) {
            self.vm.connect_doorbell(event, slot.base + QUEUE_NOTIFY, queue)?;
        }
        self.memory.insert(slot.base, MMIO_LEN, Arc::new(MmioTransport(transport.clone())))?;
        self.transports.push(transport.clone());
        self.slots.push(slot);
        Ok(transport)
    }

    pub(super) fn vmgenid(&mut self) -> Result<Arc<VmGenId>, VmmError> {
        let line = self.line(layout::VMGENID_GSI)?;
        self.devices.admit("vmgenid", VmGenId::new(GuestAddress(layout::VMGENID), line))
    }

    fn line(&self, gsi: u32) -> Result<IrqLine, VmmError> {
        let line = IrqLine::new().map_err(|e| VmmError::System("event descriptor", e))?;
        self.vm.connect_irq(&line, gsi)?;
        self.host.metrics.devices().lines.push(line.raised());
        Ok(line)
    }

    pub(super) fn finish(
        self,
        fds: Vec<kvm_ioctls::VcpuFd>,
        restored: Option<Restored>,
        keyboard: Arc<I8042>,
    ) -> Result<Machine, VmmError> {
        let buses = Arc::new(Buses {
            ports: self.ports,
            memory: self.memory,
            async_faults: self.vm.async_faults().cloned(),
            end: self.host.end.clone(),
            metrics: self.host.metrics.vcpu.clone(),
        });
        let vcpus = (0u8..)
            .zip(fds)
            .map(|(id, fd)| VcpuHandle::start(id, fd, buses.clone()))
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Machine {
            vcpus,
            io_threads: self.io_threads,
            offloading: None,
            restored,
            devices: self.devices,
            transports: self.transports,
            keyboard,
            balloon: self.balloon,
            tracks_writes: self.tracks_writes,
            template_msrs: Vec::new(),
            given_back: Mutex::default(),
            lineage: Mutex::default(),
            vm: self.vm,
            ram: self.ram,
        })
    }
}
