//! Snapshots as the monitor makes and takes them: the machine's state to and from a state file, and
//! what it does with guest memory.

pub mod choices;
pub mod flat;
mod lineage;
pub mod memory;
pub mod recording;
pub mod restore;
pub(crate) mod special;
mod state;

pub use lineage::Lineage;
pub use state::{load, store};
