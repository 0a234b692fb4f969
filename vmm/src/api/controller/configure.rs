//! Configuration before the start: each piece is checked, with what it names on the host, before it
//! replaces what was there.

use varve_devices::mmds::MmdsConfig;

use super::{Monitor, Outcome, Response};
use crate::arch::cpu_config::CpuConfig;
use crate::config::firecracker::balloon::Balloon;
use crate::config::firecracker::boot_source::BootSource;
use crate::config::firecracker::drive::Drive;
use crate::config::firecracker::entropy::Entropy;
use crate::config::firecracker::machine_config::MachineConfigUpdate;
use crate::config::firecracker::network_interface::NetworkInterface;
use crate::config::firecracker::serial::Serial;
use crate::config::firecracker::vsock::{Vsock, VsockError};
use crate::config::firecracker::{ResourceError, Resources};

/// Applies `change`, after which no snapshot is loaded: all of it or nothing.
fn configure(
    monitor: &mut Monitor,
    change: impl FnOnce(&mut Resources) -> Result<(), ResourceError>,
) -> Outcome {
    change(monitor.configure())?;
    Ok(Response::no_content())
}

pub fn boot_source(monitor: &mut Monitor, source: BootSource) -> Outcome {
    configure(monitor, |resources| {
        source.probe()?;
        resources.set_boot_source(source)
    })
}

pub fn machine(monitor: &mut Monitor, update: MachineConfigUpdate) -> Outcome {
    configure(monitor, |resources| resources.update_machine(update))
}

pub fn cpu(monitor: &mut Monitor, cpu: CpuConfig) -> Outcome {
    // A snapshot has its own, and may be loaded all the same, as in Firecracker.
    monitor.prepare().set_cpu_config(cpu);
    Ok(Response::no_content())
}

pub fn drive(monitor: &mut Monitor, drive: Drive) -> Outcome {
    configure(monitor, |resources| {
        drive.check()?;
        drive.probe()?;
        resources.set_drive(drive)
    })
}

pub fn net(monitor: &mut Monitor, net: NetworkInterface) -> Outcome {
    configure(monitor, |resources| {
        net.probe()?;
        resources.set_net(net)
    })
}

pub fn mmds(monitor: &mut Monitor, mmds: MmdsConfig) -> Outcome {
    configure(monitor, |resources| resources.set_mmds(mmds))
}

/// Its socket is there from now on: programs that are told of it need not wait for the start.
pub fn vsock(monitor: &mut Monitor, vsock: Vsock) -> Outcome {
    monitor.configure();
    let made = monitor.make_vsock(vsock.to_config());
    made.map_err(|e| ResourceError::from(VsockError::from(e)))?;
    configure(monitor, |resources| resources.set_vsock(vsock))
}

pub fn entropy(monitor: &mut Monitor, entropy: Entropy) -> Outcome {
    configure(monitor, |resources| resources.set_entropy(entropy))
}

pub fn serial(monitor: &mut Monitor, serial: Serial) -> Outcome {
    // Where output goes is this host's, and is said before a snapshot is loaded, too.
    monitor.prepare().set_serial(serial)?;
    Ok(Response::no_content())
}

pub fn balloon(monitor: &mut Monitor, balloon: Balloon) -> Outcome {
    configure(monitor, |resources| resources.set_balloon(balloon))
}
