//! varve: a microVM monitor.
//!
//! Modules depend downward only (`vmm/tests/arrows.rs` checks it):
//!
//! ```text
//!  cli        commands
//!  api        Firecracker's HTTP API, carried out on a monitor
//!  monitor    the process around a machine: event loop, signals, end
//!  snapshot   a machine's state and memory to files and back
//!  machine    memory, KVM machine, devices and vCPUs put together; saved state, restored memory
//!  boot       kernel, tables, first registers       device_set   devices by name
//!  config     what a machine consists of
//!  kvm, vcpu  the only users of KVM                 seccomp      filters of each thread
//!  arch       x86-64: tables, registers, CPUID      metrics, logger
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
pub mod seccomp;
mod signal_handlers;
mod signals;
mod sink;
pub mod snapshot;
mod special_files;
mod stage2;
mod stdio;
mod terminal;
pub mod vcpu;
mod words;
