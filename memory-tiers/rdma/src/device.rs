//! Devices: which ports there are, and what is opened on one.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use sideway::ibverbs::address::{Gid, GidType};
use sideway::ibverbs::device::{DeviceInfo, DeviceList};
use sideway::ibverbs::device_context::{DeviceContext, Mtu, PortState};
use sideway::ibverbs::protection_domain::ProtectionDomain;

use crate::error::RdmaError;

/// Reads that one link may have under way, as far as the device can.
const READS: i32 = 16;

/// A port of a device, by one of its addresses.
#[derive(Clone, Debug)]
pub struct Port {
    pub(crate) context: Arc<DeviceContext>,
    pub(crate) number: u8,
    pub(crate) gid: Gid,
    pub(crate) gid_index: u8,
    pub(crate) mtu: Mtu,
    /// Reads under way that it answers, and that it asks.
    pub(crate) reads: u8,
    info: PortInfo,
}

/// What a port is, for people.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct PortInfo {
    /// Name of the device.
    pub device: String,
    /// Number of the port.
    pub port: u8,
    /// Whether its link is up.
    pub active: bool,
    /// The address that the port carries.
    pub address: IpAddr,
    /// Bytes of a packet.
    pub mtu: u32,
}

/// All ports of this host that carry IP addresses; none without devices or the verbs library.
pub fn ports() -> Vec<Port> {
    let Ok(devices) = DeviceList::new() else { return Vec::new() };
    let mut found = Vec::new();
    for device in &devices {
        // One that is there but cannot be opened is of no use here.
        let Ok(context) = device.open() else { continue };
        let name = device.name();
        found.extend(ports_of(&context, &name));
    }
    found
}

fn ports_of(context: &Arc<DeviceContext>, device: &str) -> Vec<Port> {
    let (Ok(attributes), Ok(table)) = (context.query_device(), context.query_gid_table()) else {
        return Vec::new();
    };
    let reads = attributes.max_qp_rd_atom().min(attributes.max_qp_init_rd_atom()).min(READS);
    let mut found = Vec::new();
    for entry in table.iter().filter(|entry| entry.gid_type() == GidType::RoceV2) {
        let (Ok(number), Ok(gid_index)) =
            (u8::try_from(entry.port_num()), u8::try_from(entry.gid_index()))
        else {
            continue;
        };
        let Ok(port) = context.query_port(number) else { continue };
        let mtu = port.active_mtu();
        let info = PortInfo {
            device: device.into(),
            port: number,
            active: port.port_state() == PortState::Active,
            address: Ipv6Addr::from(entry.gid()).to_canonical(),
            mtu: 128 << (mtu as u32),
        };
        let (context, gid) = (context.clone(), entry.gid());
        let reads = u8::try_from(reads.max(1)).unwrap_or(1);
        found.push(Port { context, number, gid, gid_index, mtu, reads, info });
    }
    found
}

impl Port {
    /// The port that carries `address` and is up.
    pub fn at(address: IpAddr) -> Option<Port> {
        let address = address.to_canonical();
        ports().into_iter().find(|port| port.info.active && port.info.address == address)
    }

    /// What it is.
    pub fn info(&self) -> &PortInfo {
        &self.info
    }
}

/// A protection domain: memory registered in it can be reached over its own links only.
#[derive(Clone, Debug)]
pub struct Domain {
    pub(crate) port: Port,
    pub(crate) domain: Arc<ProtectionDomain>,
}

impl Domain {
    /// A new domain on a port.
    pub fn new(port: Port) -> Result<Domain, RdmaError> {
        let domain =
            port.context.alloc_pd().map_err(RdmaError::verb("make a protection domain"))?;
        Ok(Domain { port, domain })
    }

    /// The port.
    pub fn port(&self) -> &Port {
        &self.port
    }
}
