//! Changes of drives and network interfaces of a machine that there is. What a snapshot and a
//! description say of the machine changes with it.

use varve_devices::limiter::LimiterConfig;

use super::{Monitor, Outcome, Response};
use crate::config::firecracker::ResourceError;
use crate::config::firecracker::drive::{DriveError, DriveUpdate};
use crate::config::firecracker::network_interface::{NetworkError, NetworkInterfaceUpdate};

pub fn drive(monitor: &mut Monitor, update: DriveUpdate) -> Outcome {
    let DriveUpdate { drive_id, path_on_host, rate_limiter } = update;
    let refuse = |error: DriveError| ResourceError::from(error);
    let missing = || refuse(DriveError::Missing(drive_id.clone()));
    let handle = monitor.machine()?.drive(&drive_id).ok_or_else(missing)?;
    let mut config = monitor.config()?.clone();
    let drive = config.drives.iter_mut().find(|d| d.id == drive_id).ok_or_else(missing)?;
    if let Some(path) = path_on_host {
        drive.path = path;
        let drive = drive.clone();
        // Another drive may have the image.
        config.validate().map_err(|e| refuse(e.into()))?;
        handle
            .with(|block, io| block.replace_image(&drive.path, io))
            .map_err(|e| refuse(DriveError::Update(e)))?;
    }
    if let Some(limits) = rate_limiter {
        handle.with(|block, _| block.update_limiter(limits));
        for drive in config.drives.iter_mut().filter(|d| d.id == drive_id) {
            drive.limiter = drive.limiter.updated(limits);
        }
    }
    monitor.set_config(config);
    Ok(Response::no_content())
}

pub fn net(monitor: &mut Monitor, update: NetworkInterfaceUpdate) -> Outcome {
    let NetworkInterfaceUpdate { iface_id, rx_rate_limiter, tx_rate_limiter } = update;
    let missing = || ResourceError::from(NetworkError::Missing(iface_id.clone()));
    let handle = monitor.machine()?.net(&iface_id).ok_or_else(missing)?;
    let mut config = monitor.config()?.clone();
    let net = config.nets.iter_mut().find(|n| n.id == iface_id).ok_or_else(missing)?;
    let unchanged = LimiterConfig::default();
    let (rx, tx) = (rx_rate_limiter.unwrap_or(unchanged), tx_rate_limiter.unwrap_or(unchanged));
    handle.with(|net, _| net.update_limiters(rx, tx));
    net.rx_limiter = net.rx_limiter.updated(rx);
    net.tx_limiter = net.tx_limiter.updated(tx);
    monitor.set_config(config);
    Ok(Response::no_content())
}
