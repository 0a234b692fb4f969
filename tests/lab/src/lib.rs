//! The lab: an emulated host (L1) with real KVM, in which this checkout's programs and tests run
//! where the machine itself has no usable hardware virtualization. `docs/lab.md` says how it is
//! used, and what it is faithful in.
//!
//! ```text
//!  varve-lab run ──> machine (what was asked) ──> qemu (arguments) ──> child process
//!                        │                            ▲                    │ virtio ports
//!                        └──> job (two scripts)       └── snapshot         ▼
//!                                   └──────────────────────────────> session (streams, watchdog)
//! ```

pub mod cli;
pub mod detect;
pub mod initramfs;
pub mod job;
pub mod machine;
pub mod memory;
pub mod place;
pub mod ports;
pub mod qemu;
pub mod qmp;
pub mod run;
pub mod session;
pub mod setup;
pub mod snapshot;
