//! The columns of the comparison, for terminal and page alike. docs/demo.md says more on each.

use super::said::{ByAccess, Counters, Restored};
use super::text::{mib, millis};

/// One strategy, compared.
#[derive(Clone, Debug)]
pub struct Row {
    /// The strategy that was asked for.
    pub asked: &'static str,
    /// Its run in the middle, by the time to the first answer.
    pub run: Restored,
    /// Answers that were those of the original machine, of all runs.
    pub right: usize,
    /// Answers, of all runs.
    pub answers: usize,
}

/// A column: heading, meaning, and what stands in it.
pub type Column = (&'static str, &'static str, fn(&Row) -> String);

/// All of them.
pub const COLUMNS: [Column; 15] = [
    ("strategy", "the strategy; of auto also the one that it chose", name),
    ("resumed", "from process start until the guest runs", |row| millis(row.run.resumed_ms)),
    ("answer", "from process start to the first answer", |row| millis(row.run.first_answer_ms)),
    ("warm", "the same call again, in the same machine", |row| millis(row.warm_ms())),
    ("faults", "page faults that the monitor answered", |row| row.count(Counters::all_faults)),
    ("mapped", "pages laid in place from an image", |row| row.count(|c| c.pages.mapped)),
    ("copied", "pages copied or installed before the guest ran", |row| {
        row.count(|c| c.pages.copied + c.pages.installed)
    }),
    ("ahead", "pages made ready ahead of the guest", |row| row.count(|c| c.pages.ahead())),
    ("stage-2", "pages given to second-level page tables ahead of the guest", |row| {
        row.count(|c| c.pages.stage2)
    }),
    ("fetched", "pages put in place on faults, neighbours included", |row| {
        row.count(|c| c.pages.fetched)
    }),
    ("read", "bytes that the monitor read from images", |row| {
        row.run.counters.as_ref().map_or_else(missing, |c| mib(c.bytes_read()))
    }),
    ("VMAs", "mappings that guest memory consists of", |row| {
        let mappings = row.run.counters.as_ref().and_then(|c| c.mappings);
        mappings.map_or_else(missing, |n| n.to_string())
    }),
    ("private", "pages that belong to this process alone, at the end", |row| {
        row.private().map_or_else(missing, |n| n.to_string())
    }),
    ("late", "among them: made private by faults while the guest ran, not ahead of it", |row| {
        row.late().map_or_else(missing, |n| n.to_string())
    }),
    ("answers", "whether all answers were those of the original machine", |row| {
        match row.is_right() {
            true => "right".into(),
            false => format!("{} of {} WRONG", row.answers - row.right, row.answers),
        }
    }),
];

impl Row {
    /// Whether nothing was wrong.
    pub fn is_right(&self) -> bool {
        self.right == self.answers
    }

    /// Milliseconds of the last call, which is the warm one.
    pub fn warm_ms(&self) -> f64 {
        self.run.invocations.last().map_or(0.0, |answer| answer.took_ms)
    }

    /// Pages of this process alone.
    pub fn private(&self) -> Option<u64> {
        Some(self.run.census.as_ref()?.values().map(|class| class.private).sum())
    }

    /// Private pages that nobody had made private ahead: faults that the guest waited for,
    /// whether the kernel or the monitor answered them. (One that is answered with a huge page makes
    /// 512 pages private.)
    pub fn late(&self) -> Option<u64> {
        let pages = &self.run.counters.as_ref()?.pages;
        Some(self.private()?.saturating_sub(pages.copied + pages.installed + pages.ahead_write))
    }

    fn count(&self, of: impl Fn(&Counters) -> u64) -> String {
        self.run.counters.as_ref().map_or_else(missing, |counters| of(counters).to_string())
    }
}

/// Heading and rows of the comparison.
pub fn comparison(rows: &[Row]) -> Vec<Vec<String>> {
    let heading = COLUMNS.iter().map(|(name, ..)| (*name).to_owned()).collect();
    let cells = |row: &Row| COLUMNS.iter().map(|(.., cell)| cell(row)).collect();
    [heading].into_iter().chain(rows.iter().map(cells)).collect()
}

/// Heading and rows of what [`comparison`] sums up: bytes read by image, faults by class. Images and
/// classes that are nothing everywhere are left out.
pub fn details(rows: &[Row]) -> Vec<Vec<String>> {
    let counters: Vec<_> = rows.iter().filter_map(|row| row.run.counters.as_ref()).collect();
    let Some(first) = counters.first() else { return Vec::new() };
    let mut table: Vec<Vec<String>> = Vec::new();
    table.push(vec!["strategy".into()]);
    table.extend(rows.iter().map(|row| vec![name(row)]));
    let mut add = |heading: String, cell: &dyn Fn(&Counters) -> Option<String>| {
        if counters.iter().any(|c| cell(c).is_some()) {
            table[0].push(heading);
            for (line, row) in table[1..].iter_mut().zip(rows) {
                let text = row.run.counters.as_ref().and_then(cell);
                line.push(text.unwrap_or_else(missing));
            }
        }
    };
    for source in &first.sources {
        add(format!("from {}", source.image), &|c| {
            let found = c.sources.iter().find(|s| s.image == source.image)?;
            (found.bytes_read > 0).then(|| mib(found.bytes_read))
        });
    }
    for class in first.faults.keys() {
        add(format!("{class} faults"), &|c| {
            let ByAccess { read, write } = *c.faults.get(class)?;
            (read + write > 0).then(|| format!("{read} r {write} w"))
        });
    }
    table
}

fn name(row: &Row) -> String {
    if row.asked == row.run.strategy {
        row.asked.into()
    } else {
        format!("{} ({})", row.asked, row.run.strategy)
    }
}

fn missing() -> String {
    "-".into()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::demo::said::tests::restored;

    pub fn rows() -> [Row; 2] {
        let row = |asked, right| Row { asked, run: restored(9.0), right, answers: 6 };
        [row("tiered", 6), row("auto", 5)]
    }

    #[test]
    fn each_column_shows_its_figure() {
        let table = comparison(&rows());
        assert_eq!(table[0].len(), COLUMNS.len());
        let expected = [
            "tiered", "2.0 ms", "9.0 ms", "4.5 ms", "6", "100", "20", "12", "6", "7", "3.0 MiB",
            "-", "30", "6", "right",
        ];
        assert_eq!(table[1], expected);
        assert_eq!(
            (table[2][0].as_str(), table[2][14].as_str()),
            ("auto (tiered)", "1 of 6 WRONG")
        );
    }

    #[test]
    fn details_leave_out_what_is_nothing_everywhere() {
        let table = details(&rows());
        assert_eq!(table[0], ["strategy", "from cold", "cold faults", "ro faults"]);
        assert_eq!(table[1], ["tiered", "3.0 MiB", "1 r 2 w", "3 r 0 w"]);
    }
}
