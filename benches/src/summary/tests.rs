use super::*;
use crate::recorder::{Recorder, Series};
use crate::report::{Profile, Unit, tests::example};

/// Two functions, three strategies, made by hand.
fn report() -> Report {
    let mut recorder = Recorder::default();
    let overheads = [("lazy", 100.0), ("reap", 50.0), ("template", 20.0)];
    for (function, times) in [("a", 1.0), ("b|<c>", 4.0)] {
        for (strategy, overhead) in overheads {
            for (cache, by) in [("cold", 1.0), ("warm", 0.5)] {
                let mut add = |part: &str, name: &str, unit, value: f64| {
                    let labels = [
                        ("function", function),
                        ("strategy", strategy),
                        ("page cache", cache),
                        ("input", "new"),
                    ];
                    let mut series = Series::new(part, name, unit).with(&labels);
                    if part == record::PART {
                        series = series.with(&[("machines", "1")]);
                    }
                    recorder.add(&series, value).unwrap();
                };
                for run in [0.9, 1.0, 1.2] {
                    let overhead = overhead * times * by * run;
                    add(record::PART, "overhead", Unit::Millis, overhead);
                    add(record::PART, "to first answer", Unit::Millis, overhead + 10.0);
                    add(record::PART, "warm answer", Unit::Millis, 10.0);
                    add(record::PART, "to resumed", Unit::Millis, overhead * 0.5);
                    add("replay", "overhead", Unit::Micros, overhead);
                }
            }
        }
    }
    for (size, mapped) in [("128", 1.0), ("512", 1.5), ("8192", 2.0)] {
        let labels = [("guest size (MiB)", size), ("strategy", "template"), ("page cache", "warm")];
        let series = |name| Series::new(shapes::BY_SIZE, name, Unit::Micros).with(&labels);
        recorder.add(&series("to mapped"), mapped).unwrap();
        recorder.add(&series("overhead"), 10.0).unwrap();
    }
    let touch = Series::new("replay", replay::TOUCH, Unit::Nanos);
    let labels = [("strategy", "lazy"), ("page cache", "cold")];
    let bucket = |below_ns, count| varve_memory_tiers::Bucket { below_ns, count };
    recorder.add_all(&touch.with(&labels), &[bucket(100, 3), bucket(1000, 1)]);
    Report {
        notes: vec!["made by hand".into()],
        figures: recorder.figures(),
        distributions: recorder.distributions().to_vec(),
        profiles: vec![Profile {
            function: "a".into(),
            pages: 4,
            classes: Default::default(),
            map: ".rwc".into(),
        }],
        ..example()
    }
}

fn goal(what: &str, from: &str) -> goals::Goal {
    let goals = goals::goals(&[report()]);
    let found = goals.iter().find(|g| g.what.contains(what) && g.from.contains(from));
    found.unwrap_or_else(|| panic!("no {what:?} in {goals:#?}")).clone()
}

#[test]
fn goals_are_told_with_what_was_found() {
    for from in ["machines", "replay"] {
        let found = goal("cold page cache, as a multiple of lazy", from);
        assert_eq!((found.found.as_str(), found.met), ("0.20x (template)", Some(true)));
        let found = goal("warm page cache, as a multiple of reap", from);
        assert_eq!((found.found.as_str(), found.met), ("0.40x (template)", Some(true)));
        let found = goal("less overhead than reap and faasnap, cold", from);
        assert_eq!((found.found.as_str(), found.met), ("2 of 2 (template)", Some(true)));
    }
    // 30 and 90 ms against 110 and 410.
    let found = goal("first answer sooner", "machines");
    assert_eq!((found.found.as_str(), found.met), ("4.09x (template)", Some(true)));
    // 30 / 20 and 90 / 50.
    let found = goal("bare restore, cold", "machines");
    assert_eq!((found.found.as_str(), found.met), ("1.65x (template)", Some(false)));
    let found = goal("of the overhead, guest of 512", "replay");
    assert_eq!((found.found.as_str(), found.met), ("15.0 % (template)", Some(false)));
    assert_eq!(goal("8192 MiB to 128 MiB", "replay").found, "2.00x (template)");
}

/// Where even a machine that is there at once would not answer three times sooner than `lazy`'s.
#[test]
fn a_disk_that_is_not_slow_decides_nothing() {
    let mut report = report();
    for figure in &mut report.figures {
        let name = figure.labels.get("strategy").map(String::as_str);
        if figure.name == "to first answer" && name == Some("template") {
            figure.summary.median *= 2.0;
        }
    }
    let goals = goals::goals(&[report]);
    let sooner = goals.iter().find(|g| g.what.contains("first answer sooner")).unwrap();
    assert!(sooner.found.starts_with("2.04x (template); no method could"), "{}", sooner.found);
    assert_eq!(sooner.met, None);
}

#[test]
fn markdown_has_all_tables_and_nothing_breaks_out_of_them() {
    let text = render(&[report()]);
    assert!(text.contains("- made by hand\n"), "{text}");
    assert!(text.contains("| cold, 1 machine, new input | 1.00 | 0.50 | 0.20 |"), "{text}");
    assert!(text.contains("| b\\|&lt;c> | 400 ms ±15% (3) | 200 ms ±15% (3) | 80.0 ms ±15% (3) |"));
    assert!(text.contains("| to resumed (ms) | 125 | 62.5 | 25.0 |"), "{text}");
    assert!(text.contains("| warm, guest size (MiB) 512 | 10.0 |"), "{text}");
    assert!(text.contains("| missed |") && text.contains("| met |"), "{text}");
    for line in text.lines().filter(|line| line.starts_with('|')) {
        assert!(line.ends_with('|'), "{line}");
    }
}

#[test]
fn a_report_of_something_else_has_nothing_to_compare() {
    assert!(goals::goals(&[example()]).is_empty());
    assert!(render(&[example()]).contains("varve-bench boot"));
}

#[test]
fn the_page_draws_everything_and_fetches_nothing() {
    let page = page::render(&[report(), report()]);
    for part in
        ["What it was to show", "b|&lt;c&gt;", "<polyline", "<rect", "<path d=\"M6 0h6v6h-6z\""]
    {
        assert!(page.contains(part), "{part}: {page}");
    }
    for bad in ["http", "src=", "<link", "<script", "url(", "NaN", "inf\""] {
        assert!(!page.contains(bad), "{bad}");
    }
}
