//! The two places that a client names for a snapshot: what may be there already, and which memory file
//! belongs to a state file while the two are being replaced.

use std::fs::{self, Metadata};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags, statx};

use crate::digest::Digest;
use crate::error::SnapshotError;
use crate::manifest::{MEMORY_FILE, STATE_FILE};
use crate::state::{SnapshotId, StateFile};
use crate::store::{Files, folder, names_in, read_only, there};

/// How the name of a memory file begins whose state file is in place, but which is not yet.
pub const ASIDE_PREFIX: &str = ".varve-new-";
/// Links that are followed to a file's place, as many as the kernel follows.
const MOST_LINKS: usize = 40;

/// A place for a file that is to be written.
#[derive(Debug)]
pub(crate) struct Target {
    /// With links followed.
    pub path: PathBuf,
    /// What is there.
    pub found: Option<Metadata>,
    /// It is a mount of its own: another file cannot take its name.
    pub fixed: bool,
}

impl Target {
    /// Looks at the place; refuses what is no regular file. Nothing is changed.
    pub fn look(path: &Path) -> Result<Target, SnapshotError> {
        let path = follow(path)?;
        let wrong = |problem| Err(SnapshotError::Target { path: path.clone(), problem });
        if path.file_name().is_none() {
            return wrong("no name of a file");
        }
        let found = match fs::symlink_metadata(&path) {
            Err(e) if e.kind() == ErrorKind::NotFound => None,
            found => Some(found.map_err(SnapshotError::io("look at", &path))?),
        };
        match found.as_ref().map(Metadata::file_type) {
            Some(kind) if kind.is_dir() => return wrong("a folder: name a file in it"),
            Some(kind) if !kind.is_file() => {
                return wrong(
                    "not a regular file, and a snapshot is written to regular files only",
                );
            }
            _ => {}
        }
        let fixed = found.is_some() && is_mount(&path)?;
        Ok(Target { path, found, fixed })
    }

    /// Whether both are the same file.
    pub fn is(&self, other: &Target) -> bool {
        let id = |t: &Target| t.found.as_ref().map(|m| (m.dev(), m.ino()));
        self.path == other.path || (id(self).is_some() && id(self) == id(other))
    }
}

/// Where a path leads, as creating a file there does.
fn follow(path: &Path) -> Result<PathBuf, SnapshotError> {
    let mut path = path.to_owned();
    for _ in 0..MOST_LINKS {
        match fs::symlink_metadata(&path) {
            Ok(meta) if meta.is_symlink() => {
                let to = fs::read_link(&path).map_err(SnapshotError::io("follow link", &path))?;
                path = folder(&path).join(to);
            }
            _ => return Ok(path),
        }
    }
    Err(SnapshotError::Target { path, problem: "a link to a link and so on: name the file itself" })
}

fn is_mount(path: &Path) -> Result<bool, SnapshotError> {
    let found = statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::BASIC_STATS)
        .map_err(|e| SnapshotError::io("look at", path)(e.into()))?;
    Ok(found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

/// The name, beside `memory`, of the memory of snapshot `id` until it is in place.
pub(crate) fn aside(memory: &Path, id: SnapshotId) -> PathBuf {
    memory.with_file_name(format!("{ASIDE_PREFIX}{id}{}", aside_suffix(memory)))
}

fn aside_suffix(memory: &Path) -> String {
    let name = memory.file_name().unwrap_or_default();
    format!("-{}", Digest::of(name.as_encoded_bytes()).short())
}

/// The memory file of `state`, which is to be at `memory`: if it was being replaced when the process
/// that did so was killed, the new one may still have the name that it was written under.
///
/// # Errors
///
/// The folder cannot be looked at.
pub fn memory_at(state: &StateFile, memory: &Path) -> Result<PathBuf, SnapshotError> {
    // Ids in names are random: what has no id was never replaced in this way.
    let Some(id) = state.id else { return Ok(memory.to_owned()) };
    let aside = aside(&follow(memory)?, id);
    Ok(if there(&aside)? { aside } else { memory.to_owned() })
}

/// The same of a snapshot in a folder of its own, whose state file may name the memory file: then it
/// must not be a link.
///
/// # Errors
///
/// The folder cannot be looked at, or the memory file is a link.
pub fn memory_in(dir: &Path, state: &StateFile) -> Result<PathBuf, SnapshotError> {
    let path = dir.join(state.memory_file.as_deref().unwrap_or(MEMORY_FILE));
    if state.memory_file.is_some() && fs::symlink_metadata(&path).is_ok_and(|m| m.is_symlink()) {
        let problem = "a link, and the memory file that a state file names must be beside it";
        return Err(SnapshotError::Target { path, problem });
    }
    memory_at(state, &path)
}

/// Finishes what a process that was killed while it replaced the snapshot in `dir` left to do.
///
/// # Errors
///
/// The folder cannot be read or written to.
pub fn settle(files: &dyn Files, dir: &Path) -> Result<(), SnapshotError> {
    let path = dir.join(STATE_FILE);
    if !there(&path)? {
        return Ok(());
    }
    let state = StateFile::read(&path)?;
    let memory = dir.join(state.memory_file.as_deref().unwrap_or(MEMORY_FILE));
    settle_memory(files, Some(&state), &memory)
}

/// The same of a memory file, and the state file that is there now.
pub(crate) fn settle_memory(
    files: &dyn Files,
    state: Option<&StateFile>,
    memory: &Path,
) -> Result<(), SnapshotError> {
    let (dir, suffix) = (folder(memory), aside_suffix(memory));
    let current = state.and_then(|state| state.id).map(|id| aside(memory, id));
    for name in names_in(dir)?.filter(|n| n.starts_with(ASIDE_PREFIX) && n.ends_with(&suffix)) {
        let path = dir.join(name);
        if current.as_ref() == Some(&path) {
            files.rename(&path, memory).map_err(SnapshotError::io("rename into place", memory))?;
            files.sync_dir(dir).map_err(SnapshotError::io("sync folder", dir))?;
        } else if read_only().open(&path).is_ok_and(|file| file.try_lock().is_ok()) {
            // Its state file never came, or another one has taken the place of that.
            files.remove(&path).map_err(SnapshotError::io("remove", &path))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn links_are_followed_to_where_a_file_would_be_made() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir(at("far")).unwrap();
        symlink("far/file", at("link")).unwrap();
        symlink(at("link"), at("second")).unwrap();
        for _ in 0..2 {
            let target = Target::look(&at("second")).unwrap();
            assert!(target.path.ends_with("far/file") && !target.fixed);
            assert!(target.is(&Target::look(&at("far/file")).unwrap()));
            fs::write(at("far/file"), "x").unwrap();
        }
        symlink("round", at("round")).unwrap();
        let error = Target::look(&at("round")).unwrap_err().to_string();
        assert!(error.contains("link"), "{error}");
    }

    #[test]
    fn what_is_no_file_is_refused_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        rustix::fs::mknodat(CWD, &fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        let socket = dir.path().join("socket");
        let _bound = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        for (path, said) in [
            (dir.path(), "folder"),
            (&fifo, "regular"),
            (&socket, "regular"),
            (Path::new("/dev/null"), "regular"),
        ] {
            let error = Target::look(path).unwrap_err().to_string();
            assert!(error.contains(said) && error.contains(path.to_str().unwrap()), "{error}");
        }
    }
}
