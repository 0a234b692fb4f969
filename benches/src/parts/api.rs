//! `api`: what whoever starts varve in Firecracker's place waits for: its socket, its first answer, and
//! `PUT /snapshot/load` with `resume_vm`, by memory backend.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use varve_snapshot::{STATE_FILE, StateFile};
use varve_tests::Vm;

use super::Effort;
use crate::prepare::Recipe;
use crate::progress::Progress;
use crate::recorder::{Recorder, Series};
use crate::report::Unit;

const MEMORY: &str = "128M";
const BACKENDS: [&str; 2] = ["File", "Tiered"];

pub fn run(effort: Effort, folder: &Path, recorder: &mut Recorder) -> Result<()> {
    let mut progress = Progress::new("api", 1 + (effort.runs + 1) * BACKENDS.len());
    let folder = tempfile::Builder::new().prefix("varve-bench").tempdir_in(folder)?;
    progress.step("boot, record, tier");
    let made = Recipe::least("hello", MEMORY).make(folder.path(), |_| ());
    let snapshot = made.context("a snapshot to load")?.snapshot();
    let state = snapshot.join(STATE_FILE);
    let memory = StateFile::read(&state)?.memory_file.context("the snapshot has no memory file")?;
    // The first round only brings files into the page cache.
    for round in 0..=effort.runs {
        for backend in BACKENDS {
            progress.step(backend);
            let path = if backend == "File" { snapshot.join(&memory) } else { snapshot.clone() };
            let start = Instant::now();
            let vm = Vm::unconfigured("");
            let socket = start.elapsed();
            let info = vm.control("GET", "/", &Value::Null);
            let answer = start.elapsed();
            ensure!(info["state"] == "Not started", "{info}");
            let body = json!({
                "snapshot_path": state,
                "mem_backend": { "backend_type": backend, "backend_path": path },
                "vsock_override": { "uds_path": vm.uds() },
                "resume_vm": true,
            });
            let start = Instant::now();
            vm.control("PUT", "/snapshot/load", &body);
            let loaded = start.elapsed();
            let info = vm.control("GET", "/", &Value::Null);
            ensure!(info["state"] == "Running", "{backend}: {info}");
            if round > 0 {
                let mut add = |series: Series, time: Duration| {
                    recorder.add(&series, time.as_secs_f64() * 1e3)
                };
                let series = |name| Series::new("api", name, Unit::Millis);
                add(series("to socket"), socket)?;
                add(series("to first answer"), answer)?;
                let labels = [("backend", backend), ("memory", MEMORY)];
                add(series("load to resumed").with(&labels), loaded)?;
            }
        }
    }
    Ok(())
}
