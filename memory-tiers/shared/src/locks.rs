//! Locks of the kernel's (flock) as counts of users: they end with the process, or with the last mapping
//! of the file, however that comes about.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{major, minor};

use crate::error::SharedError;

/// Waits for a lock on the file at `path`, which is made if need be; held while the file is open.
pub(crate) fn exclusive(path: &Path) -> Result<File, SharedError> {
    let file = File::options().create(true).append(true).open(path);
    let file = file.map_err(SharedError::io("open lock", path))?;
    file.lock().map_err(SharedError::io("lock", path))?;
    Ok(file)
}

/// How many hold a lock on a file, as far as the kernel shows this process.
pub(crate) fn holders(path: &Path) -> usize {
    let locks = fs::read_to_string("/proc/locks").unwrap_or_default();
    let Ok(meta) = fs::metadata(path) else { return 0 };
    let device = meta.dev();
    let id = format!("{:02x}:{:02x}:{}", major(device), minor(device), meta.ino());
    locks.lines().filter(|line| line.split_whitespace().any(|word| word == id)).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holders_are_counted() {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let path = dir.path().join("lock");
        fs::write(&path, "").unwrap();
        let open = || File::open(&path).unwrap();
        let (a, b) = (open(), open());
        a.try_lock_shared().unwrap();
        b.try_lock_shared().unwrap();
        assert_eq!(holders(&path), 2);
        assert!(open().try_lock().is_err());
        drop((a, b));
        assert_eq!(holders(&path), 0);
        let held = exclusive(&path).unwrap();
        assert!(open().try_lock_shared().is_err());
        drop(held);
    }
}
