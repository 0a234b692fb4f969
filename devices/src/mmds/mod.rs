//! MMDS, the metadata service of a machine: a JSON document that the host writes and the guest
//! reads by HTTP at a link-local address, with the paths, headers and texts of Firecracker's.
//!
//! ```text
//!  host ──> Mmds (store.rs, token.rs) <── service.rs <── stack.rs <── station.rs <── network device
//!           document, keys                HTTP (http.rs)  TCP/IP       timer          frames
//! ```
//!
//! One [`Mmds`] serves all network interfaces that may reach it; each has a [`Station`], a TCP/IP
//! stack of its own, which the network device knows as a [`crate::virtio::net::Detour`] only. All
//! that comes from the guest is bounded: frames that wait, connections, bytes of a request.
//!
//! A snapshot keeps none of this: the document is the machine's own, and a copy of a machine gets
//! another one.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

mod cable;
mod config;
mod connection;
pub mod http;
mod service;
mod stack;
mod station;
mod store;
mod token;

pub use config::{MmdsConfig, MmdsConfigError, Version};
pub use service::Service;
pub use stack::Stack;
pub use station::Station;
pub use store::StoreError;
pub use token::TokenError;

use crate::metrics::MmdsMetrics;
use store::Store;
use token::Tokens;

/// What all network interfaces of a machine serve, and the host changes at any time.
#[derive(Debug)]
pub struct Mmds {
    store: Mutex<Store>,
    tokens: Tokens,
    metrics: Arc<MmdsMetrics>,
    start: Instant,
}

impl Mmds {
    /// A service without a document, which may be as long as `limit` bytes as JSON. It counts in
    /// `metrics`. Fails if the host has no random numbers.
    pub fn new(limit: usize, metrics: Arc<MmdsMetrics>) -> std::io::Result<Mmds> {
        Ok(Mmds {
            store: Mutex::new(Store::new(limit)),
            tokens: Tokens::new()?,
            metrics,
            start: Instant::now(),
        })
    }

    fn store(&self) -> MutexGuard<'_, Store> {
        // A change is one assignment, so a panic of another holder leaves nothing half done.
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on a document may be as long as `limit` bytes. One that is there stays.
    pub fn set_limit(&self, limit: usize) {
        self.store().set_limit(limit);
    }

    /// Replaces the document.
    pub fn put(&self, document: Value) -> Result<(), StoreError> {
        self.store().put(document)
    }

    /// Changes the document as a JSON merge patch (RFC 7396) says.
    pub fn patch(&self, patch: &Value) -> Result<(), StoreError> {
        self.store().patch(patch)
    }

    /// The document; null if there was none yet.
    pub fn document(&self) -> Value {
        self.store().document().clone()
    }

    /// The clock that tokens expire by. It stands still with the host, not with the machine.
    fn now(&self) -> Duration {
        self.start.elapsed()
    }
}
