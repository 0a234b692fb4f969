//! Makes a tiered snapshot of a flat one: classifies its pages, packs the images, writes the
//! manifest. What a restore makes of it is `varve-memory-tiers`' business.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::chunk::{Compression, DEFAULT_CHUNK_PAGES, MAX_CHUNK_PAGES};
use crate::class::PageClass;
use crate::classify::{Classified, ClassifyOptions, classify};
use crate::diff::copy_data;
use crate::digest::Digest;
use crate::error::{FormatError, SnapshotError};
use crate::flat::{FlatFile, check_whole, scan};
use crate::image::{Image, ImageEntry};
use crate::image_writer::is_image_name;
use crate::manifest::{
    COLD_IMAGE, FileRef, MANIFEST_FILE, Manifest, READ_ONLY_IMAGE, Recorded, STATE_FILE, layout,
};
use crate::packer::Packer;
use crate::page::PAGE_SIZE;
use crate::page_store::PageStore;
use crate::region::{ImageId, RegionMap};
use crate::report::{ClassReport, ImageReport, class_reports};
use crate::state::StateFile;
use crate::store::{Files, Staging, clean, names_in};
use crate::trace::{Mechanism, Trace};

/// A flat snapshot, what was recorded of it, and where the tiered one goes.
#[derive(Clone, Debug)]
pub struct TierInput<'a> {
    /// State file of the flat snapshot.
    pub state: &'a Path,
    /// Its raw memory file. The manifest refers to it in place: keep it, and do not change it.
    pub memory: &'a Path,
    /// Traces of recorded runs; with none, every page that is not zero is cold.
    pub traces: &'a [Trace],
    /// Folder of the tiered snapshot: may be the flat one's.
    pub out: &'a Path,
}

/// How to tier.
#[derive(Clone, Debug)]
pub struct TierOptions {
    /// How pages are classified.
    pub classify: ClassifyOptions,
    /// Pages per chunk: a power of two up to 512.
    pub chunk_pages: u32,
    /// Compression of the cold image.
    pub cold: Compression,
    /// Compression of the read-write image.
    pub rw: Compression,
    /// A store of read-only pages that snapshots share, instead of an image of their own.
    pub store: Option<PathBuf>,
    /// Version of the varve that does it.
    pub vmm_version: String,
}

impl Default for TierOptions {
    fn default() -> TierOptions {
        TierOptions {
            classify: ClassifyOptions::default(),
            chunk_pages: DEFAULT_CHUNK_PAGES,
            cold: Compression::None,
            rw: Compression::None,
            store: None,
            vmm_version: env!("CARGO_PKG_VERSION").into(),
        }
    }
}

/// What went where.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TierReport {
    /// The manifest.
    pub manifest: PathBuf,
    /// Pages of guest memory.
    pub pages: u64,
    /// The classes of the layout `tiered`.
    pub classes: Vec<ClassReport>,
    /// The images that were written.
    pub images: Vec<ImageReport>,
    /// What it was made from.
    pub recorded: Recorded,
}

/// Tiers a flat snapshot. All files appear together, the manifest last; when it fails, what was in
/// the folder before is as it was.
pub fn tier(
    files: &dyn Files,
    input: &TierInput,
    options: &TierOptions,
) -> Result<TierReport, SnapshotError> {
    if !options.chunk_pages.is_power_of_two() || options.chunk_pages > MAX_CHUNK_PAGES {
        let why = format!("{} is not a power of two up to 512", options.chunk_pages);
        return Err(SnapshotError::Option { option: "chunk pages", why });
    }
    let state = StateFile::read(input.state)?;
    check_whole(&state, input.memory)?;
    let source = FlatFile::open(input.memory, &state.memory)?;
    let scan = scan(&source, source.pages(), options.chunk_pages)?;
    let trace = Trace::merge(input.traces).unwrap_or_else(|| Trace::empty(Mechanism::UffdWp));
    let classified = classify(&state.memory, scan.zero, &trace, &options.classify)?;
    let recorded = recorded(&classified, &trace, &options.classify);

    files.create_dir(input.out).map_err(SnapshotError::io("create folder", input.out))?;
    clean(input.out)?;
    let mut staging = Staging::new(files);
    let state_bytes = fs::read(input.state).map_err(SnapshotError::io("read", input.state))?;
    let named = |_: &Path| format!("memory-{}", Digest::of(&state_bytes).short());
    let length = source.pages() * PAGE_SIZE;
    let memory_name = bring(&mut staging, input.memory, input.out, named, Some(length))?;
    let memory = Image {
        entry: ImageEntry {
            name: "memory".into(),
            file: memory_name,
            pages: source.pages(),
            bytes: source.pages() * PAGE_SIZE,
            chunk_pages: options.chunk_pages,
            compression: Compression::None,
            shared: false,
            digest: None,
        },
        chunks: scan.chunks,
        digests: Some(scan.digests),
    };
    // Locked until the manifest is in place.
    let mut store = match &options.store {
        None => None,
        Some(dir) => {
            let store = PageStore::open(files, dir)?;
            let named = |path: &Path| {
                let name = Digest::of(path.as_os_str().as_encoded_bytes());
                format!("store-{}.img", name.short())
            };
            let file = bring(&mut staging, &store.image_path(), input.out, named, None)?;
            Some((store, file))
        }
    };
    let mut packer =
        Packer::new(&mut staging, &classified, &source, input.out, options.chunk_pages);
    let base = packer.base(memory);
    let layouts = layouts(&mut packer, &classified, base, options, store.as_mut())?;
    let (images, reports) = packer.finish();

    let mut maps = Vec::with_capacity(layouts.len());
    for (name, regions) in layouts {
        let map = RegionMap::new(regions, &state.memory).map_err(|source| {
            SnapshotError::format(input.out)(FormatError::Layout { layout: name.into(), source })
        })?;
        maps.push((name.to_owned(), map));
    }
    let path = input.out.join(MANIFEST_FILE);
    let old = Manifest::read(&path).ok();
    let manifest = Manifest {
        vmm_version: options.vmm_version.clone(),
        state: Some(place_state(&mut staging, input)?),
        parent: None,
        memory: state.memory,
        images,
        layouts: maps,
        recorded: Some(recorded.clone()),
    };
    let bytes = manifest.to_bytes().map_err(SnapshotError::format(&path))?;
    let at = staging.create(&path)?;
    staging.put(at, &bytes, 0)?;
    staging.commit()?;
    remove_replaced(files, old.as_ref(), &manifest, input.out);
    let map = manifest.layout(layout::TIERED).cloned().unwrap_or_default();
    Ok(TierReport {
        manifest: path,
        pages: source.pages(),
        classes: class_reports(&manifest.memory, &map),
        images: reports,
        recorded,
    })
}

type Layouts = Vec<(&'static str, Vec<crate::region::Region>)>;

fn layouts(
    packer: &mut Packer,
    all: &Classified,
    base: ImageId,
    options: &TierOptions,
    store: Option<&mut (PageStore, String)>,
) -> Result<Layouts, SnapshotError> {
    use PageClass::*;
    let flat = packer.in_place(&all.flat(), base);

    let bridge = options.classify.bridge_pages.into();
    let ro = all.tiered(ReadOnly, bridge);
    let mut tiered = match store {
        None => packer.pack(READ_ONLY_IMAGE, &ro, Compression::None, bridge)?,
        Some((store, file)) => packer.share(READ_ONLY_IMAGE, &ro, store, file.clone())?,
    };
    tiered.extend(packer.pack("rw", &all.tiered(ReadWrite, 0), options.rw, 0)?);
    tiered.extend(packer.pack(COLD_IMAGE, &all.tiered(Cold, 0), options.cold, 0)?);
    let template = packer.in_place(&all.template(), base);

    let split = all.reap();
    let mut reap = packer.pack("ws", &split.packed, Compression::None, 0)?;
    reap.extend(packer.in_place(&split.rest, base));

    let split = all.faasnap();
    let mut faasnap = packer.pack("loading", &split.packed, Compression::None, 0)?;
    faasnap.extend(packer.in_place(&split.rest, base));

    let mut layouts = vec![
        (layout::FLAT, flat),
        (layout::REAP, reap),
        (layout::FAASNAP, faasnap),
        (layout::TIERED, tiered),
        (layout::TEMPLATE, template),
    ];
    for (_, regions) in &mut layouts {
        regions.sort_by_key(|r| r.pages);
    }
    Ok(layouts)
}

fn recorded(all: &Classified, trace: &Trace, options: &ClassifyOptions) -> Recorded {
    let count = |flags: &[bool]| flags.iter().filter(|&&f| f).count() as u64;
    Recorded {
        mechanism: trace.mechanism,
        runs: trace.runs,
        invocations: trace.labels.len() as u32,
        touched: trace.pages().len() as u64 - all.outside,
        written: count(&all.written),
        outside: all.outside,
        hot_runs: all.hot_runs,
        bridge_pages: options.bridge_pages,
        min_extent_pages: options.min_extent_pages,
    }
}

/// The name in `out` by which a manifest there names a file: its own, or one that is made for it. A
/// manifest names no file of another folder, so that who gets it need not trust it with others.
fn bring(
    staging: &mut Staging,
    from: &Path,
    out: &Path,
    name: impl FnOnce(&Path) -> String,
    copy: Option<u64>,
) -> Result<String, SnapshotError> {
    let real = |p: &Path| fs::canonicalize(p).map_err(SnapshotError::io("find", p));
    let (file, folder) = (real(from)?, real(out)?);
    if file.parent() == Some(&folder)
        && let Some(name) = file.file_name().and_then(|name| name.to_str())
    {
        return Ok(name.to_owned());
    }
    let name = name(&file);
    let target = out.join(&name);
    if !staging.link(&file, &target)? {
        let Some(bytes) = copy else {
            let why = format!("{} and {} are on two file systems", from.display(), out.display());
            return Err(SnapshotError::Option { option: "store", why });
        };
        let open = File::open(&file).map_err(SnapshotError::io("open memory file", &file))?;
        let at = staging.create(&target)?;
        staging.set_len(at, bytes)?;
        copy_data(staging, at, &open, &file, bytes)?;
    }
    Ok(name)
}

/// A state file in the folder is used as it is; one from elsewhere is copied under a name of its own,
/// so that one that an earlier manifest names stays.
fn place_state(staging: &mut Staging, input: &TierInput) -> Result<FileRef, SnapshotError> {
    let bytes = fs::read(input.state).map_err(SnapshotError::io("read", input.state))?;
    let digest = Digest::of(&bytes);
    let real = |p: &Path| fs::canonicalize(p).map_err(SnapshotError::io("find", p));
    let (state, folder) = (real(input.state)?, real(input.out)?);
    let own = state.file_name().filter(|_| state.parent() == Some(&folder));
    let file = match own.and_then(|name| name.to_str()) {
        Some(name) => name.to_owned(),
        None => {
            let file = format!("{STATE_FILE}-{}", digest.short());
            let at = staging.create(&input.out.join(&file))?;
            staging.put(at, &bytes, 0)?;
            file
        }
    };
    Ok(FileRef { file, bytes: bytes.len() as u64, digest })
}

/// Images of the manifest that was replaced, and those of a process that was killed before it wrote its
/// manifest or before it removed them. A process that uses them still has them open.
fn remove_replaced(files: &dyn Files, old: Option<&Manifest>, new: &Manifest, folder: &Path) {
    let mut kept: Vec<&String> = new.images.iter().map(|i| &i.entry.file).collect();
    kept.extend(new.state.iter().map(|state| &state.file));
    let mut unused = old.map(Manifest::own_files).unwrap_or_default();
    unused.extend(names_in(folder).into_iter().flatten().filter(|name| is_image_name(name)));
    unused.sort_unstable();
    unused.dedup();
    for file in unused.iter().filter(|file| !kept.contains(file)) {
        // Left behind, it takes space and does no harm.
        let _ = files.remove(&folder.join(file));
    }
}
