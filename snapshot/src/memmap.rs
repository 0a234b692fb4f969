//! Draws the map of guest memory by class: as text for a terminal, and as SVG.

use std::fmt::Write;

use crate::class::PageClass;
use crate::page::{PAGE_SIZE, PageRange};
use crate::region::RegionMap;

/// Pixels of a cell in the SVG.
const CELL: usize = 6;

/// One kind of cell: its name, its character, its terminal colour, its colour in the SVG.
const KINDS: [(&str, char, u8, &str); 4] = [
    ("zero", '·', 90, "#e8e8e8"),
    ("ro", '▒', 36, "#2a9d8f"),
    ("rw", '█', 33, "#e76f51"),
    ("cold", '░', 34, "#8da9c4"),
];

/// What a cell shows: of several classes in it the one that matters most to a restore, so that a
/// single hot page in a cold neighbourhood is seen.
fn weight(class: PageClass) -> usize {
    match class {
        PageClass::Zero => 0,
        PageClass::Cold => 1,
        PageClass::ReadOnly => 2,
        PageClass::ReadWrite => 3,
    }
}

/// One row of cells per line, from the lowest address up; `cells` cells in all, at most one per page.
struct Grid {
    /// First byte of each cell, and its class.
    cells: Vec<(u64, PageClass)>,
    pages_per_cell: u64,
}

impl Grid {
    fn new(memory: &[PageRange], map: &RegionMap, cells: usize) -> Grid {
        let pages: u64 = memory.iter().map(PageRange::pages).sum();
        // A power of two, so that cells stand for round sizes.
        let per = pages.div_ceil(cells.max(1) as u64).max(1).next_power_of_two();
        let mut grid = Grid { cells: Vec::new(), pages_per_cell: per };
        let mut regions = map.regions().iter().peekable();
        for range in memory {
            let mut at = range.start();
            while at < range.end() {
                let end = at.saturating_add(per.saturating_mul(PAGE_SIZE)).min(range.end());
                let mut class = PageClass::Zero;
                while let Some(region) = regions.peek().filter(|r| r.pages.start() < end) {
                    if weight(region.class) > weight(class) {
                        class = region.class;
                    }
                    if region.pages.end() > end {
                        break;
                    }
                    regions.next();
                }
                grid.cells.push((at, class));
                at = end;
            }
        }
        grid
    }
}

/// The map as text, `width` characters a line (and the address before it), about `lines` lines.
/// `colour`: with ANSI colours.
pub fn draw_text(
    memory: &[PageRange],
    map: &RegionMap,
    width: usize,
    lines: usize,
    colour: bool,
) -> String {
    let width = width.max(8);
    let grid = Grid::new(memory, map, width * lines.max(1));
    let paint = |code: u8, text: &str| match colour {
        true => format!("\x1b[{code}m{text}\x1b[0m"),
        false => text.to_owned(),
    };
    let mut out = String::new();
    for row in grid.cells.chunks(width) {
        let _ = write!(out, "{:>12x} ", row.first().map_or(0, |c| c.0));
        for run in row.chunk_by(|a, b| a.1 == b.1) {
            let (_, sign, code, _) = KINDS[run[0].1 as usize];
            out.push_str(&paint(code, &sign.to_string().repeat(run.len())));
        }
        out.push('\n');
    }
    let _ = write!(out, "{:>12} ", "");
    for (name, sign, code, _) in KINDS {
        let _ = write!(out, "{} {name}  ", paint(code, &sign.to_string()));
    }
    let _ = writeln!(out, "(one character: {} KiB)", grid.pages_per_cell * PAGE_SIZE / 1024);
    out
}

/// The map as an SVG picture, `columns` cells a line, about `lines` lines.
pub fn draw_svg(memory: &[PageRange], map: &RegionMap, columns: usize, lines: usize) -> String {
    let columns = columns.max(8);
    let grid = Grid::new(memory, map, columns * lines.max(1));
    let rows = grid.cells.len().div_ceil(columns);
    let (width, height) = (columns * CELL, rows * CELL + 24);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
         width=\"{width}\" height=\"{height}\" font-family=\"sans-serif\" font-size=\"11\">\n"
    );
    for (row, y) in grid.cells.chunks(columns).zip(0..) {
        let mut x = 0;
        for run in row.chunk_by(|a, b| a.1 == b.1) {
            let (name, _, _, fill) = KINDS[run[0].1 as usize];
            let (left, top, wide) = (x * CELL, y * CELL, run.len() * CELL);
            let _ = writeln!(
                out,
                "<rect x=\"{left}\" y=\"{top}\" width=\"{wide}\" height=\"{CELL}\" \
                 fill=\"{fill}\"><title>{name} from {:#x}</title></rect>",
                run[0].0
            );
            x += run.len();
        }
    }
    let (mut x, y) = (0, rows * CELL + 8);
    for (name, _, _, fill) in KINDS {
        let _ =
            writeln!(out, "<rect x=\"{x}\" y=\"{y}\" width=\"10\" height=\"10\" fill=\"{fill}\"/>");
        let _ = writeln!(out, "<text x=\"{}\" y=\"{}\">{name}</text>", x + 14, y + 9);
        x += 56;
    }
    let kib = grid.pages_per_cell * PAGE_SIZE / 1024;
    let _ = writeln!(out, "<text x=\"{x}\" y=\"{}\">a cell: {kib} KiB</text>\n</svg>", y + 9);
    out
}
