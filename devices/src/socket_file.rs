//! The file of a listening unix socket, which goes when its owner does.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Device and inode of a file.
type Identity = (u64, u64);

/// A socket's file. It is removed on drop if the path still names the file that was made: another
/// process may have put its own socket there.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    file: Option<Identity>,
}

/// The files of this process, for an end at which nothing is dropped.
static ALL: Mutex<Vec<(PathBuf, Identity)>> = Mutex::new(Vec::new());

impl SocketFile {
    /// Listens at `path`, where nothing may be yet. The listener does not wait in `accept`.
    ///
    /// # Errors
    ///
    /// The system's answer; [`io::ErrorKind::AddrInUse`] if there is a file already.
    pub fn bind(path: &Path) -> io::Result<(UnixListener, SocketFile)> {
        let listener = UnixListener::bind(path)?;
        let file = SocketFile { path: path.to_owned(), file: identity(path).ok() };
        if let Some(id) = file.file {
            all().push((file.path.clone(), id));
        }
        listener.set_nonblocking(true)?;
        Ok((listener, file))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes the files of all that were not dropped, for a process that ends in the middle of
    /// something. Does nothing while another thread makes or drops one.
    pub fn remove_all() {
        if let Ok(all) = ALL.try_lock() {
            all.iter().for_each(|(path, id)| remove(path, *id));
        }
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if let Some(id) = self.file {
            all().retain(|(path, other)| (path, *other) != (&self.path, id));
            remove(&self.path, id);
        }
    }
}

fn all() -> std::sync::MutexGuard<'static, Vec<(PathBuf, Identity)>> {
    ALL.lock().unwrap_or_else(PoisonError::into_inner)
}

fn remove(path: &Path, id: Identity) {
    if identity(path).is_ok_and(|now| now == id) {
        let _ = std::fs::remove_file(path);
    }
}

fn identity(path: &Path) -> io::Result<Identity> {
    let meta = std::fs::symlink_metadata(path)?;
    Ok((meta.dev(), meta.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_file_that_was_made_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let (_first, file) = SocketFile::bind(&path).unwrap();
        assert!(SocketFile::bind(&path).is_err(), "it is taken");
        // The old name stays with the old file, so that its inode is not used again.
        std::fs::rename(&path, dir.path().join("moved")).unwrap();
        let (_second, other) = SocketFile::bind(&path).unwrap();
        drop(file);
        assert!(path.exists(), "it is another's");
        drop(other);
        assert!(!path.exists());
    }
}
