//! `rng`: bytes straight from the hardware's random number generator.

use std::fmt::Write;
use std::fs::{self, File};
use std::io::Read;

use anyhow::{Context, Result, bail};
use varve_agent::protocol::RngReply;

const DEVICE: &str = "/dev/hwrng";
const CURRENT: &str = "/sys/class/misc/hw_random/rng_current";
const MOST: usize = 65_536;

/// Reads `bytes` bytes.
pub fn read(bytes: usize) -> Result<RngReply> {
    if bytes > MOST {
        bail!("bytes must be at most {MOST}, not {bytes}");
    }
    let mut data = vec![0; bytes];
    let mut device = File::open(DEVICE).with_context(|| format!("cannot open {DEVICE}"))?;
    device.read_exact(&mut data).with_context(|| format!("cannot read {DEVICE}"))?;
    let source = fs::read_to_string(CURRENT).unwrap_or_default().trim().to_owned();
    let mut hex = String::with_capacity(2 * bytes);
    for byte in data {
        write!(hex, "{byte:02x}")?;
    }
    Ok(RngReply { hex, source })
}
