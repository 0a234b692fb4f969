//! The chunk table of an image: where each chunk is stored, and its checksum. Reading and writing
//! the chunks themselves is for `image`.

use crate::codec::{Decoder, Encoder};
use crate::error::FormatError;
use crate::page::PAGE_SIZE;

/// Pages of a chunk unless something else is asked for: 64 KiB.
pub const DEFAULT_CHUNK_PAGES: u32 = 16;
/// A chunk is at most 2 MiB, which bounds what a reader must hold.
pub const MAX_CHUNK_PAGES: u32 = 512;
pub(crate) const PACKED_LEN: usize = 16;
pub(crate) const PLAIN_LEN: usize = 4;

/// How the chunks of an image are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum Compression {
    /// Not at all: page `n` stands at byte `4096 * n`, and the file can be mapped.
    None = 0,
    /// Each chunk by itself, as a bare LZ4 block.
    Lz4 = 1,
}

impl Compression {
    pub(crate) fn from_number(n: u8) -> Option<Compression> {
        [Compression::None, Compression::Lz4].into_iter().find(|&c| c as u8 == n)
    }
}

/// One stored chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Byte in the file at which it is stored.
    pub offset: u64,
    /// Bytes stored. None: all zero. As many as the chunk has: stored as it is.
    pub len: u32,
    /// CRC-32C of the bytes stored.
    pub crc: u32,
}

/// The chunks of one image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChunkTable {
    /// Of an uncompressed image: the checksums alone, as positions follow from them.
    Plain(Vec<u32>),
    /// Of a compressed image.
    Packed(Vec<Chunk>),
}

impl ChunkTable {
    /// Number of chunks.
    pub fn len(&self) -> usize {
        match self {
            ChunkTable::Plain(crcs) => crcs.len(),
            ChunkTable::Packed(chunks) => chunks.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(crate) fn encode(&self) -> Encoder {
        let mut out = Encoder::default();
        out.count(self.len());
        match self {
            ChunkTable::Plain(crcs) => crcs.iter().for_each(|&crc| out.u32(crc)),
            ChunkTable::Packed(chunks) => {
                for chunk in chunks {
                    out.u64(chunk.offset);
                    out.u32(chunk.len);
                    out.u32(chunk.crc);
                }
            }
        }
        out
    }

    /// The table of an image of `pages` pages in a file of `bytes` bytes: each chunk inside the
    /// file and no longer than its pages.
    pub(crate) fn decode(
        body: &[u8],
        compression: Compression,
        pages: u64,
        chunk_pages: u32,
        bytes: u64,
    ) -> Result<ChunkTable, FormatError> {
        let mut d = Decoder::new("chunks", body);
        let table = match compression {
            Compression::None => {
                let records = d.records::<PLAIN_LEN>("checksums")?;
                ChunkTable::Plain(records.iter().map(|r| u32::from_le_bytes(*r)).collect())
            }
            Compression::Lz4 => {
                let records = d.records::<PACKED_LEN>("chunks")?;
                let chunks = records.iter().map(decode_chunk).collect::<Result<Vec<_>, _>>()?;
                ChunkTable::Packed(chunks)
            }
        };
        if table.len() as u64 != pages.div_ceil(chunk_pages.into()) {
            return Err(d.value(
                "number",
                table.len().to_string(),
                "not what the image's pages need",
            ));
        }
        if let ChunkTable::Packed(chunks) = &table {
            for (chunk, at) in chunks.iter().zip(0..) {
                let whole = chunk_len(at, pages, chunk_pages);
                let end = chunk.offset.checked_add(chunk.len.into());
                if end.is_none_or(|end| end > bytes) || u64::from(chunk.len) > whole {
                    let shown = format!("{chunk:?}");
                    return Err(d.value(
                        "chunk",
                        shown,
                        "outside the file, or longer than its pages",
                    ));
                }
            }
        }
        d.end()?;
        Ok(table)
    }
}

fn decode_chunk(record: &[u8; PACKED_LEN]) -> Result<Chunk, FormatError> {
    let mut d = Decoder::new("chunks", record);
    Ok(Chunk { offset: d.u64("offset")?, len: d.u32("length")?, crc: d.u32("checksum")? })
}

/// Bytes that chunk `at` has when it is not compressed: the last one may be shorter.
pub(crate) fn chunk_len(at: u64, pages: u64, chunk_pages: u32) -> u64 {
    let first = at.saturating_mul(chunk_pages.into());
    (pages.saturating_sub(first)).min(chunk_pages.into()) * PAGE_SIZE
}
