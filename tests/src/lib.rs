//! End-to-end tests: the harness that they share.
//!
//! A test starts the real `varve` with real guest images, talks to the guest's agent over vsock and
//! looks at exit code, console and messages. It needs a host whose KVM runs guests; `make test` sees
//! to that (by the lab, where the machine has none), no test knows the difference.
#![allow(clippy::unwrap_used, reason = "a harness for tests: what fails ends the test")]

pub mod api;
pub mod command;
pub mod disk;
pub mod guest;
pub mod images;
pub mod jail;
pub mod metrics_shape;
pub mod network;
pub mod process;
pub mod services;
pub mod snapshots;
pub mod terminal;
pub mod threads;
pub mod vm;

pub use snapshots::Restoring;
pub use terminal::Terminal;
pub use vm::{Ended, Vm, VmBuilder};
