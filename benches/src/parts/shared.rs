//! `shared`: what one more machine of the same function takes, with its read-only pages mapped from a
//! store that all share, mapped from the snapshot's own file, or copied.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde_json::Value;
use varve_shared::host::Host;
use varve_tests::{Restoring, Vm};

use super::Effort;
use crate::demo::command::{output, words};
use crate::prepare::Recipe;
use crate::progress::Progress;
use crate::recorder::{Recorder, Series};
use crate::report::Unit;
use crate::smaps;

/// Machines that run at once. Of those after the first, nothing is counted that another has too.
const MACHINES: usize = 4;
const MEMORY: &str = "256M";
/// Where read-only pages are used from: the name of that, and the options of a restore.
const WAYS: [(&str, &str); 3] = [
    ("copied", "--tune read_only=copied --tune local_files=true"),
    ("mapped, own file", "--tune read_only=mapped --tune local_files=true"),
    ("mapped, shared store", "--tune read_only=mapped"),
];

pub fn run(effort: Effort, folder: &Path, recorder: &mut Recorder) -> Result<()> {
    let folder = tempfile::Builder::new().prefix("varve-bench").tempdir_in(folder)?;
    let mut progress = Progress::new("shared", 1 + WAYS.len() * effort.runs);
    progress.step("boot, record, tier, publish");
    let snapshot = Recipe::least("hello", MEMORY).make(folder.path(), |_| ())?.snapshot();
    let node = Host::look().nodes.into_iter().find(|n| n.cpus.is_none() && n.bytes > 0);
    let store = match node {
        Some(node) => format!("numa:{}", node.node),
        None => format!("file:{}", folder.path().join("store").display()),
    };
    output(words!["tier", "publish", &snapshot, "--to", &store])?;
    for _ in 0..effort.runs {
        let mut copied = None;
        for (name, way) in WAYS {
            progress.step(name);
            let start = || {
                let way = format!("--strategy tiered --wait all --paused {way}");
                Restoring::from(&snapshot).options(&way).start()
            };
            let mut machines: Vec<Vm> = (0..MACHINES).map(|_| start()).collect();
            machines.iter_mut().for_each(Vm::wait_for_api);
            // Answered when memory is there: all of it, by all machines, before any is looked at.
            for machine in &machines {
                machine.control("GET", "/memory", &Value::Null);
            }
            let mut taken = 0;
            for machine in &machines[1..] {
                taken += settled(machine.pid())?;
            }
            let each = taken as f64 / (MACHINES - 1) as f64;
            let series = |figure: &str, unit| {
                let labels = [("memory", MEMORY), ("read-only pages", name)];
                Series::new("shared", figure, unit).with(&labels)
            };
            recorder.add(&series("one more machine", Unit::Kib), each)?;
            let whole = *copied.get_or_insert(each);
            recorder.add(&series("against copied", Unit::Times), each / whole)?;
        }
    }
    output(words!["tier", "revoke", &snapshot])?;
    output(words!["tier", "gc", &store])?;
    Ok(())
}

/// Memory that a process alone has, in KiB, when threads beside its guest have made ready what they will.
fn settled(pid: u32) -> Result<u64> {
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut last = smaps::private(pid)?;
    loop {
        std::thread::sleep(Duration::from_millis(200));
        match smaps::private(pid)? {
            now if now == last => return Ok(now),
            now => last = now,
        }
        if Instant::now() > deadline {
            bail!("the memory of process {pid} does not settle");
        }
    }
}
