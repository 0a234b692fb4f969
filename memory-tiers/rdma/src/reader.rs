//! Reading the other side's memory over a link.
//!
//! UNSAFETY: a request names the memory that it lands in by number. That is staging memory, which
//! outlives the link and is touched by nobody while requests are under way.
#![allow(unsafe_code)]

use std::time::{Duration, Instant};

use crate::error::RdmaError;
use crate::link::{Link, REQUESTS};
use crate::memory::Staging;
use crate::verbs::Read;

/// Bytes of one request; longer reads become several, under way together.
const REQUEST: usize = 256 << 10;
/// Bytes that land at a time.
const STAGING: usize = 4 << 20;

/// A range of the other side's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remote {
    /// Its address there.
    pub address: u64,
    /// Its key.
    pub key: u32,
    /// Its length in bytes.
    pub len: u64,
}

/// Reads over a link, one caller at a time. After an error the link is of no more use.
#[derive(Debug)]
pub struct Reader {
    // Before the memory that requests land in.
    link: Link,
    staging: Staging,
}

impl Reader {
    /// A reader over a link.
    pub fn new(link: Link) -> Result<Reader, RdmaError> {
        let staging = Staging::new(&link.domain, STAGING)?;
        Ok(Reader { link, staging })
    }

    /// Fills `buffer` from `offset` on; each part of at most 4 MiB may take `patience`.
    pub fn read(
        &mut self,
        from: Remote,
        offset: u64,
        buffer: &mut [u8],
        patience: Duration,
    ) -> Result<(), RdmaError> {
        let len = buffer.len() as u64;
        if offset.checked_add(len).is_none_or(|end| end > from.len) {
            return Err(RdmaError::Outside { offset, len, has: from.len });
        }
        let mut offset = offset;
        for part in buffer.chunks_mut(self.staging.len()) {
            let address = from.address.wrapping_add(offset);
            self.fetch(address, from.key, part.len(), Instant::now() + patience)?;
            self.staging.copy_out(part);
            offset += part.len() as u64;
        }
        Ok(())
    }

    /// Brings `len` bytes to the start of the staging memory.
    fn fetch(
        &mut self,
        address: u64,
        key: u32,
        len: usize,
        deadline: Instant,
    ) -> Result<(), RdmaError> {
        let mut parts = (0..len).step_by(REQUEST);
        // The device would let more wait in its queue by itself; its queue has an end.
        let most = self.link.reads.min(REQUESTS as usize);
        let mut under_way = 0;
        loop {
            while under_way < most {
                let Some(at) = parts.next() else { break };
                self.post(at, REQUEST.min(len - at), address.wrapping_add(at as u64), key)?;
                under_way += 1;
            }
            if under_way == 0 {
                return Ok(());
            }
            for (_, status) in self.link.completions.wait(deadline)? {
                if status != 0 {
                    return Err(RdmaError::Failed { status: name(status) });
                }
                under_way -= 1;
            }
        }
    }

    fn post(&mut self, at: usize, len: usize, address: u64, key: u32) -> Result<(), RdmaError> {
        let (local, local_key) = self.staging.part(at, len).ok_or(RdmaError::Outside {
            offset: at as u64,
            len: len as u64,
            has: self.staging.len() as u64,
        })?;
        let len = u32::try_from(len).map_err(RdmaError::verb("ask for so long a read"))?;
        let read = Read { id: at as u64, local, local_key, len, remote: address, remote_key: key };
        // SAFETY: `part` gave a range of registered staging memory, which lives as long as the link
        // (see `Reader`) and is not read before the completion.
        unsafe { self.link.pair.read(read) }.map_err(RdmaError::verb("ask for a read"))
    }
}

/// What a completion's status means (ibv_poll_cq(3)), for those that a read can end with.
fn name(status: u32) -> String {
    match status {
        1 => "a wrong length here (LOC_LEN_ERR)".into(),
        4 => "memory here that may not be written (LOC_PROT_ERR)".into(),
        5 => "the link's end (WR_FLUSH_ERR)".into(),
        9 => "a request that the other side calls invalid (REM_INV_REQ_ERR)".into(),
        10 => "memory that the other side does not give (REM_ACCESS_ERR)".into(),
        11 => "a failure of the other side (REM_OP_ERR)".into(),
        12 => "silence of the other side (RETRY_EXC_ERR)".into(),
        other => format!("status {other}"),
    }
}
