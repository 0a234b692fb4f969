//! Lines over a common scale.

use maud::{Markup, html};

use super::round;

/// A line.
#[derive(Debug)]
pub struct Line {
    /// What it is.
    pub name: String,
    /// Its colour.
    pub color: &'static str,
    /// From left to right.
    pub points: Vec<(f64, f64)>,
}

/// An axis.
#[derive(Debug)]
pub struct Axis {
    /// What stands along it.
    pub label: &'static str,
    /// By powers rather than by sums; values must be above zero.
    pub log: bool,
    /// How values are written.
    pub text: fn(f64) -> String,
}

/// Lines that share both axes.
#[derive(Debug)]
pub struct Lines<'a> {
    /// What they show.
    pub title: &'a str,
    /// From left to right.
    pub x: Axis,
    /// From the bottom up; from zero, unless by powers.
    pub y: Axis,
    /// All lines.
    pub lines: Vec<Line>,
}

const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 260.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 8.0;
const BOTTOM: f64 = 40.0;
const TICKS: usize = 5;

/// From values to pixels.
struct Scale {
    low: f64,
    high: f64,
    log: bool,
    from: f64,
    to: f64,
}

impl Scale {
    fn new(values: impl Iterator<Item = f64>, axis: &Axis, from: f64, to: f64) -> Scale {
        let log = axis.log;
        let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
        for value in values.filter(|value| value.is_finite() && (!log || *value > 0.0)) {
            (low, high) = (low.min(value), high.max(value));
        }
        if !low.is_finite() {
            (low, high) = (1.0, 2.0);
        }
        if high <= low {
            high = if low > 0.0 { low * 2.0 } else { low + 1.0 };
        }
        Scale { low, high, log, from, to }
    }

    fn at(&self, value: f64) -> f64 {
        let part = if self.log {
            (value.max(self.low) / self.low).ln() / (self.high / self.low).ln()
        } else {
            (value - self.low) / (self.high - self.low)
        };
        round(self.from + part.clamp(0.0, 1.0) * (self.to - self.from))
    }

    /// Values to be named.
    fn ticks(&self) -> Vec<f64> {
        if self.log {
            // Powers of ten; where that would be too few, of two, or 1, 2, 5.
            let powers = |base: f64| -> Vec<f64> {
                let first = (self.low.ln() / base.ln() - 1e-9).ceil() as i32;
                let all = (first..).map(|power| base.powi(power));
                all.take_while(|value| *value <= self.high * 1.000_001).collect()
            };
            let tens = powers(10.0);
            let is_power_of_two = self.low.log2().fract() == 0.0;
            return match tens.len() {
                3.. => tens,
                _ if is_power_of_two => powers(2.0),
                _ => {
                    let first = 10f64.powf(self.low.log10().floor());
                    let steps = [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0];
                    let all = steps.map(|step| step * first);
                    all.into_iter().filter(|v| (self.low..=self.high).contains(v)).collect()
                }
            };
        }
        let rough = (self.high - self.low) / TICKS as f64;
        let ten = 10f64.powf(rough.log10().floor());
        let steps = [1.0, 2.0, 5.0, 10.0].map(|n| n * ten);
        let step = steps.into_iter().find(|step| *step >= rough).unwrap_or(rough);
        let first = (self.low / step).ceil() as i64;
        let all = (first..).map(|n| n as f64 * step);
        all.take_while(|value| *value <= self.high + step * 1e-6).collect()
    }
}

impl Lines<'_> {
    /// As a figure.
    pub fn draw(&self) -> Markup {
        let points = || self.lines.iter().flat_map(|line| &line.points);
        let x = Scale::new(points().map(|p| p.0), &self.x, LEFT, WIDTH - RIGHT);
        let zero = (!self.y.log).then_some(0.0);
        let y = Scale::new(points().map(|p| p.1).chain(zero), &self.y, HEIGHT - BOTTOM, TOP);
        let base = HEIGHT - BOTTOM;
        html! {
            figure {
                figcaption { (self.title) }
                svg viewBox={ "0 0 " (WIDTH) " " (HEIGHT) } role="img" aria-label=(self.title) {
                    @for value in y.ticks() {
                        @let at = y.at(value);
                        line x1=(LEFT) y1=(at) x2=(WIDTH - RIGHT) y2=(at) stroke="#e3e8ed" {}
                        text x=(LEFT - 6.0) y=(at + 4.0) text-anchor="end" { ((self.y.text)(value)) }
                    }
                    @for value in x.ticks() {
                        @let at = x.at(value);
                        line x1=(at) y1=(TOP) x2=(at) y2=(base) stroke="#e3e8ed" {}
                        text x=(at) y=(base + 16.0) text-anchor="middle" { ((self.x.text)(value)) }
                    }
                    text x=((LEFT + WIDTH) / 2.0) y=(HEIGHT - 6.0) text-anchor="middle" { (self.x.label) }
                    text x="4" y=(TOP + 8.0) { (self.y.label) }
                    @for line in &self.lines {
                        @let path = line.points.iter().map(|p| format!("{},{}", x.at(p.0), y.at(p.1)));
                        polyline points=(path.collect::<Vec<_>>().join(" ")) fill="none"
                            stroke=(line.color) stroke-width="2" { title { (line.name) } }
                        @if line.points.len() < 20 {
                            @for (at, value) in &line.points {
                                circle cx=(x.at(*at)) cy=(y.at(*value)) r="3" fill=(line.color) {
                                    title { (line.name) ": " ((self.y.text)(*value)) }
                                }
                            }
                        }
                    }
                }
                p.legend {
                    @for line in &self.lines {
                        span style={ "color:" (line.color) } { "■ " } (line.name) " \u{2003}"
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn axis(log: bool) -> Axis {
        Axis { label: "x", log, text: |value| format!("{value}") }
    }

    #[test]
    fn ends_are_at_the_edges() {
        let points = vec![(1.0, 0.0), (10.0, 5.0), (100.0, 10.0)];
        let lines = vec![Line { name: "a".into(), color: "#000", points }];
        let chart = Lines { title: "t", x: axis(true), y: axis(false), lines };
        let text = chart.draw().into_string();
        assert!(text.contains("points=\"64,220 304,114 544,8\""), "{text}");
        for tick in [">1<", ">10<", ">100<", ">2<", ">4<"] {
            assert!(text.contains(tick), "{tick} {text}");
        }
    }

    #[test]
    fn what_cannot_be_scaled_is_drawn_all_the_same() {
        for points in [vec![], vec![(1.0, 0.0)], vec![(0.0, 3.0), (0.0, 3.0)]] {
            for log in [false, true] {
                let lines = vec![Line { name: "a".into(), color: "#000", points: points.clone() }];
                let chart = Lines { title: "t", x: axis(log), y: axis(log), lines };
                let text = chart.draw().into_string();
                assert!(!text.contains("NaN") && !text.contains("inf"), "{points:?} {text}");
            }
        }
    }
}
