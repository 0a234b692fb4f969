//! Loading a kernel and its initrd into guest memory.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use linux_loader::loader::bootparam::setup_header;
use linux_loader::loader::elf::PvhBootCapability;
use linux_loader::loader::{BzImage, Elf, KernelLoader};
use serde::{Deserialize, Serialize};
use varve_memory_tiers::GuestMemory;
use varve_snapshot::PAGE_SIZE;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use super::{elf, layout};

/// How a kernel wants to be entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum BootProtocol {
    /// PVH where the kernel has its entry point, else the Linux 64-bit protocol.
    #[default]
    Auto,
    /// The Linux 64-bit boot protocol.
    Linux64,
    /// PVH: 32-bit protected mode, start info structure.
    Pvh,
}

/// Why a kernel cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// A file does not open or read.
    #[error("cannot read {what} {path:?}")]
    Read {
        /// "kernel" or "initrd".
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// Neither an ELF nor a bzImage.
    #[error(
        "kernel {path:?} is neither an ELF vmlinux nor a bzImage (it begins with {start:02x?}); \
         give an uncompressed vmlinux or a distribution's vmlinuz"
    )]
    Format {
        /// The file.
        path: PathBuf,
        /// Its first bytes.
        start: Vec<u8>,
    },
    /// The loader refuses it.
    #[error("kernel {path:?} cannot be loaded: {cause}")]
    Load {
        /// The file.
        path: PathBuf,
        /// The loader's words.
        cause: String,
    },
    /// Shorter than its header says.
    #[error("kernel {path:?} is cut short: {len} bytes where its header says {expected}")]
    Truncated {
        /// The file.
        path: PathBuf,
        /// Bytes there are.
        len: u64,
        /// Bytes there should be.
        expected: u64,
    },
    /// PVH was asked for, but the kernel has no entry point for it.
    #[error("kernel {0:?} has no PVH entry point; it needs boot protocol 'linux'")]
    NoPvh(PathBuf),
    /// Does not fit.
    #[error(
        "kernel {path:?} ends at {end:#x}, past the {memory} MiB of low memory; give the \
             machine more memory"
    )]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// First address after it.
        end: u64,
        /// Low memory in MiB.
        memory: u64,
    },
    /// The initrd does not fit behind the kernel.
    #[error(
        "initrd {path:?} of {len} bytes does not fit into low memory behind the kernel \
             ({room} bytes are free); give the machine more memory"
    )]
    InitrdTooLarge {
        /// The file.
        path: PathBuf,
        /// Its length.
        len: u64,
        /// Bytes between kernel and the end of low memory.
        room: u64,
    },
    /// An initrd without content.
    #[error("initrd {0:?} is empty")]
    InitrdEmpty(PathBuf),
}

/// How the first vCPU starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// 64-bit mode at this address, boot parameters in RSI.
    Linux64(u64),
    /// 32-bit mode at this address, start info in EBX.
    Pvh(u64),
}

/// A kernel in guest memory.
pub struct LoadedKernel {
    /// Where and how to start it.
    pub entry: Entry,
    /// Header of a bzImage, to be handed back in the boot parameters.
    pub setup_header: Option<setup_header>,
    /// First address after what the kernel needs before it knows the memory map.
    end: u64,
    /// Highest address at which an initrd may end.
    initrd_limit: u64,
}

/// An initrd in guest memory: address and length in bytes.
pub type LoadedInitrd = (u64, u64);

/// Loads the kernel at `path`.
pub fn load(
    mem: &GuestMemory,
    path: &Path,
    protocol: BootProtocol,
) -> Result<LoadedKernel, KernelError> {
    let (mut file, len) = open("kernel", path)?;
    let mut start = vec![0; 4];
    let read_error = |source| KernelError::Read { what: "kernel", path: path.into(), source };
    if len >= 4 {
        file.read_exact(&mut start).map_err(read_error)?;
    }
    let kernel = if start == *b"\x7fELF" {
        let extent = elf::extent(&file, len).map_err(read_error)?;
        check_extent(mem, path, len, extent)?;
        load_elf(mem, &mut file, path, protocol)?
    } else if magic_at(&mut file, 0x202, len).map_err(read_error)? == *b"HdrS" {
        load_bzimage(mem, &mut file, len, path, protocol)?
    } else {
        return Err(KernelError::Format { path: path.into(), start });
    };
    check_end(mem, path, kernel.end)?;
    Ok(kernel)
}

fn check_extent(
    mem: &GuestMemory,
    path: &Path,
    len: u64,
    extent: elf::Extent,
) -> Result<(), KernelError> {
    if len < extent.file {
        return Err(KernelError::Truncated { path: path.into(), len, expected: extent.file });
    }
    check_end(mem, path, extent.memory)
}

fn check_end(mem: &GuestMemory, path: &Path, end: u64) -> Result<(), KernelError> {
    let memory = low_memory(mem);
    if end > memory {
        return Err(KernelError::TooLarge { path: path.into(), end, memory: memory >> 20 });
    }
    Ok(())
}

fn load_elf(
    mem: &GuestMemory,
    file: &mut File,
    path: &Path,
    protocol: BootProtocol,
) -> Result<LoadedKernel, KernelError> {
    let result = Elf::load(mem, None, file, Some(GuestAddress(layout::HIGH_RAM)))
        .map_err(|e| KernelError::Load { path: path.into(), cause: e.to_string() })?;
    let entry = match (protocol, result.pvh_boot_cap) {
        (BootProtocol::Linux64, _) => Entry::Linux64(result.kernel_load.0),
        (_, PvhBootCapability::PvhEntryPresent(address)) => Entry::Pvh(address.0),
        (BootProtocol::Auto, _) => Entry::Linux64(result.kernel_load.0),
        (BootProtocol::Pvh, _) => return Err(KernelError::NoPvh(path.into())),
    };
    Ok(LoadedKernel {
        entry,
        setup_header: None,
        end: result.kernel_end,
        initrd_limit: layout::MMIO_GAP,
    })
}

/// Offset of the 64-bit entry point in the protected-mode part (Linux x86 boot protocol).
const BZIMAGE_ENTRY64: u64 = 0x200;
/// `xloadflags`: the kernel has the 64-bit entry point.
const XLF_KERNEL_64: u16 = 1;

fn load_bzimage(
    mem: &GuestMemory,
    file: &mut File,
    len: u64,
    path: &Path,
    protocol: BootProtocol,
) -> Result<LoadedKernel, KernelError> {
    if protocol == BootProtocol::Pvh {
        return Err(KernelError::NoPvh(path.into()));
    }
    let fail = |cause: String| KernelError::Load { path: path.into(), cause };
    let result = BzImage::load(mem, None, file, Some(GuestAddress(layout::HIGH_RAM)))
        .map_err(|e| fail(e.to_string()))?;
    let header = result.setup_header.ok_or_else(|| fail("it has no setup header".into()))?;
    let (version, xloadflags) = (header.version, header.xloadflags);
    if version < 0x20c || xloadflags & XLF_KERNEL_64 == 0 {
        return Err(fail(format!(
            "boot protocol {:x}.{:02x} without a 64-bit entry point",
            version >> 8,
            version & 0xff
        )));
    }
    let setup = (u64::from(if header.setup_sects == 0 { 4 } else { header.setup_sects }) + 1) * 512;
    let expected = setup + u64::from(header.syssize) * 16;
    if len < expected {
        return Err(KernelError::Truncated { path: path.into(), len, expected });
    }
    // The kernel unpacks itself where it likes to be, and needs `init_size` bytes there.
    let runtime = header.pref_address.checked_add(u64::from(header.init_size));
    let runtime = runtime.ok_or_else(|| fail("its address overflows".into()))?;
    Ok(LoadedKernel {
        entry: Entry::Linux64(result.kernel_load.0 + BZIMAGE_ENTRY64),
        setup_header: Some(header),
        end: result.kernel_end.max(runtime),
        initrd_limit: u64::from(header.initrd_addr_max) + 1,
    })
}

/// Loads the initrd at `path` as high as it may be, far from the kernel.
pub fn load_initrd(
    mem: &GuestMemory,
    kernel: &LoadedKernel,
    path: &Path,
) -> Result<LoadedInitrd, KernelError> {
    let (mut file, len) = open("initrd", path)?;
    if len == 0 {
        return Err(KernelError::InitrdEmpty(path.into()));
    }
    let limit = low_memory(mem).min(kernel.initrd_limit);
    let room = limit.saturating_sub(kernel.end.next_multiple_of(PAGE_SIZE));
    let address = limit
        .checked_sub(len)
        .map(|a| a / PAGE_SIZE * PAGE_SIZE)
        .filter(|&a| a >= kernel.end)
        .ok_or(KernelError::InitrdTooLarge { path: path.into(), len, room })?;
    mem.read_exact_volatile_from(GuestAddress(address), &mut file, len as usize)
        .map_err(|e| KernelError::Load { path: path.into(), cause: e.to_string() })?;
    Ok((address, len))
}

fn low_memory(mem: &GuestMemory) -> u64 {
    use vm_memory::GuestMemoryRegion;
    mem.find_region(GuestAddress(0)).map_or(0, |r| r.len())
}

fn open(what: &'static str, path: &Path) -> Result<(File, u64), KernelError> {
    let fail = |source| KernelError::Read { what, path: path.into(), source };
    // Before it is opened: a named pipe would wait for its writer.
    let meta = path.metadata().map_err(fail)?;
    if !meta.is_file() {
        return Err(fail(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")));
    }
    let file = File::open(path).map_err(fail)?;
    Ok((file, meta.len()))
}

fn magic_at(file: &mut File, offset: u64, len: u64) -> io::Result<[u8; 4]> {
    let mut magic = [0; 4];
    if len >= offset + 4 {
        file.seek(SeekFrom::Start(offset))?;
        file.read_exact(&mut magic)?;
    }
    Ok(magic)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use varve_memory_tiers::GuestRam;

    fn ram(mib: u64) -> GuestRam {
        GuestRam::new(&layout::memory_ranges(mib << 20), false).unwrap()
    }

    fn file(content: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(content).unwrap();
        file
    }

    fn load_bytes(content: &[u8]) -> Result<LoadedKernel, KernelError> {
        load(ram(32).memory(), file(content).path(), BootProtocol::Auto)
    }

    /// A bzImage header over `payload` bytes of protected-mode code.
    fn bzimage(payload: usize) -> Vec<u8> {
        let mut image = vec![0u8; 1024 + payload];
        image[0x1f1] = 1;
        image[0x1f4..0x1f8].copy_from_slice(&((payload / 16) as u32).to_le_bytes());
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x206..0x208].copy_from_slice(&0x20fu16.to_le_bytes());
        image[0x211] = 1;
        image[0x214..0x218].copy_from_slice(&0x10_0000u32.to_le_bytes());
        image[0x22c..0x230].copy_from_slice(&0x7fff_ffffu32.to_le_bytes());
        image[0x236..0x238].copy_from_slice(&XLF_KERNEL_64.to_le_bytes());
        image[0x258..0x260].copy_from_slice(&0x10_0000u64.to_le_bytes());
        image[0x260..0x264].copy_from_slice(&0x10_0000u32.to_le_bytes());
        image
    }

    #[test]
    fn a_whole_bzimage_loads_a_cut_one_does_not() {
        let image = bzimage(4096);
        let kernel = load_bytes(&image).unwrap();
        assert_eq!(kernel.entry, Entry::Linux64(0x10_0200));
        assert_eq!(kernel.end, 0x20_0000);
        for cut in [1024, 1025, 3000, image.len() - 1] {
            assert!(matches!(load_bytes(&image[..cut]), Err(KernelError::Truncated { .. })));
        }
        for cut in [0, 3, 0x1f1, 0x205] {
            assert!(matches!(load_bytes(&image[..cut]), Err(KernelError::Format { .. })), "{cut}");
        }
        for cut in [0x206, 0x264, 1023] {
            assert!(load_bytes(&image[..cut]).is_err(), "{cut}");
        }
    }

    #[test]
    fn wrong_kernels_are_named() {
        assert!(matches!(load_bytes(b"#!/bin/sh\n"), Err(KernelError::Format { .. })));
        let short = load_bytes(b"\x7fELF but not really");
        assert!(matches!(short, Err(KernelError::Truncated { len: 19, expected: 64, .. })));
        let mut empty = b"\x7fELF".to_vec();
        empty.resize(64, 0);
        assert!(matches!(load_bytes(&empty), Err(KernelError::Load { .. })));
        let none = load(ram(32).memory(), Path::new("/no/such"), BootProtocol::Auto);
        assert!(matches!(none, Err(KernelError::Read { what: "kernel", .. })));
        let dir = load(ram(32).memory(), Path::new("/"), BootProtocol::Auto);
        assert!(matches!(dir, Err(KernelError::Read { .. })));
        let mut big = bzimage(4096);
        big[0x260..0x264].copy_from_slice(&(64u32 << 20).to_le_bytes());
        assert!(matches!(load_bytes(&big), Err(KernelError::TooLarge { .. })));
        let pvh = load(ram(32).memory(), file(&bzimage(16)).path(), BootProtocol::Pvh);
        assert!(matches!(pvh, Err(KernelError::NoPvh(_))));
    }

    #[test]
    fn the_initrd_goes_to_the_top() {
        let ram = ram(32);
        let kernel = load(ram.memory(), file(&bzimage(16)).path(), BootProtocol::Auto).unwrap();
        let content: Vec<u8> = (0..10_000u32).map(|i| i as u8).collect();
        let (at, len) = load_initrd(ram.memory(), &kernel, file(&content).path()).unwrap();
        assert_eq!((at, len), ((32 << 20) - 12288, 10_000));
        let mut back = vec![0; 10_000];
        ram.memory().read_slice(&mut back, GuestAddress(at)).unwrap();
        assert_eq!(back, content);
        let big = file(b"");
        big.as_file().set_len(31 << 20).unwrap();
        assert!(matches!(
            load_initrd(ram.memory(), &kernel, big.path()),
            Err(KernelError::InitrdTooLarge { .. })
        ));
        assert!(matches!(
            load_initrd(ram.memory(), &kernel, file(b"").path()),
            Err(KernelError::InitrdEmpty(_))
        ));
    }
}
