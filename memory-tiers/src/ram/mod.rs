//! Guest memory itself: the reservation, its regions and mappings, the system calls on it.

pub(crate) mod dirty;
pub(crate) mod discard;
pub(crate) mod error;
pub(crate) mod guest_ram;
pub(crate) mod host;
pub(crate) mod kind;
pub(crate) mod missing;
pub(crate) mod page_states;
pub(crate) mod ranges;
pub(crate) mod regions;
pub(crate) mod save;
pub mod sys;
pub(crate) mod threads;
