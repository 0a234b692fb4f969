//! VM generation id: sixteen random bytes in guest memory that change whenever the machine is a
//! copy of another, so that the guest reseeds its random number generator.
//!
//! The interface is Microsoft's "Virtual Machine Generation ID" specification: an ACPI device
//! gives the address, a notification says that the bytes changed.

use serde::{Deserialize, Serialize};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};
use vm_superio::Trigger;

use crate::interrupt::IrqLine;
use crate::memory::DeviceMemory;
use crate::state::{self, Savable, StateError};

/// Bytes of the identifier.
pub const VMGENID_LEN: u64 = 16;

const VERSION: u32 = 1;

/// Why a new identifier could not be given.
#[derive(Debug, thiserror::Error)]
pub enum VmGenIdError {
    /// The system has no random bytes.
    #[error("no random bytes for the VM generation id")]
    Random(#[source] rustix::io::Errno),
    /// Its address is not in guest memory.
    #[error("the VM generation id at {0:#x} is not in guest memory")]
    Address(u64, #[source] GuestMemoryError),
    /// The guest could not be told.
    #[error("the guest could not be told of its new VM generation id")]
    Notify(#[source] std::io::Error),
}

/// The generation id at one guest address.
#[derive(Debug)]
pub struct VmGenId {
    address: GuestAddress,
    line: IrqLine,
}

#[derive(Serialize, Deserialize)]
struct VmGenIdStateV1 {
    address: u64,
}

impl VmGenId {
    /// An identifier at `address` (8-byte aligned, in memory that the guest does not allocate);
    /// `line` is the interrupt on which the ACPI tables notify.
    pub fn new(address: GuestAddress, line: IrqLine) -> VmGenId {
        VmGenId { address, line }
    }

    /// Writes a fresh identifier into guest memory.
    pub fn renew(&self, mem: &DeviceMemory) -> Result<(), VmGenIdError> {
        let mut id = [0u8; VMGENID_LEN as usize];
        // Sixteen bytes are always given whole (getrandom(2)).
        rustix::rand::getrandom(&mut id, rustix::rand::GetRandomFlags::empty())
            .map_err(VmGenIdError::Random)?;
        mem.write_slice(&id, self.address).map_err(|e| VmGenIdError::Address(self.address.0, e))
    }

    /// Raises the notification: the guest reads the identifier again.
    pub fn notify(&self) -> Result<(), VmGenIdError> {
        self.line.trigger().map_err(VmGenIdError::Notify)
    }

    /// The interrupt line.
    pub fn line(&self) -> &IrqLine {
        &self.line
    }
}

impl Savable for VmGenId {
    fn version(&self) -> u32 {
        VERSION
    }

    fn save(&self) -> Vec<u8> {
        state::encode(&VmGenIdStateV1 { address: self.address.0 })
    }

    fn restore(&mut self, version: u32, bytes: &[u8]) -> Result<(), StateError> {
        let VmGenIdStateV1 { address } = state::decode(version, VERSION, bytes)?;
        self.address = GuestAddress(address);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    #[test]
    fn renews_in_memory_and_notifies() {
        let mem = crate::virtio::testing::memory();
        let end = crate::virtio::testing::MEM;
        let id = VmGenId::new(GuestAddress(0x1000), IrqLine::new().unwrap());
        let read = || {
            let mut b = [0u8; 16];
            mem.read_slice(&mut b, GuestAddress(0x1000)).unwrap();
            b
        };
        assert_eq!(read(), [0; 16]);
        id.renew(&mem).unwrap();
        let first = read();
        id.renew(&mem).unwrap();
        assert_ne!(first, read());
        id.notify().unwrap();
        assert_eq!(id.line().event().read().unwrap(), 1);
        let outside = VmGenId::new(GuestAddress(end - 8), IrqLine::new().unwrap());
        assert!(matches!(outside.renew(&mem), Err(VmGenIdError::Address(_, _))));
    }
}
