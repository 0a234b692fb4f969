//! The byte-addressable tier: images that are there once, for all machines of a host or of several.
//!
//! ```text
//!  place (tiers.json) ──> publish ──┐                 ┌── folder: file, numa, dax
//!    │                    (ledger)  ├── store (trait) ┤
//!    └──────────────────> source ───┘                 └── device: devdax ── protocol
//!  host: what this machine has that could be one
//! ```
//!
//! A *store* is named by a [`Uri`] and keeps images by their content. A *snapshot* that published an
//! image is written down as its user in the store's *ledger*; a *machine* that uses one holds a lock
//! of the kernel's, which ends with it however it ends. What neither uses is freed by [`gc`].

mod device;
mod error;
mod folder;
pub mod host;
mod ledger;
mod locks;
mod place;
pub mod protocol;
mod publish;
mod source;
mod store;
mod uri;

pub use device::{Device, HOSTS};
pub use error::SharedError;
pub use place::{Place, Places};
pub use publish::{Collected, Revoked, Status, gc, publish, revoke, status};
pub use source::Published;
pub use store::{Attached, Freed, Held, Key, Store, open};
pub use uri::Uri;
