//! What a snapshot keeps of a queue.

use serde::{Deserialize, Serialize};
use virtio_queue::{Queue, QueueState, QueueT};

use crate::memory::DeviceMemory;
use crate::state::StateError;

/// A queue as plain data: addresses and positions. The rings themselves are in guest memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueStateV1 {
    next_avail: u16,
    next_used: u16,
    event_idx: bool,
    size: u16,
    ready: bool,
    desc_table: u64,
    avail_ring: u64,
    used_ring: u64,
}

impl From<&Queue> for QueueStateV1 {
    fn from(queue: &Queue) -> QueueStateV1 {
        let QueueState {
            max_size: _, // from the device's config
            next_avail,
            next_used,
            event_idx_enabled,
            size,
            ready,
            desc_table,
            avail_ring,
            used_ring,
        } = queue.state();
        QueueStateV1 {
            next_avail,
            next_used,
            event_idx: event_idx_enabled,
            size,
            ready,
            desc_table,
            avail_ring,
            used_ring,
        }
    }
}

impl QueueStateV1 {
    /// The live queue; refused if the device offers less than it uses or its rings are outside of
    /// memory.
    pub fn into_queue(self, max_size: u16, mem: &DeviceMemory) -> Result<Queue, StateError> {
        let QueueStateV1 {
            next_avail,
            next_used,
            event_idx,
            size,
            ready,
            desc_table,
            avail_ring,
            used_ring,
        } = self;
        let queue = Queue::try_from(QueueState {
            max_size,
            next_avail,
            next_used,
            event_idx_enabled: event_idx,
            size,
            ready,
            desc_table,
            avail_ring,
            used_ring,
        })
        .map_err(|e| StateError::Invalid(format!("queue: {e}")))?;
        if ready && !queue.is_valid(mem) {
            return Err(StateError::Invalid("queue: its rings are outside of memory".into()));
        }
        Ok(queue)
    }
}
