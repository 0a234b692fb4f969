//! Metrics in Prometheus' text format (exposition format 0.0.4).
//!
//! Names follow Prometheus' customs: `varve_` first, seconds and bytes, `_total` for counts. What
//! Firecracker's names say of which drive, interface or request it was is in labels; sums over
//! drives or interfaces are left to who asks.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde_json::Value;

use super::tree::{Tree, is_level};

/// All samples of one name.
#[derive(Default)]
struct Family {
    counts: bool,
    /// Where it is in the JSON.
    source: String,
    /// Labels and value.
    samples: Vec<(String, String)>,
}

#[derive(Default)]
struct Families(BTreeMap<String, Family>);

/// The text for `totals`, whose counts are from the start of the process or of the file.
pub fn render(totals: &Tree) -> String {
    let mut families = Families::default();
    for (group, fields) in totals {
        match (group.as_str(), fields) {
            ("utc_timestamp_ms", ms) => {
                let value = scaled(ms, 3).unwrap_or_default();
                families.push("varve_metrics_timestamp_seconds", group, false, "", value);
            }
            ("restore", Value::Object(restore)) => families.restore(restore),
            (_, Value::Object(fields)) => families.group(group, fields, totals),
            // Who it is and what else the user wanted said.
            _ => {}
        }
    }
    families.to_string()
}

impl Families {
    fn push(&mut self, name: &str, source: &str, counts: bool, labels: &str, value: String) {
        let family = self.0.entry(name.into()).or_default();
        (family.counts, family.source) = (counts, source.into());
        family.samples.push((labels.into(), value));
    }

    fn group(&mut self, group: &str, fields: &Tree, totals: &Tree) {
        for (kind, label) in [("block", "drive"), ("net", "interface")] {
            if group == kind && totals.keys().any(|name| device(name, kind).is_some()) {
                return;
            }
            if let Some(id) = device(group, kind) {
                let label = labels(&[(label, id)]);
                return self.fields(kind, group, fields, &label);
            }
        }
        match group.strip_suffix("_api_requests") {
            Some(method) => self.requests(group, method, fields),
            None => self.fields(group, group, fields, ""),
        }
    }

    /// A group of counts, levels and times.
    fn fields(&mut self, kind: &str, group: &str, fields: &Tree, label: &str) {
        let name = |field: &str| match kind {
            "latencies_us" => "varve_latency_seconds".to_owned(),
            _ => format!("varve_{kind}_{field}"),
        };
        for (field, value) in fields {
            let source = format!("{kind}.{field}");
            if let Value::Object(times) = value {
                let what = name(field.strip_suffix("_agg").unwrap_or(field));
                for (part, suffix) in [
                    ("min_us", "min_seconds"),
                    ("max_us", "max_seconds"),
                    ("sum_us", "seconds_total"),
                ] {
                    if let Some(seconds) = times.get(part).and_then(|us| scaled(us, 6)) {
                        let (name, source) =
                            (format!("{what}_{suffix}"), format!("{source}.{part}"));
                        self.push(&name, &source, part == "sum_us", label, seconds);
                    }
                }
            } else if kind == "latencies_us" {
                let label = labels(&[("operation", field)]);
                if let Some(seconds) = scaled(value, 6) {
                    self.push(&name(field), kind, false, &label, seconds);
                }
            } else if let Some(what) = field.strip_suffix("_us") {
                if let Some(seconds) = scaled(value, 6) {
                    self.push(&format!("{}_seconds", name(what)), &source, false, label, seconds);
                }
            } else if let Some(number) = scaled(value, 0) {
                let counts = !is_level(&[group, field]);
                let what = field.strip_suffix("_count").unwrap_or(field);
                let suffix = if counts { "_total" } else { "" };
                self.push(&format!("{}{suffix}", name(what)), &source, counts, label, number);
            }
        }
    }

    /// A group of requests by what they are for, and of those that were refused.
    fn requests(&mut self, group: &str, method: &str, fields: &Tree) {
        for (field, value) in fields {
            let (name, resource) =
                match (field.strip_suffix("_count"), field.strip_suffix("_fails")) {
                    (Some(resource), _) => ("varve_api_requests_total", resource),
                    (_, Some(resource)) => ("varve_api_requests_refused_total", resource),
                    _ => continue,
                };
            let label = labels(&[("method", &method.to_ascii_uppercase()), ("resource", resource)]);
            if let Some(number) = scaled(value, 0) {
                let source = group.replace(method, "*");
                self.push(name, &source, true, &label, number);
            }
        }
    }

    /// The restore's counters (`varve_memory_tiers::Counters`).
    fn restore(&mut self, restore: &Tree) {
        let object =
            |name: &str| restore.get(name).and_then(Value::as_object).into_iter().flatten();
        if let Some(strategy) = restore.get("strategy").and_then(Value::as_str) {
            let label = labels(&[("strategy", strategy)]);
            self.push("varve_restore_info", "restore.strategy", false, &label, "1".into());
        }
        for (class, accesses) in object("faults") {
            for (access, value) in accesses.as_object().into_iter().flatten() {
                let label = labels(&[("class", class), ("access", access)]);
                let number = scaled(value, 0).unwrap_or_default();
                self.push("varve_restore_faults_total", "restore.faults", true, &label, number);
            }
        }
        for (what, value) in object("pages") {
            let (label, number) = (labels(&[("what", what)]), scaled(value, 0).unwrap_or_default());
            self.push("varve_restore_pages_total", "restore.pages", true, &label, number);
        }
        for source in restore.get("sources").and_then(Value::as_array).into_iter().flatten() {
            let text = |name: &str| source[name].as_str().unwrap_or_default();
            let label = labels(&[("image", text("image")), ("tier", text("tier"))]);
            let bytes = scaled(&source["bytes_read"], 0).unwrap_or_default();
            self.push("varve_restore_read_bytes_total", "restore.sources", true, &label, bytes);
        }
        for (part, us) in object("times") {
            let seconds = us.as_f64().map(|us| format!("{}", us / 1e6)).unwrap_or_default();
            if part == "slowest_fault" {
                let name = "varve_restore_slowest_fault_seconds";
                self.push(name, "restore.times", false, "", seconds);
            } else {
                let label = labels(&[("part", part)]);
                self.push("varve_restore_seconds_total", "restore.times", true, &label, seconds);
            }
        }
        if let Some(late) = restore.get("faults_late").and_then(|n| scaled(n, 0)) {
            self.push("varve_restore_faults_late_total", "restore.faults_late", true, "", late);
        }
        if let Some(mappings) = restore.get("mappings").and_then(|n| scaled(n, 0)) {
            self.push("varve_restore_mappings", "restore.mappings", false, "", mappings);
        }
    }
}

impl std::fmt::Display for Families {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (name, Family { counts, source, samples }) in &self.0 {
            let kind = if *counts { "counter" } else { "gauge" };
            writeln!(f, "# HELP {name} {source}")?;
            writeln!(f, "# TYPE {name} {kind}")?;
            for (labels, value) in samples {
                writeln!(f, "{name}{labels} {value}")?;
            }
        }
        Ok(())
    }
}

/// The id of the device whose group this is.
fn device<'g>(group: &'g str, kind: &str) -> Option<&'g str> {
    group.strip_prefix(kind)?.strip_prefix('_')
}

/// A whole number divided by ten to the power of `digits`, exactly.
fn scaled(value: &Value, digits: u32) -> Option<String> {
    let n = value.as_u64()?;
    let unit = 10u64.pow(digits);
    let (whole, part) = (n / unit, n % unit);
    Some(match part {
        0 => whole.to_string(),
        _ => format!("{whole}.{part:0width$}", width = digits as usize),
    })
}

/// `{name="value",…}`.
fn labels(pairs: &[(&str, &str)]) -> String {
    let mut text = String::new();
    for (name, value) in pairs {
        let separator = if text.is_empty() { '{' } else { ',' };
        let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        // Writing to a string does not fail.
        let _ = write!(text, "{separator}{name}=\"{value}\"");
    }
    text.push('}');
    text
}

#[cfg(test)]
#[path = "prometheus_tests.rs"]
mod tests;
