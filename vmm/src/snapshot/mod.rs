//! Snapshots as the monitor makes and takes them: the machine's state to and from a state file, and
//! what it does with guest memory.

pub mod choices;
pub mod flat;
pub mod restore;
mod state;
pub mod tuning;

pub use state::{load, store};
