//! A store that is a folder: plain files, files in memory of one NUMA node, files on a DAX file system.
//! They differ in how a file is made; using it is mapping it privately, whatever it is.
//!
//! A user holds a shared lock on the image's file. Whoever frees an image locks it alone, so that it
//! has no user and gets none, and removes it then.

use std::fs::{self, File, TryLockError};
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, StatxAttributes, StatxFlags, statfs, statx};
use varve_memory_tiers::numa;
use varve_snapshot::{
    Digest, Files, LocalFiles, PAGE_SIZE, StagedFile, Staging, clean, is_zero, remove, there,
};

use crate::error::SharedError;
use crate::host;
use crate::locks;
use crate::store::{Attached, Freed, Held, Key, Store};

/// What the files are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Whatever the file system is.
    File,
    /// Memory of a NUMA node.
    Numa(u32),
    /// A device's memory.
    Dax,
}

/// The folder.
#[derive(Debug)]
pub(crate) struct Folder {
    kind: Kind,
    dir: PathBuf,
}

/// How names of images end.
const PUBLISHED: &str = "image";
/// And of those that wait for their last user to go.
const RETIRED: &str = "retired";
/// Bytes that are copied at a time.
const BATCH: usize = 1 << 20;
/// The smallest hole.
const BLOCK: usize = 64 << 10;
/// Memory of a node that is left to others.
const MARGIN: u64 = 16 << 20;

impl Folder {
    pub fn new(kind: Kind, dir: &Path) -> Folder {
        Folder { kind, dir: dir.to_owned() }
    }

    fn path(&self, key: &Key, state: &str) -> PathBuf {
        self.dir.join(format!("{}.{state}", key.digest))
    }

    fn wrong(&self, problem: impl std::fmt::Display) -> SharedError {
        SharedError::place(self.dir.display(), problem)
    }

    fn rename(&self, key: &Key, from: &str, to: &str) -> Result<(), SharedError> {
        let (from, to) = (self.path(key, from), self.path(key, to));
        fs::rename(&from, &to).map_err(SharedError::io("rename", &from))?;
        self.sync()
    }

    /// Makes names in the folder durable.
    fn sync(&self) -> Result<(), SharedError> {
        LocalFiles.sync_dir(&self.dir).map_err(SharedError::io("sync folder", &self.dir))
    }

    /// Whether `room` bytes can be kept here as they are meant to.
    fn check(&self, room: u64) -> Result<(), SharedError> {
        let Kind::Numa(node) = self.kind else { return Ok(()) };
        const TMPFS: i64 = 0x0102_1994;
        let found = statfs(&self.dir).map_err(|e| self.wrong(std::io::Error::from(e)))?;
        if found.f_type != TMPFS {
            return Err(self.wrong(
                "it is not in memory: name a folder of a tmpfs, such as /dev/shm, or mount one",
            ));
        }
        // The kernel would end processes to make room in a node that is full.
        let free = host::node_free(node).ok_or_else(|| {
            self.wrong(format!("there is no NUMA node {node}: varve tier devices shows them"))
        })?;
        if free < room.saturating_add(MARGIN) {
            return Err(self.wrong(format!(
                "NUMA node {node} has {} MiB free and {} are needed: revoke what is not used and run \
                 varve tier gc, or choose another node",
                free >> 20,
                (room + MARGIN) >> 20
            )));
        }
        Ok(())
    }

    fn fill(
        &self,
        key: &Key,
        from: &File,
        file: &File,
        progress: &mut dyn FnMut(u64),
    ) -> Result<(), SharedError> {
        let io = |what| SharedError::io(what, &self.dir);
        file.set_len(key.bytes).map_err(io("make an image in"))?;
        if self.kind == Kind::Dax {
            let found = statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS);
            let found = found.map_err(|e| io("look at")(e.into()))?;
            if !found.stx_attributes.contains(StatxAttributes::DAX) {
                return Err(self.wrong(
                    "files here are not mapped from the device itself: mount the file system with \
                     -o dax=always (ext4, xfs, on persistent or CXL memory), or publish to file:DIR",
                ));
            }
        }
        if let Kind::Numa(node) = self.kind {
            numa::bind(file, node).map_err(io("bind to its NUMA node what is in"))?;
        }
        copy(from, file, key.bytes, progress).map_err(io("copy an image into"))?;
        if let Kind::Numa(node) = self.kind {
            let nodes = numa::pages_by_node(file).map_err(io("see where pages are of"))?;
            if nodes.keys().any(|&n| n != node) {
                let problem = format!("pages by node are {nodes:?}, and all should be on {node}");
                return Err(self.wrong(problem));
            }
            // Private copies are to come from the memory of whoever writes them.
            numa::unbind(file).map_err(io("free from its NUMA node what is in"))?;
        }
        Ok(())
    }
}

/// Copies all but blocks that are zero, which stay holes. What is smaller, as between extents of a packed
/// image, is written, for a hole that is read takes a page from wherever its reader runs.
fn copy(from: &File, to: &File, bytes: u64, progress: &mut dyn FnMut(u64)) -> std::io::Result<()> {
    let mut buffer = vec![0; BATCH];
    let mut at = 0;
    while at < bytes {
        let len = (bytes - at).min(BATCH as u64) as usize;
        let data = &mut buffer[..len];
        from.read_exact_at(data, at)?;
        for (block, at) in data.chunks(BLOCK).zip((at..).step_by(BLOCK)) {
            if !block.chunks(PAGE_SIZE as usize).all(is_zero) {
                to.write_all_at(block, at)?;
            }
        }
        at += len as u64;
        progress(at);
    }
    Ok(())
}

impl Store for Folder {
    fn put(
        &self,
        key: &Key,
        from: &File,
        progress: &mut dyn FnMut(u64),
    ) -> Result<(), SharedError> {
        let path = self.path(key, PUBLISHED);
        if there(&path)? {
            // A process that was killed may have renamed it, and not synced the folder.
            return self.sync();
        }
        if there(&self.path(key, RETIRED))? {
            return self.rename(key, RETIRED, PUBLISHED);
        }
        // What a killed publisher left takes the room of this image.
        self.clean()?;
        self.check(key.bytes)?;
        let mut staging = Staging::new(&LocalFiles);
        let at: StagedFile = staging.create(&path)?;
        let made = staging.file(at).and_then(|f| f.file().map(File::try_clone).transpose());
        let file = made.map_err(SharedError::io("open", &path))?;
        let file = file.ok_or_else(|| self.wrong("it takes no files"))?;
        self.fill(key, from, &file, progress)?;
        let copied = staging.temp_path(at).map(Digest::of_file).transpose();
        if copied.map_err(SharedError::io("read", &path))? != Some(key.digest) {
            return Err(self.wrong("the image changed while it was published: publish it again"));
        }
        Ok(staging.commit()?)
    }

    fn attach(&self, key: &Key) -> Result<Option<Attached>, SharedError> {
        let path = self.path(key, PUBLISHED);
        let file = match File::open(&path) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            opened => opened.map_err(SharedError::io("open", &path))?,
        };
        match file.try_lock_shared() {
            // It is being freed.
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(e)) => return Err(SharedError::io("lock", &path)(e)),
            Ok(()) => {}
        }
        // Freed or retired between the two: what has a lock must still be what the name means.
        let now = file.metadata().map_err(SharedError::io("look at", &path))?;
        match fs::metadata(&path) {
            Ok(named) if named.ino() == now.ino() => {}
            Ok(_) => return Ok(None),
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(SharedError::io("look at", &path)(e)),
        }
        if now.len() != key.bytes {
            let problem = format!("it has {} bytes, and {} were published", now.len(), key.bytes);
            return Err(SharedError::place(path.display(), problem));
        }
        Ok(Some(Attached::File(file)))
    }

    fn list(&self) -> Result<Vec<Held>, SharedError> {
        let entries = match fs::read_dir(&self.dir) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(SharedError::io("list", &self.dir))?,
        };
        let mut held = Vec::new();
        for entry in entries {
            let path = entry.map_err(SharedError::io("list", &self.dir))?.path();
            let state = path.extension().and_then(|s| s.to_str()).unwrap_or_default();
            let digest = path.file_stem().and_then(|s| Digest::from_hex(s.to_str()?));
            let (Some(digest), PUBLISHED | RETIRED) = (digest, state) else { continue };
            let bytes = fs::metadata(&path).map_err(SharedError::io("look at", &path))?.len();
            let (published, users) = (state == PUBLISHED, locks::holders(&path));
            held.push(Held { key: Key { digest, bytes }, published, epoch: None, users });
        }
        held.sort_by_key(|h| h.key);
        Ok(held)
    }

    fn retire(&self, key: &Key) -> Result<(), SharedError> {
        match there(&self.path(key, PUBLISHED))? {
            true => self.rename(key, PUBLISHED, RETIRED),
            false => Ok(()),
        }
    }

    fn free(&self, key: &Key) -> Result<Freed, SharedError> {
        let path = self.path(key, RETIRED);
        let file = match File::open(&path) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Freed::Yes),
            opened => opened.map_err(SharedError::io("open", &path))?,
        };
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => {
                let users = locks::holders(&path).max(1);
                Ok(Freed::InUse(format!("{users} machines of this host")))
            }
            Err(TryLockError::Error(e)) => Err(SharedError::io("lock", &path)(e)),
            Ok(()) => {
                remove(&LocalFiles, &path)?;
                Ok(Freed::Yes)
            }
        }
    }

    fn clean(&self) -> Result<usize, SharedError> {
        Ok(clean(&self.dir)?)
    }
}
