//! Publishing images of snapshots, taking that back, and freeing what nobody uses.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use varve_snapshot::{Digest, ImageEntry, ManifestReader};

use crate::error::SharedError;
use crate::ledger::{self, Ledger};
use crate::place::{Place, Places, fingerprint};
use crate::store::{Freed, Held, Key, open};
use crate::uri::Uri;

/// Puts an image of a snapshot into a store, unless it is there already, and writes down in the
/// snapshot's folder that it is. Doing it again after it was interrupted, at any point, finishes it.
///
/// `progress` is told of the bytes that are there.
///
/// # Errors
///
/// If the image or the store cannot be read or written, or if the manifest cannot prove an image that
/// is to be on a device.
pub fn publish(
    snapshot: &ManifestReader,
    entry: &ImageEntry,
    to: &Uri,
    mut progress: impl FnMut(u64),
) -> Result<Place, SharedError> {
    let dir = absolute(snapshot.folder())?;
    if !to.is_mappable() && !snapshot.proves(entry) {
        let problem = format!(
            "its manifest has no digests to prove image {} by, as a varve before format 1.2 wrote it: \
             tier the snapshot again",
            entry.name
        );
        return Err(SharedError::place(dir.display(), problem));
    }
    let path = snapshot.image_path(entry)?;
    let file = File::open(&path).map_err(SharedError::io("open image", &path))?;
    // A store's file that others share may have grown since.
    let digest = Digest::of_reader((&file).take(entry.bytes));
    let digest = digest.map_err(SharedError::io("read", &path))?;
    let mut place = Place {
        at: to.clone(),
        digest,
        bytes: entry.bytes,
        image: fingerprint(snapshot, entry),
        complete: false,
    };
    let store = open(to)?;

    let mut places = Places::read(&dir)?;
    // What an earlier publication keeps is let go when the new one stands.
    let before = places.images.insert(entry.name.clone(), place.clone());
    places.write(&dir)?;
    let ledger = Ledger::lock(to.ledger())?;
    let mut users = ledger.users(&digest)?;
    if !users.contains(&dir) {
        users.push(dir.clone());
        ledger.set(&digest, users)?;
    }
    store.put(&place.key(), &file, &mut progress)?;
    place.complete = true;
    places.images.insert(entry.name.clone(), place.clone());
    places.write(&dir)?;
    drop(ledger);
    if let Some(before) = before.filter(|b| (&b.at, b.digest) != (to, digest)) {
        let still =
            places.images.values().any(|p| (&p.at, p.digest) == (&before.at, before.digest));
        if !still && let Err(e) = release(&dir, &before) {
            log::warn!("{} may keep an image that nobody uses: {e}", before.at);
        }
    }
    Ok(place)
}

/// What became of an image whose publication was taken back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revoked {
    /// The image's name.
    pub image: String,
    /// Where it was.
    pub at: Uri,
    /// Other snapshots that use it there.
    pub snapshots: usize,
    /// Whether it is freed, if there are none.
    pub freed: Freed,
}

/// Takes back what the snapshot in `dir` published: restores find its own files again. What no other
/// snapshot uses is freed at once or, if machines use it, by [`gc`] when they are gone.
pub fn revoke(dir: &Path, images: &[String]) -> Result<Vec<Revoked>, SharedError> {
    let dir = absolute(dir)?;
    let mut places = Places::read(&dir)?;
    let wanted = |name: &String| images.is_empty() || images.contains(name);
    let (gone, kept) = places.images.into_iter().partition(|(name, _)| wanted(name));
    places.images = kept;
    // First nobody is told of it any more, then it goes.
    places.write(&dir)?;
    let gone: std::collections::BTreeMap<String, Place> = gone;
    let mut revoked = Vec::new();
    for (image, place) in gone {
        let shared = places.images.values().any(|p| (&p.at, p.digest) == (&place.at, place.digest));
        let (snapshots, freed) = match shared {
            true => (1, Freed::Yes),
            false => release(&dir, &place)?,
        };
        revoked.push(Revoked { image, at: place.at, snapshots, freed });
    }
    Ok(revoked)
}

/// The snapshot in `dir` uses an image no longer: how many others do, and whether it is freed.
fn release(dir: &Path, place: &Place) -> Result<(usize, Freed), SharedError> {
    let store = open(&place.at)?;
    let ledger = Ledger::lock(place.at.ledger())?;
    let mut users = ledger.users(&place.digest)?;
    users.retain(|user| user != dir);
    let left = users.len();
    ledger.set(&place.digest, users)?;
    if left > 0 {
        return Ok((left, Freed::Yes));
    }
    store.retire(&place.key())?;
    Ok((0, store.free(&place.key())?))
}

/// What a collection did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Images that are freed.
    pub freed: Vec<Key>,
    /// Images that wait for their users, and who these are.
    pub in_use: Vec<(Key, String)>,
    /// Snapshots that are gone, or do not say that they use an image.
    pub forgotten: Vec<PathBuf>,
    /// Things that killed processes had left half-way.
    pub cleaned: usize,
}

/// Frees what neither a snapshot nor a machine uses, and what killed processes left.
pub fn gc(uri: &Uri) -> Result<Collected, SharedError> {
    let store = open(uri)?;
    let mut done = Collected::default();
    let ledger = Ledger::lock(uri.ledger())?;
    for digest in ledger.images()? {
        let (kept, gone): (Vec<_>, _) =
            ledger.users(&digest)?.into_iter().partition(|dir| uses(dir, uri, &digest));
        done.forgotten.extend(gone);
        ledger.set(&digest, kept)?;
    }
    done.forgotten.sort_unstable();
    done.forgotten.dedup();
    done.cleaned = ledger.clean()? + store.clean()?;
    for Held { key, published, .. } in store.list()? {
        if published && ledger.users(&key.digest)?.is_empty() {
            store.retire(&key)?;
        } else if published {
            continue;
        }
        match store.free(&key)? {
            Freed::Yes => done.freed.push(key),
            Freed::InUse(by) => done.in_use.push((key, by)),
        }
    }
    Ok(done)
}

/// Whether the snapshot in `dir` says that it has an image in a store. Nobody publishes meanwhile: what
/// is not complete never will be.
fn uses(dir: &Path, uri: &Uri, digest: &Digest) -> bool {
    match Places::read(dir) {
        Ok(places) => {
            places.images.values().any(|p| p.complete && (&p.at, &p.digest) == (uri, digest))
        }
        // What it says cannot be read: freeing is for when it can.
        Err(e) => {
            log::warn!("{e}");
            true
        }
    }
}

/// An image of a store, with all its users.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// The image.
    pub held: Held,
    /// Snapshots that published it.
    pub snapshots: Vec<PathBuf>,
}

/// What a store keeps.
pub fn status(uri: &Uri) -> Result<Vec<Status>, SharedError> {
    let with_users = |held: Held| {
        let snapshots = ledger::users_in(uri.ledger(), &held.key.digest)?;
        Ok(Status { held, snapshots })
    };
    open(uri)?.list()?.into_iter().map(with_users).collect()
}

fn absolute(dir: &Path) -> Result<PathBuf, SharedError> {
    fs::canonicalize(dir).map_err(SharedError::io("find", dir))
}
