//! What the kernel's page tables say about each page of a range.
//!
//! Safe code: it reads `/proc/self/pagemap` (linux/Documentation/admin-guide/mm/pagemap.rst).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::mmap::Reservation;

/// Where the kernel shows this process's page tables.
pub const PATH: &str = "/proc/self/pagemap";

/// One page's entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageState(u64);

impl PageState {
    /// In memory and mapped.
    pub fn present(self) -> bool {
        self.0 >> 63 & 1 != 0
    }

    /// On the host's swap.
    pub fn swapped(self) -> bool {
        self.0 >> 62 & 1 != 0
    }

    /// Mapped from a file, shared with whoever else maps it.
    pub fn of_file(self) -> bool {
        self.present() && self.0 >> 61 & 1 != 0
    }

    /// This process's own copy: it was written, or populated for writing, or installed. The zero
    /// page that a read of untouched anonymous memory maps does not count (it is never mapped
    /// exclusively). Holds for processes that do not fork.
    pub fn private(self) -> bool {
        self.swapped() || (self.present() && !self.of_file() && self.0 >> 56 & 1 != 0)
    }
}

/// The entries of the pages of a range of `memory`, in order.
pub fn read(memory: &Reservation, offset: usize, len: usize) -> io::Result<Vec<PageState>> {
    let first = memory.at(offset, len)? as u64 / 4096;
    let mut bytes = vec![0; len / 4096 * 8];
    File::open(PATH)?.read_exact_at(&mut bytes, first * 8)?;
    let entries = bytes.as_chunks::<8>().0;
    Ok(entries.iter().map(|&e| PageState(u64::from_ne_bytes(e))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ram::kind::PrefaultMode;

    #[test]
    fn copies_are_told_from_what_is_shared() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[1; 0x3000], 0).unwrap();
        let r = Reservation::new(0x6000, 1 << 21).unwrap();
        r.map_file(0, 0x3000, &file, 0).unwrap();
        r.populate(0, 0x1000, PrefaultMode::Read).unwrap();
        r.populate(0x1000, 0x1000, PrefaultMode::Write).unwrap();
        r.populate(0x3000, 0x1000, PrefaultMode::Read).unwrap();
        r.populate(0x4000, 0x1000, PrefaultMode::Write).unwrap();
        let states = read(&r, 0, 0x6000).unwrap();
        let private: Vec<_> = states.iter().map(|s| s.private()).collect();
        assert_eq!(private, [false, true, false, false, true, false]);
        assert!(states[0].of_file() && !states[1].of_file() && !states[5].present());
    }
}
