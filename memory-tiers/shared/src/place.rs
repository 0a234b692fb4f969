//! Where a snapshot's images are published: a file in its folder, beside the manifest.
//!
//! It is written before anything is put (`complete: false`) and again when it is there, so that
//! whatever interrupts a publication leaves nothing that cannot be found and freed.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use varve_snapshot::{Digest, ImageEntry, LocalFiles, ManifestReader, Staging};

use crate::error::SharedError;
use crate::store::Key;
use crate::uri::Uri;

/// Name of the file in a snapshot's folder.
pub const TIERS_FILE: &str = "tiers.json";
const VERSION: u32 = 1;

/// All images of a snapshot that are published.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Places {
    version: u32,
    /// By the image's name.
    pub images: BTreeMap<String, Place>,
}

/// Where one image is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Place {
    /// The store.
    pub at: Uri,
    /// Content hash of the image's file.
    #[serde(serialize_with = "write_digest", deserialize_with = "read_digest")]
    pub digest: Digest,
    /// Its length.
    pub bytes: u64,
    /// What it was published as, by the manifest: another image of the same name differs.
    #[serde(serialize_with = "write_digest", deserialize_with = "read_digest")]
    pub image: Digest,
    /// It is there: otherwise publishing did not end.
    pub complete: bool,
}

fn write_digest<S: Serializer>(digest: &Digest, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(digest)
}

fn read_digest<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Digest, D::Error> {
    let text = String::deserialize(deserializer)?;
    let wrong = || serde::de::Error::custom("not a hash of 64 hexadecimal digits");
    Digest::from_hex(&text).ok_or_else(wrong)
}

/// What tells an image of a snapshot from one of the same name that was made there later: the manifest's
/// hash of its pages and, as not every image has one, of the state that goes with it.
pub(crate) fn fingerprint(snapshot: &ManifestReader, entry: &ImageEntry) -> Digest {
    let state = snapshot.state().map(|state| state.digest);
    let text = format!("{:?} {:?} {} {}", entry.digest, state, entry.bytes, entry.chunk_pages);
    Digest::of(text.as_bytes())
}

impl Place {
    /// The image by what it holds.
    pub fn key(&self) -> Key {
        Key { digest: self.digest, bytes: self.bytes }
    }
}

impl Default for Places {
    fn default() -> Places {
        Places { version: VERSION, images: BTreeMap::new() }
    }
}

impl Places {
    /// Where the file of the snapshot in `dir` is.
    pub fn path(dir: &Path) -> PathBuf {
        dir.join(TIERS_FILE)
    }

    /// The places of the snapshot in `dir`; none if there is no file.
    pub fn read(dir: &Path) -> Result<Places, SharedError> {
        let path = Places::path(dir);
        let bytes = match fs::read(&path) {
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                return Ok(Places::default());
            }
            read => read.map_err(SharedError::io("read", &path))?,
        };
        let wrong = |problem: String| {
            let cure = "restore with --local-files, or publish again after removing it";
            SharedError::place(path.display(), format!("{problem}; {cure}"))
        };
        let places: Places = serde_json::from_slice(&bytes).map_err(|e| wrong(e.to_string()))?;
        match places.version {
            VERSION => Ok(places),
            v => Err(wrong(format!("its version is {v}, and this varve reads {VERSION}"))),
        }
    }

    /// Writes the file, whole or not at all; without images there is none.
    pub fn write(&self, dir: &Path) -> Result<(), SharedError> {
        let path = Places::path(dir);
        if self.images.is_empty() {
            return match fs::remove_file(&path) {
                Err(e) if e.kind() != ErrorKind::NotFound => {
                    Err(SharedError::io("remove", &path)(e))
                }
                _ => Ok(()),
            };
        }
        let text =
            serde_json::to_vec_pretty(self).map_err(|e| SharedError::place(path.display(), e))?;
        Ok(Staging::write_file(&LocalFiles, &path, &text)?)
    }
}
