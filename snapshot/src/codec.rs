//! Little-endian fixed-width numbers, bounded reads. What they mean is for the files' modules.

use crate::error::FormatError;
use crate::page::PageRange;

/// Bytes of guest memory that a snapshot may have, at most.
pub(crate) const MAX_MEMORY: u64 = 1 << 40;

/// Writes fields one after another.
#[derive(Default)]
pub(crate) struct Encoder(pub Vec<u8>);

impl Encoder {
    pub fn u8(&mut self, v: u8) {
        self.0.push(v);
    }
    pub fn u16(&mut self, v: u16) {
        self.0.extend(v.to_le_bytes());
    }
    pub fn u32(&mut self, v: u32) {
        self.0.extend(v.to_le_bytes());
    }
    pub fn u64(&mut self, v: u64) {
        self.0.extend(v.to_le_bytes());
    }
    /// A number of records; they follow.
    pub fn count(&mut self, n: usize) {
        self.u64(n as u64);
    }
    /// Bytes after their length.
    pub fn bytes(&mut self, v: &[u8]) {
        self.count(v.len());
        self.0.extend(v);
    }
    pub fn string(&mut self, v: &str) {
        self.bytes(v.as_bytes());
    }
    pub fn ranges(&mut self, ranges: &[PageRange]) {
        self.count(ranges.len());
        for r in ranges {
            self.u64(r.start());
            self.u64(r.len());
        }
    }
}

/// Reads fields one after another; every error names section and field.
pub(crate) struct Decoder<'a> {
    bytes: &'a [u8],
    pub section: &'static str,
}

impl<'a> Decoder<'a> {
    pub fn new(section: &'static str, bytes: &'a [u8]) -> Decoder<'a> {
        Decoder { bytes, section }
    }

    pub fn take(&mut self, field: &'static str, n: usize) -> Result<&'a [u8], FormatError> {
        let (taken, rest) = self
            .bytes
            .split_at_checked(n)
            .ok_or(FormatError::Truncated { section: self.section, field })?;
        self.bytes = rest;
        Ok(taken)
    }

    pub fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], FormatError> {
        let (taken, rest) = self
            .bytes
            .split_first_chunk::<N>()
            .ok_or(FormatError::Truncated { section: self.section, field })?;
        self.bytes = rest;
        Ok(*taken)
    }

    pub fn u8(&mut self, field: &'static str) -> Result<u8, FormatError> {
        Ok(u8::from_le_bytes(self.array(field)?))
    }
    pub fn u16(&mut self, field: &'static str) -> Result<u16, FormatError> {
        Ok(u16::from_le_bytes(self.array(field)?))
    }
    pub fn u32(&mut self, field: &'static str) -> Result<u32, FormatError> {
        Ok(u32::from_le_bytes(self.array(field)?))
    }
    pub fn u64(&mut self, field: &'static str) -> Result<u64, FormatError> {
        Ok(u64::from_le_bytes(self.array(field)?))
    }

    /// A number of records of at least `size` bytes each. Those bytes are there: room for them can
    /// be allocated.
    pub fn count(&mut self, field: &'static str, size: usize) -> Result<usize, FormatError> {
        let n = self.u64(field)?;
        match usize::try_from(n).ok().and_then(|n| n.checked_mul(size)) {
            Some(bytes) if bytes <= self.bytes.len() => Ok(n as usize),
            _ => Err(FormatError::Truncated { section: self.section, field }),
        }
    }

    /// `count` records of `N` bytes that follow, without a copy.
    pub fn records<const N: usize>(
        &mut self,
        field: &'static str,
    ) -> Result<&'a [[u8; N]], FormatError> {
        let n = self.count(field, N)?;
        Ok(self.take(field, n * N)?.as_chunks::<N>().0)
    }

    pub fn bytes(&mut self, field: &'static str) -> Result<&'a [u8], FormatError> {
        let n = self.count(field, 1)?;
        self.take(field, n)
    }

    pub fn string(&mut self, field: &'static str) -> Result<String, FormatError> {
        let bytes = self.bytes(field)?;
        match std::str::from_utf8(bytes) {
            Ok(s) => Ok(s.to_owned()),
            Err(_) => Err(self.value(field, format!("{bytes:02x?}"), "not UTF-8 text")),
        }
    }

    /// Page ranges, sorted and apart.
    pub fn ranges(&mut self, field: &'static str) -> Result<Vec<PageRange>, FormatError> {
        let n = self.count(field, 16)?;
        let mut ranges: Vec<PageRange> = Vec::with_capacity(n);
        for _ in 0..n {
            let (start, len) = (self.u64(field)?, self.u64(field)?);
            let range = PageRange::new(start, len)
                .map_err(|source| FormatError::Range { section: self.section, source })?;
            if ranges.last().is_some_and(|last| last.end() > start) {
                return Err(self.value(
                    field,
                    format!("{range:?}"),
                    "not after the range before it",
                ));
            }
            ranges.push(range);
        }
        Ok(ranges)
    }

    /// Guest memory: page ranges, at least one, and no more than a reader can hold tables for.
    pub fn memory(&mut self) -> Result<Vec<PageRange>, FormatError> {
        let ranges = self.ranges("ranges")?;
        // They are apart, so the sum cannot overflow.
        match ranges.iter().map(PageRange::len).sum::<u64>() {
            0 => Err(self.value("ranges", "empty".into(), "but a machine has memory")),
            bytes if bytes > MAX_MEMORY => {
                Err(self.value("ranges", format!("{bytes} bytes in all"), "more than 1 TiB"))
            }
            _ => Ok(ranges),
        }
    }

    /// Nothing may follow.
    pub fn end(self) -> Result<(), FormatError> {
        if self.bytes.is_empty() {
            return Ok(());
        }
        Err(FormatError::Trailing { section: self.section, bytes: self.bytes.len() })
    }

    pub fn value(&self, field: &'static str, value: String, wanted: &'static str) -> FormatError {
        FormatError::Value { section: self.section, field, value, wanted }
    }
}
