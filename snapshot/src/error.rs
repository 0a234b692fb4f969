//! What can be wrong with a snapshot. Says what and where; what to do about a VM is the caller's.

use std::io;
use std::path::{Path, PathBuf};

use crate::chunk_digest::ChunkDigest;
use crate::page::PageRangeError;
use crate::region::RegionError;

/// What is wrong with the bytes of a metadata file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// Too short to hold a header, or of another kind.
    #[error("not a varve {expected} file: it begins with {found:02x?}")]
    Magic {
        /// The kind asked for.
        expected: &'static str,
        /// The first bytes, up to eight.
        found: Vec<u8>,
    },
    /// Written by a later varve, in a way that this one does not know.
    #[error(
        "format version {major}.{minor} is newer than the {supported}.x that this varve reads: use the varve that wrote it, or a later one"
    )]
    Newer {
        /// Major version of the file.
        major: u16,
        /// Minor version of the file.
        minor: u16,
        /// The major version known here.
        supported: u16,
    },
    /// Major version zero was never written.
    #[error("format version 0 does not exist: the file is damaged")]
    NoVersion,
    /// The file is not as long as it says.
    #[error("{found} bytes, but the header says {stated}: the file was cut short or appended to")]
    Length {
        /// Bytes that are there.
        found: u64,
        /// Bytes that the header states.
        stated: u64,
    },
    /// The section table cannot be inside the file.
    #[error("{sections} sections do not fit in {length} bytes")]
    TableSize {
        /// Number of sections stated.
        sections: u32,
        /// Length of the file.
        length: u64,
    },
    /// Header or section table was changed.
    #[error(
        "checksum of header and section table is {found:#010x}, not {stated:#010x}: the file is damaged"
    )]
    HeaderChecksum {
        /// As stored.
        stated: u32,
        /// As computed.
        found: u32,
    },
    /// The section table contradicts itself.
    #[error("section table: section {section} {what}")]
    Table {
        /// Which, as `kind.index`.
        section: String,
        /// What is wrong with it.
        what: &'static str,
    },
    /// A section that must be understood is not known here.
    #[error(
        "section {section} is required and not known to this varve: use the varve that wrote the file, or a later one"
    )]
    UnknownRequired {
        /// Which, as `kind.index`.
        section: String,
    },
    /// A section that must be there is not.
    #[error("section {section} is missing")]
    MissingSection {
        /// Which, by name.
        section: &'static str,
    },
    /// A section was changed.
    #[error(
        "section {section}: checksum is {found:#010x}, not {stated:#010x}: the file is damaged"
    )]
    SectionChecksum {
        /// Which, as `kind.index`.
        section: String,
        /// As stored.
        stated: u32,
        /// As computed.
        found: u32,
    },
    /// A section ends inside a field.
    #[error("section {section} ends inside {field}")]
    Truncated {
        /// Section, by name.
        section: &'static str,
        /// The field.
        field: &'static str,
    },
    /// A section goes on after its last field.
    #[error("section {section} has {bytes} trailing bytes")]
    Trailing {
        /// Section, by name.
        section: &'static str,
        /// How many.
        bytes: usize,
    },
    /// A field has a value that means nothing.
    #[error("section {section}: {field} is {value}, {wanted}")]
    Value {
        /// Section, by name.
        section: &'static str,
        /// The field.
        field: &'static str,
        /// Its value.
        value: String,
        /// What it should have been.
        wanted: &'static str,
    },
    /// Not a page range.
    #[error("section {section}: {source}")]
    Range {
        /// Section, by name.
        section: &'static str,
        /// Why.
        source: PageRangeError,
    },
    /// Not a partition of guest memory.
    #[error("layout {layout:?}: {source}")]
    Layout {
        /// Name of the layout.
        layout: String,
        /// Why.
        source: RegionError,
    },
    /// A layout's hot regions are listed apart, and are others.
    #[error("layout {layout:?}: its list of hot regions does not match its regions")]
    HotRegions {
        /// Name of the layout.
        layout: String,
    },
}

/// What can go wrong with a snapshot's files.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The operating system refused.
    #[error("cannot {action} {p}", p = .path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// To which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A metadata file is damaged, of another kind or newer.
    #[error("{p} cannot be used", p = .path.display())]
    Format {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        source: FormatError,
    },
    /// An image is not as long as the manifest says.
    #[error("image {image:?} ({p}) has {found} bytes, the manifest says {stated}", p = .path.display())]
    ImageSize {
        /// Name of the image.
        image: String,
        /// Its file.
        path: PathBuf,
        /// Bytes that are there.
        found: u64,
        /// Bytes that the manifest states.
        stated: u64,
    },
    /// Stored bytes of an image were changed.
    #[error("image {image:?} ({p}), chunk {chunk} (its page {page}): {cause}", p = .path.display())]
    Chunk {
        /// Name of the image.
        image: String,
        /// Its file.
        path: PathBuf,
        /// Index of the chunk.
        chunk: u64,
        /// First page of the chunk, inside the image.
        page: u64,
        /// What is wrong with it.
        cause: ChunkFault,
    },
    /// Pages were asked for that the image does not have.
    #[error("image {image:?} has {pages} pages, but pages {first}+{count} were asked for")]
    OutsideImage {
        /// Name of the image.
        image: String,
        /// Number of its pages.
        pages: u64,
        /// First page asked for.
        first: u64,
        /// Number of pages asked for.
        count: u64,
    },
    /// The manifest has no such layout.
    #[error("{p} has no layout {layout:?}: it has {known}", p = .path.display())]
    NoLayout {
        /// The manifest.
        path: PathBuf,
        /// What was asked for.
        layout: String,
        /// Those it has.
        known: String,
    },
    /// Another file that belongs to the snapshot is not what the manifest says.
    #[error("{p} is not the file that the manifest was made with: its {what} differs; tier the snapshot again", p = .path.display())]
    Changed {
        /// The file.
        path: PathBuf,
        /// What of it.
        what: &'static str,
    },
    /// The raw memory file does not fit the memory of the machine.
    #[error("memory file {p} has {found} bytes, but the machine has {wanted} bytes of memory", p = .path.display())]
    MemorySize {
        /// The file.
        path: PathBuf,
        /// Its length.
        found: u64,
        /// Bytes of guest memory.
        wanted: u64,
    },
    /// The manifest has no such image.
    #[error("{p} has no image {image:?}, but {known}", p = .path.display())]
    NoImage {
        /// The manifest.
        path: PathBuf,
        /// What was asked for.
        image: String,
        /// Those it has.
        known: String,
    },
    /// A file that says where images are kept elsewhere is not what it should be.
    #[error("{p}: {problem}", p = .path.display())]
    Places {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what would be right.
        problem: String,
    },
    /// Nothing in the directory is a snapshot.
    #[error("{p} holds neither a file \"manifest\" nor a file \"state\": it is no snapshot", p = .path.display())]
    NoSnapshot {
        /// The directory.
        path: PathBuf,
    },
    /// A path at which no file of a snapshot can be.
    #[error("{p} is {problem}", p = .path.display())]
    Target {
        /// The path.
        path: PathBuf,
        /// What is there, and what is wrong with that.
        problem: &'static str,
    },
    /// A diff snapshot's memory without its base's.
    #[error("{p} holds only the pages written since its base: lay it over that first, by 'varve snapshot merge'", p = .path.display())]
    OnlyDiff {
        /// The memory file.
        path: PathBuf,
    },
    /// A diff snapshot cannot be laid over that base.
    #[error("cannot apply diff {diff} to {base}: {why}", diff = .diff.display(), base = .base.display())]
    Merge {
        /// Folder of the base.
        base: PathBuf,
        /// Folder of the diff.
        diff: PathBuf,
        /// Why not, and what to do.
        why: String,
    },
    /// The raw memory file is not what it was when it was saved.
    #[error("memory file {p}, bytes {start:#x} to {end:#x}: the checksum differs, the file is damaged or was changed", p = .path.display())]
    Memory {
        /// The file.
        path: PathBuf,
        /// First byte of what was checked.
        start: u64,
        /// Byte after it.
        end: u64,
    },
    /// An option that cannot be met.
    #[error("option {option}: {why}")]
    Option {
        /// Which.
        option: &'static str,
        /// What is wrong with it.
        why: String,
    },
}

/// What is wrong with a chunk of an image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChunkFault {
    /// The bytes are not those that were written.
    #[error("its checksum is {found:#010x}, not {stated:#010x}")]
    Checksum {
        /// As stored.
        stated: u32,
        /// As computed.
        found: u32,
    },
    /// The bytes are others than those that were written, with the same checksum.
    #[error("its BLAKE3 digest {found} differs from the manifest's: the content was changed")]
    Digest {
        /// As computed.
        found: ChunkDigest,
    },
    /// It does not decompress to a chunk.
    #[error("decompression failed ({0})")]
    Compression(String),
    /// The file cannot be read there.
    #[error("reading failed ({0})")]
    Read(String),
}

impl SnapshotError {
    /// Names what was being done, and to which file, to an error of the operating system.
    pub fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SnapshotError {
        let path = path.to_owned();
        move |source| SnapshotError::Io { action, path, source }
    }

    pub(crate) fn format(path: &Path) -> impl FnOnce(FormatError) -> SnapshotError {
        let path = path.to_owned();
        move |source| SnapshotError::Format { path, source }
    }
}

/// An error with its causes, on one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // Some libraries repeat their cause in their own text.
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}
