//! How long a manifest takes to load: one with many extents, and one of a guest of 8 GiB with a digest for
//! each chunk. `cargo run --release -p varve-snapshot --example load_time`.

use std::path::Path;
use std::time::{Duration, Instant};

use varve_snapshot::{
    ChunkDigest, ChunkDigests, ChunkTable, Compression, Image, ImageEntry, ImageId, LocalFiles,
    Manifest, ManifestReader, PAGE_SIZE, PageClass, PageRange, Region, RegionMap, Stored, layout,
};

fn manifest(extents: u64) -> Result<Manifest, Box<dyn std::error::Error>> {
    let pages = extents * 2;
    let memory = vec![PageRange::new(0, pages * PAGE_SIZE)?];
    let mut regions = Vec::new();
    for n in 0..extents {
        let class = if n % 2 == 0 { PageClass::ReadOnly } else { PageClass::Cold };
        let stored = Some(Stored { image: ImageId(0), page: n });
        let pages = PageRange::new(n * 2 * PAGE_SIZE, PAGE_SIZE)?;
        regions.push(Region { pages, class, stored, rank: n as u32 });
    }
    let entry = ImageEntry {
        name: "memory".into(),
        file: "memory".into(),
        pages,
        bytes: pages * PAGE_SIZE,
        chunk_pages: 16,
        compression: Compression::None,
        shared: false,
        digest: None,
    };
    let chunks = ChunkTable::Plain(vec![0; pages.div_ceil(16) as usize]);
    Ok(Manifest {
        vmm_version: String::new(),
        state: None,
        parent: None,
        layouts: vec![(layout::TIERED.into(), RegionMap::new(regions, &memory)?)],
        memory,
        images: vec![Image { entry, chunks, digests: None }],
        recorded: None,
    })
}

/// The same for a guest of `bytes`, whose chunks all differ: with a digest each.
fn proven(bytes: u64) -> Result<Manifest, Box<dyn std::error::Error>> {
    let mut manifest = manifest(bytes / PAGE_SIZE / 2)?;
    let mut digests = ChunkDigests::default();
    for image in &mut manifest.images {
        let crcs: Vec<u32> = (0..image.chunks.len() as u32).collect();
        crcs.iter().for_each(|n| digests.push(ChunkDigest::of(&n.to_le_bytes())));
        image.chunks = ChunkTable::Plain(crcs);
        image.digests = Some(std::mem::take(&mut digests));
    }
    // One region: what is measured is the tables of chunks.
    let pages = PageRange::new(0, bytes)?;
    let stored = Some(Stored { image: ImageId(0), page: 0 });
    let region = Region { pages, class: PageClass::Cold, stored, rank: 0 };
    manifest.layouts =
        vec![(layout::TIERED.into(), RegionMap::new(vec![region], &manifest.memory)?)];
    Ok(manifest)
}

fn median(
    mut load: impl FnMut() -> Result<(), Box<dyn std::error::Error>>,
) -> Result<Duration, Box<dyn std::error::Error>> {
    let mut times = Vec::new();
    for _ in 0..21 {
        let start = Instant::now();
        load()?;
        times.push(start.elapsed());
    }
    times.sort_unstable();
    Ok(times[times.len() / 2])
}

fn with_digests(path: &Path) -> Result<(), Box<dyn std::error::Error>> {
    proven(8 << 30)?.write(&LocalFiles, path)?;
    let bytes = std::fs::metadata(path)?.len();
    let open = median(|| {
        ManifestReader::open(path)?.layout(layout::TIERED)?;
        Ok(())
    })?;
    let table = median(|| {
        let image = ManifestReader::open(path)?.image_table(ImageId(0))?;
        assert_eq!(image.digests.map(|d| d.len()), Some(131_072));
        Ok(())
    })?;
    println!(
        "8 GiB in chunks of 64 KiB: {bytes} bytes, {open:?} without, {table:?} with its tables"
    );
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::temp_dir().join(format!("varve-load-time-{}", std::process::id()));
    for extents in [100, 1_000, 10_000, 100_000] {
        manifest(extents)?.write(&LocalFiles, &path)?;
        let time = median(|| {
            let map = ManifestReader::open(&path)?.layout(layout::TIERED)?;
            assert_eq!(map.regions().len() as u64, extents);
            Ok(())
        })?;
        println!("{extents:>7} extents: {time:?} (median of 21)");
    }
    with_digests(&path)?;
    std::fs::remove_file(&path)?;
    Ok(())
}
