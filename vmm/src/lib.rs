//! varve: a microVM monitor.
//!
//! ```text
//!  cli ──> config ──> machine (the one construction path) ──> run (event loop until the end)
//!                       ├─ kvm, vcpu            KVM, the only users of kvm-ioctls beside boot
//!                       ├─ boot, arch/          tables, registers, kernel
//!                       ├─ device_set           devices by name, their saved states
//!                       └─ console, signals     the outside world
//! ```
//!
//! This crate alone knows KVM, devices and guest memory at the same time.

pub mod api;
pub mod arch;
mod boot;
pub mod cli;
pub mod config;
mod console;
pub mod device_set;
pub mod end;
pub mod error;
pub mod kvm;
pub mod logger;
pub mod machine;
mod reclaim;
pub mod run;
mod signals;
pub mod vcpu;
