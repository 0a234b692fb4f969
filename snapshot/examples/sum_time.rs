//! What the checksums of a raw memory file cost while it is written: `cargo run --release -p varve-snapshot
//! --example sum_time -- FOLDER`.

use std::fs::File;
use std::io::{Seek, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use varve_snapshot::{PAGE_SIZE, Summing};

const BYTES: usize = 1 << 30;
const PIECE: usize = 1 << 20;

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = std::env::args_os().nth(1).map_or_else(std::env::temp_dir, PathBuf::from);
    let words = (0..BYTES as u64 / 8).map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let memory: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
    let path = folder.join(format!("varve-sum-time-{}", std::process::id()));
    let mut file = File::create(&path)?;
    let (mut without, mut with, mut alone) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..7 {
        for (sum, write) in [(false, true), (true, true), (true, false)] {
            file.set_len(0)?;
            file.rewind()?;
            let mut sums = Summing::new(BYTES as u64 / PAGE_SIZE, true);
            let began = Instant::now();
            for (bytes, at) in memory.chunks(PIECE).zip(0..) {
                if sum {
                    sums.add(at * (PIECE as u64 / PAGE_SIZE), bytes);
                }
                if write {
                    file.write_all(bytes)?;
                }
            }
            std::hint::black_box(sums.finish());
            let times = match (sum, write) {
                (false, _) => &mut without,
                (true, true) => &mut with,
                (true, false) => &mut alone,
            };
            times.push(began.elapsed());
        }
    }
    std::fs::remove_file(&path)?;
    println!(
        "1 GiB: written in {:?}, with checksums in {:?}; checksums alone {:?} (medians of 7)",
        median(without),
        median(with),
        median(alone)
    );
    Ok(())
}
