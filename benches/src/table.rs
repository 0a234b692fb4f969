//! A report as a table for people: one line a figure, columns aligned.

use crate::report::{Figure, Report};

const COLUMNS: [&str; 9] =
    ["figure", "conditions", "median", "min", "max", "p99", "spread", "runs", "target"];
/// Columns from this one up to the last but one hold numbers, which stand right.
const FIRST_NUMBER: usize = 2;

/// The whole report.
pub fn render(report: &Report) -> String {
    let mut text = report.facts().join("\n") + "\n";
    let mut part = "";
    let mut rows: Vec<[String; 9]> = Vec::new();
    for figure in &report.figures {
        if figure.part != part {
            text.push_str(&align(&rows));
            rows.clear();
            part = &figure.part;
            text.push_str(&format!("\n{part}\n"));
            rows.push(COLUMNS.map(str::to_owned));
        }
        rows.push(row(figure));
    }
    text.push_str(&align(&rows));
    text
}

fn row(figure: &Figure) -> [String; 9] {
    let labels: Vec<_> =
        figure.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let summary = &figure.summary;
    let number = |value: f64| format!("{} {}", digits(value), figure.unit.text());
    [
        figure.name.clone(),
        labels.join(" "),
        number(summary.median),
        digits(summary.min),
        digits(summary.max),
        summary.p99.map(digits).unwrap_or_default(),
        summary.spread.map(|s| format!("{:.0} %", s * 100.0)).unwrap_or_default(),
        summary.runs.to_string(),
        figure
            .target
            .map(|t| {
                format!("{}: at most {}", if t.met { "pass" } else { "fail" }, number(t.at_most))
            })
            .unwrap_or_default(),
    ]
}

/// Four digits or so, which is more than any of these figures deserves.
pub fn digits(value: f64) -> String {
    match value.abs() {
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

fn align(rows: &[[String; 9]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: Vec<usize> = (0..COLUMNS.len()).map(|c| width(c).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::from(" ");
        for (column, (cell, &width)) in row.iter().zip(&widths).enumerate() {
            if (FIRST_NUMBER..COLUMNS.len() - 1).contains(&column) {
                line.push_str(&format!(" {cell:>width$} "));
            } else {
                line.push_str(&format!(" {cell:<width$} "));
            }
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::example;

    #[test]
    fn columns_stand_below_each_other() {
        let mut report = example();
        let mut second = report.figures[0].clone();
        second.name = "init".into();
        second.target = None;
        second.summary.median = 12345.6;
        report.figures.push(second);
        let text = render(&report);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("varve 0.1.0, 0123456789ab-dirty, 20"), "{text}");
        assert!(lines[1].starts_with("in the lab") && lines[2] == "varve-bench boot", "{text}");
        let lines = &lines[2..];
        assert_eq!(lines[1..3], ["", "boot"]);
        assert!(lines[4].ends_with("fail: at most 2.00 ms"), "{text}");
        let ends = |line: &str, what: &str| line.find(what).unwrap() + what.len();
        assert_eq!(ends(lines[3], "median"), ends(lines[4], "2.50 ms"));
        assert_eq!(ends(lines[3], "median"), ends(lines[5], "12346 ms"));
        assert_eq!(ends(lines[3], "spread"), ends(lines[5], "80 %"));
        assert_eq!(lines[4].find("kernel=bzImage"), lines[3].find("conditions"));
    }

    #[test]
    fn digits_fit_the_size() {
        let all = [0.0, 0.123, 9.876, 12.34, 123.4, 98765.4].map(digits);
        assert_eq!(all, ["0.00", "0.12", "9.88", "12.3", "123", "98765"]);
    }
}
