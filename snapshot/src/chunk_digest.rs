//! Digests of an image's chunks: they prove bytes that another process or host sends. A checksum
//! finds damage only, because its sender can compute one for any bytes.

use std::fmt;

use crate::codec::{Decoder, Encoder};
use crate::error::FormatError;

/// Length of a chunk's digest. All 32 bytes: collisions take 2^128 steps, also for a guest that chooses
/// its own memory and works together with the node that stores it.
pub(crate) const DIGEST_LEN: usize = 32;

/// BLAKE3 of the bytes stored of one chunk.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ChunkDigest(pub [u8; DIGEST_LEN]);

impl ChunkDigest {
    /// Of a chunk's bytes as they are stored.
    pub fn of(stored: &[u8]) -> ChunkDigest {
        ChunkDigest(*blake3::hash(stored).as_bytes())
    }
}

impl fmt::Display for ChunkDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for ChunkDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The digests of all chunks of one image, in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChunkDigests(Vec<[u8; DIGEST_LEN]>);

impl ChunkDigests {
    /// Of an uncompressed image's bytes in memory, with chunks of so many bytes.
    pub fn of_chunks(bytes: &[u8], chunk_bytes: usize) -> ChunkDigests {
        ChunkDigests(bytes.chunks(chunk_bytes).map(|chunk| ChunkDigest::of(chunk).0).collect())
    }

    /// Adds the digest of the next chunk.
    pub fn push(&mut self, digest: ChunkDigest) {
        self.0.push(digest.0);
    }

    /// The digest of a chunk.
    pub fn get(&self, chunk: usize) -> Option<ChunkDigest> {
        self.0.get(chunk).copied().map(ChunkDigest)
    }

    /// Number of chunks.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn encode(&self) -> Encoder {
        let mut out = Encoder(Vec::with_capacity(8 + DIGEST_LEN * self.len()));
        out.count(self.len());
        out.0.extend(self.0.as_flattened());
        out
    }

    /// The digests of an image of `chunks` chunks.
    pub(crate) fn decode(body: &[u8], chunks: usize) -> Result<ChunkDigests, FormatError> {
        let mut d = Decoder::new("chunk digests", body);
        let digests = d.records::<DIGEST_LEN>("digests")?.to_vec();
        if digests.len() != chunks {
            let found = digests.len().to_string();
            return Err(d.value("number", found, "not one for each chunk"));
        }
        d.end()?;
        Ok(ChunkDigests(digests))
    }
}
