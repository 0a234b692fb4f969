//! The command line of `varve-bench compare`.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use kvm_ioctls::{Kvm, VmFd};
use rustix::fs::syncfs;
use varve_memory_tiers::Strategy;
use varve_tests::images::root;

use super::disk::Disk;
use super::firecracker::Other;
use super::settings::Settings;
use super::{Column, Function, Input, NEW_INPUT, TIERED_INPUTS, WARM_INPUTS, shapes, store};
use crate::environment;
use crate::parts::Effort;
use crate::prepare::{Prepared, Recipe, functions};
use crate::progress::Progress;
use crate::replay::once::Conditions;
use crate::replay::{self, Comparison, PageCache};
use crate::report::Host;
use crate::session::Session;

/// Functions that are measured when it has to be quick.
const QUICK_FUNCTIONS: [&str; 3] = ["hello", "json", "pagerank"];
/// Room for one function's snapshots, most of which is never used.
const DISK_GIB: u64 = 8;

/// What is measured of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Way {
    /// Machines, end to end
    Machine,
    /// Its recorded accesses in plain processes, without KVM
    Replay,
    /// The same with read-only pages mapped and copied, at modelled latencies of their tier
    Latency,
    /// Synthetic snapshots by guest size and by share of hot pages, without KVM or a function
    Shapes,
}

/// Options of `varve-bench compare`.
#[derive(Clone, Debug, Args)]
pub struct CompareArgs {
    /// Functions [default: all of the function image; with --quick hello, json and pagerank]
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    function: Vec<String>,
    /// Methods, the first of which the others are compared with
    #[arg(
        long,
        value_name = "NAMES",
        value_delimiter = ',',
        default_value = "lazy,eager,reap,faasnap,tiered,template,auto"
    )]
    strategy: Vec<Strategy>,
    /// Another monitor with Firecracker's API as a column (repeat for more): it boots, snapshots and
    /// loads by itself
    #[arg(long = "monitor", value_name = "NAME=PATH")]
    monitors: Vec<Other>,
    /// Page cache
    #[arg(long, value_enum, value_delimiter = ',', default_value = "cold,warm")]
    cache: Vec<PageCache>,
    /// Input: one that the snapshot was tiered by, or another one
    #[arg(long, value_enum, value_delimiter = ',', default_value = "new,recorded")]
    input: Vec<Input>,
    /// Machines at once
    #[arg(long, value_name = "NUMBERS", value_delimiter = ',', default_value = "1,8",
          value_parser = clap::value_parser!(u16).range(1..=256))]
    vms: Vec<u16>,
    /// Memory of a machine
    #[arg(long, value_name = "SIZE", default_value = "256M")]
    memory: String,
    /// What is measured
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "machine,replay,latency,shapes"
    )]
    ways: Vec<Way>,
    /// Folder of the snapshots, which stay there and are used again [default: target/bench/snapshots;
    /// in the lab a RAM disk with a delay, which goes with it]
    #[arg(long, value_name = "DIR")]
    folder: Option<PathBuf>,
    /// Microseconds that each request to the lab's RAM disk takes
    #[arg(long, value_name = "US", default_value_t = 1000, conflicts_with = "folder")]
    disk_delay: u64,
    /// Copy the snapshots to this folder as well, and use those that are there: for --resume in the lab,
    /// and for replays elsewhere (--folder)
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
    /// Computing between two accesses of a replay, in nanoseconds
    #[arg(long, value_name = "NS", default_value_t = 4000)]
    compute: u64,
    /// Report of a run that may have been cut short: go on with it, or begin it
    #[arg(long, value_name = "FILE", conflicts_with = "json")]
    pub resume: Option<PathBuf>,
    /// Where the page goes [default: beside the report]
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Where the summary goes [default: beside the report]
    #[arg(long, value_name = "FILE")]
    pub markdown: Option<PathBuf>,
}

impl CompareArgs {
    /// Measures all of it.
    ///
    /// # Errors
    ///
    /// If something cannot be measured, or a restored machine answers wrongly.
    pub fn run(&self, effort: Effort, session: &mut Session) -> Result<()> {
        ensure!(!self.strategy.is_empty(), "no strategy to compare");
        let disk = self.disk(session)?;
        let folder = match (&disk, &self.folder) {
            (Some(disk), _) => disk.folder().to_owned(),
            (None, Some(folder)) => folder.clone(),
            (None, None) => root().join("target/bench/snapshots"),
        };
        std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        if self.cache.contains(&PageCache::Cold) {
            let shown = folder.display();
            ensure!(
                !environment::is_in_memory(&folder),
                "{shown} is in memory, so its files are always cached: name another --folder, or \
                 --cache warm"
            );
        }
        if let Some(store) = &self.settings.store {
            store::ensure_in_memory(store)?;
        }
        let functions = self.functions(effort)?;
        if self.ways.contains(&Way::Shapes) {
            let strategies = &self.strategy;
            shapes::Shapes { strategies, effort, folder: &folder }.run(session)?;
        }
        let _neighbour = self.ways.contains(&Way::Machine).then(neighbour).transpose()?;
        let only_shapes = self.ways == [Way::Shapes];
        for function in functions.iter().filter(|_| !only_shapes) {
            let place = folder.join(function);
            self.function(function, effort, &place, session)
                .with_context(|| format!("measuring {function}"))?;
            if disk.is_some() {
                // The files of all functions would not fit into memory.
                std::fs::remove_dir_all(&place)?;
            }
        }
        Ok(())
    }

    /// The lab's slow disk, unless a folder was named.
    fn disk(&self, session: &mut Session) -> Result<Option<Disk>> {
        if self.folder.is_some() || environment::machine()?.host != Host::Lab {
            return Ok(None);
        }
        session.note(&format!(
            "Snapshots are on a RAM-backed null_blk that answers each request after {} us, with no limit of bandwidth.",
            self.disk_delay
        ));
        Disk::make(DISK_GIB, self.disk_delay).map(Some)
    }

    fn functions(&self, effort: Effort) -> Result<Vec<String>> {
        let all = functions()?;
        if self.function.is_empty() {
            let quick = |name: &String| !effort.quick || QUICK_FUNCTIONS.contains(&name.as_str());
            return Ok(all.into_iter().filter(quick).collect());
        }
        for name in &self.function {
            ensure!(all.contains(name), "no function {name:?}; there are: {}", all.join(", "));
        }
        Ok(self.function.clone())
    }

    fn function(
        &self,
        name: &str,
        effort: Effort,
        place: &Path,
        session: &mut Session,
    ) -> Result<()> {
        let recipe = Recipe {
            function: name.into(),
            memory: self.memory.clone(),
            warm: WARM_INPUTS.into(),
            tiered_by: TIERED_INPUTS.into(),
            recorded: vec![NEW_INPUT],
        };
        if let Some(keep) = &self.keep {
            let kept = keep.join(name);
            if kept.exists() {
                copy(&kept, place.parent().unwrap_or(place))?;
            }
        }
        let mut progress = Progress::new("prepare", 3 + recipe.tiered_by.len());
        let prepared = recipe.make(place, |what| progress.step(&format!("{name}: {what}")))?;
        drop(progress);
        session.add_profile(prepared.profile()?);
        if let Some(keep) = &self.keep {
            copy(place, keep)?;
        }
        // Half a minute later it would be written beside what is measured.
        let opened =
            File::open(place).with_context(|| format!("cannot open {}", place.display()))?;
        syncfs(opened).with_context(|| format!("cannot write out {}", place.display()))?;
        if self.ways.contains(&Way::Machine) {
            let store = self.settings.store.as_deref();
            let snapshot = prepared.snapshot();
            let _published = store.map(|store| store::publish(&snapshot, store)).transpose()?;
            let function = Function {
                name,
                prepared: &prepared,
                columns: self.columns(&recipe, place)?,
                caches: &self.cache,
                inputs: &self.input,
                machines: &self.vms.iter().map(|&n| n.into()).collect::<Vec<usize>>(),
                runs: effort.runs,
                settings: &self.settings,
            };
            function.run(&mut Progress::new("compare", function.steps()), session)?;
        }
        for &input in &self.input {
            if self.ways.contains(&Way::Replay) {
                let what = self.replay(name, &prepared, input, effort);
                replay::compare(&[what], session)?;
            }
        }
        if self.ways.contains(&Way::Latency) {
            let base = self.replay(name, &prepared, Input::New, effort);
            shapes::latency(&base, session)?;
        }
        Ok(())
    }

    fn columns(&self, recipe: &Recipe, place: &Path) -> Result<Vec<Column>> {
        let mut columns: Vec<_> = self.strategy.iter().map(|&s| Column::Strategy(s)).collect();
        for other in &self.monitors {
            let loaded = other.prepare(recipe, &place.join(&other.name))?;
            columns.push(Column::Other(other.name.clone(), loaded));
        }
        Ok(columns)
    }

    fn replay(&self, name: &str, from: &Prepared, input: Input, effort: Effort) -> Comparison {
        Comparison {
            part: "replay",
            labels: vec![("function", name.into()), ("input", input.name().into())],
            strategies: self.strategy.clone(),
            caches: self.cache.clone(),
            runs: effort.runs,
            conditions: Conditions {
                snapshot: from.snapshot(),
                trace: from.trace(input.seed()),
                compute: self.compute,
                ..Conditions::default()
            },
        }
    }
}

/// A machine without anything in it. As long as there is one, KVM stays switched on, as it is on a host with
/// other machines: the first machine makes it patch the scheduler and interrupt all processors, and so does
/// the end of the last one.
fn neighbour() -> Result<VmFd> {
    let kvm = Kvm::new().context("/dev/kvm")?;
    kvm.create_vm().context("cannot make a machine")
}

/// With holes; whole or not at all, and what is there already stays.
fn copy(from: &Path, to: &Path) -> Result<()> {
    let name = from.file_name().context("a folder without a name")?;
    let (whole, part) = (to.join(name), to.join(name).with_extension("part"));
    if whole.exists() {
        return Ok(());
    }
    std::fs::create_dir_all(to).with_context(|| format!("cannot make {}", to.display()))?;
    let mut command = Command::new("cp");
    command.args(["-rT", "--sparse=always"]).arg(from).arg(&part);
    let status = command.status().with_context(|| format!("cannot start {command:?}"))?;
    ensure!(status.success(), "{command:?} failed");
    std::fs::rename(&part, &whole).with_context(|| format!("cannot rename {}", part.display()))
}
