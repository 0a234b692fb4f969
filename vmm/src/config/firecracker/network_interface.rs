//! `network-interfaces`: one interface.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use varve_devices::limiter::LimiterConfig;
use varve_devices::virtio::net::{Net, NetConfig, NetError};

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkInterface {
    /// Its name.
    pub iface_id: String,
    /// The host's tap device.
    pub host_dev_name: String,
    /// Address of the guest's end.
    pub guest_mac: Option<MacAddr>,
    /// Largest packet, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
    /// Limits of what the guest receives.
    pub rx_rate_limiter: Option<LimiterConfig>,
    /// Limits of what the guest sends.
    pub tx_rate_limiter: Option<LimiterConfig>,
}

/// Changes of an interface while the machine runs; what is left out stays as it is.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkInterfaceUpdate {
    /// Its name.
    pub iface_id: String,
    /// Other limits of what the guest receives.
    pub rx_rate_limiter: Option<LimiterConfig>,
    /// Other limits of what the guest sends.
    pub tx_rate_limiter: Option<LimiterConfig>,
}

/// An Ethernet address, as text `06:00:ac:10:00:02`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddr(pub [u8; 6]);

impl FromStr for MacAddr {
    type Err = String;

    fn from_str(text: &str) -> Result<MacAddr, String> {
        let bad = || format!("{text:?} is not an address such as 06:00:ac:10:00:02");
        let mut mac = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut mac {
            let part = parts.next().filter(|p| p.len() == 2).ok_or_else(bad)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| bad())?;
        }
        if parts.next().is_some() { Err(bad()) } else { Ok(MacAddr(mac)) }
    }
}

impl TryFrom<String> for MacAddr {
    type Error = String;

    fn try_from(text: String) -> Result<MacAddr, String> {
        text.parse()
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl From<MacAddr> for String {
    fn from(mac: MacAddr) -> String {
        mac.to_string()
    }
}

/// Why there is no such interface.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The device cannot be made.
    #[error("Could not create the network device")]
    Create(#[source] NetError),
    /// There is no such interface.
    #[error("there is no network interface {0:?}")]
    Missing(String),
    /// Another interface has the address.
    #[error("The MAC address is already in use: {0}")]
    MacInUse(MacAddr),
    /// Another interface has the tap.
    #[error(
        "Could not create the network device: tap {tap:?} is interface {other:?}'s already: give \
         each one a tap of its own"
    )]
    TapInUse {
        /// The tap.
        tap: String,
        /// The interface that has it.
        other: String,
    },
}

impl NetworkInterface {
    /// Attaches to the tap, to see that it can be done.
    pub fn probe(&self) -> Result<(), NetworkError> {
        Net::new(self.to_config()).map(drop).map_err(NetworkError::Create)
    }

    /// As the device knows it.
    pub fn to_config(&self) -> NetConfig {
        NetConfig {
            id: self.iface_id.clone(),
            tap: self.host_dev_name.clone(),
            mac: self.guest_mac.map(|mac| mac.0),
            mtu: self.mtu,
            rx_limiter: self.rx_rate_limiter.unwrap_or_default(),
            tx_limiter: self.tx_rate_limiter.unwrap_or_default(),
        }
    }
}

impl From<&NetConfig> for NetworkInterface {
    fn from(net: &NetConfig) -> NetworkInterface {
        NetworkInterface {
            iface_id: net.id.clone(),
            host_dev_name: net.tap.clone(),
            guest_mac: net.mac.map(MacAddr),
            mtu: net.mtu,
            rx_rate_limiter: net.rx_limiter.given(),
            tx_rate_limiter: net.tx_limiter.given(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let mac: MacAddr = "06:00:AC:10:00:02".parse().unwrap();
        assert_eq!(
            (mac.0, mac.to_string().as_str()),
            ([6, 0, 0xac, 16, 0, 2], "06:00:ac:10:00:02")
        );
        for bad in ["", "06:00", "06:00:ac:10:00:02:03", "6:0:ac:10:0:2", "06-00-ac-10-00-02"] {
            assert!(bad.parse::<MacAddr>().is_err(), "{bad}");
        }
    }
}
