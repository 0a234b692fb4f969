//! Bars, one a strategy, as SVG that needs nothing else.

use maud::{Markup, html};

use super::columns::Row;
use super::said::Counters;
use super::text::{mib, millis};

/// A part of each bar.
struct Part {
    name: String,
    color: &'static str,
    values: Vec<f64>,
}

/// Bars that share a scale.
struct Chart {
    title: &'static str,
    parts: Vec<Part>,
    /// A line across all bars, to compare with.
    mark: Option<(&'static str, f64)>,
    text: fn(f64) -> String,
}

// Told apart by most eyes, and by lightness.
const COLORS: [&str; 6] = ["#264653", "#2a9d8f", "#8da9c4", "#e9c46a", "#f4a261", "#e76f51"];
const WIDTH: f64 = 560.0;
/// Names stand left of the bars, numbers right of them.
const NAMES: f64 = 76.0;
const NUMBERS: f64 = 80.0;
const LINE: f64 = 20.0;
const BAR: f64 = 14.0;

/// All charts of a comparison. `warm_ms` is a warm call to the machine that was snapshotted.
pub fn charts(rows: &[Row], warm_ms: f64) -> Markup {
    let of = |value: &dyn Fn(&Row) -> f64| rows.iter().map(value).collect::<Vec<_>>();
    let counted = |value: &dyn Fn(&Counters) -> u64| {
        rows.iter().map(|r| r.run.counters.as_ref().map_or(0.0, |c| value(c) as f64)).collect()
    };
    let part = |name: &str, color: usize, values| Part {
        name: name.into(),
        color: COLORS[color % COLORS.len()],
        values,
    };
    let first = rows.iter().find_map(|row| row.run.counters.as_ref());
    let images = first.map(|c| c.sources.iter().map(|s| s.image.clone())).into_iter().flatten();
    let classes = first.map(|c| c.faults.keys().cloned()).into_iter().flatten();
    let mark = Some(("before the snapshot, warm", warm_ms));
    let count: fn(f64) -> String = |value| format!("{value:.0}");
    let charts = [
        Chart {
            title: "Time to the first answer",
            parts: vec![
                part("until the guest runs", 0, of(&|r| r.run.resumed_ms)),
                part("until it answers", 1, of(&|r| r.run.first_answer_ms - r.run.resumed_ms)),
            ],
            mark,
            text: millis,
        },
        Chart {
            title: "The same call again",
            parts: vec![part("warm call", 1, of(&Row::warm_ms))],
            mark,
            text: millis,
        },
        Chart {
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
        Chart {
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
        Chart {
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
        Chart {
            title: "Pages given to stage-2 ahead of the guest",
            parts: vec![part("pages", 0, counted(&|c| c.pages.stage2))],
            mark: None,
            text: count,
        },
        Chart {
            title: "Private pages when it had answered",
            parts: vec![
                part("made ahead of the guest", 2, of(&|r| private(r, false))),
                part("by faults while it ran", 5, of(&|r| private(r, true))),
            ],
            mark: None,
            text: count,
        },
        Chart {
            title: "Mappings (VMAs)",
            parts: vec![part("mappings", 2, counted(&|c| c.mappings.unwrap_or(0)))],
            mark: None,
            text: count,
        },
    ];
    html! {
        div.charts { @for chart in &charts { (draw(chart, rows)) } }
    }
}

/// Private pages that were late, or those that were not.
fn private(row: &Row, late: bool) -> f64 {
    let (all, faulted) = (row.private().unwrap_or(0), row.late().unwrap_or(0));
    (if late { faulted } else { all.saturating_sub(faulted) }) as f64
}

fn draw(chart: &Chart, rows: &[Row]) -> Markup {
    let parts: Vec<_> = chart.parts.iter().filter(|p| p.values.iter().any(|&v| v > 0.0)).collect();
    let total = |row: usize| parts.iter().map(|part| part.values[row]).sum::<f64>();
    let most = (0..rows.len()).map(total).chain(chart.mark.map(|(_, at)| at)).fold(0.0, f64::max);
    let scale = if most > 0.0 { (WIDTH - NAMES - NUMBERS) / most } else { 0.0 };
    let height = LINE * rows.len() as f64;
    html! {
        figure {
            figcaption { (chart.title) }
            svg viewBox={ "0 0 " (WIDTH) " " (height) } role="img" aria-label=(chart.title) {
                @for (index, row) in rows.iter().enumerate() {
                    @let top = LINE * index as f64;
                    @let text = top + BAR - 2.0;
                    text x=(NAMES - 8.0) y=(text) text-anchor="end" { (row.asked) }
                    @let mut left = NAMES;
                    @for part in &parts {
                        @let width = part.values[index] * scale;
                        rect x=(round(left)) y=(top) width=(round(width)) height=(BAR) fill=(part.color) {
                            title { (part.name) ": " ((chart.text)(part.values[index])) }
                        }
                        @let () = left += width;
                    }
                    text x=(round(left + 6.0)) y=(text) { ((chart.text)(total(index))) }
                }
                @if let Some((_, at)) = chart.mark {
                    @let x = round(NAMES + at * scale);
                    line x1=(x) y1="0" x2=(x) y2=(height) stroke="#b00" stroke-dasharray="3 3" {}
                }
            }
            p.legend {
                @if parts.len() > 1 {
                    @for part in &parts {
                        span style={ "color:" (part.color) } { "■ " } (part.name) " \u{2003}"
                    }
                }
                @if let Some((name, at)) = chart.mark {
                    span style="color:#b00" { "┆ " } (name) ": " ((chart.text)(at))
                }
            }
        }
    }
}

/// A tenth of a pixel is exact enough.
fn round(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::columns::tests::rows;

    #[test]
    fn bars_are_as_long_as_their_values() {
        let rows = rows();
        let part =
            |values: [f64; 2]| Part { name: "x".into(), color: "#000", values: values.into() };
        let chart = Chart {
            title: "t",
            parts: vec![part([101.0, 202.0]), part([303.0, 0.0]), part([0.0, 0.0])],
            mark: None,
            text: millis,
        };
        let text = draw(&chart, &rows).into_string();
        let bars: Vec<_> = text.match_indices("<rect x=\"76\"").collect();
        assert_eq!(bars.len(), 2, "{text}");
        assert!(text.contains("<rect x=\"177\" y=\"0\" width=\"303\""), "{text}");
        assert!(text.contains("<rect x=\"76\" y=\"20\" width=\"202\""), "{text}");
        assert!(text.contains(">404 ms</text>") && text.contains(">202 ms</text>"), "{text}");
    }

    #[test]
    fn nothing_at_all_is_drawn_without_dividing_by_it() {
        let chart = Chart { title: "t", parts: Vec::new(), mark: None, text: millis };
        assert!(!draw(&chart, &rows()).into_string().contains("NaN"));
    }
}
