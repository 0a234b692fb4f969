//! `varve snapshot inspect` and `verify`: reading a snapshot, changing nothing.

use std::error::Error;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use varve_snapshot::{ClassReport, Inspection, MANIFEST_FILE, ManifestReader, draw_svg, draw_text};

use crate::cli::out::{human, outln};

/// Options of `varve snapshot inspect`.
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// Folder of the snapshot
    dir: PathBuf,

    /// Print JSON
    #[arg(long, conflicts_with = "map")]
    json: bool,

    /// Draw the memory map of this layout
    #[arg(long, value_name = "LAYOUT", num_args = 0..=1, default_missing_value = "tiered")]
    map: Option<String>,

    /// Write the memory map (of --map's layout, or "tiered") as a picture
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

/// Options of `varve snapshot verify`.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// Folder of the snapshot
    dir: PathBuf,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Columns of the memory map, in the terminal and in pictures.
const COLUMNS: usize = 64;
/// About so many lines.
const LINES: usize = 32;

/// Shows a snapshot.
pub fn main(args: &InspectArgs) -> Result<ExitCode, Box<dyn Error>> {
    let inspection = varve_snapshot::inspect(&args.dir)?;
    if args.json {
        outln!("{}", serde_json::to_string_pretty(&inspection)?);
    } else {
        print(&inspection);
    }
    if args.map.is_some() || args.svg.is_some() {
        let reader = ManifestReader::open(&args.dir.join(MANIFEST_FILE))?;
        let layout = reader.layout(args.map.as_deref().unwrap_or("tiered"))?;
        if args.map.is_some() {
            let colour = std::io::stdout().is_terminal();
            crate::cli::out::write(format_args!(
                "{}",
                draw_text(reader.memory(), &layout, COLUMNS, LINES, colour)
            ));
        }
        if let Some(path) = &args.svg {
            std::fs::write(path, draw_svg(reader.memory(), &layout, COLUMNS, LINES))
                .map_err(|e| format!("{}: {e}", path.display()))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn print(inspection: &Inspection) {
    outln!("{}: {} of guest memory", inspection.path.display(), human(inspection.memory_bytes));
    if let Some(state) = &inspection.state {
        outln!("  state      {}", state.file.display());
        outln!("  written by varve {} on {} {}", state.vmm_version, state.arch, state.cpu_vendor);
        outln!("  machine    {}", state.config);
        for (name, version, len) in &state.blobs {
            outln!("  part       {name} (version {version}, {})", human(*len));
        }
    }
    if let Some(tiers) = &inspection.tiers {
        outln!("  manifest   {} (varve {})", tiers.id, tiers.vmm_version);
        for image in &tiers.images {
            outln!("  image      {}", serde_json::to_string(image).unwrap_or_default());
        }
        for layout in &tiers.layouts {
            outln!("  layout     {} ({} regions)", layout.name, layout.regions);
            print_classes(&layout.classes);
        }
    }
}

/// One line per class.
pub fn print_classes(classes: &[ClassReport]) {
    for class in classes.iter().filter(|c| c.pages > 0) {
        outln!(
            "    {:<8} {:>9} pages {:>7} extents {:>10} {:>6.2} %",
            class.class,
            class.pages,
            class.extents,
            human(class.bytes),
            class.share * 100.0
        );
    }
}

/// Checks a snapshot; exit code 1 if anything is wrong.
pub fn verify(args: &VerifyArgs) -> Result<ExitCode, Box<dyn Error>> {
    let report = varve_snapshot::verify(&args.dir)?;
    if args.json {
        outln!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        for problem in &report.problems {
            outln!("{problem}");
        }
        for unchecked in &report.unchecked {
            outln!("not checked: {unchecked}");
        }
        if report.problems.is_empty() {
            outln!("{}: no problem found", args.dir.display());
        }
    }
    Ok(ExitCode::from(u8::from(!report.problems.is_empty())))
}
