//! Nodes in threads, and the tenants that they know.
#![allow(dead_code, clippy::unwrap_used)]

use std::net::TcpStream;
use std::path::Path;
use std::thread::{self, JoinHandle};

use varve_pool::client::NodeClient;
use varve_pool::node::Stop;
use varve_pool::sealed::{Handshake, Sealed};
use varve_pool::wire::{self, Introduction, Reception};
use varve_pool::{Key, Keys, Node, NodeConfig, Tenant};

pub const KEY: &str = "1111111111111111111111111111111111111111111111111111111111111111";
pub const OTHER: &str = "2222222222222222222222222222222222222222222222222222222222222222";

pub fn keys() -> Keys {
    Keys::parse(&format!("acme {KEY}\nother {OTHER}")).unwrap()
}

pub fn acme() -> (Tenant, Key) {
    (tenant("acme"), Key::from_hex(KEY).unwrap())
}

pub fn tenant(name: &str) -> Tenant {
    name.to_owned().try_into().unwrap()
}

/// A connection of acme's.
pub fn proved(address: &str) -> Sealed {
    let (tenant, key) = acme();
    let mut stream = TcpStream::connect(address).unwrap();
    let (handshake, opening) = Handshake::open(&tenant, &key).unwrap();
    wire::receive_magic(&mut stream).unwrap();
    wire::send_magic(&mut stream).unwrap();
    wire::send(&mut stream, &Introduction { tenant, opening }).unwrap();
    match wire::receive(&mut stream).unwrap() {
        Reception::Welcome { reply } => handshake.close(&reply, stream).unwrap(),
        Reception::Refused { reason } => panic!("{reason}"),
    }
}

/// A node that runs until this is dropped.
pub struct Running {
    /// Where it listens.
    pub address: String,
    stop: Stop,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    /// One with memory for all that tests do.
    pub fn new(store: Option<&Path>) -> Running {
        Running::at("127.0.0.1:0", store, 1 << 30)
    }

    pub fn at(listen: &str, store: Option<&Path>, limit: u64) -> Running {
        let store = store.map(Path::to_owned);
        let config = NodeConfig {
            listen: listen.into(),
            keys: keys(),
            limit,
            tenant_limit: Some(limit),
            store,
        };
        let node = Node::start(config).unwrap();
        let (address, stop) = (node.address().unwrap().to_string(), node.stop().unwrap());
        let thread = Some(thread::spawn(move || node.run()));
        Running { address, stop, thread }
    }

    pub fn client(&self) -> NodeClient {
        let (tenant, key) = acme();
        NodeClient::new(&self.address, tenant, key)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.stop();
        self.thread.take().unwrap().join().unwrap();
    }
}
