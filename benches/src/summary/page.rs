//! The comparison as a page: tables, and plots that need no network.

use maud::{Markup, html};

use super::data::{Condition, Part, geometric, words};
use super::{facts, sections};
use crate::compare::{record, shapes};
use crate::demo::text::millis;
use crate::plot::bars::{self, Bars};
use crate::plot::lines::{Axis, Line, Lines};
use crate::plot::{color, html as shell, map};
use crate::replay;
use crate::report::{Distribution, Report};
use crate::table::digits;

/// The whole page.
pub fn render(reports: &[Report]) -> String {
    let (first, rest) = {
        let mut all = sections(reports).into_iter();
        (all.next(), all)
    };
    let body = html! {
        @if let Some(section) = &first { (self::section(section)) }
        @for report in reports { (plots(report)) }
        @for section in rest {
            details { summary { b { (section.title) } } (self::section(&section)) }
        }
    };
    shell::page("restore methods compared", &facts(reports), &body)
}

fn section(section: &super::Section) -> Markup {
    html! {
        h2 { (section.title) }
        p.note { (section.note) }
        @for (title, rows) in &section.tables {
            @if !title.is_empty() { h3 { (title) } }
            (shell::table(rows, &[]))
        }
    }
}

fn plots(report: &Report) -> Markup {
    let (machines, replays) =
        (Part { report, name: record::PART }, Part { report, name: "replay" });
    html! {
        h2 { "Plots: " (report.facts()[1]) }
        @for at in machines.conditions_with(&[("machines", "1")]) {
            h3 { "First answer of machines: " (words(&at)) }
            div.charts { @for function in machines.values("function") {
                (machine_bars(machines, &function, &at))
            } }
        }
        @for at in replays.conditions() {
            h3 { "Replay: " (words(&at)) }
            div.charts { @for function in replays.values("function") {
                (replay_bars(replays, &function, &at))
            } }
        }
        (lines(report))
        @if !report.profiles.is_empty() {
            h3 { "Memory by class" }
            p.note { "Guest memory from left to right and top to bottom." }
            (map::legend())
            div.maps { @for profile in &report.profiles { (map::draw(profile)) } }
        }
    }
}

fn machine_bars(part: Part, function: &str, at: &Condition) -> Markup {
    let rows = strategies(part, record::ANSWERED.0, function, at);
    let of = |name: record::Name| values(part, name.0, function, &rows, at);
    let (resumed, answered, warm) = (of(record::RESUMED), of(record::ANSWERED), of(record::WARM));
    let rest = answered.iter().zip(&resumed).map(|(all, first)| (all - first).max(0.0)).collect();
    let mark = super::middle(warm.into_iter().filter(|ms| *ms > 0.0));
    let part =
        |name: &str, nth, values| bars::Part { name: name.into(), color: color(nth), values };
    bars(
        function,
        &rows,
        vec![part("until the guest runs", 0, resumed), part("until it answers", 1, rest)],
        mark.map(|at| ("warm", at)),
        millis,
    )
}

fn replay_bars(part: Part, function: &str, at: &Condition) -> Markup {
    let rows = strategies(part, replay::OVERHEAD, function, at);
    let values = values(part, replay::OVERHEAD, function, &rows, at);
    let values = values.into_iter().map(|us| us / 1e3).collect();
    let part = bars::Part { name: "overhead".into(), color: color(1), values };
    bars(function, &rows, vec![part], None, millis)
}

fn bars(
    title: &str,
    rows: &[String],
    parts: Vec<bars::Part>,
    mark: Option<(&'static str, f64)>,
    text: fn(f64) -> String,
) -> Markup {
    if rows.is_empty() {
        return html! {};
    }
    Bars { title, rows, parts, mark, text }.draw()
}

/// Those that were measured.
fn strategies(part: Part, name: &str, function: &str, at: &Condition) -> Vec<String> {
    let measured = |s: &String| part.figure(name, function, s, at).is_some();
    part.values("strategy").into_iter().filter(measured).collect()
}

fn values(part: Part, name: &str, function: &str, rows: &[String], at: &Condition) -> Vec<f64> {
    rows.iter().map(|s| part.median(name, function, s, at).unwrap_or(0.0)).collect()
}

fn lines(report: &Report) -> Markup {
    let over = |part, label, title, y| by_label(Part { report, name: part }, label, title, y);
    let size = over(
        shapes::BY_SIZE,
        "guest size (MiB)",
        "Overhead of a replay by guest size, as many hot pages",
        None,
    );
    let mapped = over(
        shapes::BY_SIZE,
        "guest size (MiB)",
        "Metadata, plan and mappings by guest size",
        Some("to mapped"),
    );
    let share = over(
        shapes::BY_SHARE,
        "hot pages (%)",
        "Overhead of a replay by share of hot pages, 256 MiB",
        None,
    );
    html! {
        div.charts {
            (cdf(report, "replay", replay::TOUCH, "First access to a page, in replays (share of accesses)"))
            (cdf(report, record::PART, record::FAULT_LATENCY.0,
                "Faults that the monitor answered, in machines (share of faults)"))
            (size) (mapped) (share)
            (at_once(report))
            (latency(report))
        }
    }
}

const NANOS: Axis = Axis { label: "at most", log: true, text: time };

fn time(ns: f64) -> String {
    match ns {
        ns if ns >= 1e9 => format!("{} s", digits(ns / 1e9)),
        ns if ns >= 1e6 => format!("{:.0} ms", ns / 1e6),
        ns if ns >= 1e3 => format!("{:.0} µs", ns / 1e3),
        _ => format!("{ns:.0} ns"),
    }
}

/// All distributions of a kind, functions and conditions together, by strategy and page cache.
fn cdf(report: &Report, part: &str, name: &str, title: &str) -> Markup {
    let of = |d: &&Distribution| d.part == part && d.name == name;
    let label = |d: &Distribution, key: &str| d.labels.get(key).cloned().unwrap_or_default();
    let mut caches: Vec<String> = Vec::new();
    for found in report.distributions.iter().filter(of) {
        let cache = label(found, "page cache");
        if !caches.contains(&cache) {
            caches.push(cache);
        }
    }
    let strategies = Part { report, name: part }.values("strategy");
    let chart = |cache: &String| {
        let line = |(nth, strategy): (usize, &String)| {
            let mut all = std::collections::BTreeMap::<u64, u64>::new();
            let own = |d: &&Distribution| {
                label(d, "strategy") == *strategy && label(d, "page cache") == *cache
            };
            for bucket in
                report.distributions.iter().filter(of).filter(own).flat_map(|d| &d.buckets)
            {
                *all.entry(bucket.below_ns).or_default() += bucket.count;
            }
            let count: u64 = all.values().sum();
            let mut sum = 0;
            let points = all.into_iter().map(|(below, n)| {
                sum += n;
                (below as f64, sum as f64 / count as f64)
            });
            let points: Vec<_> = points.collect();
            (!points.is_empty()).then(|| Line { name: strategy.clone(), color: color(nth), points })
        };
        let lines: Vec<_> = strategies.iter().enumerate().filter_map(line).collect();
        let y = Axis { label: "", log: false, text: |share| format!("{:.0} %", share * 100.0) };
        let title = format!("{title}, {cache} page cache");
        let drawn = Lines { title: &title, x: NANOS, y, lines };
        drawn.draw()
    };
    html! { @for cache in &caches { (chart(cache)) } }
}

/// A figure of replays against a number.
fn by_label(part: Part, label: &'static str, title: &str, name: Option<&str>) -> Markup {
    let name = name.unwrap_or(replay::OVERHEAD);
    let points = |strategy: &String| -> Vec<(f64, f64)> {
        let point = |value: String| {
            let at = part.conditions_with(&[(label, &value)]).into_iter().next()?;
            Some((value.parse().ok()?, part.median(name, "", strategy, &at)? * 1e3))
        };
        part.values(label).into_iter().filter_map(point).collect()
    };
    draw(title, label, part.values("strategy"), time, points)
}

/// First answers against the number of machines.
fn at_once(report: &Report) -> Markup {
    let part = Part { report, name: record::PART };
    let counts = part.values("machines");
    let chart = |cache: &str| {
        let points = |strategy: &String| -> Vec<(f64, f64)> {
            let point = |count: &String| {
                let labels =
                    [("machines", count.as_str()), ("page cache", cache), ("input", "new")];
                let at = part.conditions_with(&labels).into_iter().next()?;
                let functions = part.values("function").into_iter();
                let all =
                    functions.filter_map(|f| part.median(record::OVERHEAD.0, &f, strategy, &at));
                Some((count.parse().ok()?, geometric(all)? * 1e6))
            };
            counts.iter().filter_map(point).collect()
        };
        let title = format!(
            "Overhead by machines at once, {cache} page cache (geometric mean over functions)"
        );
        draw(&title, "machines at once", part.values("strategy"), time, points)
    };
    html! { @if counts.len() > 1 { (chart("cold")) (chart("warm")) } }
}

/// Read-only pages mapped and copied, by latency of their tier.
fn latency(report: &Report) -> Markup {
    let part = Part { report, name: shapes::BY_LATENCY };
    let points = |how: &String| -> Vec<(f64, f64)> {
        let point = |latency: String| {
            let labels = [("latency (ns)", latency.as_str()), ("read-only pages", how)];
            let at = part.conditions_with(&labels).into_iter().next()?;
            let functions = part.values("function").into_iter();
            let all = functions.filter_map(|f| part.median(replay::OVERHEAD, &f, "tiered", &at));
            Some((latency.parse().ok()?, geometric(all)? * 1e3))
        };
        part.values("latency (ns)").into_iter().filter_map(point).collect()
    };
    let title = "tiered: read-only pages mapped, copied, auto, by latency of their tier (geometric mean over functions)";
    draw(
        title,
        "ns more than local memory, each access",
        part.values("read-only pages"),
        time,
        points,
    )
}

fn draw(
    title: &str,
    x: &'static str,
    names: Vec<String>,
    text: fn(f64) -> String,
    points: impl Fn(&String) -> Vec<(f64, f64)>,
) -> Markup {
    let line = |(nth, name): (usize, String)| {
        let points = points(&name);
        (!points.is_empty()).then(|| Line { name, color: color(nth), points })
    };
    let lines: Vec<_> = names.into_iter().enumerate().filter_map(line).collect();
    if lines.is_empty() {
        return html! {};
    }
    let log = lines.iter().flat_map(|line| &line.points).all(|point| point.0 > 0.0);
    let x = Axis { label: x, log, text: |value| digits(value).trim_end_matches(".00").into() };
    Lines { title, x, y: Axis { label: "", log: true, text }, lines }.draw()
}
