//! Which snapshots use an image of a store: one small file for each image, in the store's folder, or for
//! a device in this host's own. One process at a time changes it, and the store with it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use varve_snapshot::{Digest, Files, LocalFiles, Staging, clean, remove};

use crate::error::SharedError;
use crate::locks;

/// The ledger of a store, locked.
#[derive(Debug)]
pub(crate) struct Ledger {
    dir: PathBuf,
    _lock: File,
}

/// What the file of an image says.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    /// Folders of snapshots.
    snapshots: Vec<PathBuf>,
}

/// How names of the files end.
const SUFFIX: &str = "users";

impl Ledger {
    /// Waits until nobody else has it.
    pub fn lock(dir: &Path) -> Result<Ledger, SharedError> {
        LocalFiles.create_dir(dir).map_err(SharedError::io("create folder", dir))?;
        let lock = locks::exclusive(&dir.join("lock"))?;
        Ok(Ledger { dir: dir.to_owned(), _lock: lock })
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.dir.join(format!("{digest}.{SUFFIX}"))
    }

    /// Snapshots that use an image.
    pub fn users(&self, digest: &Digest) -> Result<Vec<PathBuf>, SharedError> {
        users(&self.path(digest))
    }

    /// Says which snapshots use an image.
    pub fn set(&self, digest: &Digest, snapshots: Vec<PathBuf>) -> Result<(), SharedError> {
        let path = self.path(digest);
        if snapshots.is_empty() {
            return Ok(remove(&LocalFiles, &path)?);
        }
        let text = serde_json::to_vec_pretty(&Entry { snapshots })
            .map_err(|e| SharedError::place(path.display(), e))?;
        Ok(Staging::write_file(&LocalFiles, &path, &text)?)
    }

    /// All images that somebody uses, or did.
    pub fn images(&self) -> Result<Vec<Digest>, SharedError> {
        let mut images = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(SharedError::io("list", &self.dir))? {
            let name = entry.map_err(SharedError::io("list", &self.dir))?.file_name();
            let digest = name.to_str().and_then(|n| Digest::from_hex(n.strip_suffix(".users")?));
            images.extend(digest);
        }
        Ok(images)
    }

    /// Removes what killed processes left.
    pub fn clean(&self) -> Result<usize, SharedError> {
        Ok(clean(&self.dir)?)
    }
}

/// Snapshots that use an image of the store whose ledger is in `dir`, for whoever only looks.
pub(crate) fn users_in(dir: &Path, digest: &Digest) -> Result<Vec<PathBuf>, SharedError> {
    users(&dir.join(format!("{digest}.{SUFFIX}")))
}

fn users(path: &Path) -> Result<Vec<PathBuf>, SharedError> {
    let bytes = match fs::read(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        read => read.map_err(SharedError::io("read", path))?,
    };
    let entry: Entry = serde_json::from_slice(&bytes).map_err(|e| {
        let cure = "remove it: varve tier gc then frees the image unless it is published again";
        SharedError::place(path.display(), format!("{e}; {cure}"))
    })?;
    Ok(entry.snapshots)
}
