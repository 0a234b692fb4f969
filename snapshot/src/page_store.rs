//! A store of read-only pages that the snapshots of several functions share: one image that only
//! grows, and an index of what is in it. Functions that have pages in common map the same ones.

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::chunk::{ChunkTable, Compression, DEFAULT_CHUNK_PAGES};
use crate::chunk_digest::{ChunkDigest, ChunkDigests};
use crate::codec::{Decoder, Encoder};
use crate::container::{Builder, Container, Kind, ReadError, SectionId};
use crate::digest::Digest;
use crate::error::{FormatError, SnapshotError};
use crate::image::{Image, ImageEntry};
use crate::image_writer::is_zero;
use crate::page::PAGE_SIZE;
use crate::store::{Files, NewFile, Staging, clean, there};

const PAGES: SectionId = SectionId::new(1, 0);
const CHUNKS: SectionId = SectionId::new(2, 0);
const DIGESTS: SectionId = SectionId::new(3, 0);
const KNOWN: [u16; 3] = [1, 2, 3];
const IMAGE_FILE: &str = "pages.img";
const INDEX_FILE: &str = "index";
const LOCK_FILE: &str = "lock";
/// Shorter runs of pages that are there already are stored once more: each run is an extent, and an
/// extent costs more than some pages do.
const MIN_RUN: usize = 4;
const CHUNK: usize = DEFAULT_CHUNK_PAGES as usize * PAGE_SIZE as usize;

/// A store, locked: one process adds to it at a time.
pub struct PageStore {
    dir: PathBuf,
    _lock: File,
    image: Box<dyn NewFile>,
    reader: File,
    /// Content of each page, and where it stands first.
    pages: Vec<Digest>,
    places: HashMap<Digest, u64>,
    crcs: Vec<u32>,
    digests: ChunkDigests,
    /// Pages of the chunk that is not full yet.
    tail: Vec<u8>,
    /// Pages added.
    added: u64,
}

/// Pages that follow one another in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Placed {
    pub page: u64,
    pub count: u64,
}

impl PageStore {
    /// Opens the store in `dir`, or makes one; waits while another process adds to it.
    pub fn open(files: &dyn Files, dir: &Path) -> Result<PageStore, SnapshotError> {
        files.create_dir(dir).map_err(SnapshotError::io("create folder", dir))?;
        let path = dir.join(LOCK_FILE);
        let lock = File::options().create(true).truncate(false).write(true).open(&path);
        let lock = lock.map_err(SnapshotError::io("open", &path))?;
        lock.lock().map_err(SnapshotError::io("lock", &path))?;
        clean(dir)?;
        let path = dir.join(INDEX_FILE);
        let Index { pages, crcs, digests } = match fs::read(&path) {
            Ok(bytes) => decode(&bytes).map_err(SnapshotError::format(&path))?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Default::default(),
            Err(e) => return Err(SnapshotError::io("read", &path)(e)),
        };
        let path = dir.join(IMAGE_FILE);
        let image = if there(&path)? { files.open(&path) } else { files.create(&path) };
        let image = image.map_err(SnapshotError::io("open", &path))?;
        let reader = File::open(&path).map_err(SnapshotError::io("open", &path))?;
        let found = reader.metadata().map_err(SnapshotError::io("look at", &path))?.len();
        let stated = pages.len() as u64 * PAGE_SIZE;
        // What a killed process appended after the last index is written over.
        if found < stated {
            return Err(SnapshotError::ImageSize { image: "store".into(), path, found, stated });
        }
        let mut places = HashMap::with_capacity(pages.len());
        for (digest, at) in pages.iter().zip(0..) {
            places.entry(*digest).or_insert(at);
        }
        // An index of before version 1.2 has none.
        let digests = match digests {
            Some(digests) => digests,
            None => digests_of(&reader, &crcs).map_err(SnapshotError::io("read", &path))?,
        };
        let (dir, tail) = (dir.to_owned(), Vec::new());
        Ok(PageStore {
            dir,
            _lock: lock,
            image,
            reader,
            pages,
            places,
            crcs,
            digests,
            tail,
            added: 0,
        })
    }

    /// Where its image is.
    pub fn image_path(&self) -> PathBuf {
        self.dir.join(IMAGE_FILE)
    }

    /// Pages added since it was opened.
    pub fn added(&self) -> u64 {
        self.added
    }

    /// Finds or adds pages that follow one another in the guest; where they are, in order.
    pub(crate) fn place(&mut self, bytes: &[u8]) -> Result<Vec<Placed>, SnapshotError> {
        let (all, _) = bytes.as_chunks::<{ PAGE_SIZE as usize }>();
        let digests: Vec<Digest> = all.iter().map(|page| Digest::of(page)).collect();
        let mut placed: Vec<Placed> = Vec::new();
        let mut at = 0;
        while at < all.len() {
            let (page, count) = match self.stored_run(&all[at..], &digests[at..])? {
                Some((page, count)) if count >= MIN_RUN || count == all.len() => (page, count),
                _ => (self.add(&all[at], digests[at])?, 1),
            };
            let count = count as u64;
            match placed.last_mut() {
                Some(last) if last.page + last.count == page => last.count += count,
                _ => placed.push(Placed { page, count }),
            }
            at += count as usize;
        }
        Ok(placed)
    }

    /// The longest run of these pages from the first on that stands in the store. Content is compared,
    /// whatever the index says.
    fn stored_run(
        &self,
        pages: &[[u8; PAGE_SIZE as usize]],
        digests: &[Digest],
    ) -> Result<Option<(u64, usize)>, SnapshotError> {
        let Some(&first) = digests.first().and_then(|d| self.places.get(d)) else {
            return Ok(None);
        };
        // Only full chunks are in the file, and have a checksum.
        let stored = &self.pages[..self.crcs.len() * DEFAULT_CHUNK_PAGES as usize];
        let there = stored.get(first as usize..).unwrap_or_default();
        let run = there.iter().zip(digests).take_while(|(a, b)| a == b).count();
        let mut found = vec![0; run * PAGE_SIZE as usize];
        let path = self.image_path();
        self.reader
            .read_exact_at(&mut found, first * PAGE_SIZE)
            .map_err(SnapshotError::io("read", &path))?;
        let same = |(a, b): &(&[u8], &[u8; PAGE_SIZE as usize])| *a == b.as_slice();
        let same = found.chunks(PAGE_SIZE as usize).zip(pages).take_while(same).count();
        Ok((same > 0).then_some((first, same)))
    }

    fn add(&mut self, page: &[u8], digest: Digest) -> Result<u64, SnapshotError> {
        let at = self.pages.len() as u64;
        self.pages.push(digest);
        self.places.entry(digest).or_insert(at);
        self.added += 1;
        self.tail.extend_from_slice(page);
        if self.tail.len() == CHUNK {
            self.flush()?;
        }
        Ok(at)
    }

    fn flush(&mut self) -> Result<(), SnapshotError> {
        let offset = self.crcs.len() as u64 * CHUNK as u64;
        self.crcs.push(crc32c::crc32c(&self.tail));
        self.digests.push(ChunkDigest::of(&self.tail));
        // What a killed process left there is written over, with zeros too.
        let path = self.image_path();
        self.image.write_at(&self.tail, offset).map_err(SnapshotError::io("write", &path))?;
        self.tail.clear();
        Ok(())
    }

    /// Makes what was added durable, stages the new index, and returns the image as manifests name
    /// it. The last chunk is filled up, so that its checksum stays when more is added.
    pub(crate) fn finish(
        &mut self,
        staging: &mut Staging,
        name: &str,
        file: String,
    ) -> Result<Image, SnapshotError> {
        while !self.tail.is_empty() {
            let zero = [0; PAGE_SIZE as usize];
            debug_assert!(is_zero(&zero));
            self.add(&zero, Digest::of(&zero))?;
            self.added -= 1;
        }
        let path = self.image_path();
        let bytes = self.pages.len() as u64 * PAGE_SIZE;
        let durable = self.image.set_len(bytes).and_then(|()| self.image.sync());
        durable.map_err(SnapshotError::io("sync", &path))?;
        let index = staging.create(&self.dir.join(INDEX_FILE))?;
        staging.put(index, &encode(&self.pages, &self.crcs, &self.digests), 0)?;
        let entry = ImageEntry {
            name: name.into(),
            file,
            pages: self.pages.len() as u64,
            bytes,
            chunk_pages: DEFAULT_CHUNK_PAGES,
            compression: Compression::None,
            shared: true,
            digest: None,
        };
        let chunks = ChunkTable::Plain(self.crcs.clone());
        Ok(Image { entry, chunks, digests: Some(self.digests.clone()) })
    }
}

/// What the index says.
#[derive(Default)]
struct Index {
    pages: Vec<Digest>,
    crcs: Vec<u32>,
    digests: Option<ChunkDigests>,
}

/// Digests of chunks that are in the store already; each must have its checksum.
fn digests_of(image: &File, crcs: &[u32]) -> std::io::Result<ChunkDigests> {
    let mut digests = ChunkDigests::default();
    let mut chunk = vec![0; CHUNK];
    for (&crc, at) in crcs.iter().zip(0u64..) {
        image.read_exact_at(&mut chunk, at * CHUNK as u64)?;
        if crc32c::crc32c(&chunk) != crc {
            let problem = format!("chunk {at} is damaged: remove the store and tier again");
            return Err(std::io::Error::other(problem));
        }
        digests.push(ChunkDigest::of(&chunk));
    }
    Ok(digests)
}

fn encode(pages: &[Digest], crcs: &[u32], chunks: &ChunkDigests) -> Vec<u8> {
    let mut digests = Encoder::default();
    digests.count(pages.len());
    pages.iter().for_each(|d| digests.0.extend(d.0));
    let mut file = Builder::new(Kind::Index);
    file.required(PAGES, digests);
    file.required(CHUNKS, ChunkTable::Plain(crcs.to_vec()).encode());
    file.optional(DIGESTS, chunks.encode());
    file.finish()
}

fn decode(bytes: &[u8]) -> Result<Index, FormatError> {
    let read = || -> Result<_, ReadError> {
        let file = Container::from_bytes(Kind::Index, &KNOWN, bytes)?;
        file.check_all()?;
        let body = file.required(PAGES, "pages")?;
        let mut d = Decoder::new("pages", &body);
        let pages: Vec<Digest> = d.records("pages")?.iter().map(|&r| Digest(r)).collect();
        d.end()?;
        let body = file.required(CHUNKS, "chunks")?;
        let n = pages.len() as u64;
        let table = ChunkTable::decode(&body, Compression::None, n, DEFAULT_CHUNK_PAGES, 0)?;
        match table {
            ChunkTable::Plain(crcs) if pages.len() == crcs.len() * DEFAULT_CHUNK_PAGES as usize => {
                let digests = file.optional(DIGESTS)?;
                let digests = digests.map(|body| ChunkDigests::decode(&body, crcs.len()));
                Ok(Index { pages, crcs, digests: digests.transpose()? })
            }
            _ => {
                let d = Decoder::new("pages", &[]);
                Err(d.value("number", n.to_string(), "not a whole number of chunks").into())
            }
        }
    };
    read().map_err(ReadError::in_memory)
}
