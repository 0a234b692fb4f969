//! Reseeding the kernel's random number generator (random(4)).
#![allow(unsafe_code)] // Its requests are ioctls.

use std::fs::File;
use std::io::{self, Read, Write};

use anyhow::{Context, Result};
use rustix::io::Errno;
use rustix::ioctl::{NoArg, Setter, ioctl, opcode};

const DEVICE: &str = "/dev/urandom";
/// The hardware's generator, as of virtio's entropy device, if there is one.
const HARDWARE: &str = "/dev/hwrng";
/// Bytes that are taken from it: more than its driver can have fetched before a snapshot, which are the same
/// in all machines restored from it.
const FROM_HARDWARE: usize = 256;
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

/// Mixes numbers of the hardware's generator in as well, once they have come: the host may let them wait, so
/// that a thread does it. Without such a device nothing is done.
pub fn mix_in_hardware() {
    let Ok(hardware) = File::open(HARDWARE) else { return };
    let thread = std::thread::Builder::new().name("hwrng".into());
    // What is left out here comes on top of a seed that is enough.
    let _ = thread.spawn(move || mix_in(hardware, &mut File::options().write(true).open(DEVICE)?));
}

/// Mixes in what comes, without counting it as entropy.
fn mix_in(mut from: impl Read, to: &mut impl Write) -> io::Result<()> {
    let mut bytes = [0; FROM_HARDWARE];
    from.read_exact(&mut bytes)?;
    to.write_all(&bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_is_taken_from_the_hardware_than_its_driver_keeps() {
        let mut mixed = Vec::new();
        mix_in(io::repeat(7).take(1000), &mut mixed).unwrap();
        assert_eq!(mixed, [7; FROM_HARDWARE]);
        let mut mixed = Vec::new();
        assert!(mix_in(io::empty(), &mut mixed).is_err());
        assert!(mixed.is_empty());
    }
}
