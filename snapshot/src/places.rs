//! Where a snapshot's images are kept elsewhere: a file of JSON in its folder, beside the manifest, for
//! each kind of elsewhere.
//!
//! Whoever publishes an image writes down that it will, and again when it is there, so that whatever
//! interrupts that leaves nothing that cannot be found and freed.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::SnapshotError;
use crate::store::{LocalFiles, Staging, remove};

/// The version of all such files that this varve reads and writes.
const VERSION: u32 = 1;

/// Where one image is, in a kind of elsewhere.
pub trait Placed: Serialize + DeserializeOwned {
    /// Name of the file.
    const FILE: &'static str;
    /// What to do about a file that is no good.
    const CURE: &'static str;

    /// What is wrong with it, if something is.
    fn check(&self) -> Result<(), String>;
}

/// All images of a snapshot that are elsewhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Places<P> {
    version: u32,
    /// By the image's name.
    pub images: BTreeMap<String, P>,
}

impl<P> Default for Places<P> {
    fn default() -> Places<P> {
        Places { version: VERSION, images: BTreeMap::new() }
    }
}

impl<P: Placed> Places<P> {
    /// Where the file of the snapshot in `dir` is.
    pub fn path(dir: &Path) -> PathBuf {
        dir.join(P::FILE)
    }

    /// The places of the snapshot in `dir`; none if there is no file.
    pub fn read(dir: &Path) -> Result<Places<P>, SnapshotError> {
        let path = Places::<P>::path(dir);
        let bytes = match fs::read(&path) {
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                return Ok(Places::default());
            }
            read => read.map_err(SnapshotError::io("read", &path))?,
        };
        let wrong = |problem: String| SnapshotError::Places {
            path: path.clone(),
            problem: format!("{problem}; {}", P::CURE),
        };
        let places: Places<P> = serde_json::from_slice(&bytes).map_err(|e| wrong(e.to_string()))?;
        if places.version != VERSION {
            let found = places.version;
            return Err(wrong(format!("its version is {found}, and this varve reads {VERSION}")));
        }
        for (image, place) in &places.images {
            place.check().map_err(|problem| wrong(format!("image {image}: {problem}")))?;
        }
        Ok(places)
    }

    /// Writes the file, whole or not at all; without images there is none.
    pub fn write(&self, dir: &Path) -> Result<(), SnapshotError> {
        let path = Places::<P>::path(dir);
        if self.images.is_empty() {
            return remove(&LocalFiles, &path);
        }
        let text = serde_json::to_vec_pretty(self)
            .map_err(|e| SnapshotError::Places { path: path.clone(), problem: e.to_string() })?;
        Staging::write_file(&LocalFiles, &path, &text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Place {
        at: u8,
    }

    impl Placed for Place {
        const FILE: &'static str = "there.json";
        const CURE: &'static str = "put it right";

        fn check(&self) -> Result<(), String> {
            if self.at < 10 { Ok(()) } else { Err("too far".into()) }
        }
    }

    #[test]
    fn the_file_comes_back_and_nonsense_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let read = || Places::<Place>::read(dir.path());
        let file = Places::<Place>::path(dir.path());
        assert_eq!(read().unwrap(), Places::default());
        let mut places = Places::default();
        places.images.insert("cold".into(), Place { at: 3 });
        places.write(dir.path()).unwrap();
        assert_eq!(read().unwrap(), places);
        for (text, said) in [
            ("{", "EOF"),
            (r#"{"version":2,"images":{}}"#, "version is 2"),
            (r#"{"version":1,"images":{},"more":1}"#, "more"),
            (r#"{"version":1,"images":{"ro":{"at":11}}}"#, "image ro: too far; put it right"),
        ] {
            fs::write(&file, text).unwrap();
            let error = read().unwrap_err().to_string();
            assert!(error.contains("there.json") && error.contains(said), "{error}");
        }
        Places::<Place>::default().write(dir.path()).unwrap();
        assert!(!file.exists(), "a file that says nothing");
        Places::<Place>::default().write(dir.path()).unwrap();
    }
}
