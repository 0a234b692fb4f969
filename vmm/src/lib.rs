//! varve: a microVM monitor.
//!
//! ```text
//!  cli ──> config ──> monitor (event loop, signals, control socket: api/)
//!                       └─> machine (the one construction path)
//!                             ├─ kvm, vcpu            KVM
//!                             ├─ boot, arch/          tables, registers, kernel; saved registers
//!                             └─ device_set           devices by name, their saved states
//!  snapshot/: a machine's state and memory to files and back
//!  metrics/, logger/: what is counted and said, and where that goes (observe)
//! ```
//!
//! This crate alone knows KVM, devices and guest memory at the same time.

pub mod api;
pub mod arch;
mod async_faults;
mod boot;
pub mod cli;
pub mod config;
mod console;
mod console_output;
pub mod device_set;
pub mod end;
pub mod error;
mod faults;
mod heap;
pub mod instance;
mod io_thread;
pub mod kvm;
pub mod logger;
mod lost;
pub mod machine;
pub mod metrics;
pub mod monitor;
pub mod observe;
mod output;
mod reclaim;
pub mod saved;
pub mod seccomp;
mod signal_handlers;
mod signals;
mod sink;
pub mod snapshot;
mod stage2;
mod stdio;
pub mod vcpu;
mod words;
