//! What is saved of a run of benchmarks: the schema, and writing it. docs/benchmarks.md explains the
//! fields to readers of the files.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use varve_memory_tiers::Bucket;

use crate::stats::Summary;

/// Version of the schema. A reader may ignore fields it does not know; a field that changes its
/// meaning or goes away makes a new version.
pub const SCHEMA: u32 = 1;

/// One run of benchmarks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: u32,
    /// When it began, in UTC (RFC 3339).
    pub date: String,
    /// The command line.
    pub command: Vec<String>,
    /// Commit of the checkout, with `-dirty` if files differ from it; none without git.
    pub revision: Option<String>,
    /// What was measured.
    pub monitor: MonitorInfo,
    /// Where.
    pub machine: MachineInfo,
    /// What a reader has to know that no field says.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// What came out, in the order in which it was measured.
    pub figures: Vec<Figure>,
    /// Many values of a kind, counted by size.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub distributions: Vec<Distribution>,
    /// What was restored.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub profiles: Vec<Profile>,
}

/// Values of a kind, of all runs together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Distribution {
    /// The part that measured it.
    pub part: String,
    /// What it is.
    pub name: String,
    /// Under which conditions.
    pub labels: BTreeMap<String, String>,
    /// Shortest first.
    pub buckets: Vec<Bucket>,
}

/// A function's memory, as its tiered snapshot has it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Profile {
    /// The function.
    pub function: String,
    /// Guest memory in pages.
    pub pages: u64,
    /// Pages by class.
    pub classes: BTreeMap<String, u64>,
    /// Guest memory from the lowest page up in cells of equal size, a letter each: `.` zero, `r`
    /// read-only, `w` read-write, `c` cold; of several classes in one the one that matters most.
    pub map: String,
}

/// The monitor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MonitorInfo {
    /// What it says of itself, such as `varve 0.1.0`.
    pub version: String,
    /// The binary's path.
    pub binary: String,
    /// The binary's size in bytes.
    pub bytes: u64,
}

/// Whether the host is real.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Host {
    /// KVM of the machine itself.
    Native,
    /// The emulated host (docs/lab.md).
    Lab,
}

/// What the clocks count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Clock {
    /// Time.
    Real,
    /// Instructions (the lab's `--icount`).
    Virtual,
}

/// The host that ran the monitor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MachineInfo {
    /// Native or lab.
    pub host: Host,
    /// Real or virtual.
    pub clock: Clock,
    /// CPU model, as the kernel names it.
    pub cpu: String,
    /// CPUs that this process may use.
    pub cpus: usize,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// The kernel's release.
    pub kernel: String,
}

/// What values count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Unit {
    /// Milliseconds.
    #[serde(rename = "ms")]
    Millis,
    /// Microseconds.
    #[serde(rename = "us")]
    Micros,
    /// Nanoseconds.
    #[serde(rename = "ns")]
    Nanos,
    /// How many times another figure of the same round.
    #[serde(rename = "x")]
    Times,
    /// A number of things that had better be few.
    #[serde(rename = "count")]
    Count,
    /// 1024 bytes.
    #[serde(rename = "KiB")]
    Kib,
    /// 1024 * 1024 bytes a second.
    #[serde(rename = "MiB/s")]
    MibPerSecond,
    /// Operations a second.
    #[serde(rename = "1/s")]
    PerSecond,
}

impl Unit {
    /// As it is written.
    pub fn text(self) -> &'static str {
        match self {
            Unit::Millis => "ms",
            Unit::Micros => "us",
            Unit::Nanos => "ns",
            Unit::Times => "x",
            Unit::Count => "",
            Unit::Kib => "KiB",
            Unit::MibPerSecond => "MiB/s",
            Unit::PerSecond => "1/s",
        }
    }

    /// Whether less of it is better.
    pub fn less_is_better(self) -> bool {
        !matches!(self, Unit::MibPerSecond | Unit::PerSecond)
    }
}

/// What the project aims at. It is reported, never asserted.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Target {
    /// The median should not exceed this.
    pub at_most: f64,
    /// Whether it does not.
    pub met: bool,
}

/// One thing that was measured, several times.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// The part that measured it, such as `boot`.
    pub part: String,
    /// What it is, such as `agent ready`.
    pub name: String,
    /// Under which conditions, such as `kernel` = `bzImage`.
    pub labels: BTreeMap<String, String>,
    /// What the values count.
    pub unit: Unit,
    /// Whether less is better.
    pub less_is_better: bool,
    /// `runs`, `median`, `min`, `max`, `spread`, `p99`.
    #[serde(flatten)]
    pub summary: Summary,
    /// The target, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<Target>,
    /// All values, in the order in which they were measured.
    pub values: Vec<f64>,
}

impl Report {
    /// Writes it to `path`, whole or not at all; makes the folder if it is missing.
    pub fn save(&self, path: &Path) -> Result<()> {
        let mut text = serde_json::to_string_pretty(self)?;
        text.push('\n');
        save(path, &text)
    }

    /// Where and with what it was made, for people.
    pub fn facts(&self) -> Vec<String> {
        let machine = &self.machine;
        let host = match machine.host {
            Host::Native => "native",
            Host::Lab => "in the lab (emulated: compare, do not quote)",
        };
        let clock = match machine.clock {
            Clock::Real => "real time",
            Clock::Virtual => "virtual time",
        };
        let cpus =
            if machine.cpus == 1 { "1 CPU".into() } else { format!("{} CPUs", machine.cpus) };
        let revision = self.revision.as_deref().unwrap_or("no revision");
        vec![
            format!("{}, {revision}, {}", self.monitor.version, self.date),
            format!(
                "{host}, {clock}, {cpus} of {:?}, {} MiB, Linux {}",
                machine.cpu, machine.memory_mib, machine.kernel
            ),
            self.command.join(" "),
        ]
    }

    /// Reads one back.
    pub fn load(path: &Path) -> Result<Report> {
        let read = || -> Result<Report> {
            let value: serde_json::Value = serde_json::from_slice(&fs::read(path)?)?;
            let schema = value.get("schema").and_then(serde_json::Value::as_u64);
            ensure!(
                schema == Some(SCHEMA.into()),
                "its schema is {schema:?}, this program reads {SCHEMA}"
            );
            Ok(serde_json::from_value(value)?)
        };
        read().with_context(|| format!("{} is not a report that can be read", path.display()))
    }
}

/// Writes a text file, whole or not at all, for everyone to read as far as the umask allows; makes the
/// folder if it is missing.
pub fn save(path: &Path, text: &str) -> Result<()> {
    let folder = match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let write = || -> Result<()> {
        let mode = Permissions::from_mode(0o644);
        let mut file = tempfile::Builder::new().permissions(mode).tempfile_in(folder)?;
        file.write_all(text.as_bytes())?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        Ok(())
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub fn example() -> Report {
        let values = vec![3.0, 1.0, 2.5];
        Report {
            schema: SCHEMA,
            date: "2026-11-22T00:00:00Z".into(),
            command: vec!["varve-bench".into(), "boot".into()],
            revision: Some("0123456789ab-dirty".into()),
            monitor: MonitorInfo {
                version: "varve 0.1.0".into(),
                binary: "varve".into(),
                bytes: 7,
            },
            machine: MachineInfo {
                host: Host::Lab,
                clock: Clock::Virtual,
                cpu: "a CPU".into(),
                cpus: 1,
                memory_mib: 2048,
                kernel: "6.12".into(),
            },
            notes: Vec::new(),
            distributions: Vec::new(),
            profiles: Vec::new(),
            figures: vec![Figure {
                part: "boot".into(),
                name: "agent ready".into(),
                labels: [("kernel".into(), "bzImage".into())].into(),
                unit: Unit::Millis,
                less_is_better: true,
                summary: Summary::of(&values).unwrap(),
                target: Some(Target { at_most: 2.0, met: false }),
                values,
            }],
        }
    }

    #[test]
    fn the_file_is_as_documented() {
        let value = serde_json::to_value(example()).unwrap();
        assert_eq!(value["schema"], 1);
        assert_eq!(value["machine"]["host"], "lab");
        assert_eq!(value["machine"]["clock"], "virtual");
        let figure = serde_json::json!({
            "part": "boot", "name": "agent ready", "labels": {"kernel": "bzImage"},
            "unit": "ms", "less_is_better": true,
            "runs": 3, "median": 2.5, "min": 1.0, "max": 3.0, "spread": 0.8, "p99": null,
            "target": {"at_most": 2.0, "met": false}, "values": [3.0, 1.0, 2.5],
        });
        assert_eq!(value["figures"][0], figure);
    }

    #[test]
    fn what_is_saved_reads_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b.json");
        example().save(&path).unwrap();
        assert_eq!(Report::load(&path).unwrap(), example());
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn other_files_are_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.json");
        let error = |text: &str| {
            fs::write(&path, text).unwrap();
            format!("{:#}", Report::load(&path).unwrap_err())
        };
        assert!(error("{}").contains("x.json"));
        let other =
            serde_json::to_string(&example()).unwrap().replace("\"schema\":1", "\"schema\":2");
        assert!(error(&other).contains("its schema is Some(2)"));
        assert!(error("{\"schema\":1}").contains("date"));
        let error = example().save(&path.join("below-a-file.json")).unwrap_err();
        assert!(format!("{error:#}").contains("cannot make"), "{error:#}");
    }

    #[test]
    fn units_are_written_alike_everywhere() {
        use Unit::*;
        for unit in [Millis, Micros, Kib, MibPerSecond, PerSecond] {
            assert_eq!(serde_json::to_value(unit).unwrap(), unit.text());
        }
    }
}
