//! What an ELF kernel asks for, read before it is loaded: so that a file that is cut short and a
//! machine that is too small are told apart. Loading is `kernel`'s.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// How much an ELF file and its kernel take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Bytes that the file must have for its headers and segments.
    pub file: u64,
    /// First physical address behind the kernel, its zeroed memory included.
    pub memory: u64,
}

/// Bytes of the file header (ELF-64 object file format, `Elf64_Ehdr`).
const EHDR: u64 = 64;
/// Bytes of a program header (`Elf64_Phdr`); a file may use more.
const PHDR: u64 = 56;
/// Kind of a program header: a segment to be loaded.
const PT_LOAD: u32 = 1;

/// Reads the headers of `file`. Values that overflow saturate: no file is that long.
pub fn extent(file: &File, len: u64) -> io::Result<Extent> {
    let mut extent = Extent { file: EHDR, memory: 0 };
    if len < EHDR {
        return Ok(extent);
    }
    let mut header = [0; EHDR as usize];
    file.read_exact_at(&mut header, 0)?;
    let table = u64_at(&header, 32);
    let size = u64::from(u16_at(&header, 54)).max(PHDR);
    let count = u64::from(u16_at(&header, 56));
    extent.file = extent.file.max(table.saturating_add(count * size));
    if len < extent.file {
        return Ok(extent);
    }
    for index in 0..count {
        let mut segment = [0; PHDR as usize];
        file.read_exact_at(&mut segment, table + index * size)?;
        if u32_at(&segment, 0) == PT_LOAD {
            let file_end = u64_at(&segment, 8).saturating_add(u64_at(&segment, 32));
            let memory_end = u64_at(&segment, 24).saturating_add(u64_at(&segment, 40));
            extent.file = extent.file.max(file_end);
            extent.memory = extent.memory.max(memory_end);
        }
    }
    Ok(extent)
}

fn bytes<const N: usize>(header: &[u8], at: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&header[at..at + N]);
    bytes
}

fn u16_at(header: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes(header, at))
}

fn u32_at(header: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes(header, at))
}

fn u64_at(header: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes(header, at))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;

    fn extent_of(content: &[u8]) -> io::Result<Extent> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        extent(&file, content.len() as u64)
    }

    /// A file header and two program headers: a segment of 0x100 bytes in the file at 0x200, of
    /// 0x3000 in memory at 2 MiB; and a note, which does not count.
    fn elf() -> Vec<u8> {
        let mut image = vec![0; 64 + 2 * 56];
        image[..4].copy_from_slice(b"\x7fELF");
        image[32] = 64;
        image[54] = 56;
        image[56] = 2;
        image[64] = 1;
        let mut put =
            |at: usize, value: u64| image[at..at + 8].copy_from_slice(&value.to_le_bytes());
        put(64 + 8, 0x200);
        put(64 + 24, 2 << 20);
        put(64 + 32, 0x100);
        put(64 + 40, 0x3000);
        put(120 + 32, u64::MAX);
        image[120] = 4;
        image
    }

    #[test]
    fn segments_and_headers_count() {
        let memory = (2 << 20) + 0x3000;
        assert_eq!(extent_of(&elf()).unwrap(), Extent { file: 0x300, memory });
        let mut endless = elf();
        endless[64 + 8..64 + 16].fill(0xff);
        assert_eq!(extent_of(&endless).unwrap().file, u64::MAX);
    }

    #[test]
    fn a_file_cut_in_its_headers_is_too_short() {
        for cut in 0..elf().len() {
            assert!(extent_of(&elf()[..cut]).unwrap().file > cut as u64, "{cut}");
        }
    }

    proptest! {
        #[test]
        fn any_header_is_survived(content in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = extent_of(&content);
        }
    }
}
