//! What reports of a comparison come to: sections of text and tables, as Markdown ([`render`]) and,
//! with plots, as a page ([`page`]). Reports stand side by side; their figures are never mixed.

pub mod data;
pub mod goals;
pub mod page;

use crate::compare::{record, shapes};
use crate::replay;
use crate::report::Report;
use crate::table::digits;
use data::{Condition, Part, geometric, middle, words};

/// Tables that belong together.
#[derive(Debug)]
pub struct Section {
    /// Its heading.
    pub title: String,
    /// What to know before.
    pub note: String,
    /// Titles, headings and rows.
    pub tables: Vec<(String, Vec<Vec<String>>)>,
}

/// Where and with what each report was made.
pub fn facts(reports: &[Report]) -> Vec<String> {
    let of = |report: &Report| {
        let mut facts = report.facts();
        facts.extend(report.notes.iter().cloned());
        facts
    };
    reports.iter().flat_map(of).collect()
}

/// All of it.
pub fn sections(reports: &[Report]) -> Vec<Section> {
    let goals = goals::goals(reports);
    let mut sections = Vec::new();
    if !goals.is_empty() {
        sections.push(Section {
            title: "What it was to show".into(),
            note: "New input, one machine at a time, medians, geometric means over functions, unless it \
                   says otherwise; of tiered and template the better one."
                .into(),
            tables: vec![(String::new(), goals::table(&goals))],
        });
    }
    for report in reports {
        for (name, title) in [(record::PART, "Machines"), ("replay", "Replay")] {
            let part = Part { report, name };
            if part.is_there() {
                let title = format!("{title}, {}", report.facts()[1]);
                sections.push(Section { title, note: note(name), tables: tables(part) });
            }
        }
        let parts = [shapes::BY_SIZE, shapes::BY_SHARE, shapes::BY_LATENCY];
        let parts = parts.map(|name| Part { report, name }).into_iter().filter(|p| p.is_there());
        let tables: Vec<_> = parts
            .map(|part| (format!("Overhead {} (us)", part.name), by_condition(part)))
            .collect();
        if !tables.is_empty() {
            let title = format!("Replay by size, share and latency, {}", report.facts()[1]);
            let note = "Medians; of several functions the geometric mean.".into();
            sections.push(Section { title, note, tables });
        }
    }
    sections
}

fn note(part: &str) -> String {
    match part {
        record::PART => "Overhead: from before the monitor's process starts to the first answer, less the \
                         same call again on the same machine; what a first call has less to do is added for all methods. Several machines: \
                         the mean of them.",
        _ => "Overhead: from opening the snapshot to the last access, less the same accesses once more; \
              recorded accesses in a plain process, with no vCPU, exit or stage-2 in it.",
    }
    .into()
}

fn tables(part: Part) -> Vec<(String, Vec<Vec<String>>)> {
    let base = part.values("strategy").into_iter().next().unwrap_or_default();
    let total = if part.name == record::PART { record::ANSWERED.0 } else { "total" };
    let mut tables = vec![
        (format!("Overhead as a multiple of {base}'s"), ratios(part, replay::OVERHEAD, &base)),
        (format!("In all ({total}) as a multiple of {base}'s"), ratios(part, total, &base)),
    ];
    for at in part.conditions() {
        tables.push((format!("Overhead by function: {}", words(&at)), by_function(part, &at)));
        tables.push((format!("Medians over functions: {}", words(&at)), by_strategy(part, &at)));
    }
    tables
}

/// Geometric means over functions, by condition.
fn ratios(part: Part, name: &str, base: &str) -> Vec<Vec<String>> {
    let strategies = part.values("strategy");
    let mut rows = vec![heading("condition", &strategies)];
    for at in part.conditions() {
        let cell = |s: &String| part.ratio(name, s, base, &at).map_or_else(missing, digits);
        rows.push([words(&at)].into_iter().chain(strategies.iter().map(cell)).collect());
    }
    rows
}

/// Overheads, a row each.
fn by_condition(part: Part) -> Vec<Vec<String>> {
    let strategies = part.values("strategy");
    let mut functions = part.values("function");
    if functions.is_empty() {
        functions.push(String::new());
    }
    let mut rows = vec![heading("condition", &strategies)];
    for at in part.conditions() {
        let cell = |strategy: &String| {
            let of = |f: &String| part.median(replay::OVERHEAD, f, strategy, &at);
            geometric(functions.iter().filter_map(of)).map_or_else(missing, digits)
        };
        rows.push([words(&at)].into_iter().chain(strategies.iter().map(cell)).collect());
    }
    rows
}

/// Medians, and how far runs lie apart.
fn by_function(part: Part, at: &Condition) -> Vec<Vec<String>> {
    let strategies = part.values("strategy");
    let mut rows = vec![heading("function", &strategies)];
    for function in part.values("function") {
        let cell = |strategy: &String| {
            let figure = part.figure(replay::OVERHEAD, &function, strategy, at);
            figure.map_or_else(missing, |figure| {
                let spread = figure.summary.spread.unwrap_or(0.0) * 50.0;
                let (median, unit) = (digits(figure.summary.median), figure.unit.text());
                format!("{median} {unit} ±{spread:.0}% ({})", figure.summary.runs)
            })
        };
        let cells: Vec<_> = strategies.iter().map(cell).collect();
        if cells.iter().any(|cell| *cell != missing()) {
            rows.push([function.clone()].into_iter().chain(cells).collect());
        }
    }
    rows
}

/// Every figure's median over functions.
fn by_strategy(part: Part, at: &Condition) -> Vec<Vec<String>> {
    let (strategies, functions) = (part.values("strategy"), part.values("function"));
    let mut rows = vec![heading("figure", &strategies)];
    let mut names: Vec<&str> = Vec::new();
    for figure in part.report.figures.iter().filter(|figure| figure.part == part.name) {
        if !names.contains(&figure.name.as_str()) {
            names.push(&figure.name);
        }
    }
    for name in names {
        let mut unit = "";
        let mut cell = |strategy: &String| {
            let figures = functions.iter().filter_map(|f| part.figure(name, f, strategy, at));
            let medians = figures.map(|figure| {
                unit = figure.unit.text();
                figure.summary.median
            });
            middle(medians).map_or_else(missing, digits)
        };
        let cells: Vec<_> = strategies.iter().map(&mut cell).collect();
        if cells.iter().any(|cell| *cell != missing()) {
            let name = if unit.is_empty() { name.into() } else { format!("{name} ({unit})") };
            rows.push([name].into_iter().chain(cells).collect());
        }
    }
    rows
}

fn heading(first: &str, strategies: &[String]) -> Vec<String> {
    [first.to_owned()].into_iter().chain(strategies.iter().cloned()).collect()
}

fn missing() -> String {
    "-".into()
}

/// As Markdown.
pub fn render(reports: &[Report]) -> String {
    let mut text = String::from("# Restore methods compared\n\n");
    for fact in facts(reports) {
        text.push_str(&format!("- {}\n", escape(&fact)));
    }
    for section in sections(reports) {
        text.push_str(&format!("\n## {}\n\n{}\n", escape(&section.title), escape(&section.note)));
        for (title, rows) in &section.tables {
            if !title.is_empty() {
                text.push_str(&format!("\n### {}\n", escape(title)));
            }
            text.push('\n');
            text.push_str(&table(rows));
        }
    }
    text
}

fn table(rows: &[Vec<String>]) -> String {
    let mut text = String::new();
    for (index, row) in rows.iter().enumerate() {
        let cells: Vec<_> = row.iter().map(|cell| escape(cell)).collect();
        text.push_str(&format!("| {} |\n", cells.join(" | ")));
        if index == 0 {
            let line = row.iter().enumerate().map(|(n, _)| if n == 0 { "---" } else { "---:" });
            text.push_str(&format!("| {} |\n", line.collect::<Vec<_>>().join(" | ")));
        }
    }
    text
}

fn escape(text: &str) -> String {
    text.replace('|', "\\|").replace('<', "&lt;")
}

#[cfg(test)]
pub(crate) mod tests;
