//! Published images as a restore uses them.

use std::collections::BTreeMap;
use std::fs::File;
use std::sync::Arc;

use varve_memory_tiers::{ImageInfo, ImageResolver, PageSource, SourceError};
use varve_snapshot::{Image, ImageEntry, ImageReader, ManifestReader, chain};

use crate::device::DeviceImage;
use crate::error::SharedError;
use crate::place::{Place, Places, fingerprint};
use crate::store::{Attached, open};

/// The published images of a snapshot that are to be had.
#[derive(Debug, Default)]
pub struct Published {
    images: BTreeMap<String, (Place, Attached)>,
}

impl Published {
    /// Attaches what a snapshot published. An image that is not there any more, or that the snapshot has
    /// another one of now, is warned of and comes from the snapshot's own file.
    pub fn attach(snapshot: &ManifestReader) -> Result<Published, SharedError> {
        let mut images = BTreeMap::new();
        for (name, place) in Places::read(snapshot.folder())?.images {
            let problem = match one(snapshot, &name, &place) {
                Ok(attached) => {
                    images.insert(name, (place, attached));
                    continue;
                }
                Err(problem) => problem,
            };
            log::warn!(
                "image {name} does not come from {}, but from the snapshot's own file: {problem} \
                 (varve tier publish puts it there again)",
                place.at
            );
        }
        Ok(Published { images })
    }

    fn of(&self, entry: &ImageEntry) -> Option<&(Place, Attached)> {
        self.images.get(&entry.name)
    }
}

/// Attaches one image, or says why that cannot be.
fn one(snapshot: &ManifestReader, name: &str, place: &Place) -> Result<Attached, String> {
    if !place.complete {
        return Err("publishing it was interrupted".into());
    }
    let entry = snapshot.images().iter().find(|entry| entry.name == name);
    // Nothing would notice the wrong pages where images are mapped.
    if entry.is_none_or(|entry| fingerprint(snapshot, entry) != place.image) {
        return Err("it was published before the snapshot was tiered anew".into());
    }
    if !place.at.is_mappable() && entry.is_none_or(|entry| !snapshot.proves(entry)) {
        return Err("the manifest has no digests to prove it by: tier the snapshot again".into());
    }
    let attached = open(&place.at).and_then(|store| store.attach(&place.key()));
    attached.map_err(|e| chain(&e))?.ok_or_else(|| "it is gone or revoked".into())
}

impl ImageResolver for Published {
    fn info(&self, entry: &ImageEntry, local: &ImageInfo) -> Option<ImageInfo> {
        let (place, _) = self.of(entry)?;
        let mappable = local.mappable && place.at.is_mappable();
        Some(ImageInfo { tier: place.at.tier(), mappable, ..local.clone() })
    }

    fn file(&self, entry: &ImageEntry) -> Option<std::io::Result<File>> {
        match self.of(entry)? {
            (_, Attached::File(file)) => Some(file.try_clone()),
            (_, Attached::Device(_)) => None,
        }
    }

    fn open(
        &self,
        image: &Image,
        info: &ImageInfo,
    ) -> Result<Option<Arc<dyn PageSource>>, SourceError> {
        let Some((place, Attached::Device(memory))) = self.of(&image.entry) else {
            return Ok(None);
        };
        let reader = ImageReader::over(image.clone(), place.at.to_string(), memory.clone());
        Ok(Some(Arc::new(DeviceSource { info: info.clone(), reader })))
    }
}

/// An image on a device: verified as it is read, never mapped into a guest.
#[derive(Debug)]
struct DeviceSource {
    info: ImageInfo,
    reader: ImageReader<DeviceImage>,
}

impl PageSource for DeviceSource {
    fn info(&self) -> &ImageInfo {
        &self.info
    }

    fn read(&self, first: u64, buffer: &mut [u8]) -> Result<(), SourceError> {
        Ok(self.reader.read_pages(first, buffer)?)
    }

    fn file(&self) -> Option<(&File, u64)> {
        None
    }
}
