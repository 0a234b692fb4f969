//! On which NUMA node the pages of a file in memory (tmpfs) are.
//!
//! UNSAFETY: mbind takes addresses. They are of a mapping of the file that is made here, that nobody
//! else knows of and whose bytes are never looked at.
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::ffi::c_void;
use std::fs::{self, File};
use std::io;
use std::ptr::{null, null_mut};

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, munmap};
use varve_snapshot::data_run;

/// Modes of mbind(2).
const MPOL_DEFAULT: usize = 0;
const MPOL_BIND: usize = 2;
const MPOL_LOCAL: usize = 4;
/// Nodes that a mask here can name: as many as Linux has at most.
const NODES: usize = 1024;

/// A mapping of a whole file, by which the kernel is told and asked.
struct Window {
    address: *mut c_void,
    len: usize,
}

impl Window {
    fn new(file: &File) -> io::Result<Window> {
        let len = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
        // SAFETY: a new mapping at an address of the kernel's choice replaces nothing.
        let address = unsafe { mmap(null_mut(), len, ProtFlags::READ, MapFlags::SHARED, file, 0) }?;
        Ok(Window { address, len })
    }

    fn bind(&self, mode: usize, mask: &[u64]) -> io::Result<()> {
        // No mask at all is told by its address.
        let (mask, bits) = if mask.is_empty() { (null(), 0) } else { (mask.as_ptr(), NODES + 1) };
        // SAFETY: the range is the mapping's, and the mask has as many bits as are said, but one, which
        // the kernel leaves out (mbind(2)).
        let done =
            unsafe { libc::syscall(libc::SYS_mbind, self.address, self.len, mode, mask, bits, 0) };
        if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        // SAFETY: the mapping was made in `new`, and nothing else knows its address.
        let _ = unsafe { munmap(self.address, self.len) };
    }
}

/// Has pages of `file`, of its present length, come from one node when they are allocated.
pub fn bind(file: &File, node: u32) -> io::Result<()> {
    let mut mask = [0u64; NODES / 64];
    let word = mask.get_mut(node as usize / 64).ok_or(io::ErrorKind::InvalidInput)?;
    *word = 1 << (node % 64);
    Window::new(file)?.bind(MPOL_BIND, &mask)
}

/// Ends what [`bind`] began. Pages that are there stay where they are; those that are allocated later,
/// and private copies, come from wherever the process that needs them runs.
pub fn unbind(file: &File) -> io::Result<()> {
    let window = Window::new(file)?;
    // Nothing is done where a mapping has the policy already, as a new one has the default: the file's is
    // looked at only if not.
    window.bind(MPOL_LOCAL, &[])?;
    window.bind(MPOL_DEFAULT, &[])
}

/// Number of pages of `file` on each node. Holes have no page.
pub fn pages_by_node(file: &File) -> io::Result<BTreeMap<u32, u64>> {
    let window = Window::new(file)?;
    let mut at = 0;
    let len = window.len as u64;
    while let Some((start, end)) = data_run(file, at, len)? {
        // Whole pages: where tmpfs has data it has a page.
        let (offset, len) = (start as usize, ((end - start) as usize).next_multiple_of(4096));
        let address = window.address.wrapping_byte_add(offset);
        // SAFETY: the range is the mapping's; its pages are made present, and not changed.
        unsafe { madvise(address, len.min(window.len - offset), Advice::LinuxPopulateRead) }?;
        at = end;
    }
    let maps = fs::read_to_string("/proc/self/numa_maps")?;
    let start = format!("{:x} ", window.address as usize);
    let line = maps.lines().find(|line| line.trim_start_matches('0').starts_with(&start));
    Ok(line.map(nodes).unwrap_or_default())
}

/// The counts in a line of `/proc/PID/numa_maps`: `N0=12 N1=3`.
fn nodes(line: &str) -> BTreeMap<u32, u64> {
    let count = |word: &str| {
        let (node, pages) = word.strip_prefix('N')?.split_once('=')?;
        Some((node.parse().ok()?, pages.parse().ok()?))
    };
    line.split(' ').filter_map(count).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn a_file_is_filled_on_its_node_and_holes_are_nowhere() {
        let file = tempfile::tempfile_in("/dev/shm").unwrap();
        file.set_len(64 << 12).unwrap();
        match bind(&file, 0) {
            Err(e) if e.raw_os_error() == Some(libc::ENOSYS) => {
                return varve_skip::skip!("numa", e);
            }
            done => done.unwrap(),
        }
        file.write_all_at(&[1; 8 << 12], 4 << 12).unwrap();
        unbind(&file).unwrap();
        assert_eq!(pages_by_node(&file).unwrap(), BTreeMap::from([(0, 8)]));
        assert!(bind(&file, 900).is_err(), "there is no such node");
        assert!(bind(&file, 5000).is_err());
    }

    #[test]
    fn counts_are_read() {
        let line = "7f00 bind:1 file=/x mapped=3 N0=1 N1=2 kernelpagesize_kB=4";
        assert_eq!(nodes(line), BTreeMap::from([(0, 1), (1, 2)]));
    }
}
