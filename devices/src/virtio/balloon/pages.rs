//! Guest pages that the driver names, checked and joined, on their way back to the host.

use virtio_queue::desc::split::Descriptor;
use vm_memory::{GuestAddress, GuestMemory, Permissions};

use super::super::Chain;
use super::super::buffers::{ChainError, Run};
use crate::memory::{DeviceMemory, Reclaim};

/// Bytes of a balloon page, whatever the guest's page size is (virtio 1.2, 5.5.6).
pub(super) const PAGE: u64 = 4096;
/// Most page numbers of one inflate request; Linux sends 256.
const MAX_PFNS: usize = 1 << 16;

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

    /// Gives all of them back, as few ranges as possible; what is not guest memory is left out.
    /// Returns how many bytes that were.
    pub(super) fn discard(mut self, mem: &DeviceMemory, reclaim: &dyn Reclaim) -> u64 {
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
        let mut ranges = self.0.into_iter();
        let Some((mut start, mut end)) = ranges.next() else { return 0 };
        let mut freed = 0;
        let mut give_back = |start, end| match reclaim.discard(start, end - start) {
            Ok(()) => freed += end - start,
            Err(e) => log::error!("balloon: cannot give back {start:#x}..{end:#x}: {e}"),
        };
        for (next_start, next_end) in ranges {
            if next_start <= end {
                end = end.max(next_end);
            } else {
                give_back(start, end);
                (start, end) = (next_start, next_end);
            }
        }
        give_back(start, end);
        freed
    }
}

/// The pages whose numbers `sent` holds, 32 bits each.
pub(super) fn numbered(mut sent: Run) -> Result<Extents, ChainError> {
    let mut extents = Extents::default();
    let mut bytes = [0; 1024];
    let mut left = sent.len() / 4;
    if left > MAX_PFNS {
        log::debug!("balloon: {left} pages in one request, only {MAX_PFNS} are taken");
        left = MAX_PFNS;
    }
    while left > 0 {
        let n = left.min(bytes.len() / 4);
        sent.read_exact(&mut bytes[..4 * n])?;
        for pfn in bytes[..4 * n].chunks_exact(4) {
            let pfn = u32::from_le_bytes([pfn[0], pfn[1], pfn[2], pfn[3]]);
            extents.push(u64::from(pfn) * PAGE, PAGE);
        }
        left -= n;
    }
    Ok(extents)
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
