//! `varve snapshot tier`: a tiered snapshot from a flat one and recorded traces.

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use varve_snapshot::{
    ClassifyOptions, Compression, HotIf, LocalFiles, STATE_FILE, StateFile, TierInput, TierOptions,
    Trace, memory_in, settle, tier,
};

use super::inspect::print_classes;
use super::predict::{Prediction, predict};
use crate::cli::out::{human, outln};

/// Options of `varve snapshot tier`.
#[derive(Debug, Args)]
pub struct TierArgs {
    /// Folder of the flat snapshot
    dir: PathBuf,

    /// Recorded trace (repeatable); without one, each page that is not zero is cold
    #[arg(long = "trace", value_name = "FILE")]
    traces: Vec<PathBuf>,

    /// Folder for the tiered snapshot [default: the flat one's]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,

    /// Hot pages: touched in any run, in all, in K runs, or in K-of-N
    #[arg(long, value_name = "any|all|K|K-of-N", value_parser = parse_hot_if, default_value = "any")]
    hot_if: HotIf,

    /// Longest gap, in pages, that joins two read-only extents
    #[arg(long, value_name = "PAGES", default_value_t = ClassifyOptions::default().bridge_pages)]
    bridge: u32,

    /// Shorter read-only extents, in pages, are treated as written
    #[arg(long, value_name = "PAGES", default_value_t = ClassifyOptions::default().min_extent_pages)]
    min_extent: u32,

    /// Pages per chunk, the unit of fetching, checking and compressing cold pages
    #[arg(long, value_name = "PAGES", default_value_t = TierOptions::default().chunk_pages)]
    chunk: u32,

    /// Images to compress; read-only pages are never compressed
    #[arg(long, value_name = "HOW", default_value = "none")]
    compress: Compress,

    /// Folder that stores read-only pages once for all snapshots that use it
    #[arg(long, value_name = "DIR")]
    store: Option<PathBuf>,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Compress {
    /// No compression: images can be mapped
    None,
    /// LZ4 for cold pages
    Cold,
    /// LZ4 for cold and written pages
    All,
}

/// Tiers a snapshot.
pub fn main(args: &TierArgs) -> Result<ExitCode, Box<dyn Error>> {
    let traces = args.traces.iter().map(|p| Trace::read(p)).collect::<Result<Vec<_>, _>>()?;
    let lz4_if = |on| if on { Compression::Lz4 } else { Compression::None };
    let options = TierOptions {
        classify: ClassifyOptions {
            hot_if: args.hot_if,
            bridge_pages: args.bridge,
            min_extent_pages: args.min_extent,
        },
        chunk_pages: args.chunk,
        cold: lz4_if(args.compress != Compress::None),
        rw: lz4_if(args.compress == Compress::All),
        store: args.store.clone(),
        vmm_version: env!("CARGO_PKG_VERSION").into(),
    };
    let state = args.dir.join(STATE_FILE);
    settle(&LocalFiles, &args.dir)?;
    let memory = memory_in(&args.dir, &StateFile::read(&state)?)?;
    let input = TierInput {
        state: &state,
        memory: &memory,
        traces: &traces,
        out: args.out.as_ref().unwrap_or(&args.dir),
    };
    let report = tier(&LocalFiles, &input, &options)?;
    let predictions = predict(&report.manifest)?;
    if args.json {
        let mut json = serde_json::to_value(&report)?;
        json["predicted"] = serde_json::to_value(&predictions)?;
        outln!("{}", serde_json::to_string_pretty(&json)?);
        return Ok(ExitCode::SUCCESS);
    }
    outln!("{}: {} pages by {} traces", report.manifest.display(), report.pages, traces.len());
    print_classes(&report.classes);
    for image in &report.images {
        outln!(
            "    image {:<8} {:>9} pages {:>10}, {} stored ({})",
            image.image,
            image.pages,
            human(image.bytes),
            human(image.stored_bytes),
            image.file
        );
    }
    outln!("    predicted cost of memory in a restore and one invocation, by the cost model:");
    for Prediction { strategy, cost_ms, mappings } in &predictions {
        outln!("      {strategy:<9} {cost_ms:>9.2} ms {mappings:>6} mappings");
    }
    Ok(ExitCode::SUCCESS)
}

fn parse_hot_if(text: &str) -> Result<HotIf, String> {
    let bad = || format!("{text:?} is not one of any, all, K and K-of-N");
    let number = |t: &str| t.parse::<u32>().map_err(|_| bad());
    match text {
        "any" => Ok(HotIf::Any),
        "all" => Ok(HotIf::All),
        _ => match text.split_once("-of-") {
            Some((k, n)) => Ok(HotIf::Of(number(k)?, number(n)?)),
            None => Ok(HotIf::Runs(number(text)?)),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds() {
        assert_eq!(parse_hot_if("any"), Ok(HotIf::Any));
        assert_eq!(parse_hot_if("2"), Ok(HotIf::Runs(2)));
        assert_eq!(parse_hot_if("2-of-3"), Ok(HotIf::Of(2, 3)));
        assert!(parse_hot_if("most").is_err() && parse_hot_if("2-of-").is_err());
    }
}
