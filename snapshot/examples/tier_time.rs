//! How long tiering, verifying and opening take for a guest of some size:
//! `cargo run --release --example tier_time [MiB]`.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::time::Instant;

use varve_snapshot::{
    Access, LocalFiles, ManifestReader, Mechanism, PAGE_SIZE, PageAccess, PageRange, StateFile,
    TierInput, TierOptions, Trace, layout, tier, verify,
};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mib: u64 = std::env::args().nth(1).map_or(Ok(256), |arg| arg.parse())?;
    let dir = std::env::temp_dir().join(format!("varve-tier-time-{}", std::process::id()));
    fs::create_dir(&dir)?;
    let (state, memory) = (dir.join("state"), dir.join("memory"));
    let pages = mib * 256;
    let ranges = vec![PageRange::new(0, pages * PAGE_SIZE)?];
    StateFile { memory: ranges, ..StateFile::default() }.write(&LocalFiles, &state)?;
    // Two fifths of the pages are not zero, in runs; one in twenty is touched, in runs of four.
    let file = File::create(&memory)?;
    file.set_len(pages * PAGE_SIZE)?;
    let mut accesses = Vec::new();
    for gfn in 0..pages {
        if gfn / 40 % 5 < 2 {
            let page: Vec<u8> = (0..PAGE_SIZE).map(|at| (gfn * 31 + at * at / 7) as u8).collect();
            file.write_all_at(&page, gfn * PAGE_SIZE)?;
        }
        if gfn / 4 % 20 == 0 {
            let written = gfn / 4 % 40 == 0;
            let access = if written { Access::WRITTEN } else { Access::READ };
            let (order, invocation, runs, runs_written) = (gfn as u32, 0, 1, written.into());
            accesses.push(PageAccess { gfn, order, access, invocation, runs, runs_written });
        }
    }
    let trace = Trace::new(Mechanism::UffdWp, 1, vec!["resume".into()], accesses)?;
    let input = TierInput { state: &state, memory: &memory, traces: &[trace], out: &dir };

    let start = Instant::now();
    let report = tier(&LocalFiles, &input, &TierOptions::default())?;
    println!("tier:   {:?} for {mib} MiB", start.elapsed());
    for class in &report.classes {
        println!("  {:8} {:8} pages {:6} extents", class.class, class.pages, class.extents);
    }
    let start = Instant::now();
    let reader = ManifestReader::open(&dir)?;
    for name in [layout::TIERED, layout::FLAT] {
        reader.layout(name)?;
    }
    println!("open:   {:?}", start.elapsed());
    let start = Instant::now();
    let checked = verify(&dir)?;
    println!("verify: {:?}, {} problems", start.elapsed(), checked.problems.len());
    fs::remove_dir_all(&dir)?;
    Ok(())
}
