//! What the user asks of the metadata service, with the names of Firecracker's API.

use std::net::Ipv4Addr;

use serde::{Deserialize, Deserializer, Serialize};

/// Where the service is unless the user says otherwise.
const DEFAULT_ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

/// How a guest asks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Version {
    /// By a request alone; a token is welcome, whatever it is worth.
    #[default]
    V1,
    /// With a token that it has got before.
    V2,
}

/// The service as the guest sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MmdsConfig {
    /// How a guest asks.
    #[serde(default)]
    pub version: Version,
    /// Ids of the network interfaces by which the service is reached.
    pub network_interfaces: Vec<String>,
    /// Its address, which is a link-local one.
    #[serde(default = "default_address", deserialize_with = "or_default")]
    pub ipv4_address: Ipv4Addr,
    /// Answer as EC2's service does, in plain text, whatever the guest accepts.
    #[serde(default)]
    pub imds_compat: bool,
}

fn default_address() -> Ipv4Addr {
    DEFAULT_ADDRESS
}

/// A null is as good as no address.
fn or_default<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Ipv4Addr, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(DEFAULT_ADDRESS))
}

/// Why a configuration cannot be, in Firecracker's words.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum MmdsConfigError {
    /// Nobody could reach it.
    #[error("The list of network interface IDs that allow forwarding MMDS requests is empty.")]
    NoInterface,
    /// The address is outside of 169.254.1.0 to 169.254.254.255 (RFC 3927, 2.1).
    #[error("The MMDS IPv4 address is not link local.")]
    Address,
    /// An interface that the machine does not have.
    #[error(
        "The list of network interface IDs provided contains at least one ID that does not \
         correspond to any existing network interface."
    )]
    UnknownInterface,
}

impl MmdsConfig {
    /// Checks it against the ids of the machine's network interfaces.
    pub fn validate<'a>(
        &self,
        interfaces: impl Iterator<Item = &'a str> + Clone,
    ) -> Result<(), MmdsConfigError> {
        let [first, second, third, _] = self.ipv4_address.octets();
        if (first, second) != (169, 254) || matches!(third, 0 | 255) {
            return Err(MmdsConfigError::Address);
        }
        if self.network_interfaces.is_empty() {
            return Err(MmdsConfigError::NoInterface);
        }
        let known = |id: &String| interfaces.clone().any(|interface| interface == id);
        if !self.network_interfaces.iter().all(known) {
            return Err(MmdsConfigError::UnknownInterface);
        }
        Ok(())
    }

    /// Whether it is reached by the interface `id`.
    pub fn serves(&self, id: &str) -> bool {
        self.network_interfaces.iter().any(|interface| interface == id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<MmdsConfig, serde_json::Error> {
        serde_json::from_str(text)
    }

    #[test]
    fn defaults_and_unknown_fields() {
        let config = parsed(r#"{"network_interfaces": ["a"], "ipv4_address": null}"#).unwrap();
        assert_eq!(config, parsed(r#"{"network_interfaces": ["a"]}"#).unwrap());
        assert_eq!((config.version, config.imds_compat), (Version::V1, false));
        assert_eq!(config.ipv4_address, DEFAULT_ADDRESS);
        for bad in [
            r#"{"version": "V2"}"#,
            r#"{"network_interfaces": [], "version": "V3"}"#,
            r#"{"network_interfaces": [], "ipv4_address": ""}"#,
            r#"{"network_interfaces": [], "imds": true}"#,
        ] {
            assert!(parsed(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn addresses_and_interfaces() {
        let with = |address: &str, interfaces: &str| {
            let text =
                format!(r#"{{"network_interfaces": {interfaces}, "ipv4_address": "{address}"}}"#);
            parsed(&text).unwrap().validate(["eth0", "eth1"].into_iter())
        };
        assert_eq!(with("169.254.1.0", r#"["eth1"]"#), Ok(()));
        assert_eq!(with("169.254.254.255", r#"["eth0", "eth1"]"#), Ok(()));
        for address in ["169.254.0.255", "169.254.255.0", "169.253.1.1", "10.0.0.1"] {
            assert_eq!(with(address, r#"["eth0"]"#), Err(MmdsConfigError::Address), "{address}");
        }
        assert_eq!(with("169.254.1.1", "[]"), Err(MmdsConfigError::NoInterface));
        let unknown = with("169.254.1.1", r#"["eth0", "eth2"]"#);
        assert_eq!(unknown, Err(MmdsConfigError::UnknownInterface));
    }
}
