//! Decompressing kernels and modules, whose first bytes tell the format; pure Rust decoders.

use std::io::{self, Read};

/// A compression that a distribution kernel or its modules may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One xz stream, which may have the x86 filter.
    Xz,
    /// Zstandard frames.
    Zstd,
    /// gzip.
    Gzip,
    /// lz4's legacy frame, which `lz4 -l` makes for kernels.
    Lz4,
}

impl Format {
    /// The format that `bytes` begin with, if it is one of these.
    pub fn of(bytes: &[u8]) -> Option<Self> {
        const MAGICS: [(&[u8], Format); 4] = [
            (b"\xfd7zXZ\0", Format::Xz),
            (b"\x28\xb5\x2f\xfd", Format::Zstd),
            (b"\x1f\x8b", Format::Gzip),
            (b"\x02\x21\x4c\x18", Format::Lz4),
        ];
        MAGICS.iter().find(|(magic, _)| bytes.starts_with(magic)).map(|&(_, format)| format)
    }

    /// The format's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Xz => "xz",
            Self::Zstd => "zstd",
            Self::Gzip => "gzip",
            Self::Lz4 => "lz4",
        }
    }

    /// Decompresses the stream at the start of `bytes`, up to `limit` bytes; what follows the
    /// stream is ignored. A longer result is an error, so that a bad file cannot take all memory.
    pub fn unpack(self, bytes: &[u8], limit: u64) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        match self {
            Self::Xz => {
                lzma_rust2::XzReader::new(bytes, false).take(limit + 1).read_to_end(&mut out)?;
            }
            Self::Zstd => {
                let decoder = ruzstd::decoding::StreamingDecoder::new(bytes).map_err(bad)?;
                decoder.take(limit + 1).read_to_end(&mut out)?;
            }
            Self::Gzip => {
                flate2::read::GzDecoder::new(bytes).take(limit + 1).read_to_end(&mut out)?;
            }
            Self::Lz4 => {
                lz4_flex::frame::FrameDecoder::new(bytes).take(limit + 1).read_to_end(&mut out)?;
            }
        }
        if out.len() as u64 > limit {
            return Err(bad(format!("it unpacks to more than {limit} bytes")));
        }
        Ok(out)
    }
}

fn bad(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

#[cfg(test)]
mod tests {
    use super::*;

    // What `gzip -n`, `xz` and `zstd` make of "varve\n"; lz4's legacy frame is one block of literals.
    const GZIP: &[u8] =
        b"\x1f\x8b\x08\0\0\0\0\0\0\x03\x2b\x4b\x2c\x2a\x4b\xe5\x02\0\x8b\x1b\xfe\xa1\x06\0\0\0";
    const XZ: &[u8] = b"\xfd7zXZ\0\0\x04\xe6\xd6\xb4\x46\x02\0\x21\x01\x16\0\0\0\x74\x2f\xe5\xa3\x01\0\x05varve\n\0\0\0\x66\x7e\x36\xf1\0\x4f\xa6\x38\0\x01\x1e\x06\xc1\x2f\xa4\x1d\x1f\xb6\xf3\x7d\x01\0\0\0\0\x04\x59\x5a";
    const ZSTD: &[u8] = b"\x28\xb5\x2f\xfd\x04\x58\x31\0\0varve\n\x1f\xec\x50\xad";
    const LZ4: &[u8] = b"\x02\x21\x4c\x18\x07\0\0\0\x60varve\n";

    #[test]
    fn every_format_unpacks() {
        for bytes in [GZIP, XZ, ZSTD, LZ4] {
            let format = Format::of(bytes).unwrap();
            assert_eq!(format.unpack(bytes, 6).unwrap(), b"varve\n", "{format:?}");
            assert!(format.unpack(bytes, 5).is_err(), "{format:?}");
        }
    }

    #[test]
    fn the_first_bytes_tell_the_format() {
        assert_eq!(Format::of(GZIP), Some(Format::Gzip));
        assert_eq!(Format::of(b"\xfd7zXZ\0\0"), Some(Format::Xz));
        assert_eq!(Format::of(b"\x7fELF"), None);
        assert_eq!(Format::of(b""), None);
    }

    #[test]
    fn damage_and_excess_are_errors() {
        for format in [Format::Xz, Format::Zstd, Format::Gzip, Format::Lz4] {
            assert!(format.unpack(b"\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 100).is_err(), "{format:?}");
        }
    }
}
