//! virtio and legacy devices of the varve monitor.
//!
//! A device is a struct with a config (what the user asked for), a saved state (what a snapshot
//! keeps of it) and event handlers. Devices reach guest memory through vm-memory only and know
//! neither KVM nor snapshots:
//!
//! - interrupts are [`interrupt::IrqLine`]s, event descriptors that the monitor ties to the
//!   interrupt controller (irqfd);
//! - queue notifications are event descriptors that the monitor ties to the guest's doorbell
//!   writes (ioeventfd);
//! - a saved state is bytes with a version ([`state::Savable`]); who stores it is not known here.
//!
//! ```text
//!  vCPU thread ── register access ──> bus::Bus ──> virtio::mmio::MmioTransport ─┐
//!                                         └──────> serial, i8042, power, …      │ Mutex
//!  event loop ─── doorbell, device's own descriptors ──> virtio::transport <────┘
//!                                                          └─> VirtioDevice (block, net, …)
//! ```
//!
//! **Invariant:** no lock of a bus is held while a device runs (a [`bus::Bus`] is immutable once
//! the machine runs and has no lock); a device's own mutex is the only lock it takes.

pub mod boot_timer;
pub mod bus;
pub mod i8042;
pub mod interrupt;
pub mod limiter;
pub mod memory;
pub mod metrics;
pub mod mmds;
pub mod power;
pub mod pvpanic;
pub mod serial;
pub mod socket_file;
pub mod state;
pub mod stop;
pub mod virtio;
pub mod vmgenid;
