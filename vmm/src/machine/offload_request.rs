//! Body of `PUT /memory/offload`, varve's own: where a machine's idle pages go, and which are idle.

use std::path::PathBuf;

use serde::Deserialize;
use serde::de::Error;
use varve_pool::Tenant;
use varve_pool::client::Transport;

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Body")]
pub struct OffloadRequest {
    /// Where to.
    pub to: Destination,
    /// Pages that are not touched for so many milliseconds are idle.
    pub idle_ms: u32,
    /// At most so many MiB are taken out.
    pub max_mib: Option<u32>,
}

/// Nodes of a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination {
    /// Their addresses.
    pub nodes: Vec<String>,
    /// On how many of them each page is.
    pub copies: usize,
    /// File with the tenant's key.
    pub keys: PathBuf,
    /// The tenant, if the file has keys of several.
    pub tenant: Option<Tenant>,
    /// How pages come back.
    pub transport: Transport,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    to: Vec<String>,
    #[serde(default = "one")]
    copies: usize,
    keys: PathBuf,
    tenant: Option<Tenant>,
    #[serde(default)]
    transport: Transport,
    #[serde(default = "second")]
    idle_ms: u32,
    max_mib: Option<u32>,
}

fn one() -> usize {
    1
}

fn second() -> u32 {
    1000
}

impl TryFrom<Body> for OffloadRequest {
    type Error = serde_json::Error;

    fn try_from(body: Body) -> Result<OffloadRequest, serde_json::Error> {
        let Body { to, copies, keys, tenant, transport, idle_ms, max_mib } = body;
        if let Some(node) = to.iter().find(|n| n.parse::<std::net::SocketAddr>().is_err()) {
            let problem = "is not an address and a port, as 10.0.0.1:7421";
            return Err(Error::custom(format!("to: {node:?} {problem}")));
        }
        if copies == 0 || copies > to.len() {
            let problem =
                format!("copies: {copies}; from 1 to the {} nodes are possible", to.len());
            return Err(Error::custom(problem));
        }
        if max_mib == Some(0) {
            return Err(Error::custom(
                "max_mib: 0 MiB would do nothing; leave it out for no limit",
            ));
        }
        let to = Destination { nodes: to, copies, keys, tenant, transport };
        Ok(OffloadRequest { to, idle_ms, max_mib })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies() {
        let parse = |text| serde_json::from_str::<OffloadRequest>(text).map_err(|e| e.to_string());
        let short = parse(r#"{"to": ["10.0.0.1:7421"], "keys": "k"}"#).unwrap();
        let to = Destination {
            nodes: vec!["10.0.0.1:7421".into()],
            copies: 1,
            keys: "k".into(),
            tenant: None,
            transport: Transport::Auto,
        };
        assert_eq!(short, OffloadRequest { to, idle_ms: 1000, max_mib: None });
        let long = parse(
            r#"{"to": ["[::1]:1", "10.0.0.1:2"], "copies": 2, "keys": "k", "tenant": "acme",
                "transport": "rdma", "idle_ms": 0, "max_mib": 64}"#,
        );
        let long = long.unwrap();
        assert_eq!((long.to.copies, long.to.transport), (2, Transport::Rdma));
        assert_eq!((long.idle_ms, long.max_mib), (0, Some(64)));
        for (body, problem) in [
            (r#"{"to": ["10.0.0.1:1"]}"#, "missing field `keys`"),
            (r#"{"keys": "k", "to": []}"#, "copies: 1; from 1 to the 0 nodes"),
            (r#"{"keys": "k", "to": ["node:1"]}"#, "to: \"node:1\" is not an address"),
            (r#"{"keys": "k", "to": ["1.2.3.4:1"], "copies": 0}"#, "copies: 0; from 1"),
            (r#"{"keys": "k", "to": ["1.2.3.4:1"], "max_mib": 0}"#, "max_mib: 0 MiB"),
            (r#"{"keys": "k", "to": ["1.2.3.4:1"], "idle_ms": -1}"#, "invalid value"),
            (r#"{"keys": "k", "to": ["1.2.3.4:1"], "fast": 1}"#, "unknown field `fast`"),
        ] {
            let refused = parse(body).unwrap_err();
            assert!(refused.contains(problem), "{refused}");
        }
    }
}
