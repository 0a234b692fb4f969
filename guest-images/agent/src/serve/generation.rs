//! The VM generation id: sixteen bytes of reserved memory that the monitor changes with every restore.
//! When they have changed, this machine is a copy of another, and its random numbers would be the
//! copy's, too: the kernel's generator is reseeded before a request is looked at.
//!
//! Kernels with a driver for the id (`CONFIG_VMGENID`) do so by themselves, a moment after the machine
//! goes on; the agent does not rely on that.

use std::fmt;
use std::fs;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, bail};

use crate::physical::{PhysicalPage, offset_in_page};
use crate::random;

const TABLES: &str = "/sys/firmware/acpi/tables";
/// Ids by which an ACPI table tells of the device (Microsoft's specification, and Linux's driver).
const NAMES: [&[u8]; 2] = [b"VM_Gen_Counter", b"VMGENCTR"];
/// `Name (ADDR, Package ...)` in ACPI's machine language (ACPI 6.5, 20.2.5).
const ADDRESS: &[u8] = b"\x08ADDR\x12";
/// Bytes of the id.
const LEN: usize = 16;

/// Reads the id.
type Read = Box<dyn Fn() -> Result<[u8; LEN]> + Send + Sync>;

/// The id of this machine, and what it was when the generator was last reseeded.
pub struct Generation {
    read: Read,
    reseed: fn(&[u8; LEN]) -> Result<()>,
    seen: Mutex<Option<[u8; LEN]>>,
}

impl Generation {
    /// Finds the id by the machine's ACPI tables.
    ///
    /// # Errors
    ///
    /// If the tables name none, or its memory cannot be mapped.
    pub fn find() -> Result<Self> {
        let address = address_in(Path::new(TABLES))?;
        let page = PhysicalPage::of_memory(address)
            .with_context(|| format!("cannot map physical address {address:#x}"))?;
        let offset = offset_in_page(address);
        Ok(Self::new(Box::new(move || Ok(page.read(offset)?)), random::reseed))
    }

    pub(super) fn new(read: Read, reseed: fn(&[u8; LEN]) -> Result<()>) -> Self {
        Self { read, reseed, seen: Mutex::default() }
    }

    /// Reseeds the kernel's random number generator if the id is another one than at the last call.
    /// When this returns without an error, this has been done, by this call or by another thread's.
    ///
    /// # Errors
    ///
    /// The id cannot be read, or the kernel refuses. The next call tries again.
    pub fn check(&self) -> Result<()> {
        // The lock is held meanwhile: another thread must not go on before it is done.
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let id = (self.read)().context("cannot read the VM generation id")?;
        if *seen == Some(id) {
            return Ok(());
        }
        (self.reseed)(&id)?;
        *seen = Some(id);
        random::mix_in_hardware();
        Ok(())
    }
}

impl fmt::Debug for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Generation").field("seen", &self.seen).finish_non_exhaustive()
    }
}

/// The id's physical address, from the tables in `folder`.
fn address_in(folder: &Path) -> Result<u64> {
    let entries =
        fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    for entry in entries.flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name == "DSDT" || name.starts_with("SSDT") {
            let table = fs::read(entry.path()).with_context(|| format!("cannot read {name}"))?;
            if let Some(address) = address_of(&table) {
                return Ok(address);
            }
        }
    }
    bail!("no ACPI table of this machine names one")
}

/// The address that a table has for the id, if it tells of one: a package of two integers, the lower
/// half first.
fn address_of(table: &[u8]) -> Option<u64> {
    let device =
        NAMES.iter().filter_map(|name| after(table, name)).max_by_key(|rest| rest.len())?;
    let package = after(device, ADDRESS)?;
    // The package's length is one to four bytes, as the first one's upper two bits tell; then comes
    // the number of elements.
    let length = 1 + usize::from(package.first()? >> 6);
    let (count, elements) = package.get(length..)?.split_first()?;
    let (low, rest) = integer(elements)?;
    let (high, _) = integer(rest)?;
    let halves = (u32::try_from(low).ok()?, u32::try_from(high).ok()?);
    (*count == 2).then_some(u64::from(halves.1) << 32 | u64::from(halves.0))
}

/// What follows the first place at which `what` stands.
fn after<'a>(table: &'a [u8], what: &[u8]) -> Option<&'a [u8]> {
    let at = table.windows(what.len()).position(|window| window == what)?;
    table.get(at + what.len()..)
}

/// An integer of ACPI's machine language (20.2.3), and what follows it.
fn integer(code: &[u8]) -> Option<(u64, &[u8])> {
    let (prefix, rest) = code.split_first()?;
    let len = match prefix {
        0x00 | 0x01 => return Some((u64::from(*prefix), rest)),
        0x0a => 1,
        0x0b => 2,
        0x0c => 4,
        0x0e => 8,
        _ => return None,
    };
    let (bytes, rest) = rest.split_at_checked(len)?;
    let value = bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte));
    Some((value, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As varve's tables have it: 0x12 is a package of 12 bytes with two double words.
    const VARVE: &[u8] =
        b"DSDT..\x08_DDN\x0dVM_Gen_Counter\0\x08ADDR\x12\x0c\x02\x0c\x00\x10\x0e\x00\x0c\x00\x00\x00\x00..";

    #[test]
    fn the_address_is_read_from_the_table() {
        assert_eq!(address_of(VARVE), Some(0xe_1000));
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("FACP"), VARVE).unwrap();
        assert!(address_in(folder.path()).is_err(), "neither DSDT nor SSDT");
        fs::write(folder.path().join("SSDT1"), VARVE).unwrap();
        assert_eq!(address_in(folder.path()).unwrap(), 0xe_1000);
        // Short forms, a longer package length, and a half above 4 GiB.
        let other = b"VMGENCTR\x08ADDR\x12\x46\x00\x02\x0b\x00\x80\x01";
        assert_eq!(address_of(other), Some(0x1_0000_8000));
    }

    #[test]
    fn tables_that_do_not_tell_have_none() {
        assert_eq!(address_of(b"\x08ADDR\x12\x0c\x02\x00\x00"), None, "no such device");
        for len in 0..VARVE.len() - 2 {
            assert_eq!(address_of(&VARVE[..len]), None, "{len} bytes");
        }
        assert_eq!(address_of(b"VMGENCTR\x08ADDR\x12\x04\x01\x01\x00"), None, "one element");
        assert_eq!(address_of(b"VMGENCTR\x08ADDR\x12\x04\x02\x0d\x00"), None, "a string");
    }
}
