//! Which snapshot a machine's memory is compared with when its next diff is made: the last one that was
//! made of it, or that it came from.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use varve_snapshot::{MemorySums, PageRange, SnapshotId, StateFile};

/// The last snapshot.
#[derive(Clone, Debug)]
pub struct Lineage {
    /// Which it is.
    pub id: SnapshotId,
    /// The snapshots that it may be laid over, if it holds `held` only.
    pub bases: Vec<SnapshotId>,
    /// The pages that its memory file holds; `None`: all.
    pub held: Option<Vec<PageRange>>,
    /// Their checksums, if they are known.
    pub sums: Option<MemorySums>,
    /// Device and inode number of its memory file.
    file: Option<(u64, u64)>,
}

impl Lineage {
    /// The snapshot that `state` describes, as it was written to `memory`.
    pub fn written(state: &StateFile, memory: &Path) -> Option<Lineage> {
        let (held, sums) = (state.dirty.clone(), state.sums.clone());
        let bases = state.bases.clone();
        Some(Lineage { id: state.id?, bases, held, sums, file: file_id(memory) })
    }

    /// The snapshot that a machine was restored from, which was whole, if it came from a memory file.
    pub fn restored(state: &StateFile, memory: Option<&Path>) -> Lineage {
        // Of a diff whose base's pages were added by another program only the diff's are known.
        let sums = state.sums.clone().filter(|_| state.dirty.is_none());
        let (id, file) = (state.identity(), memory.and_then(file_id));
        Lineage { id, bases: Vec::new(), held: None, sums, file }
    }

    /// Whether its memory file is the one of these device and inode numbers.
    pub fn is_in(&self, file: (u64, u64)) -> bool {
        self.file == Some(file)
    }
}

fn file_id(path: &Path) -> Option<(u64, u64)> {
    // Without it the file is only not known again.
    fs::metadata(path).ok().map(|meta| (meta.dev(), meta.ino()))
}
