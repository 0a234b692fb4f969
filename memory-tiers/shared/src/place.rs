//! Where a snapshot's images are published: what is written down of each, beside the manifest.

use serde::{Deserialize, Serialize};
use varve_snapshot::{Digest, ImageEntry, ManifestReader, Placed};

use crate::store::Key;
use crate::uri::Uri;

/// All images of a snapshot that are published.
pub type Places = varve_snapshot::Places<Place>;

/// Where one image is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Place {
    /// The store.
    pub at: Uri,
    /// Content hash of the image's file.
    pub digest: Digest,
    /// Its length.
    pub bytes: u64,
    /// What it was published as, by the manifest: another image of the same name differs.
    pub image: Digest,
    /// It is there: otherwise publishing did not end.
    pub complete: bool,
}

impl Placed for Place {
    const FILE: &'static str = "tiers.json";
    const CURE: &'static str =
        "restore with --tune local_files=true, or publish again after removing it";

    fn check(&self) -> Result<(), String> {
        Ok(())
    }
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
