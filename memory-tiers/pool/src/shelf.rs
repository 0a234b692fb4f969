//! A node's disk: publications and their objects as files, so that a node that starts again has what
//! it had.
//!
//! ```text
//!  TENANT/objects/HEX         an object; its name says what it must hold
//!  TENANT/publications/HEX    names of the objects of a publication, 32 bytes each
//! ```
//!
//! A publication's file is written last and whole: what it names is there. Objects that no
//! publication names are removed at start and when a publication is forgotten. One that is named and
//! cannot be loaded, as when the node was given less memory than before, stays.

use std::collections::HashSet;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use varve_snapshot::{Digest, Files, LocalFiles, SnapshotError, Staging, clean, remove};

use crate::auth::Tenant;
use crate::wire::{MAX_OBJECT, ObjectId, PublicationId};

/// One tenant's part of the disk.
#[derive(Clone, Debug)]
pub(crate) struct Shelf {
    objects: PathBuf,
    publications: PathBuf,
}

/// What was found on the disk: publications and the names of their objects.
pub(crate) type Found = Vec<(PublicationId, Vec<ObjectId>)>;

impl Shelf {
    /// Opens, and makes, the tenant's folder below `root`, and removes what is unfinished.
    pub fn open(root: &Path, tenant: &Tenant) -> Result<Shelf, SnapshotError> {
        let folder = root.join(String::from(tenant.clone()));
        let shelf =
            Shelf { objects: folder.join("objects"), publications: folder.join("publications") };
        for dir in [&shelf.objects, &shelf.publications] {
            LocalFiles.create_dir(dir).map_err(SnapshotError::io("make", dir))?;
            clean(dir)?;
        }
        Ok(shelf)
    }

    /// Stores an object; done when it is durable.
    pub fn put(&self, id: &ObjectId, bytes: &[u8]) -> Result<(), SnapshotError> {
        let path = self.object(id);
        match fs::metadata(&path) {
            Ok(found) if found.len() == bytes.len() as u64 => {
                // A node that was killed may have renamed it, and not synced the folder.
                let dir = &self.objects;
                return LocalFiles.sync_dir(dir).map_err(SnapshotError::io("sync folder", dir));
            }
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(SnapshotError::io("look at", &path)(e));
            }
            _ => {}
        }
        Staging::write_file(&LocalFiles, &path, bytes)
    }

    /// Opens an object and tells its length.
    pub fn get(&self, id: &ObjectId) -> io::Result<(impl Read + use<>, u64)> {
        let file = fs::File::open(self.object(id))?;
        let len = file.metadata()?.len();
        if len > MAX_OBJECT {
            return Err(io::Error::other("longer than any object"));
        }
        Ok((file, len))
    }

    /// Keeps a publication.
    pub fn publish(&self, id: &PublicationId, objects: &[ObjectId]) -> Result<(), SnapshotError> {
        let path = self.publications.join(name(id));
        Staging::write_file(&LocalFiles, &path, objects.as_flattened())
    }

    /// Removes a publication.
    pub fn forget(&self, id: &PublicationId) -> Result<(), SnapshotError> {
        remove(&LocalFiles, &self.publications.join(name(id)))
    }

    /// The publications on the disk. One whose file is not a list of names is an error.
    pub fn publications(&self) -> Result<Found, SnapshotError> {
        let mut found = Vec::new();
        for (id, path) in ids(&self.publications)? {
            let bytes = fs::read(&path).map_err(SnapshotError::io("read", &path))?;
            let (objects, rest) = bytes.as_chunks::<32>();
            if !rest.is_empty() {
                let bad = io::Error::other("it is not a list of names; remove it");
                return Err(SnapshotError::io("read publication", &path)(bad));
            }
            found.push((id, objects.to_vec()));
        }
        Ok(found)
    }

    /// Removes objects that are not `wanted` and that no publication names: those that are named and
    /// could not be loaded stay for a start that can.
    pub fn sweep(&self, wanted: impl Fn(&ObjectId) -> bool) -> Result<(), SnapshotError> {
        let unwanted = ids(&self.objects)?.into_iter().filter(|(id, _)| !wanted(id));
        let unwanted: Vec<_> = unwanted.collect();
        if unwanted.is_empty() {
            return Ok(());
        }
        let named: HashSet<ObjectId> =
            self.publications()?.into_iter().flat_map(|(_, objects)| objects).collect();
        let gone = unwanted.iter().filter(|(id, _)| !named.contains(id));
        // Not durably: the next start removes those that come back.
        gone.map(|(_, path)| path).try_for_each(|path| match fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                Err(SnapshotError::io("remove", path)(e))
            }
            _ => Ok(()),
        })
    }

    /// Removes an object whose content is wrong, so that the next client that has it stores it anew.
    pub fn remove(&self, id: &ObjectId) -> Result<(), SnapshotError> {
        remove(&LocalFiles, &self.object(id))
    }

    /// Where an object is.
    pub fn object(&self, id: &ObjectId) -> PathBuf {
        self.objects.join(name(id))
    }
}

fn name(id: &[u8; 32]) -> String {
    Digest(*id).to_string()
}

/// The files of a folder whose names are hexadecimal; others are not ours.
fn ids(dir: &Path) -> Result<Vec<([u8; 32], PathBuf)>, SnapshotError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(SnapshotError::io("list", dir))? {
        let path = entry.map_err(SnapshotError::io("list", dir))?.path();
        let id = path.file_name().and_then(|n| Digest::from_hex(n.to_str()?));
        found.extend(id.map(|id| (id.0, path)));
    }
    Ok(found)
}
