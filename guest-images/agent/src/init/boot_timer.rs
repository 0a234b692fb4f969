//! Telling the monitor how far the boot is: one byte written to a device in physical memory, as in
//! Firecracker's boot timer. Which addresses are valid is the monitor's business.
#![allow(unsafe_code)] // A device register can be reached only by mapping it.

use std::io;

use anyhow::{Context, Result};
use rustix::fs::{Mode, OFlags, open};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// Process 1 runs.
pub const INIT: u8 = 123;
/// The agent listens.
pub const READY: u8 = 124;

const PAGE: u64 = 4096;

/// Reads an address as `0x…`.
pub fn parse(text: &str) -> Result<u64> {
    text.strip_prefix("0x")
        .and_then(|digits| u64::from_str_radix(digits, 16).ok())
        .with_context(|| format!("{text:?} is no address; write it as 0xd0000000"))
}

/// Writes `value` to the physical address `address`.
pub fn write(address: u64, value: u8) -> io::Result<()> {
    let memory = open("/dev/mem", OFlags::RDWR | OFlags::SYNC | OFlags::CLOEXEC, Mode::empty())?;
    let (page, offset) = (address & !(PAGE - 1), (address % PAGE) as usize);
    // SAFETY: a new mapping of one page, at an address that the kernel chooses; the memory behind it
    // is a device's, never this process's, because the kernel refuses its own RAM (STRICT_DEVMEM).
    let base = unsafe {
        mmap(
            std::ptr::null_mut(),
            PAGE as usize,
            ProtFlags::WRITE,
            MapFlags::SHARED,
            &memory,
            page,
        )?
    };
    // SAFETY: `offset` is below the page's size, so the byte lies in the mapping, which is writable.
    unsafe { base.cast::<u8>().add(offset).write_volatile(value) };
    // SAFETY: the mapping was made above with this size, and nothing refers to it any more.
    unsafe { munmap(base, PAGE as usize)? };
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_hexadecimal() {
        assert_eq!(parse("0xd0000000").unwrap(), 0xd000_0000);
        assert!(parse("123").is_err());
        assert!(parse("0x").is_err());
        assert!(parse("0x1ffffffffffffffff").is_err());
    }
}
