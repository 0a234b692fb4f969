//! Snapshots as the monitor makes and takes them: the machine's state to and from a state file, and
//! what it does with guest memory.

pub mod choices;
mod files;
pub mod flat;
pub mod restore;
pub mod saver;
mod state;
pub mod tuning;

pub use state::{load, store};
