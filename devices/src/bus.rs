//! Address decoding: a sorted table of ranges, each with the device that answers there.

use std::sync::Arc;

/// A device that answers to reads and writes of a port or memory range.
///
/// Calls come from any vCPU thread, at any time, with any offset inside the range and any length
/// from 1 to 8: the guest chooses them. A device ignores what it does not understand.
pub trait BusDevice: Send + Sync {
    /// Fills `data` from the registers at `offset`; bytes with no register behind them stay as
    /// they are (the caller has set them to all ones, as an empty bus reads).
    fn read(&self, offset: u64, data: &mut [u8]);
    /// Writes `data` to the registers at `offset`.
    fn write(&self, offset: u64, data: &[u8]);
}

/// Why a range cannot be added to a bus.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BusError {
    /// Empty, or past the end of the address space.
    #[error("bus range {base:#x}+{len:#x} is empty or wraps around")]
    BadRange {
        /// First address.
        base: u64,
        /// Length in bytes.
        len: u64,
    },
    /// Another device answers there already.
    #[error("bus range {base:#x}+{len:#x} overlaps the one at {other:#x}")]
    Overlap {
        /// First address.
        base: u64,
        /// Length in bytes.
        len: u64,
        /// First address of the range that is there.
        other: u64,
    },
}

struct Entry {
    base: u64,
    last: u64,
    device: Arc<dyn BusDevice>,
}

/// One address space (ports or memory). Built once, then shared without a lock.
#[derive(Default)]
pub struct Bus {
    entries: Vec<Entry>,
}

impl Bus {
    /// An empty bus.
    pub fn new() -> Bus {
        Bus::default()
    }

    /// Makes `device` answer at `base` for `len` bytes.
    pub fn insert(
        &mut self,
        base: u64,
        len: u64,
        device: Arc<dyn BusDevice>,
    ) -> Result<(), BusError> {
        let last = len
            .checked_sub(1)
            .and_then(|n| base.checked_add(n))
            .ok_or(BusError::BadRange { base, len })?;
        let at = self.entries.partition_point(|e| e.last < base);
        if let Some(next) = self.entries.get(at)
            && next.base <= last
        {
            return Err(BusError::Overlap { base, len, other: next.base });
        }
        self.entries.insert(at, Entry { base, last, device });
        Ok(())
    }

    /// Reads at `addr`; an address where nothing answers reads as all ones. Returns whether a
    /// device answered.
    pub fn read(&self, addr: u64, data: &mut [u8]) -> bool {
        data.fill(0xff);
        let found = self.find(addr, data.len());
        if let Some((device, offset)) = &found {
            device.read(*offset, data);
        }
        found.is_some()
    }

    /// Writes at `addr`; a write where nothing answers is lost. Returns whether a device answered.
    pub fn write(&self, addr: u64, data: &[u8]) -> bool {
        let found = self.find(addr, data.len());
        if let Some((device, offset)) = &found {
            device.write(*offset, data);
        }
        found.is_some()
    }

    /// The device that holds all of `addr..addr + len`: an access that straddles a border is
    /// nobody's.
    fn find(&self, addr: u64, len: usize) -> Option<(&Arc<dyn BusDevice>, u64)> {
        let end = addr.checked_add((len as u64).checked_sub(1)?)?;
        let at = self.entries.partition_point(|e| e.last < addr);
        let entry = self.entries.get(at)?;
        (entry.base <= addr && end <= entry.last).then(|| (&entry.device, addr - entry.base))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[derive(Default)]
    struct Log(Mutex<Vec<(u64, Vec<u8>)>>);
    impl BusDevice for Log {
        fn read(&self, offset: u64, data: &mut [u8]) {
            data[0] = offset as u8;
        }
        fn write(&self, offset: u64, data: &[u8]) {
            self.0.lock().unwrap().push((offset, data.to_vec()));
        }
    }

    #[test]
    fn routes_by_range_and_reads_ones_elsewhere() {
        let (a, b) = (Arc::new(Log::default()), Arc::new(Log::default()));
        let mut bus = Bus::new();
        bus.insert(0x2000, 0x10, b.clone()).unwrap();
        bus.insert(0x1000, 0x10, a.clone()).unwrap();
        let mut data = [0u8; 2];
        assert!(bus.read(0x1004, &mut data));
        assert_eq!(data, [4, 0xff]);
        assert!(!bus.read(0x100f, &mut data), "straddles the border");
        assert_eq!(data, [0xff; 2]);
        assert!(bus.write(0x2000, &[7]));
        assert!(!bus.write(0x2010, &[7]));
        assert!(!bus.read(u64::MAX, &mut data));
        assert_eq!(*b.0.lock().unwrap(), [(0, vec![7])]);
        assert!(a.0.lock().unwrap().is_empty());
    }

    #[test]
    fn refuses_overlap_and_nonsense() {
        let d = Arc::new(Log::default());
        let mut bus = Bus::new();
        bus.insert(0x1000, 0x10, d.clone()).unwrap();
        let overlap = |base, len| BusError::Overlap { base, len, other: 0x1000 };
        assert_eq!(bus.insert(0x100f, 1, d.clone()), Err(overlap(0x100f, 1)));
        assert_eq!(bus.insert(0xfff, 2, d.clone()), Err(overlap(0xfff, 2)));
        assert_eq!(bus.insert(0, 0x5000, d.clone()), Err(overlap(0, 0x5000)));
        assert_eq!(bus.insert(1, 0, d.clone()), Err(BusError::BadRange { base: 1, len: 0 }));
        assert_eq!(
            bus.insert(u64::MAX, 2, d.clone()),
            Err(BusError::BadRange { base: u64::MAX, len: 2 })
        );
        bus.insert(0x1010, 0x10, d.clone()).unwrap();
        bus.insert(0xff0, 0x10, d).unwrap();
    }
}
