//! Files appear whole or not at all: written aside under a recognisable name, synced, renamed, and
//! the one that makes the others count last. What they hold is for others.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::error::SnapshotError;

/// How names of unfinished files begin.
pub const TEMP_PREFIX: &str = ".varve-tmp-";

/// What writing a snapshot asks of a file system. [`LocalFiles`] is the real one; tests put one in
/// its place that crashes.
pub trait Files: Send + Sync {
    /// Makes a directory and those above it, durably; one that exists is fine.
    fn create_dir(&self, dir: &Path) -> io::Result<()>;
    /// Makes a file that must not exist.
    fn create(&self, path: &Path) -> io::Result<Box<dyn NewFile>>;
    /// Opens a file to write in it.
    fn open(&self, path: &Path) -> io::Result<Box<dyn NewFile>>;
    /// Gives a file another name, which must be free.
    fn link(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Renames a file over what may be there.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Makes what happened to names in a directory durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
}

/// A file that is being written.
pub trait NewFile: Send {
    /// Writes all of `bytes` at `offset`.
    fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Sets the length; what is added reads as zero and takes no space.
    fn set_len(&mut self, len: u64) -> io::Result<()>;
    /// Makes the content durable.
    fn sync(&mut self) -> io::Result<()>;
    /// The file itself, where there is one, for writers that have better ways than `write_at`.
    fn file(&self) -> Option<&File> {
        None
    }
}

/// The file system of this host.
#[derive(Clone, Copy, Debug, Default)]
pub struct LocalFiles;

impl Files for LocalFiles {
    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        match fs::create_dir(dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound && dir.parent().is_some() => {
                self.create_dir(folder(dir))?;
                self.create_dir(dir)
            }
            // A link to a folder is one, too.
            Err(_) if dir.is_dir() => Ok(()),
            Err(e) => Err(e),
            // Files in it are lost if its own name is.
            Ok(()) => self.sync_dir(folder(dir)),
        }
    }
    fn create(&self, path: &Path) -> io::Result<Box<dyn NewFile>> {
        let file = File::options().read(true).write(true).create_new(true).open(path)?;
        // Held as long as the file is open: tells the living from what a killed process left.
        file.try_lock().map_err(|e| match e {
            TryLockError::Error(e) => e,
            TryLockError::WouldBlock => io::ErrorKind::WouldBlock.into(),
        })?;
        Ok(Box::new(file))
    }
    fn open(&self, path: &Path) -> io::Result<Box<dyn NewFile>> {
        Ok(Box::new(File::options().read(true).write(true).open(path)?))
    }
    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::hard_link(from, to)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }
}

impl NewFile for File {
    fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }
    fn set_len(&mut self, len: u64) -> io::Result<()> {
        File::set_len(self, len)
    }
    fn sync(&mut self) -> io::Result<()> {
        self.sync_all()
    }
    fn file(&self) -> Option<&File> {
        Some(self)
    }
}

/// Names that are tried for an unfinished file.
const MOST_TRIES: usize = 1000;
/// Bytes of a file's name that its unfinished file is named after: a name has at most 255.
const MOST_NAME: usize = 100;

/// How the name of the unfinished file of `target` ends.
fn temp_suffix(target: &Path) -> String {
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    format!("-{}", &name[..name.floor_char_boundary(MOST_NAME)])
}

/// A file of a [`Staging`]: its place in the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StagedFile(usize);

struct Staged {
    temp: PathBuf,
    target: PathBuf,
    /// `None`: synced and closed.
    file: Option<Box<dyn NewFile>>,
    /// It is another name of a file that exists.
    linked: bool,
}

/// Files that will appear together: [`Staging::commit`] renames them in the order in which they were
/// created, so the one that makes the others count (manifest, state) must be created last. Dropped
/// without a commit, or failing in it, it removes what it had not yet renamed.
pub struct Staging<'f> {
    files: &'f dyn Files,
    staged: Vec<Staged>,
    renamed: usize,
}

impl<'f> Staging<'f> {
    /// Nothing yet.
    pub fn new(files: &'f dyn Files) -> Staging<'f> {
        Staging { files, staged: Vec::new(), renamed: 0 }
    }

    /// Begins a file that will stand at `target`.
    pub fn create(&mut self, target: &Path) -> Result<StagedFile, SnapshotError> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let dir = folder(target);
        self.files.create_dir(dir).map_err(SnapshotError::io("create folder", dir))?;
        let suffix = temp_suffix(target);
        // Processes of other PID namespaces may have the same number.
        let mut tries = 0..MOST_TRIES;
        let (temp, file) = loop {
            let (n, pid) = (NEXT.fetch_add(1, Ordering::Relaxed), std::process::id());
            let temp = dir.join(format!("{TEMP_PREFIX}{pid}-{n}{suffix}"));
            match self.files.create(&temp) {
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists && tries.next().is_some() => {}
                made => break (temp.clone(), made.map_err(SnapshotError::io("create", &temp))?),
            }
        };
        self.staged.push(Staged {
            temp,
            target: target.to_owned(),
            file: Some(file),
            linked: false,
        });
        Ok(StagedFile(self.staged.len() - 1))
    }

    /// Begins a file at `target` that is another name of the file `from`. False: the file system has no
    /// such names, or not for this file.
    ///
    /// # Errors
    ///
    /// The file system refuses for another reason.
    pub fn link(&mut self, from: &Path, target: &Path) -> Result<bool, SnapshotError> {
        let at = self.create(target)?;
        let Some(staged) = self.staged.get_mut(at.0) else { return Ok(false) };
        // The name is known to be free, but for a moment.
        (staged.file, staged.linked) = (None, true);
        let linked =
            self.files.remove(&staged.temp).and_then(|()| self.files.link(from, &staged.temp));
        match linked {
            Ok(()) => Ok(true),
            Err(e) => {
                self.staged.pop();
                match e.kind() {
                    io::ErrorKind::CrossesDevices
                    | io::ErrorKind::PermissionDenied
                    | io::ErrorKind::TooManyLinks
                    | io::ErrorKind::Unsupported => Ok(false),
                    _ => Err(SnapshotError::io("link", target)(e)),
                }
            }
        }
    }

    /// Another name for a file that is not committed yet, as its content may decide it.
    pub fn rename_target(&mut self, at: StagedFile, target: &Path) {
        if let Some(staged) = self.staged.get_mut(at.0) {
            staged.target = target.to_owned();
        }
    }

    /// The file behind `at`, to be written; an error if it was finished already.
    pub fn file(&mut self, at: StagedFile) -> io::Result<&mut dyn NewFile> {
        match self.staged.get_mut(at.0).and_then(|s| s.file.as_mut()) {
            Some(file) => Ok(file.as_mut()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    /// Where the file behind `at` can be read before the commit.
    pub fn temp_path(&self, at: StagedFile) -> Option<&Path> {
        self.staged.get(at.0).map(|s| s.temp.as_path())
    }

    /// Makes the content of all files durable, then their names, one after another.
    pub fn commit(mut self) -> Result<(), SnapshotError> {
        for staged in &mut self.staged {
            if let Some(file) = staged.file.as_mut() {
                file.sync().map_err(SnapshotError::io("sync", &staged.temp))?;
            }
        }
        for at in 0..self.staged.len() {
            let Staged { temp, target, linked, .. } = &self.staged[at];
            // Those before it must be durable before the one that makes them count.
            if at + 1 == self.staged.len() && at > 0 {
                self.sync_folders(at)?;
            }
            self.files
                .rename(temp, target)
                .map_err(SnapshotError::io("rename into place", target))?;
            if *linked {
                // A rename between two names of one file does nothing, and leaves both (rename(2)).
                let _ = self.files.remove(temp);
            }
            self.renamed = at + 1;
            self.staged[at].file = None;
        }
        self.sync_folders(self.staged.len())
    }

    fn sync_folders(&self, files: usize) -> Result<(), SnapshotError> {
        let mut folders: Vec<&Path> =
            self.staged[..files].iter().map(|s| folder(&s.target)).collect();
        folders.sort_unstable();
        folders.dedup();
        folders.into_iter().try_for_each(|dir| {
            self.files.sync_dir(dir).map_err(SnapshotError::io("sync folder", dir))
        })
    }

    /// One file, whole or not at all.
    ///
    /// # Errors
    ///
    /// The file system refuses: what was there before is as it was.
    pub fn write_file(files: &dyn Files, path: &Path, bytes: &[u8]) -> Result<(), SnapshotError> {
        let suffix = temp_suffix(path);
        clean_where(folder(path), |name| name.ends_with(&suffix))?;
        let mut staging = Staging::new(files);
        let at = staging.create(path)?;
        staging.put(at, bytes, 0)?;
        staging.commit()
    }

    /// Writes to the file behind `at`.
    pub fn put(&mut self, at: StagedFile, bytes: &[u8], offset: u64) -> Result<(), SnapshotError> {
        let result = self.file(at).and_then(|f| f.write_at(bytes, offset));
        result.map_err(SnapshotError::io("write", &self.shown(at)))
    }

    /// Sets the length of the file behind `at`.
    pub fn set_len(&mut self, at: StagedFile, len: u64) -> Result<(), SnapshotError> {
        let result = self.file(at).and_then(|f| f.set_len(len));
        result.map_err(SnapshotError::io("set the length of", &self.shown(at)))
    }

    fn shown(&self, at: StagedFile) -> PathBuf {
        self.staged.get(at.0).map(|s| s.target.clone()).unwrap_or_default()
    }
}

impl Drop for Staging<'_> {
    fn drop(&mut self) {
        for staged in &self.staged[self.renamed..] {
            // Best effort: what stays is recognised and removed by `clean`.
            let _ = self.files.remove(&staged.temp);
        }
    }
}

/// Removes a file, durably; one that is not there is fine.
///
/// # Errors
///
/// The file cannot be removed, or its folder not be synced.
pub fn remove(files: &dyn Files, path: &Path) -> Result<(), SnapshotError> {
    let dir = folder(path);
    let absent = |e: &io::Error| e.kind() == io::ErrorKind::NotFound;
    match files.remove(path) {
        Err(e) if !absent(&e) => return Err(SnapshotError::io("remove", path)(e)),
        // A process that was killed before it synced the folder may have removed it.
        _ => {}
    }
    match files.sync_dir(dir) {
        Err(e) if !absent(&e) => Err(SnapshotError::io("sync folder", dir)(e)),
        _ => Ok(()),
    }
}

/// Removes what killed processes left unfinished in `dir`; how many files that were.
///
/// # Errors
///
/// The folder cannot be read, or a file in it not be removed.
pub fn clean(dir: &Path) -> Result<usize, SnapshotError> {
    clean_where(dir, |_| true)
}

/// The same for those whose name is one of `which`. A folder that does not exist holds none.
fn clean_where(dir: &Path, which: impl Fn(&str) -> bool) -> Result<usize, SnapshotError> {
    let mut removed = 0;
    for name in names_in(dir)?.filter(|name| name.starts_with(TEMP_PREFIX) && which(name)) {
        let path = dir.join(name);
        // Its writer holds a lock as long as it lives.
        let Ok(file) = read_only().open(&path) else { continue };
        if file.try_lock().is_ok() {
            fs::remove_file(&path).map_err(SnapshotError::io("remove", &path))?;
            removed += 1;
        }
    }
    Ok(removed)
}

/// Names of what is in a folder, as far as they are text; none if there is no such folder.
pub(crate) fn names_in(dir: &Path) -> Result<impl Iterator<Item = String>, SnapshotError> {
    let mut names = Vec::new();
    match fs::read_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(SnapshotError::io("list", dir)(e)),
        Ok(entries) => {
            for entry in entries {
                let entry = entry.map_err(SnapshotError::io("list", dir))?;
                names.extend(entry.file_name().into_string());
            }
        }
    }
    Ok(names.into_iter())
}

/// How a file is opened whose name nobody vouches for: a link is refused, and a FIFO without a writer
/// does not keep the reader waiting.
pub(crate) fn read_only() -> fs::OpenOptions {
    let mut options = File::options();
    options.read(true).custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32);
    options
}

/// Opens a file that another file names: one beside it, no link to somewhere else.
///
/// # Errors
///
/// The file cannot be opened, or is a link or no regular file.
pub fn open_beside(path: &Path) -> Result<File, SnapshotError> {
    let wrong = |problem: &'static str| SnapshotError::Target { path: path.to_owned(), problem };
    let file = match read_only().open(path) {
        Err(e) if e.raw_os_error() == Some(Errno::LOOP.raw_os_error()) => {
            return Err(wrong("a link, and what a snapshot names must be in its own folder"));
        }
        opened => opened.map_err(SnapshotError::io("open", path))?,
    };
    let meta = file.metadata().map_err(SnapshotError::io("look at", path))?;
    if meta.is_file() { Ok(file) } else { Err(wrong("not a regular file")) }
}

/// Refuses a name in a manifest that leads out of the manifest's folder: whoever made the manifest may
/// not say which files of this host are read.
pub(crate) fn check_plain(name: &str, path: &Path) -> Result<(), SnapshotError> {
    if name.is_empty() || name.contains(['/', '\0']) || name == "." || name == ".." {
        let problem = "outside of the snapshot's folder, and a manifest may name only files in it: \
                       tier the snapshot again";
        return Err(SnapshotError::Target { path: path.to_owned(), problem });
    }
    Ok(())
}

/// Whether there is something at a path. What cannot be looked at is an error, and not absent.
///
/// # Errors
///
/// The path cannot be looked at.
pub fn there(path: &Path) -> Result<bool, SnapshotError> {
    path.try_exists().map_err(SnapshotError::io("look for", path))
}

/// The folder that a file is in.
pub(crate) fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    }
}
