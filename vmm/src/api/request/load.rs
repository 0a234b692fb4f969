//! Body of `PUT /snapshot/load`: Firecracker's fields, and what varve adds to them, to a [`Wanted`].

use std::path::PathBuf;

use serde::Deserialize;
use serde::de::Error;
use varve_memory_tiers::HugePages;

use crate::machine::recording::Record;
use crate::snapshot::choices::Choices;
use crate::snapshot::restore::{Overrides, Source, Wanted};

/// What a request to load a snapshot asks for.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(try_from = "Body")]
pub struct LoadSnapshot {
    /// The restore.
    pub wanted: Wanted,
    /// Let the guest run at once.
    pub resume: bool,
    /// `mem_file_path` was used, which users should give up for `mem_backend`.
    pub deprecated: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    /// Required but for tiered snapshots, which know their state file.
    snapshot_path: Option<PathBuf>,
    mem_file_path: Option<PathBuf>,
    mem_backend: Option<MemBackend>,
    #[serde(default)]
    enable_diff_snapshots: bool,
    #[serde(default)]
    track_dirty_pages: bool,
    #[serde(default)]
    resume_vm: bool,
    #[serde(default)]
    network_overrides: Vec<NetworkOverride>,
    vsock_override: Option<VsockOverride>,
    #[serde(default)]
    clock_realtime: bool,
    #[serde(default)]
    huge_pages: LoadHugePages,
    // From here on varve's own.
    #[serde(default)]
    restore: Choices,
    #[serde(default)]
    drive_overrides: Vec<DriveOverride>,
    record: Option<Record>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MemBackend {
    backend_path: PathBuf,
    backend_type: BackendType,
}

#[derive(Clone, Copy, Deserialize)]
enum BackendType {
    File,
    Uffd,
    /// varve's own: the folder of a tiered snapshot.
    Tiered,
}

/// As Firecracker's, it and the next one take no notice of fields that they do not know.
#[derive(Deserialize)]
struct NetworkOverride {
    iface_id: String,
    host_dev_name: String,
}

#[derive(Deserialize)]
struct VsockOverride {
    uds_path: PathBuf,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DriveOverride {
    drive_id: String,
    path_on_host: PathBuf,
}

/// Pages that guest memory will be made of.
#[derive(Clone, Copy, Default, Deserialize)]
enum LoadHugePages {
    /// Those that the snapshot's machine had.
    #[default]
    Snapshot,
    None,
    Transparent,
    #[serde(rename = "2M")]
    Pool,
}

impl From<LoadHugePages> for Option<HugePages> {
    fn from(pages: LoadHugePages) -> Option<HugePages> {
        match pages {
            LoadHugePages::Snapshot => None,
            LoadHugePages::None => Some(HugePages::Off),
            LoadHugePages::Transparent => Some(HugePages::Transparent),
            LoadHugePages::Pool => Some(HugePages::Pool),
        }
    }
}

impl TryFrom<Body> for LoadSnapshot {
    type Error = serde_json::Error;

    fn try_from(body: Body) -> Result<LoadSnapshot, serde_json::Error> {
        let state = |path: Option<PathBuf>| {
            path.ok_or_else(|| serde_json::Error::missing_field("snapshot_path"))
        };
        let deprecated = body.mem_file_path.is_some();
        let source = match (body.mem_backend, body.mem_file_path) {
            (Some(MemBackend { backend_path, backend_type }), None) => match backend_type {
                BackendType::File => {
                    Source::Files { state: state(body.snapshot_path)?, memory: backend_path }
                }
                BackendType::Uffd => {
                    Source::Handler { state: state(body.snapshot_path)?, socket: backend_path }
                }
                BackendType::Tiered => {
                    Source::Tiered { dir: backend_path, state: body.snapshot_path }
                }
            },
            (None, Some(memory)) => Source::Files { state: state(body.snapshot_path)?, memory },
            (backend, _) => {
                state(body.snapshot_path)?;
                return Err(serde_json::Error::custom(match backend {
                    Some(_) => {
                        "too many fields: either `mem_backend` or `mem_file_path` exclusively is \
                         required"
                    }
                    None => "missing field: either `mem_backend` or `mem_file_path` is required",
                }));
            }
        };
        let drive = |DriveOverride { drive_id, path_on_host }| (drive_id, path_on_host);
        let net = |NetworkOverride { iface_id, host_dev_name }| (iface_id, host_dev_name);
        let overrides = Overrides {
            vsock: body.vsock_override.map(|v| v.uds_path),
            drives: body.drive_overrides.into_iter().map(drive).collect(),
            nets: body.network_overrides.into_iter().map(net).collect(),
            ..Overrides::default()
        };
        let wanted = Wanted {
            source,
            choices: body.restore,
            huge_pages: body.huge_pages.into(),
            record: body.record,
            overrides,
            track_dirty_pages: Some(body.track_dirty_pages || body.enable_diff_snapshots),
            clock_realtime: body.clock_realtime,
        };
        Ok(LoadSnapshot { wanted, resume: body.resume_vm, deprecated })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::recording::RecordBy;
    use serde_json::{Value, from_value, json};
    use varve_memory_tiers::Strategy;

    fn load(body: Value) -> LoadSnapshot {
        from_value(body).unwrap()
    }

    fn refused(body: Value) -> String {
        from_value::<LoadSnapshot>(body).unwrap_err().to_string()
    }

    #[test]
    fn firecrackers_bodies() {
        let file = json!({ "backend_type": "File", "backend_path": "m" });
        let plain = load(json!({ "snapshot_path": "s", "mem_backend": file }));
        let files = Source::Files { state: "s".into(), memory: "m".into() };
        let wanted = Wanted {
            source: files.clone(),
            choices: Choices::default(),
            huge_pages: None,
            record: None,
            overrides: Overrides::default(),
            track_dirty_pages: Some(false),
            clock_realtime: false,
        };
        assert_eq!(plain, LoadSnapshot { wanted, resume: false, deprecated: false });

        let old =
            json!({ "snapshot_path": "s", "mem_file_path": "m", "enable_diff_snapshots": true });
        let old = load(old);
        assert_eq!((old.wanted.source, old.wanted.track_dirty_pages), (files, Some(true)));
        assert!(old.deprecated);

        let all = load(json!({
            "snapshot_path": "s",
            "mem_backend": { "backend_type": "Uffd", "backend_path": "u" },
            "track_dirty_pages": true,
            "resume_vm": true,
            "network_overrides": [{ "iface_id": "eth0", "host_dev_name": "tap7" }],
            "vsock_override": { "uds_path": "v" },
            "clock_realtime": true,
            "huge_pages": "2M",
        }));
        assert!(all.resume && all.wanted.clock_realtime);
        let handler = Source::Handler { state: "s".into(), socket: "u".into() };
        assert_eq!(all.wanted.source, handler);
        assert_eq!(all.wanted.huge_pages, Some(HugePages::Pool));
        assert_eq!(all.wanted.overrides.nets, [("eth0".into(), "tap7".into())]);
        assert_eq!(all.wanted.overrides.vsock, Some("v".into()));
        for (word, pages) in [
            ("Snapshot", None),
            ("None", Some(HugePages::Off)),
            ("Transparent", Some(HugePages::Transparent)),
        ] {
            let body = json!({ "snapshot_path": "s", "mem_file_path": "m", "huge_pages": word });
            assert_eq!(load(body).wanted.huge_pages, pages);
        }
    }

    #[test]
    fn varves_own() {
        let tiered = json!({ "backend_type": "Tiered", "backend_path": "d" });
        let LoadSnapshot { wanted, .. } = load(json!({
            "mem_backend": tiered,
            "restore": { "strategy": "tiered", "wait": "written" },
            "drive_overrides": [{ "drive_id": "rootfs", "path_on_host": "r" }],
            "record": { "trace_path": "t", "by": "pagemap" },
        }));
        assert_eq!(wanted.source, Source::Tiered { dir: "d".into(), state: None });
        assert_eq!(wanted.choices.strategy, Some(Strategy::Tiered));
        assert_eq!(wanted.overrides.drives, [("rootfs".into(), "r".into())]);
        let record = Record { trace_path: "t".into(), by: RecordBy::Pagemap, append: false };
        assert_eq!(wanted.record, Some(record));
        let both = load(json!({ "mem_backend": tiered, "snapshot_path": "s" })).wanted.source;
        assert_eq!(both, Source::Tiered { dir: "d".into(), state: Some("s".into()) });
    }

    #[test]
    fn refusals_in_firecrackers_words() {
        let file = json!({ "backend_type": "File", "backend_path": "m" });
        assert_eq!(
            refused(json!({ "snapshot_path": "s" })),
            "missing field: either `mem_backend` or `mem_file_path` is required"
        );
        assert_eq!(
            refused(json!({ "snapshot_path": "s", "mem_backend": file, "mem_file_path": "m" })),
            "too many fields: either `mem_backend` or `mem_file_path` exclusively is required"
        );
        assert_eq!(refused(json!({ "mem_backend": file })), "missing field `snapshot_path`");
        assert_eq!(
            refused(json!({ "snapshot_path": "s", "mem_backend": { "backend_path": "m" } })),
            "missing field `backend_type`"
        );
        let other = json!({ "backend_type": "Nfs", "backend_path": "m" });
        assert_eq!(
            refused(json!({ "snapshot_path": "s", "mem_backend": other })),
            "unknown variant `Nfs`, expected one of `File`, `Uffd`, `Tiered`"
        );
        let more = refused(json!({ "snapshot_path": "s", "mem_backend": file, "fast": true }));
        assert!(more.starts_with("unknown field `fast`"), "{more}");
    }
}
