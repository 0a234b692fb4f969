//! `block`: reads and writes a block device past the page cache, so that the data are the device's.

use std::os::fd::OwnedFd;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use rustix::fs::{Mode, OFlags, fsync, open};
use rustix::io::{Errno, pread, pwrite};
use varve_agent::pattern;
use varve_agent::protocol::{Block, Direction, Transfer};

use super::stream::transfer as report;

/// The unit of direct I/O, in bytes: the logical block of every virtio disk.
pub const SECTOR: u64 = 512;
/// The size of one request, in bytes, and the most that [`Buffer`] holds.
pub const CHUNK: usize = 1 << 20;
/// Buffers of direct I/O begin at a multiple of this.
const ALIGNMENT: usize = 4096;

/// Moves data between a device and the agent.
pub fn transfer(request: &Block) -> Result<Transfer> {
    let &Block { offset, bytes, .. } = request;
    if !offset.is_multiple_of(SECTOR) || !bytes.is_multiple_of(SECTOR) {
        bail!("offset {offset} and bytes {bytes} must be multiples of {SECTOR}");
    }
    let end = offset.checked_add(bytes).context("offset and bytes are out of range")?;
    let (device, path) = open_direct(&request.device, request.direction)?;
    let mut memory = Buffer::new();
    let buffer = memory.slice();
    let mut hasher = crc32fast::Hasher::new();
    let start = Instant::now();
    let mut place = offset;
    while place < end {
        let part = &mut buffer[..(end - place).min(CHUNK as u64) as usize];
        let done = match request.direction {
            Direction::Read => retry(|| pread(&device, &mut part[..], place)),
            Direction::Write => {
                pattern::fill(request.seed, place - offset, part);
                retry(|| pwrite(&device, &part[..], place))
            }
        };
        let done = done.with_context(|| format!("{path}, {} bytes at {place}", part.len()))?;
        if done == 0 {
            bail!("{path} ends at byte {place}");
        }
        hasher.update(&part[..done]);
        place += done as u64;
    }
    if request.direction == Direction::Write {
        fsync(&device).with_context(|| format!("cannot flush {path}"))?;
    }
    Ok(report(bytes, hasher.finalize(), start))
}

/// Opens a block device past the page cache; also returns its path, for messages.
pub fn open_direct(device: &str, direction: Direction) -> Result<(OwnedFd, String)> {
    let access = match direction {
        Direction::Read => OFlags::RDONLY,
        Direction::Write => OFlags::WRONLY,
    };
    let path = format!("/dev/{}", device.trim_start_matches("/dev/"));
    let device = open(path.as_str(), access | OFlags::DIRECT | OFlags::CLOEXEC, Mode::empty())
        .with_context(|| format!("cannot open {path}"))?;
    Ok((device, path))
}

/// Memory that direct I/O accepts.
pub struct Buffer(Vec<u8>);

impl Buffer {
    /// [`CHUNK`] bytes, zero.
    pub fn new() -> Self {
        Self(vec![0; CHUNK + ALIGNMENT])
    }

    /// All of it.
    pub fn slice(&mut self) -> &mut [u8] {
        let skip = self.0.as_ptr().align_offset(ALIGNMENT);
        &mut self.0[skip..skip + CHUNK]
    }
}

/// Repeats a call that a signal interrupts.
pub fn retry(mut call: impl FnMut() -> Result<usize, Errno>) -> Result<usize, Errno> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            result => return result,
        }
    }
}
