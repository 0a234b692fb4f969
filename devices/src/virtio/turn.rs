//! What a device does in one turn on the event loop, and when that is enough: other devices, the API
//! and signals wait meanwhile. A guest decides how long its chains are and what they ask for, so
//! descriptors, bytes and pages count and not only chains.

use std::cell::Cell;

/// Descriptors of one chain; a longer one is malformed (virtio 1.2, 2.7.5.3.1: no longer than the
/// queue, and no queue here has more entries). The kernel takes as many pieces in one call.
pub const MAX_CHAIN: u32 = 1024;
/// Descriptors of a turn.
const DESCRIPTORS: u32 = 8192;
/// Bytes that a turn moves.
const BYTES: u64 = 4 << 20;
/// Pages that a turn gives back to the host, and the calls that this takes.
pub const DISCARDED: u64 = 64 << 20;
/// See [`DISCARDED`].
pub const DISCARDS: u32 = 1024;

/// The work of one turn so far.
#[derive(Clone, Debug, Default)]
pub struct Turn {
    descriptors: Cell<u32>,
    bytes: Cell<u64>,
    discarded: Cell<u64>,
    discards: Cell<u32>,
    /// The device has had enough by its own measure.
    ended: Cell<bool>,
}

/// How much a turn was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Descriptors looked at.
    pub descriptors: u32,
    /// Bytes moved to or from a file, tap or socket.
    pub bytes: u64,
    /// Bytes of memory given back to the host.
    pub discarded: u64,
    /// Calls that gave them back.
    pub discards: u32,
}

impl Turn {
    /// A descriptor was looked at.
    pub fn descriptor(&self) {
        self.descriptors.set(self.descriptors.get().saturating_add(1));
    }

    /// So many bytes are moved.
    pub fn bytes(&self, count: u64) {
        self.bytes.set(self.bytes.get().saturating_add(count));
    }

    /// So many bytes of memory are given back in one call.
    pub fn discard(&self, bytes: u64) {
        self.discarded.set(self.discarded.get().saturating_add(bytes));
        self.discards.set(self.discards.get().saturating_add(1));
    }

    /// Bytes of memory that may still be given back in this turn; none left if the calls are used up.
    pub fn discard_room(&self) -> u64 {
        match self.discards.get() < DISCARDS {
            true => DISCARDED.saturating_sub(self.discarded.get()),
            false => 0,
        }
    }

    /// Calls that may still give memory back in this turn.
    pub fn discards_left(&self) -> u64 {
        DISCARDS.saturating_sub(self.discards.get()).into()
    }

    /// The turn ends with the present chain.
    pub fn end(&self) {
        self.ended.set(true);
    }

    /// Whether it is others' turn.
    pub fn is_over(&self) -> bool {
        self.ended.get()
            || self.descriptors.get() >= DESCRIPTORS
            || self.bytes.get() >= BYTES
            || self.discard_room() == 0
    }

    /// What was done.
    pub fn work(&self) -> Work {
        Work {
            descriptors: self.descriptors.get(),
            bytes: self.bytes.get(),
            discarded: self.discarded.get(),
            discards: self.discards.get(),
        }
    }
}

#[cfg(test)]
impl Work {
    /// The larger of each.
    pub fn most(self, other: Work) -> Work {
        Work {
            descriptors: self.descriptors.max(other.descriptors),
            bytes: self.bytes.max(other.bytes),
            discarded: self.discarded.max(other.discarded),
            discards: self.discards.max(other.discards),
        }
    }

    /// Fails if it is more than a turn and one more chain of `bytes` may be.
    pub fn assert_bounded(self, bytes: u64) {
        assert!(self.descriptors < DESCRIPTORS + MAX_CHAIN, "{self:?}");
        assert!(self.bytes < BYTES + bytes, "{self:?}");
        assert!(self.discarded <= DISCARDED && self.discards <= DISCARDS, "{self:?}");
    }
}
