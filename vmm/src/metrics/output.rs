//! The file or pipe that metrics go to: one JSON object per line, with what was added since the line
//! before.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

use super::config::{MetricsConfig, MetricsError};
use super::micros;
use super::tree::{self, Tree};
use crate::sink::Sink;

/// One line. Its first field is the time.
#[derive(Serialize)]
struct Line<'o> {
    utc_timestamp_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'o str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    properties: Option<&'o BTreeMap<String, String>>,
    #[serde(flatten)]
    groups: Tree,
}

/// Where lines go, and what the last one ended with.
pub struct Output {
    sink: Sink,
    id: Option<String>,
    properties: Option<BTreeMap<String, String>>,
    before: Tree,
}

impl Output {
    /// Opens the file.
    pub fn open(config: &MetricsConfig, id: &str) -> Result<Output, MetricsError> {
        let MetricsConfig { metrics_path, emit_id, properties } = config;
        let open = |source| MetricsError::Open { path: metrics_path.clone(), source };
        Ok(Output {
            sink: Sink::open(metrics_path).map_err(open)?,
            id: emit_id.then(|| id.into()),
            properties: properties.clone(),
            before: Tree::new(),
        })
    }

    /// Writes a line for `totals`. If it is lost, the next one has its counts, too.
    pub fn write(&mut self, totals: Tree) -> Result<(), MetricsError> {
        let mut line = serde_json::to_vec(&Line {
            utc_timestamp_ms: now_ms(),
            id: self.id.as_deref(),
            properties: self.properties.as_ref(),
            groups: tree::since(&totals, &self.before),
        })?;
        line.push(b'\n');
        self.sink.write_line(&line).map_err(MetricsError::Write)?;
        self.before = totals;
        Ok(())
    }
}

/// Milliseconds since 1970, UTC.
pub fn now_ms() -> u64 {
    micros(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()) / 1000
}

#[cfg(test)]
mod tests {
    use super::super::Metrics;
    use super::*;
    use serde_json::Value;
    use std::sync::Arc;

    fn lines(path: &std::path::Path) -> Vec<Value> {
        let text = std::fs::read_to_string(path).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn lines_hold_what_was_added() {
        let dir = tempfile::tempdir().unwrap();
        let metrics_path = dir.path().join("m");
        let properties = Some([("customer".to_owned(), "7".to_owned())].into());
        let config =
            MetricsConfig { metrics_path: metrics_path.clone(), emit_id: true, properties };
        let metrics = Arc::new(Metrics::default());
        metrics.flush().unwrap();
        metrics.configure(&config, "vm-1").unwrap();
        assert!(matches!(metrics.configure(&config, "vm-1"), Err(MetricsError::Configured)));
        metrics.put_requests.drive_count.add(2);
        metrics.latencies.pause_vm.set(55);
        metrics.flush().unwrap();
        metrics.put_requests.drive_count.inc();
        metrics.flush().unwrap();
        metrics.flush().unwrap();

        let text = std::fs::read_to_string(&metrics_path).unwrap();
        assert!(text.lines().all(|l| l.starts_with("{\"utc_timestamp_ms\":")), "{text}");
        let lines = lines(&metrics_path);
        let counts: Vec<_> = lines.iter().map(|l| &l["put_api_requests"]["drive_count"]).collect();
        assert_eq!(counts, [2, 1, 0]);
        for line in &lines {
            assert_eq!(line["latencies_us"]["pause_vm"], 55);
            assert_eq!(line["id"], "vm-1");
            assert_eq!(line["properties"], serde_json::json!({ "customer": "7" }));
        }
        assert!(lines[0]["utc_timestamp_ms"].as_u64().unwrap().abs_diff(now_ms()) < 10_000);
    }

    #[test]
    fn a_lost_line_is_counted_and_its_counts_are_not_lost() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pipe");
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, mode).unwrap();
        let config = MetricsConfig { metrics_path: path.clone(), emit_id: false, properties: None };
        let metrics = Arc::new(Metrics::default());
        metrics.configure(&config, "x").unwrap();
        let flush = || {
            metrics.vcpu.exit_io_in.inc();
            metrics.flush()
        };
        let taken = (0..100).take_while(|_| flush().is_ok()).count();
        assert!((2..50).contains(&taken), "{taken}");
        assert!(matches!(flush(), Err(MetricsError::Write(_))));

        let mut pipe = std::fs::File::open(&path).unwrap();
        let mut text = vec![0; 1 << 20];
        let n = std::io::Read::read(&mut pipe, &mut text).unwrap();
        flush().unwrap();
        let more = std::io::Read::read(&mut pipe, &mut text[n..]).unwrap();
        let text = String::from_utf8(text[..n + more].to_vec()).unwrap();
        let lines: Vec<Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let sum: u64 = lines.iter().map(|l| l["vcpu"]["exit_io_in"].as_u64().unwrap()).sum();
        assert_eq!(lines.len(), taken + 1);
        assert_eq!(sum, taken as u64 + 3, "two lines were lost, nothing else");
        assert_eq!(lines[taken]["logger"]["missed_metrics_count"], 2);
    }
}
