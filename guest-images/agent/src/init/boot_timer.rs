//! Telling the monitor how far the boot is: one byte written to a device in physical memory, as in
//! Firecracker's boot timer. Which addresses are valid is the monitor's business.

use std::io;

use anyhow::{Context, Result};

use crate::physical::{PhysicalPage, offset_in_page};

/// Process 1 runs.
pub const INIT: u8 = 123;
/// The agent listens.
pub const READY: u8 = 124;

/// Reads an address as `0x…`.
pub fn parse(text: &str) -> Result<u64> {
    text.strip_prefix("0x")
        .and_then(|digits| u64::from_str_radix(digits, 16).ok())
        .with_context(|| format!("{text:?} is no address; write it as 0xd0000000"))
}

/// Writes `value` to the physical address `address`.
pub fn write(address: u64, value: u8) -> io::Result<()> {
    PhysicalPage::of_device(address)?.write(offset_in_page(address), value)
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
