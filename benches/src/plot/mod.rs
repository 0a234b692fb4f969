//! Plots as SVG that needs nothing else, and the page that they are on.

pub mod bars;
pub mod html;
pub mod lines;
pub mod map;

/// Told apart by most eyes, and by lightness.
pub const COLORS: [&str; 8] =
    ["#264653", "#2a9d8f", "#8da9c4", "#e9c46a", "#f4a261", "#e76f51", "#7b2d8b", "#577590"];

/// The colour of the nth thing.
pub fn color(nth: usize) -> &'static str {
    COLORS[nth % COLORS.len()]
}

/// A tenth of a pixel is exact enough.
fn round(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}
