//! Writes a flat snapshot: memory and state appear together, and what they replace stays usable
//! until then. What goes into them is the monitor's.

use std::io;
use std::path::{Path, PathBuf};

use crate::error::SnapshotError;
use crate::manifest::{MANIFEST_FILE, MEMORY_FILE, Manifest, STATE_FILE};
use crate::state::StateFile;
use crate::store::{Files, NewFile, StagedFile, Staging, clean, folder};

/// A flat snapshot in the making. Dropped before [`FlatWriter::finish`], it leaves nothing behind.
pub struct FlatWriter<'f> {
    files: &'f dyn Files,
    staging: Staging<'f>,
    memory: StagedFile,
    memory_path: PathBuf,
    state_path: PathBuf,
    /// Name of the memory file, if it stands beside the state file under a name of our choice.
    name: Option<String>,
}

impl<'f> FlatWriter<'f> {
    /// A snapshot in a directory of its own, with `bytes` bytes of guest memory. If there is one
    /// already, it stays whole until the new one is: their memory files have different names.
    pub fn in_dir(
        files: &'f dyn Files,
        dir: &Path,
        bytes: u64,
    ) -> Result<FlatWriter<'f>, SnapshotError> {
        let names = (1..).map(|n| format!("{MEMORY_FILE}-{n}"));
        let mut names = [MEMORY_FILE.to_owned()].into_iter().chain(names);
        // There is always one that is free.
        let name = names.find(|n| !dir.join(n).exists()).unwrap_or_default();
        let mut writer = Self::at(files, &dir.join(STATE_FILE), &dir.join(&name), bytes)?;
        writer.name = Some(name);
        Ok(writer)
    }

    /// A snapshot as two files in places of the caller's choice.
    pub fn at(
        files: &'f dyn Files,
        state: &Path,
        memory: &Path,
        bytes: u64,
    ) -> Result<FlatWriter<'f>, SnapshotError> {
        let mut staging = Staging::new(files);
        if folder(memory).is_dir() {
            clean(folder(memory))?;
        }
        let at = staging.create(memory)?;
        staging.set_len(at, bytes)?;
        Ok(FlatWriter {
            files,
            staging,
            memory: at,
            memory_path: memory.to_owned(),
            state_path: state.to_owned(),
            name: None,
        })
    }

    /// The memory file, of its full length and all zero: guest memory's ranges go there one after
    /// another. Pages that are zero need not be written.
    pub fn memory(&mut self) -> io::Result<&mut dyn NewFile> {
        self.staging.file(self.memory)
    }

    /// Writes the state (`memory_file` is set to what it is) and makes both files appear. A tiered
    /// snapshot that was made from the one replaced is removed.
    pub fn finish(mut self, mut state: StateFile) -> Result<(), SnapshotError> {
        state.memory_file = self.name.clone();
        let bytes = state.to_bytes().map_err(SnapshotError::format(&self.state_path))?;
        let at = self.staging.create(&self.state_path)?;
        self.staging.put(at, &bytes, 0)?;
        let old = StateFile::read(&self.state_path).ok().and_then(|s| s.memory_file);
        if self.memory_path.exists() && self.state_path.exists() {
            // Two files cannot be replaced at once, and the old state with the new memory would be
            // neither: better none than that, for a moment.
            let dir = folder(&self.state_path);
            let gone = self.files.remove(&self.state_path).and_then(|()| self.files.sync_dir(dir));
            gone.map_err(SnapshotError::io("replace", &self.state_path))?;
        }
        self.staging.commit()?;
        if self.name.is_some() {
            let dir = folder(&self.state_path);
            remove_tiered(self.files, dir);
            if let Some(old) = old.filter(|old| Some(old) != self.name.as_ref()) {
                let _ = self.files.remove(&dir.join(old));
            }
        }
        Ok(())
    }
}

/// Removes what was made from the snapshot that was there before; what stays takes space, but is
/// refused, as its manifest names another state file.
fn remove_tiered(files: &dyn Files, dir: &Path) {
    let path = dir.join(MANIFEST_FILE);
    let Ok(manifest) = Manifest::read(&path) else { return };
    if files.remove(&path).is_err() {
        return;
    }
    let images = manifest.images.iter().filter(|i| i.entry.digest.is_some());
    for file in images.map(|i| &i.entry.file).filter(|f| !f.contains('/')) {
        let _ = files.remove(&dir.join(file));
    }
}
