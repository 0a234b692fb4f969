//! The charts of the demo: bars, one a strategy.

use maud::{Markup, html};

use super::columns::Row;
use super::said::Counters;
use super::text::{mib, millis};
use crate::plot::bars::{Bars, Part};
use crate::plot::color;

/// All charts of a comparison. `warm_ms` is a warm call to the machine that was snapshotted.
pub fn charts(rows: &[Row], warm_ms: f64) -> Markup {
    let of = |value: &dyn Fn(&Row) -> f64| rows.iter().map(value).collect::<Vec<_>>();
    let counted = |value: &dyn Fn(&Counters) -> u64| {
        rows.iter().map(|r| r.run.counters.as_ref().map_or(0.0, |c| value(c) as f64)).collect()
    };
    let part =
        |name: &str, nth: usize, values| Part { name: name.into(), color: color(nth), values };
    let names: Vec<String> = rows.iter().map(|row| row.asked.into()).collect();
    let first = rows.iter().find_map(|row| row.run.counters.as_ref());
    let images = first.map(|c| c.sources.iter().map(|s| s.image.clone())).into_iter().flatten();
    let classes = first.map(|c| c.faults.keys().cloned()).into_iter().flatten();
    let mark = Some(("before the snapshot, warm", warm_ms));
    let count: fn(f64) -> String = |value| format!("{value:.0}");
    let charts = [
        Bars {
            rows: &names,
            title: "Time to the first answer",
            parts: vec![
                part("until the guest runs", 0, of(&|r| r.run.resumed_ms)),
                part("until it answers", 1, of(&|r| r.run.first_answer_ms - r.run.resumed_ms)),
            ],
            mark,
            text: millis,
        },
        Bars {
            rows: &names,
            title: "The same call again",
            parts: vec![part("warm call", 1, of(&Row::warm_ms))],
            mark,
            text: millis,
        },
        Bars {
            rows: &names,
            title: "Pages made ready before the guest asked",
            parts: vec![
                part("copied", 0, counted(&|c| c.pages.copied)),
                part("installed", 1, counted(&|c| c.pages.installed)),
                part("ahead, private", 5, counted(&|c| c.pages.ahead_write)),
                part("ahead, for reading", 3, counted(&|c| c.pages.ahead_read)),
                part("ahead, page cache", 2, counted(&|c| c.pages.ahead_cached)),
            ],
            mark: None,
            text: count,
        },
        Bars {
            rows: &names,
            title: "Faults answered by the monitor, by class",
            parts: classes
                .enumerate()
                .map(|(i, class)| {
                    let all = |c: &Counters| c.faults.get(&class).map_or(0, |f| f.read + f.write);
                    part(&class, i, counted(&all))
                })
                .collect(),
            mark: None,
            text: count,
        },
        Bars {
            rows: &names,
            title: "Bytes read by the monitor, by image",
            parts: images
                .enumerate()
                .map(|(i, image)| {
                    let read = |c: &Counters| {
                        let found = c.sources.iter().find(|s| s.image == image);
                        found.map_or(0, |s| s.bytes_read)
                    };
                    part(&image, i, counted(&read))
                })
                .collect(),
            mark: None,
            text: |value| mib(value as u64),
        },
        Bars {
            rows: &names,
            title: "Pages given to stage-2 ahead of the guest",
            parts: vec![part("pages", 0, counted(&|c| c.pages.stage2))],
            mark: None,
            text: count,
        },
        Bars {
            rows: &names,
            title: "Private pages when it had answered",
            parts: vec![
                part("made ahead of the guest", 2, of(&|r| private(r, false))),
                part("by faults while it ran", 5, of(&|r| private(r, true))),
            ],
            mark: None,
            text: count,
        },
        Bars {
            rows: &names,
            title: "Mappings (VMAs)",
            parts: vec![part("mappings", 2, counted(&|c| c.mappings.unwrap_or(0)))],
            mark: None,
            text: count,
        },
    ];
    html! {
        div.charts { @for chart in &charts { (chart.draw()) } }
    }
}

/// Private pages that were late, or those that were not.
fn private(row: &Row, late: bool) -> f64 {
    let (all, faulted) = (row.private().unwrap_or(0), row.late().unwrap_or(0));
    (if late { faulted } else { all.saturating_sub(faulted) }) as f64
}
