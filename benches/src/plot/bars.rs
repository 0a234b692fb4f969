//! Bars, one a row, each of several parts.

use maud::{Markup, html};

use super::round;

/// A part of each bar.
#[derive(Debug)]
pub struct Part {
    /// What it is.
    pub name: String,
    /// Its colour.
    pub color: &'static str,
    /// By row.
    pub values: Vec<f64>,
}

/// Bars that share a scale.
#[derive(Debug)]
pub struct Bars<'a> {
    /// What they show.
    pub title: &'a str,
    /// What each is called.
    pub rows: &'a [String],
    /// What they consist of.
    pub parts: Vec<Part>,
    /// A line across all bars, to compare with.
    pub mark: Option<(&'static str, f64)>,
    /// How values are written.
    pub text: fn(f64) -> String,
}

const WIDTH: f64 = 560.0;
/// Names stand left of the bars, numbers right of them.
const NAMES: f64 = 76.0;
const NUMBERS: f64 = 80.0;
const LINE: f64 = 20.0;
const BAR: f64 = 14.0;

impl Bars<'_> {
    /// As a figure.
    pub fn draw(&self) -> Markup {
        let parts: Vec<_> =
            self.parts.iter().filter(|p| p.values.iter().any(|&v| v > 0.0)).collect();
        let total = |row: usize| parts.iter().map(|part| part.values[row]).sum::<f64>();
        let totals = (0..self.rows.len()).map(total);
        let most = totals.chain(self.mark.map(|(_, at)| at)).fold(0.0, f64::max);
        let scale = if most > 0.0 { (WIDTH - NAMES - NUMBERS) / most } else { 0.0 };
        let height = LINE * self.rows.len() as f64;
        html! {
            figure {
                figcaption { (self.title) }
                svg viewBox={ "0 0 " (WIDTH) " " (height) } role="img" aria-label=(self.title) {
                    @for (index, row) in self.rows.iter().enumerate() {
                        @let top = LINE * index as f64;
                        @let text = top + BAR - 2.0;
                        text x=(NAMES - 8.0) y=(text) text-anchor="end" { (row) }
                        @let mut left = NAMES;
                        @for part in &parts {
                            @let width = part.values[index] * scale;
                            rect x=(round(left)) y=(top) width=(round(width)) height=(BAR) fill=(part.color) {
                                title { (part.name) ": " ((self.text)(part.values[index])) }
                            }
                            @let () = left += width;
                        }
                        text x=(round(left + 6.0)) y=(text) { ((self.text)(total(index))) }
                    }
                    @if let Some((_, at)) = self.mark {
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
                    @if let Some((name, at)) = self.mark {
                        span style="color:#b00" { "┆ " } (name) ": " ((self.text)(at))
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::text::millis;

    #[test]
    fn bars_are_as_long_as_their_values() {
        let rows = ["a".into(), "b".into()];
        let part =
            |values: [f64; 2]| Part { name: "x".into(), color: "#000", values: values.into() };
        let chart = Bars {
            title: "t",
            rows: &rows,
            parts: vec![part([101.0, 202.0]), part([303.0, 0.0]), part([0.0, 0.0])],
            mark: None,
            text: millis,
        };
        let text = chart.draw().into_string();
        let bars: Vec<_> = text.match_indices("<rect x=\"76\"").collect();
        assert_eq!(bars.len(), 2, "{text}");
        assert!(text.contains("<rect x=\"177\" y=\"0\" width=\"303\""), "{text}");
        assert!(text.contains("<rect x=\"76\" y=\"20\" width=\"202\""), "{text}");
        assert!(text.contains(">404 ms</text>") && text.contains(">202 ms</text>"), "{text}");
    }

    #[test]
    fn nothing_at_all_is_drawn_without_dividing_by_it() {
        let rows = ["a".into()];
        let chart = Bars { title: "t", rows: &rows, parts: Vec::new(), mark: None, text: millis };
        assert!(!chart.draw().into_string().contains("NaN"));
    }
}
