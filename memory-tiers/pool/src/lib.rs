//! The remote tier: nodes that keep images in their memory, and page sources that read from them.
//!
//! ```text
//!  place ──> publish ──┐                        ┌── node (listens) ──> objects (memory) ──> shelf (disk)
//!    │                 ├── client ─ wire, sealed ┤
//!    └────> source ────┘
//! ```
//!
//! `backing_store` keeps the evicted pages of one machine, which nodes hold while its connections live.
//!
//! An image is cut into *shards*; each is an *object* that is named by its content and kept by as
//! many nodes as there are copies. A *publication* names the objects of one image: what no
//! publication names is freed. Nothing that a node says is trusted: pages are verified by the
//! checksums of the snapshot's manifest, which never leaves the host.

pub mod auth;
mod backing_store;
pub mod client;
mod connection;
pub mod error;
mod memory;
pub mod node;
mod objects;
pub mod place;
pub mod publish;
mod remote;
pub mod sealed;
mod shelf;
pub mod source;
mod until;
pub mod wire;

pub use auth::{Key, Keys, Tenant};
pub use backing_store::{BackingStoreConfig, PoolBackingStore};
pub use error::PoolError;
pub use node::{Node, NodeConfig};
pub use place::{Place, Places};
pub use publish::{Wanted, forget, publish};
pub use source::{Pool, PoolSource};
