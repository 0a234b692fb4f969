//! Why a machine cannot be built or run.

use std::io;
use std::path::PathBuf;

use varve_devices::bus::BusError;
use varve_devices::state::StateError;
use varve_devices::virtio;
use varve_devices::vmgenid::VmGenIdError;
use varve_memory_tiers::RamError;

pub use varve_snapshot::chain;

use crate::arch::kvm_error::KvmError;
use crate::arch::{acpi, cmdline, cpu_template, kernel, protocol};
use crate::config::ConfigError;
use crate::vcpu::VcpuError;

/// Building or running a machine failed.
#[derive(Debug, thiserror::Error)]
pub enum VmmError {
    /// The configuration cannot be.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// No guest memory.
    #[error("guest memory")]
    Ram(#[from] RamError),
    /// KVM refused.
    #[error("KVM")]
    Kvm(#[from] KvmError),
    /// A vCPU does not start or answer.
    #[error(transparent)]
    Vcpu(#[from] VcpuError),
    /// A CPU template that this host cannot honour.
    #[error("Failed to create guest config")]
    CpuTemplate(#[from] cpu_template::TemplateError),
    /// No kernel.
    #[error(transparent)]
    Kernel(#[from] kernel::KernelError),
    /// No command line.
    #[error(transparent)]
    Cmdline(#[from] cmdline::CmdlineError),
    /// Boot parameters do not go into memory.
    #[error(transparent)]
    Protocol(#[from] protocol::ProtocolError),
    /// ACPI tables do not go into memory.
    #[error(transparent)]
    Acpi(#[from] acpi::AcpiError),
    /// Boot tables do not go into memory.
    #[error("cannot write boot tables to guest memory")]
    GuestMemory(#[from] vm_memory::GuestMemoryError),
    /// A drive.
    #[error("drive {id:?}")]
    Block {
        /// Its name.
        id: String,
        /// Why not.
        source: virtio::block::BlockError,
    },
    /// A network interface.
    #[error("network interface {id:?}")]
    Net {
        /// Its name.
        id: String,
        /// Why not.
        source: virtio::net::NetError,
    },
    /// The keyboard.
    #[error(transparent)]
    Keyboard(#[from] varve_devices::i8042::KeyboardFull),
    /// The vsock device.
    #[error("vsock")]
    Vsock(#[from] virtio::vsock::VsockError),
    /// The balloon.
    #[error("balloon")]
    Balloon(#[from] virtio::balloon::BalloonError),
    /// The VM generation id.
    #[error(transparent)]
    VmGenId(#[from] VmGenIdError),
    /// Two devices at one address.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// More devices than interrupts.
    #[error("{0} virtio devices; this machine has interrupts for {1}")]
    TooManyDevices(usize, usize),
    /// A device does not take its saved state.
    #[error("device {name:?}")]
    State {
        /// The device.
        name: String,
        /// Why not.
        source: StateError,
    },
    /// There is no machine yet.
    #[error("the machine has not been started")]
    NoMachine,
    /// The control socket.
    #[error("API socket {path:?}{}", if .source.kind() == io::ErrorKind::AddrInUse {
        "; remove the file if no other varve uses it"
    } else {
        ""
    })]
    ApiSocket {
        /// The socket.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A snapshot's files.
    #[error(transparent)]
    Snapshot(#[from] varve_snapshot::SnapshotError),
    /// A restore strategy that needs to know what pages are for.
    #[error(
        "strategy {0} needs a tiered snapshot; make one by 'varve snapshot tier', or use lazy or eager"
    )]
    NotTiered(&'static str),
    /// A diff snapshot of a machine whose writes are not tracked.
    #[error(
        "a diff snapshot needs track_dirty_pages (--track-dirty-pages), which this machine was \
         started without"
    )]
    NotTracked,
    /// Memory could not be restored.
    #[error("restoring memory")]
    Tier(#[from] varve_memory_tiers::TierError),
    /// Pages stay in memory.
    #[error(transparent)]
    Offload(#[from] varve_memory_tiers::OffloadError),
    /// The same, because of what memory is for.
    #[error("guest memory {0}")]
    NotOffloaded(&'static str),
    /// The pool, or what the snapshot says of it.
    #[error(transparent)]
    Pool(#[from] varve_pool::PoolError),
    /// A tier that images were published to, or what the snapshot says of it.
    #[error(transparent)]
    Shared(#[from] varve_shared::SharedError),
    /// The snapshot's guest uses processor features that this host lacks.
    #[error("this host cannot run the snapshot's guest: {0}")]
    OtherProcessor(String),
    /// A part of a snapshot's state does not fit this version or machine.
    #[error("snapshot state {name:?}: {cause}")]
    SavedState {
        /// The part.
        name: String,
        /// What is wrong with it.
        cause: String,
    },
    /// The console's file does not open.
    #[error("console file {path:?}")]
    Console {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A system call that does not fail on a healthy host.
    #[error("{0}")]
    System(&'static str, #[source] io::Error),
    /// The event loop.
    #[error("event loop: {0}")]
    Events(String),
}
