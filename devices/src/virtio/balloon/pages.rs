//! Guest pages that the driver names, checked and joined, on their way back to the host.

use virtio_queue::desc::split::Descriptor;
use vm_memory::{GuestAddress, GuestMemory, Permissions};

use super::super::buffers::{ChainError, Run};
use super::super::{Chain, Turn};
use crate::memory::{DeviceMemory, Reclaim};

/// Bytes of a balloon page, whatever the guest's page size is (virtio 1.2, 5.5.6).
pub(super) const PAGE: u64 = 4096;
/// Most page numbers of one inflate request; Linux sends 256.
const MAX_PFNS: u64 = 1 << 16;
/// Page numbers that are sorted together.
const SLICE: u64 = 1024;

/// Page-aligned ranges of guest memory.
#[derive(Debug, Default)]
pub(super) struct Extents(Vec<(u64, u64)>);

impl Extents {
    /// Adds the whole pages inside `addr..addr + len`.
    pub(super) fn push(&mut self, addr: u64, len: u64) {
        let start = addr.checked_next_multiple_of(PAGE);
        let end = addr.checked_add(len).map(|end| end & !(PAGE - 1));
        if let (Some(start), Some(end)) = (start, end)
            && start < end
        {
            self.0.push((start, end));
        }
    }

    /// Gives them back, as few ranges as possible, as far as the turn has room; what is not guest
    /// memory is left out. The first `done` bytes were given back in an earlier turn.
    pub(super) fn discard(
        mut self,
        mem: &DeviceMemory,
        reclaim: &dyn Reclaim,
        turn: &Turn,
        done: u64,
    ) -> Given {
        let in_memory = |&(start, end): &(u64, u64)| {
            let len = usize::try_from(end - start).unwrap_or(usize::MAX);
            mem.check_range(GuestAddress(start), len, Permissions::Write)
        };
        let named = self.0.len();
        self.0.retain(in_memory);
        if self.0.len() < named {
            log::debug!("balloon: {} ranges are not guest memory", named - self.0.len());
        }
        self.0.sort_unstable();
        self.0.dedup_by(|next, before| {
            let joins = next.0 <= before.1;
            if joins {
                before.1 = before.1.max(next.1);
            }
            joins
        });
        let mut given = Given { freed: 0, rest: None };
        let mut passed = 0;
        for (start, end) in self.0 {
            let skip = done.saturating_sub(passed).min(end - start);
            passed += skip;
            let len = (end - start - skip).min(turn.discard_room());
            if len > 0 {
                turn.discard(len);
                let start = start + skip;
                match reclaim.discard(start, len) {
                    Ok(()) => given.freed += len,
                    Err(e) => log::error!("balloon: cannot give back {start:#x}+{len:#x}: {e}"),
                }
                passed += len;
            }
            if skip + len < end - start {
                given.rest = Some(passed);
                return given;
            }
        }
        given
    }
}

/// What a turn gave back.
#[derive(Clone, Copy, Debug)]
pub(super) struct Given {
    /// Bytes of memory.
    pub(super) freed: u64,
    /// How far the request was carried out, if not whole; the unit is the request's.
    pub(super) rest: Option<u64>,
}

/// Gives back the pages whose numbers `sent` holds, 32 bits each, as far as the turn has room. The
/// first `done` numbers were taken in an earlier turn.
pub(super) fn discard_numbered(
    mut sent: Run,
    mem: &DeviceMemory,
    reclaim: &dyn Reclaim,
    turn: &Turn,
    done: u64,
) -> Result<Given, ChainError> {
    let named = (sent.len() / 4) as u64;
    if named > MAX_PFNS {
        log::debug!("balloon: {named} pages in one request, only {MAX_PFNS} are taken");
    }
    let named = named.min(MAX_PFNS);
    let mut at = done.min(named);
    sent.take(4 * at as usize)?;
    let mut bytes = [0; 4 * SLICE as usize];
    let mut freed = 0;
    while at < named {
        // Each number may need a call of its own.
        let n = SLICE.min(named - at).min(turn.discard_room() / PAGE).min(turn.discards_left());
        if n == 0 {
            return Ok(Given { freed, rest: Some(at) });
        }
        let bytes = &mut bytes[..4 * n as usize];
        sent.read_exact(bytes)?;
        let mut extents = Extents::default();
        for pfn in bytes.as_chunks::<4>().0 {
            extents.push(u64::from(u32::from_le_bytes(*pfn)) * PAGE, PAGE);
        }
        freed += extents.discard(mem, reclaim, turn, 0).freed;
        at += n;
    }
    Ok(Given { freed, rest: None })
}

/// The descriptors of `chain`, which ends as it should. Their buffers need not be in memory.
pub(super) fn descriptors(chain: Chain) -> Result<Vec<Descriptor>, ChainError> {
    let all: Vec<Descriptor> = chain.collect();
    match all.last() {
        None => Err(ChainError::Empty),
        Some(last) if last.has_next() => Err(ChainError::Endless),
        Some(_) => Ok(all),
    }
}
