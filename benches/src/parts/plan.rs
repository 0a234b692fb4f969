//! `plan`: reading a manifest, planning and mapping, against the number of extents. Needs no KVM, nor
//! a machine that was saved: images are files with nothing in them.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};
use varve_memory_tiers::{GuestRam, Hooks, Plan, PlanInput, Policy, Restore, Strategy, open};
use varve_snapshot::{
    ChunkTable, Compression, DEFAULT_CHUNK_PAGES, Image, ImageEntry, ImageId, LocalFiles,
    MEMORY_FILE, Manifest, ManifestReader, NEVER, PAGE_SIZE, PageClass, PageRange, Region,
    RegionMap, Stored, layout,
};

use super::Effort;
use crate::progress::Progress;
use crate::recorder::{Recorder, Series};
use crate::report::Unit;

const EXTENTS: [u64; 4] = [100, 1_000, 10_000, 100_000];
const STRATEGIES: [(Strategy, &str); 3] = [
    (Strategy::Lazy, layout::TEMPLATE),
    (Strategy::Template, layout::TEMPLATE),
    (Strategy::Tiered, layout::TIERED),
];
/// The images of layout `tiered`, and the raw memory file behind them.
const IMAGES: [&str; 4] = ["ro", "rw", "cold", MEMORY_FILE];
const MEMORY: ImageId = ImageId(3);
/// Metadata of 100,000 extents is to be read in a few milliseconds.
const METADATA_TARGET_US: f64 = 5_000.0;

pub fn run(effort: Effort, folder: &Path, recorder: &mut Recorder) -> Result<()> {
    let extents = if effort.quick { &EXTENTS[..3] } else { &EXTENTS[..] };
    let mut progress = Progress::new("plan", extents.len() * STRATEGIES.len() * effort.runs);
    let folder = tempfile::Builder::new().prefix("varve-bench").tempdir_in(folder)?;
    for &extents in extents {
        make(&folder.path().join(extents.to_string()), extents)?;
    }
    for _ in 0..effort.runs {
        for &extents in extents {
            for (strategy, layout) in STRATEGIES {
                progress.step(&format!("{extents} extents, {strategy}"));
                let snapshot = folder.path().join(extents.to_string());
                let taken = measure(&snapshot, strategy, layout)
                    .with_context(|| format!("{extents} extents, {strategy}"))?;
                let extents_text = extents.to_string();
                let series = |name: &str, unit| {
                    let labels =
                        [("extents", extents_text.as_str()), ("strategy", strategy.name())];
                    Series::new("plan", name, unit).with(&labels)
                };
                let metadata = match extents {
                    100_000 => series("metadata", Unit::Micros).at_most(METADATA_TARGET_US),
                    _ => series("metadata", Unit::Micros),
                };
                recorder.add(&metadata, taken.metadata)?;
                recorder.add(&series("plan", Unit::Micros), taken.plan)?;
                recorder.add(&series("map", Unit::Micros), taken.map)?;
                recorder.add(&series("mappings", Unit::Count), taken.mappings as f64)?;
            }
        }
    }
    Ok(())
}

/// Microseconds.
struct Taken {
    metadata: f64,
    plan: f64,
    map: f64,
    mappings: usize,
}

fn measure(snapshot: &Path, strategy: Strategy, layout: &str) -> Result<Taken> {
    let policy = Policy::new(strategy);
    let since = |start: Instant| start.elapsed().as_secs_f64() * 1e6;
    let start = Instant::now();
    let manifest = ManifestReader::open(snapshot)?;
    let regions = manifest.layout(layout)?;
    let metadata = since(start);
    let (opened, sources) = open(&manifest, &policy, &())?;
    let images: Vec<_> = opened.images().to_vec();
    let memory = manifest.memory();
    let input =
        PlanInput { memory, layout: &regions, base_image: None, images: &images, policy: &policy };
    let start = Instant::now();
    Plan::new(&input)?;
    let plan = since(start);

    let ram = Arc::new(GuestRam::new(memory, false)?);
    let on_fatal = Box::new(|error| eprintln!("varve-bench: {error}"));
    let start = Instant::now();
    let restore = Restore::start(ram.clone(), opened, sources, Hooks { stage2: None, on_fatal })?;
    let map = since(start);
    let mappings = ram.mappings()?;
    drop(restore);
    Ok(Taken { metadata, plan, map, mappings })
}

/// A snapshot of `extents` regions of one to seven pages, of all classes by turns.
fn make(folder: &Path, extents: u64) -> Result<()> {
    std::fs::create_dir(folder)?;
    let classes =
        [PageClass::ReadOnly, PageClass::ReadWrite, PageClass::Cold, PageClass::ReadWrite];
    let mut ends = [0; 3];
    let (mut tiered, mut template) = (Vec::new(), Vec::new());
    let mut page = 0;
    for (nth, class) in (0..extents).zip(classes.into_iter().cycle()) {
        // Some distance between extents is zero memory.
        page += nth % 3;
        let (pages, image) = (1 + nth * 5 % 7, (nth % 4).min(2) % 3);
        let image = if class == PageClass::ReadWrite { 1 } else { image };
        let stored = |image, page| Some(Stored { image, page });
        let rank = if class == PageClass::Cold { NEVER } else { nth as u32 };
        let range = PageRange::new(page * PAGE_SIZE, pages * PAGE_SIZE)?;
        let end = &mut ends[image as usize];
        let own = stored(ImageId(image as u16), *end);
        tiered.push(Region { pages: range, class, stored: own, rank });
        template.push(Region { pages: range, class, stored: stored(MEMORY, page), rank });
        *end += pages;
        page += pages;
    }
    let memory = vec![PageRange::new(0, page * PAGE_SIZE)?];
    let images = IMAGES.into_iter().zip(ends.into_iter().chain([page]));
    let images = images.map(|(name, pages)| empty_image(folder, name, pages));
    let maps = [(layout::TIERED, tiered), (layout::TEMPLATE, template)];
    let layouts = maps
        .into_iter()
        .map(|(name, regions)| Ok((name.to_owned(), RegionMap::new(regions, &memory)?)));
    let manifest = Manifest {
        vmm_version: env!("CARGO_PKG_VERSION").into(),
        state: None,
        parent: None,
        images: images.collect::<Result<_>>()?,
        layouts: layouts.collect::<Result<_>>()?,
        memory,
        recorded: None,
    };
    Ok(manifest.write(&LocalFiles, &folder.join(varve_snapshot::MANIFEST_FILE))?)
}

fn empty_image(folder: &Path, name: &str, pages: u64) -> Result<Image> {
    let bytes = pages * PAGE_SIZE;
    File::create_new(folder.join(name))?.set_len(bytes)?;
    let entry = ImageEntry {
        name: name.into(),
        file: name.into(),
        pages,
        bytes,
        chunk_pages: DEFAULT_CHUNK_PAGES,
        compression: Compression::None,
        shared: false,
        digest: None,
    };
    let chunks = pages.div_ceil(DEFAULT_CHUNK_PAGES.into()) as usize;
    Ok(Image { entry, chunks: ChunkTable::Plain(vec![0; chunks]), digests: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_strategy_maps_what_is_made() {
        let folder = tempfile::tempdir().unwrap();
        let snapshot = folder.path().join("s");
        make(&snapshot, 500).unwrap();
        let found = STRATEGIES.map(|(s, layout)| measure(&snapshot, s, layout).unwrap());
        assert_eq!(found[0].mappings, 1, "one file, one mapping");
        assert!((200..1500).contains(&found[2].mappings), "{}", found[2].mappings);
        assert!(found.iter().all(|t| t.metadata > 0.0 && t.plan > 0.0 && t.map > 0.0));
    }
}
