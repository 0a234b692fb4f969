//! `mechanisms`: what the ways to bring a page cost on this host, side by side. Needs no KVM.

use anyhow::{Context, Result};

use super::Effort;
use crate::mechanisms::{Mechanisms, Shape};
use crate::progress::Progress;
use crate::recorder::{Recorder, Series};
use crate::report::Unit;

/// Pages of an extent: those of recorded functions have 4 in the mean.
const PAGES: [usize; 3] = [1, 4, 16];
/// 16 MiB of them.
const ALL_PAGES: usize = 4096;
/// What the others are compared with: what a fresh page costs without any restore.
const BASE: &str = "fresh_write_fault";

pub fn run(effort: Effort, recorder: &mut Recorder) -> Result<()> {
    let mut progress = Progress::new("mechanisms", PAGES.len() * effort.runs);
    for _ in 0..effort.runs {
        for pages in PAGES {
            progress.step(&format!("extents of {pages} pages"));
            let shape = Shape { extents: ALL_PAGES / pages, pages };
            let found = Mechanisms::measure(shape).context("measuring mechanisms")?;
            let serde_json::Value::Object(found) = serde_json::to_value(found)? else { continue };
            let value = |name: &str| found.get(name).and_then(serde_json::Value::as_f64);
            let base = value(BASE).filter(|base| *base > 0.0).context("a fault takes no time")?;
            let extent = pages.to_string();
            for (name, nanos) in found.iter().filter_map(|(name, _)| Some((name, value(name)?))) {
                // Zero: this host does not have it.
                if nanos > 0.0 {
                    let series = |name: &str, unit| {
                        let labels = [("pages of an extent", extent.as_str())];
                        Series::new("mechanisms", name, unit).with(&labels)
                    };
                    recorder.add(&series(name, Unit::Nanos), nanos)?;
                    recorder
                        .add(&series(&format!("{name} / {BASE}"), Unit::Times), nanos / base)?;
                }
            }
        }
    }
    Ok(())
}
