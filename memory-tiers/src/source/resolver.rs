//! Where images are that do not come from the snapshot's own files.

use std::fs::File;
use std::io;
use std::sync::Arc;

use varve_snapshot::{Image, ImageEntry};

use crate::plan::image::ImageInfo;
use crate::source::images::image_info;
use crate::source::page_source::{PageSource, SourceError};

/// Where images are that are not used from the snapshot's own files.
pub trait ImageResolver {
    /// What a plan has to know of an image, given what it would be as a local file; none if it is not
    /// there.
    fn info(&self, entry: &ImageEntry, local: &ImageInfo) -> Option<ImageInfo>;

    /// Another file with the image's bytes, if that is what it is in.
    fn file(&self, _entry: &ImageEntry) -> Option<io::Result<File>> {
        None
    }

    /// Opens the image, if it is there and in no file.
    fn open(
        &self,
        _image: &Image,
        _info: &ImageInfo,
    ) -> Result<Option<Arc<dyn PageSource>>, SourceError> {
        Ok(None)
    }
}

/// All images are local files.
impl ImageResolver for () {
    fn info(&self, _entry: &ImageEntry, _local: &ImageInfo) -> Option<ImageInfo> {
        None
    }
}

/// Several places side by side: each image comes from the first that has it, or from its local file.
impl ImageResolver for Vec<Box<dyn ImageResolver>> {
    fn info(&self, entry: &ImageEntry, local: &ImageInfo) -> Option<ImageInfo> {
        self.iter().find_map(|place| place.info(entry, local))
    }

    fn file(&self, entry: &ImageEntry) -> Option<io::Result<File>> {
        let local = image_info(entry);
        self.iter().find(|place| place.info(entry, &local).is_some())?.file(entry)
    }

    fn open(
        &self,
        image: &Image,
        info: &ImageInfo,
    ) -> Result<Option<Arc<dyn PageSource>>, SourceError> {
        let local = image_info(&image.entry);
        let place = self.iter().find(|place| place.info(&image.entry, &local).is_some());
        place.map_or(Ok(None), |place| place.open(image, info))
    }
}
