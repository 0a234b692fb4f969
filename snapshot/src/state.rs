//! The state file: everything of a paused machine but its memory. It keeps configuration and device
//! states as opaque blobs; what they mean is for those who saved them.

use std::fmt;
use std::fs;
use std::io::{self, Read};
use std::path::Path;

use crate::codec::{Decoder, Encoder};
use crate::container::{
    self, Builder, Container, HEADER_LEN, Kind, MAJOR, MINOR, ReadError, SectionId,
};
use crate::digest::Digest;
use crate::error::{FormatError, SnapshotError};
use crate::flat::FlatOrder;
use crate::page::{PAGE_SIZE, PageRange};
use crate::store::{Files, Staging};
use crate::sums::{MemorySums, SUM_PAGES};

const INFO: SectionId = SectionId::new(1, 0);
const CONFIG: SectionId = SectionId::new(2, 0);
const HOST: SectionId = SectionId::new(3, 0);
const MEMORY: SectionId = SectionId::new(4, 0);
const BLOBS: SectionId = SectionId::new(5, 0);
const DIRTY: SectionId = SectionId::new(6, 0);
const IDENTITY: SectionId = SectionId::new(7, 0);
const SUMS: SectionId = SectionId::new(8, 0);
const KNOWN: [u16; 8] = [1, 2, 3, 4, 5, 6, 7, 8];

/// What tells one snapshot from all others: random, made with it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SnapshotId(pub [u8; 16]);

impl SnapshotId {
    /// A new one.
    ///
    /// # Errors
    ///
    /// The system has no random bytes.
    pub fn random() -> io::Result<SnapshotId> {
        let mut id = [0; 16];
        // Sixteen bytes are always given whole (getrandom(2)).
        rustix::rand::getrandom(&mut id, rustix::rand::GetRandomFlags::empty())?;
        Ok(SnapshotId(id))
    }
}

impl fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The host that a machine was saved on, as far as it matters to where it can be restored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostIdentity {
    /// Processor architecture, as Rust names it (`x86_64`).
    pub arch: String,
    /// Vendor of the processor (`AuthenticAMD`).
    pub cpu_vendor: String,
    /// Processor features, in a form that only the monitor understands.
    pub features: Vec<u8>,
}

/// Saved state of one part of the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateBlob {
    /// Of which part; unique in a file.
    pub name: String,
    /// Version of the blob's own format.
    pub version: u32,
    /// The state.
    pub bytes: Vec<u8>,
}

/// What a state file says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StateFile {
    /// Version of varve that wrote it.
    pub vmm_version: String,
    /// Name of the memory file beside the state file; `None` if the two were put in places of the
    /// caller's choice.
    pub memory_file: Option<String>,
    /// Configuration of the machine (JSON).
    pub config: Vec<u8>,
    /// The host that it ran on.
    pub host: HostIdentity,
    /// Guest memory, by address. The raw memory file holds these ranges one after another.
    pub memory: Vec<PageRange>,
    /// Of a diff snapshot: the guest pages that its memory file holds, sorted and apart; the rest is
    /// its base's, and until it is merged it cannot be restored. `None`: a full one.
    pub dirty: Option<Vec<PageRange>>,
    /// Which snapshot this is; `None`: format 1.1 or older wrote it.
    pub id: Option<SnapshotId>,
    /// Of a diff snapshot: those over which it may be laid. That is the one since which it was made, or
    /// several if it was written over a diff of the same machine. Empty: format 1.1 or older.
    pub bases: Vec<SnapshotId>,
    /// Checksums of the pages that the memory file holds; `None`: they are not known.
    pub sums: Option<MemorySums>,
    /// State of each part, in the order of saving.
    pub blobs: Vec<StateBlob>,
}

impl StateFile {
    /// The blob of that name.
    pub fn blob(&self, name: &str) -> Option<&StateBlob> {
        self.blobs.iter().find(|b| b.name == name)
    }

    /// Bytes of guest memory, and so of the raw memory file.
    pub fn memory_bytes(&self) -> u64 {
        self.memory.iter().map(PageRange::len).sum()
    }

    /// The bytes of a state file; refuses what no reader would accept.
    pub fn to_bytes(&self) -> Result<Vec<u8>, FormatError> {
        let mut info = Encoder::default();
        info.string(&self.vmm_version);
        info.string(self.memory_file.as_deref().unwrap_or_default());
        let mut config = Encoder::default();
        config.bytes(&self.config);
        let mut host = Encoder::default();
        host.string(&self.host.arch);
        host.string(&self.host.cpu_vendor);
        host.bytes(&self.host.features);
        let mut memory = Encoder::default();
        memory.ranges(&self.memory);
        let mut blobs = Encoder::default();
        blobs.count(self.blobs.len());
        for blob in &self.blobs {
            blobs.string(&blob.name);
            blobs.u32(blob.version);
            blobs.bytes(&blob.bytes);
        }
        let mut file = Builder::new(Kind::State);
        file.required(INFO, info);
        file.required(CONFIG, config);
        file.required(HOST, host);
        file.required(MEMORY, memory);
        file.required(BLOBS, blobs);
        if let Some(dirty) = &self.dirty {
            let mut body = Encoder::default();
            body.ranges(dirty);
            file.required(DIRTY, body);
        }
        if let Some(id) = self.id {
            let mut body = Encoder::default();
            body.0.extend(id.0);
            body.count(self.bases.len());
            self.bases.iter().for_each(|base| body.0.extend(base.0));
            file.optional(IDENTITY, body);
        }
        if let Some(sums) = &self.sums {
            let mut body = Encoder::default();
            body.u32(SUM_PAGES as u32);
            body.count(sums.0.len());
            sums.0.iter().for_each(|&crc| body.u32(crc));
            file.optional(SUMS, body);
        }
        let bytes = file.finish();
        Self::from_bytes(&bytes).map(|_| bytes)
    }

    /// The state that a file's bytes say.
    pub fn from_bytes(bytes: &[u8]) -> Result<StateFile, FormatError> {
        Self::decode(bytes).map_err(ReadError::in_memory)
    }

    fn decode(bytes: &[u8]) -> Result<StateFile, ReadError> {
        let file = Container::from_bytes(Kind::State, &KNOWN, bytes)?;
        file.check_all()?;
        let mut state = StateFile::default();

        let body = file.required(INFO, "info")?;
        let mut d = Decoder::new("info", &body);
        state.vmm_version = d.string("vmm version")?;
        let name = d.string("memory file")?;
        if name.contains('/') || name == "." || name == ".." {
            return Err(d
                .value("memory file", name, "not the name of a file beside this one")
                .into());
        }
        state.memory_file = (!name.is_empty()).then_some(name);
        d.end()?;

        let body = file.required(CONFIG, "config")?;
        let mut d = Decoder::new("config", &body);
        state.config = d.bytes("config")?.to_vec();
        d.end()?;

        let body = file.required(HOST, "host")?;
        let mut d = Decoder::new("host", &body);
        state.host.arch = d.string("arch")?;
        state.host.cpu_vendor = d.string("cpu vendor")?;
        state.host.features = d.bytes("features")?.to_vec();
        d.end()?;

        let body = file.required(MEMORY, "memory")?;
        let mut d = Decoder::new("memory", &body);
        state.memory = d.memory()?;
        d.end()?;
        if let Some(body) = file.optional(DIRTY)? {
            let mut d = Decoder::new("dirty", &body);
            let dirty = d.ranges("ranges")?;
            let memory = FlatOrder::new(&state.memory);
            if let Some(lost) = dirty.iter().find(|r| memory.of_pages(r).is_none()) {
                return Err(d
                    .value("ranges", format!("{lost:?}"), "not inside guest memory")
                    .into());
            }
            d.end()?;
            state.dirty = Some(dirty);
        }
        if let Some(body) = file.optional(IDENTITY)? {
            let mut d = Decoder::new("identity", &body);
            state.id = Some(SnapshotId(d.array("id")?));
            state.bases = d.records("bases")?.iter().map(|&id| SnapshotId(id)).collect();
            d.end()?;
        }
        if let Some(body) = file.optional(SUMS)? {
            state.sums = Some(decode_sums(&body, state.memory_bytes() / PAGE_SIZE)?);
        }

        let body = file.required(BLOBS, "blobs")?;
        let mut d = Decoder::new("blobs", &body);
        let mut names = std::collections::HashSet::new();
        for _ in 0..d.count("blobs", 20)? {
            let blob = StateBlob {
                name: d.string("name")?,
                version: d.u32("version")?,
                bytes: d.bytes("blob")?.to_vec(),
            };
            if !names.insert(blob.name.clone()) {
                return Err(d.value("name", blob.name, "there twice").into());
            }
            state.blobs.push(blob);
        }
        d.end()?;
        Ok(state)
    }

    /// What tells this snapshot from others, also one that was made before snapshots had an id: then
    /// it follows from the machine's state.
    pub fn identity(&self) -> SnapshotId {
        self.id.unwrap_or_else(|| {
            let mut all = Encoder::default();
            all.bytes(&self.config);
            for blob in &self.blobs {
                all.string(&blob.name);
                all.bytes(&blob.bytes);
            }
            let mut id = [0; 16];
            id.copy_from_slice(&Digest::of(&all.0).0[..16]);
            SnapshotId(id)
        })
    }

    /// Writes the state to a file, whole or not at all.
    pub fn write(&self, files: &dyn Files, path: &Path) -> Result<(), SnapshotError> {
        let bytes = self.to_bytes().map_err(SnapshotError::format(path))?;
        Staging::write_file(files, path, &bytes)
    }

    /// Reads a state file.
    pub fn read(path: &Path) -> Result<StateFile, SnapshotError> {
        let bytes = fs::read(path).map_err(SnapshotError::io("read", path))?;
        Self::from_bytes(&bytes).map_err(SnapshotError::format(path))
    }

    /// Major and minor version of the format that is written.
    pub const VERSION: (u16, u16) = (MAJOR, MINOR);

    /// Major and minor version of the file at `path`, which may be one that cannot be read here.
    pub fn version_of(path: &Path) -> Result<(u16, u16), SnapshotError> {
        let mut start = Vec::new();
        fs::File::open(path)
            .and_then(|file| file.take(HEADER_LEN as u64).read_to_end(&mut start))
            .map_err(SnapshotError::io("read", path))?;
        container::version(Kind::State, &start).map_err(SnapshotError::format(path))
    }
}

fn decode_sums(body: &[u8], pages: u64) -> Result<MemorySums, FormatError> {
    let mut d = Decoder::new("memory checksums", body);
    let each = d.u32("pages per checksum")?;
    if u64::from(each) != SUM_PAGES {
        return Err(d.value("pages per checksum", each.to_string(), "256 were expected"));
    }
    let records = d.records::<4>("checksums")?;
    if records.len() as u64 != MemorySums::number(pages) {
        let found = records.len().to_string();
        return Err(d.value("number", found, "not what the guest's memory needs"));
    }
    let sums = MemorySums(records.iter().map(|r| u32::from_le_bytes(*r)).collect());
    d.end()?;
    Ok(sums)
}
