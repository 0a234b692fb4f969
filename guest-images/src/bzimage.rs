//! Taking the ELF kernel out of a bzImage, by the fields of Linux's x86 boot protocol
//! (Documentation/arch/x86/boot.rst): no search for magic bytes, so no false find.

use std::path::Path;

use crate::error::{Error, Result};
use crate::unpack::Format;

/// Offset of `setup_sects`: sectors of setup code after the boot sector; 0 means 4.
const SETUP_SECTS: usize = 0x1f1;
/// Offset of the magic `HdrS`.
const MAGIC: usize = 0x202;
/// Offset of the protocol's version, 2.08 of which brought the payload's fields.
const VERSION: usize = 0x206;
/// Offset of `payload_offset`, counted from the start of the protected-mode code.
const PAYLOAD_OFFSET: usize = 0x248;
/// Offset of `payload_length`, in bytes.
const PAYLOAD_LENGTH: usize = 0x24c;
const SECTOR: usize = 512;
/// More than any distribution kernel unpacks to, in bytes.
const MAX_KERNEL: u64 = 1 << 30;

/// Unpacks the ELF file inside the bzImage `image`; `path` is for messages.
pub fn vmlinux(image: &[u8], path: &Path) -> Result<Vec<u8>> {
    let bad = |reason: &str| Error::BadKernel { path: path.to_owned(), reason: reason.to_owned() };
    let payload = payload(image).map_err(bad)?;
    let Some(format) = Format::of(payload) else {
        return Err(bad("its payload is not packed as xz, zstd, gzip or lz4"));
    };
    let (packed, size) = split_size(payload).ok_or_else(|| bad("its payload is too short"))?;
    let unpack = || {
        // gzip has the size as its own last field, for the others the kernel's build appends it.
        let stream = if format == Format::Gzip { payload } else { packed };
        format.unpack(stream, MAX_KERNEL)
    };
    let elf = unpack().map_err(|source| Error::Unpack {
        path: path.to_owned(),
        format: format.name(),
        source,
    })?;
    if u32::try_from(elf.len()) != Ok(size) {
        return Err(bad(&format!("it unpacks to {} bytes and not to {size}", elf.len())));
    }
    if !elf.starts_with(b"\x7fELF") {
        return Err(bad("its payload is no ELF file"));
    }
    Ok(elf)
}

/// Splits off the unpacked size that ends a payload.
fn split_size(payload: &[u8]) -> Option<(&[u8], u32)> {
    let (packed, size) = payload.split_last_chunk()?;
    Some((packed, u32::from_le_bytes(*size)))
}

/// The compressed kernel inside `image`.
fn payload(image: &[u8]) -> Result<&[u8], &'static str> {
    let cut = "it ends before its header does";
    let field = |at: usize| -> Option<usize> {
        let bytes = image.get(at..at + 4)?.try_into().ok()?;
        usize::try_from(u32::from_le_bytes(bytes)).ok()
    };
    if image.get(MAGIC..MAGIC + 4).ok_or(cut)? != b"HdrS" {
        return Err("it has no boot protocol header, so it is no bzImage");
    }
    if field(VERSION).ok_or(cut)? & 0xffff < 0x208 {
        return Err("its boot protocol is older than 2.08");
    }
    let sectors = match image.get(SETUP_SECTS).ok_or(cut)? {
        0 => 4,
        &sectors => usize::from(sectors),
    };
    let (offset, length) = (field(PAYLOAD_OFFSET).ok_or(cut)?, field(PAYLOAD_LENGTH).ok_or(cut)?);
    let start = (sectors + 1) * SECTOR + offset;
    let end = start.checked_add(length).ok_or("its payload's length is out of range")?;
    image.get(start..end).ok_or("it is cut short: its payload lies beyond its end")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A bzImage around `payload`, with one sector of setup code.
    fn bzimage(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 2 * SECTOR + 16];
        image[SETUP_SECTS] = 1;
        image[MAGIC..MAGIC + 4].copy_from_slice(b"HdrS");
        image[VERSION..VERSION + 2].copy_from_slice(&0x20f_u16.to_le_bytes());
        image[PAYLOAD_OFFSET..PAYLOAD_OFFSET + 4].copy_from_slice(&16_u32.to_le_bytes());
        let length = u32::try_from(payload.len()).unwrap();
        image[PAYLOAD_LENGTH..PAYLOAD_LENGTH + 4].copy_from_slice(&length.to_le_bytes());
        image.extend_from_slice(payload);
        image
    }

    fn reason(image: &[u8]) -> String {
        vmlinux(image, Path::new("vmlinuz")).unwrap_err().to_string()
    }

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut packed = Vec::new();
        let mut encoder = flate2::write::GzEncoder::new(&mut packed, flate2::Compression::fast());
        std::io::Write::write_all(&mut encoder, data).unwrap();
        encoder.finish().unwrap();
        packed
    }

    /// lz4's legacy frame of one block of literals, and the size that the kernel's build appends.
    fn lz4(data: &[u8], size: u32) -> Vec<u8> {
        let literals = u8::try_from(data.len()).unwrap();
        assert!(literals < 15);
        let mut packed = b"\x02\x21\x4c\x18".to_vec();
        packed.extend_from_slice(&u32::from(literals + 1).to_le_bytes());
        packed.push(literals << 4);
        packed.extend_from_slice(data);
        packed.extend_from_slice(&size.to_le_bytes());
        packed
    }

    #[test]
    fn the_payload_is_found_by_the_header() {
        let elf = b"\x7fELFkernel";
        for packed in [gzip(elf), lz4(elf, 10)] {
            assert_eq!(vmlinux(&bzimage(&packed), Path::new("x")).unwrap(), elf);
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        let image = bzimage(&gzip(b"\x7fELFkernel"));
        assert!(reason(&image[..image.len() - 1]).contains("cut short"));
        assert!(reason(&image[..0x204]).contains("ends before its header"));
        assert!(reason(&[0; 4096]).contains("no bzImage"));
        assert!(reason(&bzimage(b"neither")).contains("not packed"));
        assert!(reason(&bzimage(&gzip(b"neither"))).contains("no ELF"));
        assert!(reason(&bzimage(&lz4(b"\x7fELF", 5))).contains("unpacks to 4 bytes and not to 5"));
        let mut old = image.clone();
        old[VERSION] = 0x07;
        old[VERSION + 1] = 0x02;
        assert!(reason(&old).contains("older than 2.08"));
        let mut far = image;
        far[PAYLOAD_OFFSET..PAYLOAD_OFFSET + 8].fill(0xff);
        assert!(reason(&far).contains("cut short"));
    }
}
