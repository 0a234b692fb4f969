//! The state file: everything of a paused machine but its memory. It keeps configuration and device
//! states as opaque blobs; what they mean is for those who saved them.

use std::fs;
use std::io::Read;
use std::path::Path;

use crate::codec::{Decoder, Encoder};
use crate::container::{
    self, Builder, Container, HEADER_LEN, Kind, MAJOR, MINOR, ReadError, SectionId,
};
use crate::error::{FormatError, SnapshotError};
use crate::flat::FlatOrder;
use crate::page::PageRange;
use crate::store::{Files, Staging};

const INFO: SectionId = SectionId::new(1, 0);
const CONFIG: SectionId = SectionId::new(2, 0);
const HOST: SectionId = SectionId::new(3, 0);
const MEMORY: SectionId = SectionId::new(4, 0);
const BLOBS: SectionId = SectionId::new(5, 0);
const DIRTY: SectionId = SectionId::new(6, 0);
const KNOWN: [u16; 6] = [INFO.kind, CONFIG.kind, HOST.kind, MEMORY.kind, BLOBS.kind, DIRTY.kind];

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
