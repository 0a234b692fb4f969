//! The manifest of a tiered snapshot: guest memory, images, and per restore strategy a layout that
//! says where each page is. Nothing here reads an image.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::container::{Builder, Container, Kind, ReadError};
use crate::digest::Digest;
use crate::error::{FormatError, SnapshotError};
use crate::image::{Image, ImageEntry, ImageReader};
use crate::image_writer::image_name;
use crate::manifest_codec::{self as codec, KNOWN};
use crate::page::PageRange;
use crate::region::{ImageId, RegionMap};
use crate::state::StateFile;
use crate::store::{Files, Staging, check_plain, open_beside};
use crate::trace::Mechanism;

/// Name of the file that makes a directory a tiered snapshot.
pub const MANIFEST_FILE: &str = "manifest";
/// Name of the file that makes a directory a flat snapshot.
pub const STATE_FILE: &str = "state";
/// Name of a flat snapshot's raw memory file, unless the state file names another.
pub const MEMORY_FILE: &str = "memory";

/// Name of the image of read-only pages.
pub const READ_ONLY_IMAGE: &str = "ro";
/// Name of the image of cold pages.
pub const COLD_IMAGE: &str = "cold";

/// Names of the layouts that `tier` makes.
pub mod layout {
    /// Every page that is not zero, from the raw memory file.
    pub const FLAT: &str = "flat";
    /// The working set in order of access from image `ws`, the rest from the raw memory file.
    pub const REAP: &str = "reap";
    /// The loading set from image `loading`, the rest from the raw memory file.
    pub const FAASNAP: &str = "faasnap";
    /// The four classes, from images `ro`, `rw` and `cold`.
    pub const TIERED: &str = "tiered";
    /// The four classes, from a file in guest layout: the raw memory file.
    pub const TEMPLATE: &str = "template";
    /// Those whose hot regions can be read alone.
    pub(super) const MAPPED: [&str; 2] = [TIERED, TEMPLATE];
}

/// A file that belongs to a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileRef {
    /// In the manifest's folder.
    pub file: String,
    /// Its length.
    pub bytes: u64,
    /// Its content.
    pub digest: Digest,
}

/// What the tiering was made from, for people and for planning.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Recorded {
    /// How accesses were seen.
    pub mechanism: Mechanism,
    /// Runs in the merged trace.
    pub runs: u32,
    /// Their invocations.
    pub invocations: u32,
    /// Pages of the trace that are in guest memory.
    pub touched: u64,
    /// Those of them that were written.
    pub written: u64,
    /// Pages of the trace that are not in guest memory: another machine's trace, if many.
    pub outside: u64,
    /// A page counted as hot if that many runs touched it.
    pub hot_runs: u32,
    /// Longest gap that was bridged, in pages.
    pub bridge_pages: u32,
    /// Shortest read-only extent, in pages.
    pub min_extent_pages: u32,
}

/// What a manifest says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// Version of varve that wrote it.
    pub vmm_version: String,
    /// The state file that goes with it.
    pub state: Option<FileRef>,
    /// Hash of the manifest that this one was made from.
    pub parent: Option<Digest>,
    /// Guest memory, by address.
    pub memory: Vec<PageRange>,
    /// The images; a [`ImageId`] is an index into them.
    pub images: Vec<Image>,
    /// Region maps by name.
    pub layouts: Vec<(String, RegionMap)>,
    /// What it was made from.
    pub recorded: Option<Recorded>,
}

impl Manifest {
    /// The region map of that name.
    pub fn layout(&self, name: &str) -> Option<&RegionMap> {
        self.layouts.iter().find(|l| l.0 == name).map(|l| &l.1)
    }

    /// Files in its folder that were made with it and belong to it alone: those that have the name that
    /// their content gives them. A manifest can name any file; no other may go with it.
    pub fn own_files(&self) -> Vec<String> {
        let own = |image: &Image| {
            let (entry, digest) = (&image.entry, image.entry.digest?);
            let plain = !entry.name.contains(['/', '\0']) && !entry.name.starts_with('.');
            (plain && entry.file == image_name(&entry.name, digest, entry.compression))
                .then(|| entry.file.clone())
        };
        // Names that `tier` gives to what comes from another folder.
        let hashed = |name: &&String| {
            let base = name.strip_suffix(".img").unwrap_or(name);
            let hash = base.strip_prefix("memory-").or(base.strip_prefix("state-"));
            let hash = hash.or(base.strip_prefix("store-"));
            hash.is_some_and(|h| h.len() == 16 && h.bytes().all(|b| b.is_ascii_hexdigit()))
        };
        let others =
            self.images.iter().map(|i| &i.entry.file).chain(self.state.iter().map(|s| &s.file));
        self.images.iter().filter_map(own).chain(others.filter(hashed).cloned()).collect()
    }

    /// The bytes of a manifest; refuses what no reader would accept.
    pub fn to_bytes(&self) -> Result<Vec<u8>, FormatError> {
        let mut file = Builder::new(Kind::Manifest);
        file.required(codec::INFO, codec::encode_info(self));
        let mut memory = crate::codec::Encoder::default();
        memory.ranges(&self.memory);
        file.required(codec::MEMORY, memory);
        file.required(codec::IMAGES, codec::encode_images(&self.images));
        file.required(codec::LAYOUTS, codec::encode_layouts(&self.layouts));
        if let Some(recorded) = &self.recorded {
            file.optional(codec::RECORDED, codec::encode_recorded(recorded));
        }
        for (image, at) in self.images.iter().zip(0..) {
            file.required(codec::chunks(at), image.chunks.encode());
            if let Some(digests) = &image.digests {
                file.optional(codec::digests(at), digests.encode());
            }
        }
        for ((name, map), at) in self.layouts.iter().zip(0..) {
            file.required(codec::regions(at), codec::encode_regions(name, map)?);
            if layout::MAPPED.contains(&name.as_str()) {
                file.optional(codec::hot_regions(at), codec::encode_regions(name, &map.hot())?);
            }
        }
        let bytes = file.finish();
        Self::from_bytes(&bytes).map(|_| bytes)
    }

    /// The manifest that a file's bytes say, all of it.
    pub fn from_bytes(bytes: &[u8]) -> Result<Manifest, FormatError> {
        let file = Container::from_bytes(Kind::Manifest, &KNOWN, bytes);
        file.and_then(|file| Self::decode(&file)).map_err(ReadError::in_memory)
    }

    fn decode(file: &Container) -> Result<Manifest, ReadError> {
        file.check_all()?;
        let head = Head::decode(file)?;
        let images = head.images.iter().zip(0..).map(|(entry, at)| {
            let chunks = codec::decode_chunks(file, entry, at)?;
            let digests = codec::decode_digests(file, entry, at)?;
            Ok(Image { entry: entry.clone(), chunks, digests })
        });
        let images = images.collect::<Result<_, ReadError>>()?;
        let layouts = head.layouts.iter().zip(0..).map(|(name, at)| {
            let map = codec::decode_regions(file, name, at, &head)?;
            let hot = codec::decode_hot_regions(file, name, at, &head)?;
            if hot.is_some_and(|hot| hot != map.hot()) {
                return Err(FormatError::HotRegions { layout: name.clone() }.into());
            }
            Ok((name.clone(), map))
        });
        let layouts = layouts.collect::<Result<_, ReadError>>()?;
        let Head { vmm_version, state, parent, memory, recorded, .. } = head;
        Ok(Manifest { vmm_version, state, parent, memory, images, layouts, recorded })
    }

    /// Writes the manifest to a file, whole or not at all.
    pub fn write(&self, files: &dyn Files, path: &Path) -> Result<(), SnapshotError> {
        let bytes = self.to_bytes().map_err(SnapshotError::format(path))?;
        Staging::write_file(files, path, &bytes)
    }

    /// Reads a manifest, all of it.
    pub fn read(path: &Path) -> Result<Manifest, SnapshotError> {
        let bytes = fs::read(path).map_err(SnapshotError::io("read", path))?;
        Self::from_bytes(&bytes).map_err(SnapshotError::format(path))
    }
}

/// All of a manifest but its large tables.
pub(crate) struct Head {
    pub vmm_version: String,
    pub state: Option<FileRef>,
    pub parent: Option<Digest>,
    pub memory: Vec<PageRange>,
    pub images: Vec<ImageEntry>,
    pub layouts: Vec<String>,
    pub recorded: Option<Recorded>,
}

impl Head {
    fn decode(file: &Container) -> Result<Head, ReadError> {
        let (vmm_version, state, parent) = codec::decode_info(file)?;
        Ok(Head {
            vmm_version,
            state,
            parent,
            memory: codec::decode_memory(file)?,
            images: codec::decode_images(file)?,
            layouts: codec::decode_layouts(file)?,
            recorded: codec::decode_recorded(file)?,
        })
    }
}

/// An open manifest: layouts and chunk tables are read when they are asked for, so that what a
/// restore reads depends on its strategy and not on the size of the guest.
pub struct ManifestReader {
    path: PathBuf,
    file: Container<'static>,
    head: Head,
}

impl ManifestReader {
    /// Opens a manifest, or the one in a directory.
    pub fn open(path: &Path) -> Result<ManifestReader, SnapshotError> {
        let path = if path.is_dir() { path.join(MANIFEST_FILE) } else { path.to_owned() };
        let file = File::open(&path).map_err(SnapshotError::io("open manifest", &path))?;
        let file = Container::from_file(Kind::Manifest, &KNOWN, file).map_err(|e| e.at(&path))?;
        let head = Head::decode(&file).map_err(|e| e.at(&path))?;
        Ok(ManifestReader { path, file, head })
    }

    /// Version of varve that wrote it.
    pub fn vmm_version(&self) -> &str {
        &self.head.vmm_version
    }

    /// The state file that goes with it.
    pub fn state(&self) -> Option<&FileRef> {
        self.head.state.as_ref()
    }

    /// Where the state file is.
    pub fn state_path(&self) -> Option<PathBuf> {
        self.head.state.as_ref().map(|s| self.folder().join(&s.file))
    }

    /// Reads the state file, which must be the one that the snapshot was tiered with, for the same
    /// memory.
    pub fn read_state(&self) -> Result<StateFile, SnapshotError> {
        let path = self.state_path().ok_or_else(|| self.stateless())?;
        check_plain(&self.state().ok_or_else(|| self.stateless())?.file, &path)?;
        let mut bytes = Vec::new();
        open_beside(&path)?.read_to_end(&mut bytes).map_err(SnapshotError::io("read", &path))?;
        self.read_state_from(&bytes, &path)
    }

    /// The same from a copy of it at `path`.
    pub fn read_state_at(&self, path: &Path) -> Result<StateFile, SnapshotError> {
        let bytes = fs::read(path).map_err(SnapshotError::io("read", path))?;
        self.read_state_from(&bytes, path)
    }

    fn read_state_from(&self, bytes: &[u8], path: &Path) -> Result<StateFile, SnapshotError> {
        let stated = self.state().ok_or_else(|| self.stateless())?;
        let state = StateFile::from_bytes(bytes).map_err(SnapshotError::format(path))?;
        if Digest::of(bytes) != stated.digest {
            return Err(SnapshotError::Changed { path: path.into(), what: "content" });
        }
        if state.memory != self.head.memory {
            return Err(SnapshotError::Changed {
                path: path.into(),
                what: "list of memory ranges",
            });
        }
        Ok(state)
    }

    fn stateless(&self) -> SnapshotError {
        SnapshotError::format(&self.path)(FormatError::MissingSection { section: "state file" })
    }

    /// Guest memory, by address.
    pub fn memory(&self) -> &[PageRange] {
        &self.head.memory
    }

    /// The images; a [`ImageId`] is an index into them.
    pub fn images(&self) -> &[ImageEntry] {
        &self.head.images
    }

    /// Names of the layouts.
    pub fn layouts(&self) -> &[String] {
        &self.head.layouts
    }

    /// What it was made from.
    pub fn recorded(&self) -> Option<&Recorded> {
        self.head.recorded.as_ref()
    }

    /// The folder that relative names start from.
    pub fn folder(&self) -> &Path {
        crate::store::folder(&self.path)
    }

    /// The region map of that name: checked, each stored page inside its image.
    pub fn layout(&self, name: &str) -> Result<RegionMap, SnapshotError> {
        let (at, path) = (self.number(name)?, &self.path);
        codec::decode_regions(&self.file, name, at, &self.head).map_err(|e| e.at(path))
    }

    /// Its hot regions, checked in the same way: as many as there are hot extents, however large the
    /// guest is. None if they are not listed apart.
    pub fn hot_regions(&self, name: &str) -> Result<Option<RegionMap>, SnapshotError> {
        let (at, path) = (self.number(name)?, &self.path);
        codec::decode_hot_regions(&self.file, name, at, &self.head).map_err(|e| e.at(path))
    }

    fn number(&self, layout: &str) -> Result<u16, SnapshotError> {
        let at = self.head.layouts.iter().position(|l| l == layout);
        at.and_then(|at| u16::try_from(at).ok()).ok_or_else(|| {
            let (path, known) = (self.path.clone(), self.head.layouts.join(", "));
            SnapshotError::NoLayout { path, layout: layout.into(), known }
        })
    }

    /// The image of that number: what it is, its chunks and what proves them, for bytes that come from
    /// elsewhere.
    pub fn image_table(&self, id: ImageId) -> Result<Image, SnapshotError> {
        let mut image = self.local_table(id)?;
        let digests = codec::decode_digests(&self.file, &image.entry, id.0);
        image.digests = digests.map_err(|e| e.at(&self.path))?;
        Ok(image)
    }

    /// The same without digests: the local file is as trusted as the manifest beside it.
    fn local_table(&self, id: ImageId) -> Result<Image, SnapshotError> {
        let entry = self.entry(id)?;
        let chunks = codec::decode_chunks(&self.file, entry, id.0).map_err(|e| e.at(&self.path))?;
        Ok(Image { entry: entry.clone(), chunks, digests: None })
    }

    /// Whether the manifest has digests that prove the chunks of an image: those of format 1.2 have.
    pub fn proves(&self, image: &ImageEntry) -> bool {
        let at = self.head.images.iter().position(|i| i.name == image.name);
        let at = at.and_then(|at| u16::try_from(at).ok());
        at.is_some_and(|at| self.file.has(codec::digests(at)))
    }

    /// What the manifest says of the image of that number.
    pub fn entry(&self, id: ImageId) -> Result<&ImageEntry, SnapshotError> {
        self.head.images.get(usize::from(id.0)).ok_or_else(|| {
            let value = id.0.to_string();
            let wanted = "not one of the manifest's";
            let source = FormatError::Value { section: "images", field: "image", value, wanted };
            SnapshotError::format(&self.path)(source)
        })
    }

    /// What the manifest says of the image of that name.
    pub fn named(&self, name: &str) -> Result<&ImageEntry, SnapshotError> {
        self.head.images.iter().find(|image| image.name == name).ok_or_else(|| {
            let names: Vec<_> = self.head.images.iter().map(|i| i.name.as_str()).collect();
            let (path, known) = (self.path.clone(), names.join(", "));
            SnapshotError::NoImage { path, image: name.into(), known }
        })
    }

    /// Where the file of an image is, for those who open it by themselves.
    ///
    /// # Errors
    ///
    /// The manifest names a file outside of its folder, or one that is not there.
    pub fn image_path(&self, entry: &ImageEntry) -> Result<PathBuf, SnapshotError> {
        entry.open(self.folder()).map(|_| entry.path(self.folder()))
    }

    /// The file of the image of that number, for whoever maps it: its checksums, as many as the guest
    /// is large, are not read.
    pub fn image_file(&self, id: ImageId) -> Result<File, SnapshotError> {
        self.entry(id)?.open(self.folder())
    }

    /// The image of that number, its file open.
    pub fn image(&self, id: ImageId) -> Result<ImageReader, SnapshotError> {
        ImageReader::open(self.folder(), self.local_table(id)?)
    }

    /// The same, each chunk that is read proven by its digest too, where the manifest has one.
    ///
    /// # Errors
    ///
    /// If the manifest's tables or the file cannot be read.
    pub fn proven_image(&self, id: ImageId) -> Result<ImageReader, SnapshotError> {
        ImageReader::open(self.folder(), self.image_table(id)?)
    }
}
