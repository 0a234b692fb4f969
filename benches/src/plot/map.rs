//! Guest memory by class, from left to right and top to bottom.

use maud::{Markup, html};

use crate::report::Profile;

/// Letter, name and colour of each class (see [`Profile::map`]).
pub const CLASSES: [(char, &str, &str); 4] = [
    ('.', "zero", "#e8e8e8"),
    ('r', "read-only", "#2a9d8f"),
    ('w', "read-write", "#e76f51"),
    ('c', "cold", "#8da9c4"),
];
const COLUMNS: usize = 64;
const CELL: usize = 6;

/// One function's memory.
pub fn draw(profile: &Profile) -> Markup {
    let cells: Vec<char> = profile.map.chars().collect();
    let (width, height) = (COLUMNS * CELL, cells.len().div_ceil(COLUMNS) * CELL);
    let path = |letter: char| {
        let mut path = String::new();
        for (row, line) in cells.chunks(COLUMNS).enumerate() {
            let mut at = 0;
            for run in line.chunk_by(|a, b| a == b) {
                if run[0] == letter {
                    let (x, y, wide) = (at * CELL, row * CELL, run.len() * CELL);
                    path.push_str(&format!("M{x} {y}h{wide}v{CELL}h-{wide}z"));
                }
                at += run.len();
            }
        }
        path
    };
    html! {
        figure {
            figcaption { (profile.function) }
            svg viewBox={ "0 0 " (width) " " (height) } role="img" aria-label=(profile.function) {
                @for (letter, name, color) in CLASSES {
                    path d=(path(letter)) fill=(color) { title { (name) } }
                }
            }
        }
    }
}

/// What the colours mean.
pub fn legend() -> Markup {
    html! {
        p.legend {
            @for (_, name, color) in CLASSES {
                span style={ "color:" (color) } { "■ " } (name) " \u{2003}"
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_cells_are_one_shape() {
        let map = format!("rr{}ww{}c", ".".repeat(60), "r".repeat(64));
        let profile =
            Profile { function: "f".into(), pages: 258, classes: Default::default(), map };
        let text = draw(&profile).into_string();
        assert!(text.contains("d=\"M0 0h12v6h-12zM0 6h384v6h-384z\" fill=\"#2a9d8f\""), "{text}");
        assert!(text.contains("d=\"M372 0h12v6h-12z\" fill=\"#e76f51\""), "{text}");
        assert!(text.contains("viewBox=\"0 0 384 18\"") && text.contains("M0 12h6v6h-6z"));
    }
}
