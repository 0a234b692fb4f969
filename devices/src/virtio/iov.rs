//! Vectored I/O straight between descriptors and guest memory.
//!
//! UNSAFETY: the kernel is handed pointers into guest memory; this file is the only place of the
//! crate that does so.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use vm_memory::Bytes;
use vm_memory::bitmap::Bitmap;

use super::buffers::{Run, Slice};

/// The kernel takes no more pieces than this in one call (UIO_MAXIOV).
pub const MAX_PIECES: usize = 1024;
/// Bytes of a page of the host.
const PAGE: usize = 4096;

/// Which way the bytes go, and where in the file.
#[derive(Clone, Copy)]
enum Op {
    Read(Option<u64>),
    Write(Option<u64>),
}

/// Fills `run` from `fd` at `offset`, whole; a file that ends earlier is an error.
pub fn read_exact_at(fd: BorrowedFd, run: &Run, offset: u64) -> io::Result<()> {
    all(fd, run, offset, |o| Op::Read(Some(o)))
}

/// Writes all of `run` to `fd` at `offset`.
pub fn write_all_at(fd: BorrowedFd, run: &Run, offset: u64) -> io::Result<()> {
    all(fd, run, offset, |o| Op::Write(Some(o)))
}

/// One read of a stream into `run`: returns the bytes that came.
pub fn read(fd: BorrowedFd, run: &Run) -> io::Result<usize> {
    let slices: Vec<&Slice> = run.slices().take(MAX_PIECES).collect();
    transfer(fd, &slices, 0, Op::Read(None))
}

/// One read of a packet into `slices`, which are fewer than [`MAX_PIECES`]: returns its length, or
/// more than they hold if the packet did not fit (the rest of it is lost).
pub fn read_packet(fd: BorrowedFd, slices: &[&Slice]) -> io::Result<usize> {
    let mut spill = [0u8; 1];
    transfer_and(fd, slices, 0, Op::Read(None), Some(&mut spill))
}

/// One write of `run` as a packet or to a stream: returns the bytes that went.
pub fn write(fd: BorrowedFd, run: &Run) -> io::Result<usize> {
    let slices: Vec<&Slice> = run.slices().take(MAX_PIECES).collect();
    transfer(fd, &slices, 0, Op::Write(None))
}

fn all(fd: BorrowedFd, run: &Run, mut offset: u64, op: impl Fn(u64) -> Op) -> io::Result<()> {
    let slices: Vec<&Slice> = run.slices().collect();
    let (mut first, mut skip) = (0, 0);
    while first < slices.len() {
        let end = slices.len().min(first + MAX_PIECES);
        let mut done = match transfer(fd, &slices[first..end], skip, op(offset)) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e),
        };
        offset += done as u64;
        while first < slices.len() && done >= slices[first].len() - skip {
            done -= slices[first].len() - skip;
            skip = 0;
            first += 1;
        }
        skip += done;
    }
    Ok(())
}

/// One system call over `slices`, the first `skip` bytes (inside the first slice) left out.
fn transfer(fd: BorrowedFd, slices: &[&Slice], skip: usize, op: Op) -> io::Result<usize> {
    transfer_and(fd, slices, skip, op, None)
}

/// The same, with the device's own `spill` behind `slices`.
fn transfer_and(
    fd: BorrowedFd,
    slices: &[&Slice],
    skip: usize,
    op: Op,
    spill: Option<&mut [u8; 1]>,
) -> io::Result<usize> {
    let writes_memory = matches!(op, Op::Read(_));
    // The guards keep the pointers valid until the call returns.
    let guards: Vec<_> = slices.iter().map(|s| s.ptr_guard_mut()).collect();
    let mut iov: Vec<libc::iovec> = guards
        .iter()
        .map(|g| libc::iovec { iov_base: g.as_ptr().cast(), iov_len: g.len() })
        .collect();
    if let Some(first) = iov.first_mut() {
        first.iov_base = first.iov_base.wrapping_byte_add(skip);
        first.iov_len -= skip;
    }
    // Borrowed to the end of this function, so it outlives the call.
    if let Some(spill) = spill {
        iov.push(libc::iovec { iov_base: spill.as_mut_ptr().cast(), iov_len: spill.len() });
    }
    let (fd, ptr, count) = (fd.as_raw_fd(), iov.as_ptr(), iov.len() as i32);
    let at = |o: u64| libc::off_t::try_from(o).map_err(|_| io::ErrorKind::InvalidInput);
    let result = match op {
        // SAFETY: each of the `count` entries at `ptr` covers a part of a guest memory slice that
        // its guard keeps mapped during the call, or the spill, which is borrowed for it alone; guest
        // memory is accessed by raw pointers only, so the kernel's writes alias no Rust reference. Same for the three calls below.
        Op::Read(Some(o)) => unsafe { libc::preadv(fd, ptr, count, at(o)?) },
        // SAFETY: as above.
        Op::Read(None) => unsafe { libc::readv(fd, ptr, count) },
        // SAFETY: as above.
        Op::Write(Some(o)) => unsafe { libc::pwritev(fd, ptr, count, at(o)?) },
        // SAFETY: as above.
        Op::Write(None) => unsafe { libc::writev(fd, ptr, count) },
    };
    let done = usize::try_from(result).map_err(|_| {
        let error = io::Error::last_os_error();
        if error.raw_os_error() == Some(libc::EFAULT) {
            touch(slices);
        }
        error
    })?;
    if writes_memory {
        mark_dirty(slices, skip, done);
    }
    Ok(done)
}

/// Reads a byte of each page of `slices`, into which the kernel could not copy. A page that the host lost (its
/// file became shorter, its disk or the host's memory fails) is SIGBUS for this thread then, as for a vCPU's:
/// the guest must not take it for an error of the device.
fn touch(slices: &[&Slice]) {
    for slice in slices {
        for offset in (0..slice.len()).step_by(PAGE).chain(slice.len().checked_sub(1)) {
            let _ = slice.read_obj::<u8>(offset);
        }
    }
}

/// The kernel wrote `done` bytes behind vm-memory's back: the dirty bitmap must know.
fn mark_dirty(slices: &[&Slice], skip: usize, mut done: usize) {
    done += skip;
    for slice in slices {
        let n = slice.len().min(done);
        slice.bitmap().mark_dirty(0, n);
        done -= n;
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    use vm_memory::mmap::MmapRegionBuilder;
    use vm_memory::{FileOffset, GuestAddress, GuestMemory, GuestRegionMmap, Permissions};

    use super::*;
    use crate::memory::DeviceMemory;

    /// Says to the process that [`a_lost_page_is_no_error_of_the_device`] starts what it is to do.
    const TASK: &str = "VARVE_IOV_TEST";

    /// Guest memory that a file holds.
    fn memory_in(file: &File, len: usize) -> DeviceMemory {
        let region = MmapRegionBuilder::new_with_bitmap(len, None)
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_NORESERVE)
            .with_file_offset(FileOffset::new(file.try_clone().unwrap(), 0))
            .build()
            .unwrap();
        let region = GuestRegionMmap::new(region, GuestAddress(0)).unwrap();
        DeviceMemory::from_regions(vec![region]).unwrap()
    }

    fn run(memory: &DeviceMemory, len: usize) -> Vec<Slice<'_>> {
        let slices = memory.get_slices(GuestAddress(0), len, Permissions::ReadWrite).unwrap();
        slices.map(Result::unwrap).collect()
    }

    /// The part of the next test that a process of its own does, as it ends by a signal; on its own this does
    /// nothing.
    #[test]
    fn in_a_process_of_its_own() {
        let Ok(task) = std::env::var(TASK) else { return };
        let (file, disk) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        file.set_len(4 * PAGE as u64).unwrap();
        disk.set_len(4 * PAGE as u64).unwrap();
        let memory = memory_in(&file, 4 * PAGE);
        // The guest has one of the pages already.
        let slices = run(&memory, 4 * PAGE);
        slices[0].read_obj::<u8>(0).unwrap();
        file.set_len(2 * PAGE as u64).unwrap();
        let slices: Vec<&Slice> = slices.iter().collect();
        let op = if task == "read" { Op::Read(Some(0)) } else { Op::Write(Some(0)) };
        let done = transfer(disk.as_fd(), &slices, 0, op);
        println!("the pages before: {done:?}");
        let error = transfer(disk.as_fd(), &slices, 2 * PAGE, op).unwrap_err();
        panic!("an error of the device: {error}");
    }

    #[test]
    fn a_lost_page_is_no_error_of_the_device() {
        for task in ["read", "write"] {
            let output = Command::new(std::env::current_exe().unwrap())
                .args(["virtio::iov::tests::in_a_process_of_its_own", "--exact", "--nocapture"])
                .env(TASK, task)
                .output()
                .unwrap();
            assert_eq!(output.status.signal(), Some(libc::SIGBUS), "{task}: {output:?}");
        }
    }
}
