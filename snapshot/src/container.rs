//! The binary container of all metadata files: header, section table, sections, checksums. What the
//! sections say is for the files' modules; the bytes are drawn in `docs/snapshot-format.md`.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::codec::{Decoder, Encoder};
use crate::error::{FormatError, SnapshotError};

/// Major version: changes when old readers would misread the file.
pub(crate) const MAJOR: u16 = 1;
/// Minor version: changes when something is added that old readers may skip.
pub(crate) const MINOR: u16 = 2;
pub(crate) const HEADER_LEN: usize = 32;
pub(crate) const ENTRY_LEN: usize = 32;
/// Where the header's checksum stands; it counts as zero in its own computation.
pub(crate) const HEADER_CRC_AT: usize = 24;
/// More than any file has, few enough to compare each with each.
const MAX_SECTIONS: u32 = 1024;
/// Readers that do not know the section must refuse the file.
pub(crate) const REQUIRED: u32 = 1;

/// Which metadata file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    State,
    Manifest,
    Trace,
    Index,
}

impl Kind {
    pub fn magic(self) -> [u8; 8] {
        match self {
            Kind::State => *b"VARVE-ST",
            Kind::Manifest => *b"VARVE-MF",
            Kind::Trace => *b"VARVE-TR",
            Kind::Index => *b"VARVE-IX",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Kind::State => "state",
            Kind::Manifest => "manifest",
            Kind::Trace => "trace",
            Kind::Index => "store index",
        }
    }
}

/// What a section is: its kind, and which of several of that kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SectionId {
    pub kind: u16,
    pub index: u16,
}

impl SectionId {
    pub const fn new(kind: u16, index: u16) -> SectionId {
        SectionId { kind, index }
    }

    fn show(self) -> String {
        format!("{}.{}", self.kind, self.index)
    }
}

/// Major and minor version of the file that starts so.
pub(crate) fn version(kind: Kind, start: &[u8]) -> Result<(u16, u16), FormatError> {
    let found = &start[..start.len().min(8)];
    if found != kind.magic() {
        return Err(FormatError::Magic { expected: kind.name(), found: found.to_vec() });
    }
    let mut fields = Decoder::new("header", &start[8..]);
    let (major, minor) = (fields.u16("major")?, fields.u16("minor")?);
    if major == 0 { Err(FormatError::NoVersion) } else { Ok((major, minor)) }
}

/// Collects sections and puts header and table before them.
pub(crate) struct Builder {
    kind: Kind,
    sections: Vec<(SectionId, u32, Vec<u8>)>,
}

impl Builder {
    pub fn new(kind: Kind) -> Builder {
        Builder { kind, sections: Vec::new() }
    }

    pub fn required(&mut self, id: SectionId, body: Encoder) {
        self.sections.push((id, REQUIRED, body.0));
    }

    /// A section that readers may skip.
    pub fn optional(&mut self, id: SectionId, body: Encoder) {
        self.sections.push((id, 0, body.0));
    }

    pub fn finish(self) -> Vec<u8> {
        let table_end = HEADER_LEN + ENTRY_LEN * self.sections.len();
        let total = table_end + self.sections.iter().map(|s| s.2.len()).sum::<usize>();
        let mut out = Encoder(Vec::with_capacity(total));
        out.0.extend(self.kind.magic());
        out.u16(MAJOR);
        out.u16(MINOR);
        out.u32(self.sections.len() as u32);
        out.u64(total as u64);
        out.u64(0); // checksum, reserved
        let mut offset = table_end as u64;
        for (id, flags, body) in &self.sections {
            out.u16(id.kind);
            out.u16(id.index);
            out.u32(*flags);
            out.u64(offset);
            out.u64(body.len() as u64);
            out.u32(crc32c::crc32c(body));
            out.u32(0); // reserved
            offset += body.len() as u64;
        }
        let crc = crc32c::crc32c(&out.0);
        out.0[HEADER_CRC_AT..HEADER_CRC_AT + 4].copy_from_slice(&crc.to_le_bytes());
        for (_, _, body) in &self.sections {
            out.0.extend(body);
        }
        out.0
    }
}

/// Where a container's bytes come from: sections are read when asked for, so that opening a large
/// file costs little.
enum Source<'a> {
    Bytes(&'a [u8]),
    File(File),
}

impl Source<'_> {
    fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        match self {
            Source::Bytes(bytes) => {
                let from = usize::try_from(offset).ok().and_then(|at| bytes.get(at..));
                let from = from.and_then(|b| b.get(..buf.len()));
                buf.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
                Ok(())
            }
            Source::File(file) => file.read_exact_at(buf, offset),
        }
    }
}

struct Entry {
    id: SectionId,
    offset: u64,
    len: u64,
    crc: u32,
}

/// A container whose header and section table are sound.
pub(crate) struct Container<'a> {
    source: Source<'a>,
    entries: Vec<Entry>,
}

/// An error while reading a container: of the file system, or of the format.
pub(crate) enum ReadError {
    Io(io::Error),
    Format(FormatError),
}

impl From<FormatError> for ReadError {
    fn from(e: FormatError) -> ReadError {
        ReadError::Format(e)
    }
}

impl ReadError {
    pub fn at(self, path: &Path) -> SnapshotError {
        match self {
            ReadError::Io(e) => SnapshotError::io("read", path)(e),
            ReadError::Format(e) => SnapshotError::format(path)(e),
        }
    }

    /// For containers in memory, which no operating system can fail to read.
    pub fn in_memory(self) -> FormatError {
        match self {
            ReadError::Format(e) => e,
            ReadError::Io(_) => FormatError::Truncated { section: "file", field: "its bytes" },
        }
    }
}

impl<'a> Container<'a> {
    /// `known`: the section kinds that the caller understands.
    pub fn from_bytes(
        kind: Kind,
        known: &[u16],
        bytes: &'a [u8],
    ) -> Result<Container<'a>, ReadError> {
        Self::open(kind, known, Source::Bytes(bytes), bytes.len() as u64)
    }

    /// The same from a file, of which only header and table are read now.
    pub fn from_file(
        kind: Kind,
        known: &[u16],
        file: File,
    ) -> Result<Container<'static>, ReadError> {
        let len = file.metadata().map_err(ReadError::Io)?.len();
        Container::open(kind, known, Source::File(file), len)
    }

    /// In this order: magic, version, lengths, checksum, table. Nothing is believed, and nothing is
    /// allocated, before it was checked.
    fn open<'s>(
        kind: Kind,
        known: &[u16],
        source: Source<'s>,
        len: u64,
    ) -> Result<Container<'s>, ReadError> {
        let mut header = [0; HEADER_LEN];
        let there = (HEADER_LEN as u64).min(len) as usize;
        source.read(0, &mut header[..there]).map_err(ReadError::Io)?;
        if there < HEADER_LEN && header[..8] == kind.magic() {
            return Err(FormatError::Length { found: len, stated: HEADER_LEN as u64 }.into());
        }
        let (major, minor) = version(kind, &header[..there])?;
        if major > MAJOR {
            return Err(FormatError::Newer { major, minor, supported: MAJOR }.into());
        }
        let mut fields = Decoder::new("header", &header[12..]);
        let (sections, stated) = (fields.u32("sections")?, fields.u64("length")?);
        let crc = fields.u32("checksum")?;
        if stated != len {
            return Err(FormatError::Length { found: len, stated }.into());
        }
        let table_end = HEADER_LEN as u64 + u64::from(sections) * ENTRY_LEN as u64;
        if sections > MAX_SECTIONS || table_end > len {
            return Err(FormatError::TableSize { sections, length: len }.into());
        }
        let mut table = vec![0; (table_end as usize) - HEADER_LEN];
        source.read(HEADER_LEN as u64, &mut table).map_err(ReadError::Io)?;
        header[HEADER_CRC_AT..HEADER_CRC_AT + 4].fill(0);
        let found = crc32c::crc32c_append(crc32c::crc32c(&header), &table);
        if found != crc {
            return Err(FormatError::HeaderChecksum { stated: crc, found }.into());
        }
        let entries = read_table(&table, known, table_end, len)?;
        Ok(Container { source, entries })
    }

    fn read(&self, entry: &Entry) -> Result<Vec<u8>, ReadError> {
        // Inside the file, as the table was checked: no more than that is allocated.
        let mut body = vec![0; entry.len as usize];
        self.source.read(entry.offset, &mut body).map_err(ReadError::Io)?;
        let found = crc32c::crc32c(&body);
        if found != entry.crc {
            let section = entry.id.show();
            return Err(FormatError::SectionChecksum { section, stated: entry.crc, found }.into());
        }
        Ok(body)
    }

    pub fn optional(&self, id: SectionId) -> Result<Option<Vec<u8>>, ReadError> {
        self.entries.iter().find(|e| e.id == id).map(|e| self.read(e)).transpose()
    }

    /// Whether there is such a section.
    pub fn has(&self, id: SectionId) -> bool {
        self.entries.iter().any(|e| e.id == id)
    }

    pub fn required(&self, id: SectionId, section: &'static str) -> Result<Vec<u8>, ReadError> {
        self.optional(id)?.ok_or(FormatError::MissingSection { section }.into())
    }

    /// Checks the checksums of all sections, also of unknown ones.
    pub fn check_all(&self) -> Result<(), ReadError> {
        self.entries.iter().try_for_each(|e| self.read(e).map(|_| ()))
    }
}

/// Sections follow one another without gaps to the end of the file: no byte is left unchecked.
fn read_table(
    table: &[u8],
    known: &[u16],
    mut at: u64,
    len: u64,
) -> Result<Vec<Entry>, FormatError> {
    let mut entries: Vec<Entry> = Vec::with_capacity(table.len() / ENTRY_LEN);
    for record in table.as_chunks::<ENTRY_LEN>().0 {
        let mut d = Decoder::new("section table", record);
        let id = SectionId::new(d.u16("kind")?, d.u16("index")?);
        let flags = d.u32("flags")?;
        let entry =
            Entry { id, offset: d.u64("offset")?, len: d.u64("length")?, crc: d.u32("checksum")? };
        let wrong = |what| FormatError::Table { section: id.show(), what };
        if entries.iter().any(|e| e.id == id) {
            return Err(wrong("is there twice"));
        }
        if entry.offset != at {
            return Err(wrong("does not begin where the one before it ends"));
        }
        at = at
            .checked_add(entry.len)
            .filter(|&end| end <= len)
            .ok_or(wrong("ends after the file"))?;
        if !known.contains(&id.kind) && flags & REQUIRED != 0 {
            return Err(FormatError::UnknownRequired { section: id.show() });
        }
        entries.push(entry);
    }
    if at != len {
        return Err(FormatError::Table {
            section: "list".into(),
            what: "ends before the file does",
        });
    }
    Ok(entries)
}
