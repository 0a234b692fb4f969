//! A binding to libibverbs of rdma-core, as far as one-sided reads need it.
//!
//! ```text
//!  abi ── library ── handle ─┬─ context ── memory (domains, regions)
//!  (C)    (symbols)          └─ completion ── pair
//! ```
//!
//! The library is opened when it is first needed, for most processes never. What it makes is owned by
//! values that hold what they depend on, so that everything is given back in the right order.

pub(crate) mod abi;
mod completion;
mod context;
mod handle;
mod library;
mod memory;
mod mtu;
mod pair;

pub(crate) use completion::{Completion, CompletionQueue};
pub(crate) use context::Context;
pub(crate) use memory::{MemoryRegion, ProtectionDomain};
pub(crate) use mtu::Mtu;
pub(crate) use pair::{QueuePair, Read};
