//! What comes out is what the format's grammar allows, and each number is there once.

use std::collections::BTreeSet;

use serde_json::json;

use super::super::Metrics;
use super::*;

/// A sample: name, labels, value.
type Sample = (String, Vec<(String, String)>, f64);

fn is_name(text: &str) -> bool {
    let first = |c: char| c.is_ascii_alphabetic() || c == '_';
    text.starts_with(first) && text.chars().all(|c| first(c) || c.is_ascii_digit())
}

/// Reads `name="value",…}`; the rest after the brace.
fn read_labels(mut text: &str) -> (Vec<(String, String)>, &str) {
    let mut found = Vec::new();
    loop {
        let (name, rest) = text.split_once("=\"").expect("a label");
        assert!(is_name(name), "label {name:?}");
        let mut value = String::new();
        let mut chars = rest.char_indices();
        let end = loop {
            match chars.next().expect("the end of a label") {
                (at, '"') => break at,
                (_, '\\') => match chars.next().expect("an escape").1 {
                    'n' => value.push('\n'),
                    c @ ('\\' | '"') => value.push(c),
                    c => panic!("escape {c:?}"),
                },
                (_, '\n') => panic!("a line feed in a label"),
                (_, c) => value.push(c),
            }
        };
        found.push((name.to_owned(), value));
        match rest[end + 1..].split_at(1) {
            (",", more) => text = more,
            ("}", more) => return (found, more),
            other => panic!("{other:?} after a label"),
        }
    }
}

/// A strict reader of the format: HELP, TYPE and samples of each name, in this order and together.
fn parse(text: &str) -> Vec<Sample> {
    assert!(text.ends_with('\n'));
    let mut samples: Vec<Sample> = Vec::new();
    let mut families = BTreeSet::new();
    let mut lines = text.lines().peekable();
    while let Some(help) = lines.next() {
        let (name, _) = help.strip_prefix("# HELP ").expect(help).split_once(' ').expect(help);
        assert!(is_name(name) && families.insert(name), "{name}");
        let kind = lines.next().and_then(|l| l.strip_prefix(&format!("# TYPE {name} ")));
        match kind.expect(name) {
            "counter" => assert!(name.ends_with("_total"), "{name}"),
            "gauge" => assert!(!name.ends_with("_total"), "{name}"),
            other => panic!("type {other:?}"),
        }
        let mut seen = BTreeSet::new();
        while let Some(line) = lines.next_if(|line| !line.starts_with('#')) {
            let rest = line.strip_prefix(name).expect(line);
            let (labels, rest) = match rest.strip_prefix('{') {
                Some(rest) => read_labels(rest),
                None => (Vec::new(), rest),
            };
            let value: f64 = rest.strip_prefix(' ').expect(line).parse().expect(line);
            assert!(value.is_finite() && seen.insert(labels.clone()), "twice: {line}");
            samples.push((name.into(), labels, value));
        }
        assert!(!seen.is_empty(), "{name} has no samples");
    }
    samples
}

fn find(samples: &[Sample], name: &str, labels: &[(&str, &str)]) -> f64 {
    let wanted: Vec<_> = labels.iter().map(|(n, v)| ((*n).into(), (*v).into())).collect();
    let found = samples.iter().find(|(n, l, _)| n == name && *l == wanted);
    found.unwrap_or_else(|| panic!("no {name} {labels:?}")).2
}

/// Every number of the tree, but for sums of devices.
fn numbers(tree: &Tree, devices: &[&str]) -> usize {
    let count = |value: &Value| match value {
        Value::Object(tree) => numbers(tree, &[]),
        Value::Number(_) => 1,
        _ => 0,
    };
    tree.iter().filter(|(name, _)| !devices.contains(&name.as_str())).map(|(_, v)| count(v)).sum()
}

#[test]
fn every_number_is_a_sample() {
    let metrics = Metrics::default();
    let empty = metrics.totals();
    assert_eq!(parse(&render(&empty)).len(), numbers(&empty, &[]));

    for id in ["root", "b\"a\\d\n"] {
        metrics.devices().block.entry(id.into()).or_default().read_bytes.add(id.len() as u64);
    }
    metrics.devices().net.entry("eth0".into()).or_default().rx_bytes_count.add(9);
    metrics.put_requests.actions_fails.add(3);
    metrics.latencies.pause_vm.set(1_500);
    metrics.vcpu.exit_io_in_agg.record(std::time::Duration::from_micros(2_000_001));
    let totals = metrics.totals();
    let samples = parse(&render(&totals));
    assert_eq!(samples.len(), numbers(&totals, &["block", "net"]));
    let get = |name, labels: &[_]| find(&samples, name, labels);
    assert_eq!(get("varve_block_read_bytes_total", &[("drive", "root")]), 4.0);
    assert_eq!(get("varve_block_read_bytes_total", &[("drive", "b\"a\\d\n")]), 6.0);
    assert_eq!(get("varve_net_rx_bytes_total", &[("interface", "eth0")]), 9.0);
    let refused = [("method", "PUT"), ("resource", "actions")];
    assert_eq!(get("varve_api_requests_refused_total", &refused), 3.0);
    assert_eq!(get("varve_latency_seconds", &[("operation", "pause_vm")]), 0.0015);
    assert_eq!(get("varve_vcpu_exit_io_in_max_seconds", &[]), 2.000001);
    assert_eq!(get("varve_vcpu_exit_io_in_seconds_total", &[]), 2.000001);
}

#[test]
fn restores_are_told_by_class_page_and_image() {
    let mut totals = Metrics::default().totals();
    let restore = json!({
        "strategy": "tiered",
        "faults": { "zero": { "read": 1, "write": 2 } },
        "faults_late": 3,
        "pages": { "mapped": 4, "copied": 5 },
        "sources": [{ "image": "rw", "tier": "dram", "bytes_read": 6 }],
        "mappings": 7,
        "times": { "lay": 8.5, "slowest_fault": 9.0 },
    });
    totals.insert("restore".into(), restore);
    let samples = parse(&render(&totals));
    let get = |name, labels: &[_]| find(&samples, name, labels);
    assert_eq!(get("varve_restore_info", &[("strategy", "tiered")]), 1.0);
    let write = [("class", "zero"), ("access", "write")];
    assert_eq!(get("varve_restore_faults_total", &write), 2.0);
    assert_eq!(get("varve_restore_faults_late_total", &[]), 3.0);
    assert_eq!(get("varve_restore_pages_total", &[("what", "copied")]), 5.0);
    let image = [("image", "rw"), ("tier", "dram")];
    assert_eq!(get("varve_restore_read_bytes_total", &image), 6.0);
    assert_eq!(get("varve_restore_mappings", &[]), 7.0);
    assert_eq!(get("varve_restore_seconds_total", &[("part", "lay")]), 8.5e-6);
    assert_eq!(get("varve_restore_slowest_fault_seconds", &[]), 9e-6);
}
