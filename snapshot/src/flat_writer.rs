//! Writes a flat snapshot: memory and state appear together, and what they replace stays usable
//! until then. What goes into them is the monitor's.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::digest::Digest;
use crate::error::SnapshotError;
use crate::manifest::{MANIFEST_FILE, MEMORY_FILE, Manifest, STATE_FILE};
use crate::state::{SnapshotId, StateFile};
use crate::store::{Files, NewFile, StagedFile, Staging, clean, folder, remove};
use crate::target::{Target, aside, settle_memory};

/// A flat snapshot in the making. Dropped before [`FlatWriter::finish`], it leaves nothing behind.
///
/// Two files cannot be replaced at once. So the new memory is first given a name that only the new
/// state knows ([`crate::memory_at`]), then the state is replaced, which is the moment that counts, then
/// memory takes its own name. A file that is a mount of its own cannot be replaced; it is written in
/// place, and the old snapshot is given up before.
pub struct FlatWriter<'f> {
    files: &'f dyn Files,
    staging: Staging<'f>,
    memory: Target,
    state: Target,
    to_memory: Place,
    to_state: Place,
    /// The state file that is replaced.
    old: Option<StateFile>,
    bytes: u64,
    holds_old: bool,
}

/// Where content goes before it counts.
enum Place {
    Staged(StagedFile),
    /// Straight to its place.
    Fixed(Box<dyn NewFile>),
}

impl<'f> FlatWriter<'f> {
    /// A snapshot in a folder, with `bytes` bytes of guest memory.
    ///
    /// # Errors
    ///
    /// As of [`FlatWriter::at`].
    pub fn in_dir(
        files: &'f dyn Files,
        dir: &Path,
        bytes: u64,
    ) -> Result<FlatWriter<'f>, SnapshotError> {
        Self::at(files, &dir.join(STATE_FILE), &dir.join(MEMORY_FILE), bytes)
    }

    /// A snapshot as two files in places of the caller's choice. Both are looked at before either is
    /// touched; links are followed.
    ///
    /// # Errors
    ///
    /// A place is no regular file, both are the same, or the file system refuses.
    pub fn at(
        files: &'f dyn Files,
        state: &Path,
        memory: &Path,
        bytes: u64,
    ) -> Result<FlatWriter<'f>, SnapshotError> {
        let (state, memory) = (Target::look(state)?, Target::look(memory)?);
        if state.is(&memory) {
            let problem = "named for the state file and for the memory file: name two files";
            return Err(SnapshotError::Target { path: memory.path, problem });
        }
        clean(folder(&memory.path))?;
        // A folder that holds the state file alone need not be one that can be listed.
        let _ = clean(folder(&state.path));
        let old = match state.found.as_ref().map(|_| StateFile::read(&state.path)) {
            // What is no state file is as good as none: it is replaced.
            None | Some(Err(SnapshotError::Format { .. })) => None,
            Some(read) => Some(read?),
        };
        settle_memory(files, old.as_ref(), &memory.path)?;
        let memory = Target::look(&memory.path)?;

        let mut staging = Staging::new(files);
        let place = |staging: &mut Staging<'f>, target: &Target| match target.fixed {
            false => staging.create(&target.path).map(Place::Staged),
            true => {
                let file = files.open(&target.path);
                file.map(Place::Fixed).map_err(SnapshotError::io("open", &target.path))
            }
        };
        let to_memory = place(&mut staging, &memory)?;
        let to_state = place(&mut staging, &state)?;
        let (old, holds_old) = (old, false);
        let mut writer = FlatWriter {
            files,
            staging,
            memory,
            state,
            to_memory,
            to_state,
            old,
            bytes,
            holds_old,
        };
        writer.prepare_memory()?;
        Ok(writer)
    }

    /// Gives the memory file its length.
    fn prepare_memory(&mut self) -> Result<(), SnapshotError> {
        let bytes = self.bytes;
        match &mut self.to_memory {
            Place::Staged(at) => self.staging.set_len(*at, bytes),
            Place::Fixed(_) => {
                // The old state with half of the new memory would be neither.
                self.give_up_old()?;
                let found = self.memory.found.as_ref().map(std::fs::Metadata::len);
                self.holds_old = found == Some(bytes);
                let Place::Fixed(file) = &mut self.to_memory else { return Ok(()) };
                // A machine may have mapped what is there: it is not cut off if it fits.
                let cut = if self.holds_old { Ok(()) } else { file.set_len(0) };
                cut.and_then(|()| file.set_len(bytes))
                    .map_err(SnapshotError::io("set the length of", &self.memory.path))
            }
        }
    }

    fn give_up_old(&mut self) -> Result<(), SnapshotError> {
        if self.state.found.is_none() {
            return Ok(());
        }
        let path = &self.state.path;
        let gone = match &mut self.to_state {
            Place::Fixed(file) => file.set_len(0).and_then(|()| file.sync()),
            Place::Staged(_) => {
                self.files.remove(path).and_then(|()| self.files.sync_dir(folder(path)))
            }
        };
        gone.map_err(SnapshotError::io("replace", path))
    }

    /// The memory file at its place, if it has the right length: device and inode number, and the state
    /// file that is there, if one is.
    pub fn old(&self) -> Option<((u64, u64), Option<&StateFile>)> {
        let found = self.memory.found.as_ref().filter(|m| m.len() == self.bytes)?;
        Some(((found.dev(), found.ino()), self.old.as_ref()))
    }

    /// Lets what that memory file holds stay under the pages that are written now, as Firecracker does
    /// with diff snapshots.
    ///
    /// # Errors
    ///
    /// It cannot be read, or not be copied.
    pub fn keep_old(&mut self) -> Result<(), SnapshotError> {
        if self.old().is_none() {
            return Ok(());
        }
        if let Place::Staged(at) = self.to_memory {
            let path = &self.memory.path;
            let old = File::open(path).map_err(SnapshotError::io("open memory file", path))?;
            crate::diff::copy_data(&mut self.staging, at, &old, path, self.bytes)?;
            self.holds_old = true;
        }
        Ok(())
    }

    /// Takes away what a memory file that is written in place holds already.
    ///
    /// # Errors
    ///
    /// The file system refuses.
    pub fn forget_old(&mut self) -> Result<(), SnapshotError> {
        let (bytes, path) = (self.bytes, &self.memory.path);
        if let (Place::Fixed(file), true) = (&mut self.to_memory, self.holds_old) {
            let emptied = file.set_len(0).and_then(|()| file.set_len(bytes));
            emptied.map_err(SnapshotError::io("set the length of", path))?;
        }
        self.holds_old = false;
        Ok(())
    }

    /// Whether the memory file that is written holds something already: then zero pages have to be
    /// written, too.
    pub fn holds_old(&self) -> bool {
        self.holds_old
    }

    /// Where the new memory can be read before the end.
    pub fn memory_path(&self) -> &Path {
        match self.to_memory {
            Place::Staged(at) => self.staging.temp_path(at).unwrap_or(&self.memory.path),
            Place::Fixed(_) => &self.memory.path,
        }
    }

    /// The memory file, of its full length and all zero unless [`FlatWriter::holds_old`]: guest memory's
    /// ranges go there one after another.
    ///
    /// # Errors
    ///
    /// The file is not open any more.
    pub fn memory(&mut self) -> std::io::Result<&mut dyn NewFile> {
        match &mut self.to_memory {
            Place::Staged(at) => self.staging.file(*at),
            Place::Fixed(file) => Ok(file.as_mut()),
        }
    }

    /// The staging and the file in it that memory goes to, if it does.
    pub(crate) fn staged_memory(&mut self) -> Option<(&mut Staging<'f>, StagedFile)> {
        match self.to_memory {
            Place::Staged(at) => Some((&mut self.staging, at)),
            Place::Fixed(_) => None,
        }
    }

    /// Writes the state (`memory_file` is set to what it is) and makes both files appear. What was made
    /// from the snapshot that is replaced is removed.
    ///
    /// # Errors
    ///
    /// The file system refuses: what was there before is as it was, unless one of the two files is a
    /// mount, or the new snapshot stands and only some of what should follow failed.
    pub fn finish(mut self, mut state: StateFile) -> Result<(), SnapshotError> {
        let beside = folder(&self.state.path) == folder(&self.memory.path);
        let name = self.memory.path.file_name().filter(|_| beside);
        state.memory_file = name.map(|name| name.to_string_lossy().into_owned());
        let (path, memory) = (self.state.path.clone(), self.memory.path.clone());
        let id = match state.id {
            Some(id) => id,
            None => SnapshotId::random().map_err(SnapshotError::io("make an id for", &path))?,
        };
        state.id = Some(id);
        let bytes = state.to_bytes().map_err(SnapshotError::format(&path))?;
        if let Place::Staged(at) = self.to_state {
            self.staging.put(at, &bytes, 0)?;
        }
        if let Place::Fixed(file) = &mut self.to_memory {
            file.sync().map_err(SnapshotError::io("sync", &memory))?;
        }
        let (files, old) = (self.files, self.old.take());
        match (&self.to_memory, self.to_state) {
            (Place::Staged(at), Place::Staged(_)) if self.memory.found.is_some() => {
                let aside = aside(&memory, id);
                self.staging.rename_target(*at, &aside);
                if let Err(error) = self.staging.commit() {
                    // If the state file cannot be read, it may be the new one, which needs this memory.
                    let other = match StateFile::read(&path) {
                        Ok(now) => now.id != Some(id),
                        Err(SnapshotError::Io { source, .. }) => {
                            source.kind() == std::io::ErrorKind::NotFound
                        }
                        Err(_) => true,
                    };
                    if other {
                        let _ = files.remove(&aside);
                    }
                    return Err(error);
                }
                files
                    .rename(&aside, &memory)
                    .map_err(SnapshotError::io("rename into place", &memory))?;
                let dir = folder(&memory);
                files.sync_dir(dir).map_err(SnapshotError::io("sync folder", dir))?;
            }
            (_, Place::Staged(_)) => self.staging.commit()?,
            (_, Place::Fixed(mut file)) => {
                let io = |what| SnapshotError::io(what, &path);
                file.set_len(0).and_then(|()| file.sync()).map_err(io("replace"))?;
                self.staging.commit()?;
                let written = file.write_at(&bytes, 0).and_then(|()| file.sync());
                written.map_err(io("write"))?;
            }
        }
        if path.file_name().is_some_and(|name| name == STATE_FILE) {
            let dir = folder(&path);
            remove_tiered(files, dir, &bytes);
            let old = old.and_then(|old| old.memory_file).filter(|old| {
                is_numbered(old)
                    && Some(old.as_str()) != memory.file_name().and_then(|n| n.to_str())
            });
            if let Some(old) = old {
                let _ = files.remove(&dir.join(old));
            }
        }
        Ok(())
    }
}

/// Whether earlier versions of varve called a memory file so when there was one already.
fn is_numbered(name: &str) -> bool {
    let number = name.strip_prefix(MEMORY_FILE).and_then(|rest| rest.strip_prefix('-'));
    number.is_some_and(|n| n.len() < 10 && n.bytes().all(|b| b.is_ascii_digit()))
}

/// Removes what was made from the snapshot that was there before; what stays takes space, but is
/// refused, as its manifest names another state file.
fn remove_tiered(files: &dyn Files, dir: &Path, state: &[u8]) {
    let path: PathBuf = dir.join(MANIFEST_FILE);
    let Ok(manifest) = Manifest::read(&path) else { return };
    let of_old = manifest.state.as_ref().is_some_and(|s| s.file == STATE_FILE);
    if !of_old || manifest.state.as_ref().is_some_and(|s| s.digest == Digest::of(state)) {
        return;
    }
    // The manifest last: the next one who writes here finds in it what a killed process left.
    for file in manifest.own_files() {
        let _ = files.remove(&dir.join(file));
    }
    let _ = remove(files, &path);
}
