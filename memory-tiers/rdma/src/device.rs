//! Devices: which ports there are, and what is opened on one.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use crate::error::RdmaError;
use crate::verbs::abi::{GID_ROCE_V2, PORT_ACTIVE};
use crate::verbs::{Context, Mtu, ProtectionDomain};

/// Reads that one link may have under way, as far as the device can.
const READS: i32 = 16;
/// Addresses of a device that are looked at: far more than cards have.
const GIDS: usize = 1 << 16;

/// A port of a device, by one of its addresses.
#[derive(Clone, Debug)]
pub struct Port {
    pub(crate) context: Arc<Context>,
    pub(crate) number: u8,
    pub(crate) gid: [u8; 16],
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
    Context::all().iter().flat_map(|(name, context)| ports_of(context, name)).collect()
}

fn ports_of(context: &Arc<Context>, device: &str) -> Vec<Port> {
    let Ok(attributes) = context.attributes() else { return Vec::new() };
    let reads = attributes.max_qp_rd_atom.min(attributes.max_qp_init_rd_atom).clamp(1, READS);
    let reads = u8::try_from(reads).unwrap_or(1);
    let query = |number| Some((number, context.port(number).ok()?));
    let ports: Vec<_> = (1..=attributes.phys_port_cnt).filter_map(query).collect();
    let gids: usize =
        ports.iter().filter_map(|(_, port)| usize::try_from(port.gid_tbl_len).ok()).sum();
    let Ok(table) = context.gids(gids.min(GIDS)) else { return Vec::new() };
    let mut found = Vec::new();
    for entry in table.iter().filter(|entry| entry.gid_type == GID_ROCE_V2) {
        let of_entry = |(number, _): &&(u8, _)| u32::from(*number) == entry.port_num;
        let Some((number, port)) = ports.iter().find(of_entry) else { continue };
        let (Ok(gid_index), Some(mtu)) =
            (u8::try_from(entry.gid_index), Mtu::numbered(port.active_mtu))
        else {
            continue;
        };
        let info = PortInfo {
            device: device.into(),
            port: *number,
            active: port.state == PORT_ACTIVE,
            address: Ipv6Addr::from(entry.gid).to_canonical(),
            mtu: mtu.bytes(),
        };
        let (context, number, gid) = (context.clone(), *number, entry.gid);
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
        let domain = ProtectionDomain::new(port.context.clone())
            .map_err(RdmaError::verb("make a protection domain"))?;
        Ok(Domain { port, domain: Arc::new(domain) })
    }

    /// The port.
    pub fn port(&self) -> &Port {
        &self.port
    }
}
