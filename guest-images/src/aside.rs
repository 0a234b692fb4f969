//! Folders that appear whole or not at all: filled aside under a temporary name, then renamed,
//! with a lock file against two makers at once.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// An exclusive lock on a file that stays; freed when dropped, also when the process is killed.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "held for its drop")] File);

impl Lock {
    /// Takes the lock at `path`, waiting for whoever holds it; makes the file and its folder.
    pub fn take(path: &Path) -> Result<Self> {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
        }
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path)
            .map_err(Error::io("create", path))?;
        file.lock().map_err(Error::io("lock", path))?;
        Ok(Self(file))
    }
}

/// A folder in the making, beside the place where it will be.
#[derive(Debug)]
pub struct Aside {
    work: PathBuf,
    target: PathBuf,
    _lock: Lock,
}

impl Aside {
    /// Starts making `target`, whose last component must be a plain name.
    ///
    /// Waits for another maker of the same folder. What a killed maker left is removed.
    pub fn begin(target: &Path) -> Result<Self> {
        let work = suffixed(target, ".making");
        let lock = Lock::take(&suffixed(target, ".lock"))?;
        remove(&work)?;
        fs::create_dir_all(&work).map_err(Error::io("create", &work))?;
        Ok(Self { work, target: target.to_owned(), _lock: lock })
    }

    /// The folder to fill.
    pub fn path(&self) -> &Path {
        &self.work
    }

    /// Puts the folder in its place, in which an older one is replaced; durable when this returns.
    ///
    /// # Errors
    ///
    /// The file system refuses: an older folder is then where it was, or can be made again.
    pub fn commit(self) -> Result<()> {
        let old = suffixed(&self.target, ".old");
        remove(&old)?;
        // A loss of power must not leave the name of a folder whose files are empty.
        let made = File::open(&self.work).map_err(Error::io("open", &self.work))?;
        rustix::fs::syncfs(&made).map_err(|e| Error::io("sync", &self.work)(e.into()))?;
        match fs::rename(&self.target, &old) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(Error::io("rename", &self.target)(error));
            }
            _ => {}
        }
        fs::rename(&self.work, &self.target).map_err(Error::io("rename", &self.work))?;
        sync(folder(&self.target))?;
        remove(&old)
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        // Nothing is left to remove after `commit`; after a failure the next maker tries again.
        let _ = remove(&self.work);
    }
}

/// `path` with `suffix` appended to its last component.
fn suffixed(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// The folder that `path` is in.
pub fn folder(path: &Path) -> &Path {
    path.parent().filter(|folder| *folder != Path::new("")).unwrap_or(Path::new("."))
}

/// Makes the content of a file, or the names in a folder, durable.
///
/// # Errors
///
/// It cannot be opened or synced.
pub fn sync(path: &Path) -> Result<()> {
    File::open(path).and_then(|open| open.sync_all()).map_err(Error::io("sync", path))
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(Error::io("remove", path)(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_seen_before_commit() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("image");
        let aside = Aside::begin(&target).unwrap();
        fs::write(aside.path().join("f"), "new").unwrap();
        assert!(!target.exists());
        aside.commit().unwrap();
        assert_eq!(fs::read_to_string(target.join("f")).unwrap(), "new");
    }

    #[test]
    fn an_abandoned_attempt_leaves_the_old_folder() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("image");
        fs::create_dir(&target).unwrap();
        fs::write(target.join("f"), "old").unwrap();
        let aside = Aside::begin(&target).unwrap();
        fs::write(aside.path().join("f"), "new").unwrap();
        let work = aside.path().to_owned();
        drop(aside);
        assert!(!work.exists());
        assert_eq!(fs::read_to_string(target.join("f")).unwrap(), "old");
    }

    #[test]
    fn commit_replaces_what_was_there() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("image");
        for text in ["first", "second"] {
            let aside = Aside::begin(&target).unwrap();
            fs::write(aside.path().join("f"), text).unwrap();
            aside.commit().unwrap();
            assert_eq!(fs::read_to_string(target.join("f")).unwrap(), text);
        }
    }

    /// The calls of the test before, by strace, in their order.
    #[test]
    fn files_are_durable_before_their_folder_and_that_before_the_end() {
        let log = tempfile::NamedTempFile::new().unwrap();
        let mut strace = std::process::Command::new("strace");
        strace.args(["-f", "-qq", "-y", "-e", "trace=syncfs,rename,fsync", "-o"]).arg(log.path());
        strace.arg(std::env::current_exe().unwrap());
        strace.args(["aside::tests::commit_replaces_what_was_there", "--exact"]);
        let Ok(output) = strace.output() else {
            return varve_skip::skip!("strace", "apt-get install strace");
        };
        assert!(output.status.success(), "{output:?}");
        let log = fs::read_to_string(log.path()).unwrap();
        let calls =
            log.lines().filter_map(|line| line.split_whitespace().nth(1)?.split('(').next());
        let calls: Vec<_> = calls.collect();
        // The first time there is nothing to be moved away, which the kernel says.
        let once = ["syncfs", "rename", "rename", "fsync"];
        assert_eq!(calls, [once, once].concat(), "{log}");
    }

    #[test]
    fn a_second_maker_waits_for_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("image");
        let first = Aside::begin(&target).unwrap();
        let (path, seen) = (target.clone(), target.clone());
        let second = std::thread::spawn(move || {
            let aside = Aside::begin(&path).unwrap();
            let first_was_done = seen.exists();
            aside.commit().unwrap();
            first_was_done
        });
        std::thread::sleep(std::time::Duration::from_millis(50));
        first.commit().unwrap();
        assert!(second.join().unwrap());
    }
}
