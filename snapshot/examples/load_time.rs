//! How long a manifest with many extents takes to load: `cargo run --release --example load_time`.

use std::time::Instant;

use varve_snapshot::{
    ChunkTable, Compression, Image, ImageEntry, ImageId, LocalFiles, Manifest, ManifestReader,
    PAGE_SIZE, PageClass, PageRange, Region, RegionMap, Stored, layout,
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

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::temp_dir().join(format!("varve-load-time-{}", std::process::id()));
    for extents in [100, 1_000, 10_000, 100_000] {
        manifest(extents)?.write(&LocalFiles, &path)?;
        let mut times = Vec::new();
        for _ in 0..21 {
            let start = Instant::now();
            let map = ManifestReader::open(&path)?.layout(layout::TIERED)?;
            times.push(start.elapsed());
            assert_eq!(map.regions().len() as u64, extents);
        }
        times.sort_unstable();
        println!("{extents:>7} extents: {:?} (median of {})", times[times.len() / 2], times.len());
    }
    std::fs::remove_file(&path)?;
    Ok(())
}
