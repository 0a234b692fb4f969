//! Reseeding the kernel's random number generator (random(4)).
#![allow(unsafe_code)] // Its requests are ioctls.

use std::fs::File;

use anyhow::{Context, Result};
use rustix::io::Errno;
use rustix::ioctl::{NoArg, Setter, ioctl, opcode};

const DEVICE: &str = "/dev/urandom";
/// `RNDADDENTROPY`: mixes bytes in, and counts them as entropy.
const ADD: rustix::ioctl::Opcode = opcode::write::<[i32; 2]>(b'R', 0x03);
/// `RNDRESEEDCRNG`: takes a new key from what was mixed in, on all CPUs.
const RESEED: rustix::ioctl::Opcode = opcode::none(b'R', 0x07);

/// `struct rand_pool_info` with room for [`SEED`] bytes.
#[repr(C)]
struct Pool {
    /// In bits.
    entropy_count: i32,
    /// In bytes.
    buf_size: i32,
    buf: [u8; SEED],
}

/// Bytes of a seed.
const SEED: usize = 16;

/// Mixes `seed`, which nobody else knows, into the kernel's generator and takes a new key from it: what
/// is drawn from now on, from getrandom or the kernel's files, depends on the seed.
pub fn reseed(seed: &[u8; SEED]) -> Result<()> {
    let device = File::options()
        .write(true)
        .open(DEVICE)
        .with_context(|| format!("cannot open {DEVICE}"))?;
    let pool = Pool { entropy_count: 8 * SEED as i32, buf_size: SEED as i32, buf: *seed };
    // SAFETY: the request reads a `rand_pool_info`, which `Pool` is laid out as; its `buf_size` is the
    // length of `buf`.
    unsafe { ioctl(&device, Setter::<ADD, Pool>::new(pool)) }.context("RNDADDENTROPY")?;
    // SAFETY: the request has no argument.
    match unsafe { ioctl(&device, NoArg::<RESEED>::new()) } {
        // A generator that was never seeded has no key yet; it gets its first one with this seed.
        Ok(()) | Err(Errno::NODATA) => Ok(()),
        Err(error) => Err(error).context("RNDRESEEDCRNG"),
    }
}
