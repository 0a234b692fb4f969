//! The comparison: functions by restore method, by state of the page cache, by input, by machines at
//! once; end to end in machines ([`machine`]), and by replay in plain processes.
//!
//! Round by round, each method in turn ([`turns`]), so that whatever disturbs the host meets all. The report
//! is saved after every measurement, and a run that was cut short goes on from it.

mod arrival;
pub mod command;
pub mod disk;
pub mod firecracker;

pub mod machine;

mod process;
pub mod record;
pub mod settings;
pub mod shapes;
pub mod store;

use std::path::PathBuf;
use std::thread;

use anyhow::{Context, Result, anyhow};
use clap::ValueEnum;
use varve_memory_tiers::Strategy;

use crate::prepare::Prepared;
use crate::progress::Progress;
use crate::replay::{PageCache, cache};
use crate::session::Session;
use crate::settle::settle;
use crate::turns::turns;
use firecracker::Loaded;
use machine::{Call, Running, Taken, Way, WrongAnswer};
use settings::Settings;

/// Inputs that warm a function up before its snapshot.
pub const WARM_INPUTS: [u64; 2] = [1, 2];
/// Inputs that it is tiered by.
pub const TIERED_INPUTS: [u64; 3] = [11, 12, 13];
/// The input that nothing has seen.
pub const NEW_INPUT: u64 = 7;
/// A machine that is lost is started again so often, and that is reported.
const REPEATS: usize = 2;

/// What a restored machine is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Input {
    /// One of those that the snapshot was tiered by.
    Recorded,
    /// Another one.
    New,
}

impl Input {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Input::Recorded => "recorded",
            Input::New => "new",
        }
    }

    /// The number that the function is given.
    pub fn seed(self) -> u64 {
        match self {
            Input::Recorded => TIERED_INPUTS[0],
            Input::New => NEW_INPUT,
        }
    }
}

/// A column: a method of varve's, or another monitor.
#[derive(Clone, Debug)]
pub enum Column {
    /// A strategy of `varve restore`.
    Strategy(Strategy),
    /// Another monitor's snapshot, and what it is called.
    Other(String, Loaded),
}

impl Column {
    /// Its name in the report.
    pub fn name(&self) -> &str {
        match self {
            Column::Strategy(strategy) => strategy.name(),
            Column::Other(name, _) => name,
        }
    }
}

/// One function's measurements.
#[derive(Debug)]
pub struct Function<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its snapshot.
    pub prepared: &'a Prepared,
    /// What is compared; the first with all others.
    pub columns: Vec<Column>,
    /// Page cache states.
    pub caches: &'a [PageCache],
    /// Inputs.
    pub inputs: &'a [Input],
    /// Numbers of machines at once.
    pub machines: &'a [usize],
    /// How often.
    pub runs: usize,
    /// What holds for all machines.
    pub settings: &'a Settings,
}

/// Under which conditions machines run.
#[derive(Clone, Copy, Debug)]
pub struct Conditions<'a> {
    /// The function.
    pub function: &'a str,
    /// Page cache.
    pub cache: PageCache,
    /// Input.
    pub input: Input,
    /// Machines at once.
    pub machines: usize,
    /// What holds for all of them.
    pub settings: &'a Settings,
}

impl Function<'_> {
    /// How many measurements it takes.
    pub fn steps(&self) -> usize {
        let cells = self.caches.len() * self.inputs.len() * self.machines.len();
        cells * self.columns.len() * self.runs
    }

    /// Measures what the session has not got yet, and saves after each measurement.
    ///
    /// # Errors
    ///
    /// If a machine cannot be restored, or answers wrongly.
    pub fn run(&self, progress: &mut Progress, session: &mut Session) -> Result<()> {
        // Cold runs make warm ones slow that follow: docs/benchmarks.md, limits.
        for &cache in self.caches {
            let mut filled = false;
            for round in 0..self.runs {
                for &input in self.inputs {
                    for &machines in self.machines {
                        let (function, settings) = (self.name, self.settings);
                        let at = Conditions { function, cache, input, machines, settings };
                        self.round(&at, round, &mut filled, progress, session)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Each column once.
    fn round(
        &self,
        at: &Conditions,
        round: usize,
        filled: &mut bool,
        progress: &mut Progress,
        session: &mut Session,
    ) -> Result<()> {
        for place in turns(self.columns.len(), round) {
            let column = &self.columns[place];
            progress.step(&format!(
                "{} {} {} {}, {} at once",
                at.function,
                column.name(),
                at.cache.name(),
                at.input.name(),
                at.machines
            ));
            let of = record::series(at, column.name());
            if session.recorder.value(&of.series(record::ANSWERED), round).is_some() {
                // Measured before the run was cut short that this one goes on with.
                continue;
            }
            match at.cache {
                PageCache::Cold => self.folders().try_for_each(|f| cache::drop(&f))?,
                PageCache::Warm if !*filled => self.folders().try_for_each(|f| cache::fill(&f))?,
                PageCache::Warm => {}
            }
            *filled = at.cache == PageCache::Warm;
            settle()?;
            let taken = self.measure(column, at, session)?;
            of.record(&taken, &mut session.recorder)?;
            session.save()?;
        }
        let all: Vec<_> = self.columns.iter().map(|c| record::series(at, c.name())).collect();
        record::overheads(&all, round, &mut session.recorder)?;
        session.save()
    }

    /// Folders whose files are restored from.
    fn folders(&self) -> impl Iterator<Item = PathBuf> {
        let others = self.columns.iter().filter_map(|column| match column {
            Column::Other(_, loaded) => Some(loaded.folder().to_owned()),
            Column::Strategy(_) => None,
        });
        [self.prepared.snapshot()].into_iter().chain(others)
    }

    /// So many machines at once. A machine that is lost is started again, and counted.
    fn measure(
        &self,
        column: &Column,
        at: &Conditions,
        session: &mut Session,
    ) -> Result<Vec<Taken>> {
        let snapshot = self.prepared.snapshot();
        let way = match column {
            Column::Strategy(strategy) => {
                let options = self.settings.options(*strategy);
                Way::Varve { strategy: *strategy, snapshot: &snapshot, options }
            }
            Column::Other(_, loaded) => Way::Api(loaded),
        };
        let seed = at.input.seed();
        let call = Call { function: self.name, seed, checksum: self.prepared.answer(seed)? };
        let mut tried = 0;
        loop {
            match together(&way, &call, at.machines) {
                Ok(taken) => return Ok(taken),
                Err(error) if tried == REPEATS || error.is::<WrongAnswer>() => {
                    let what = format!("{}, {}", self.name, column.name());
                    return Err(error.context(what));
                }
                Err(error) => {
                    tried += 1;
                    eprintln!("\n{}, {}: once more, after: {error:#}", self.name, column.name());
                    let of = record::series(at, column.name());
                    session.recorder.add(&of.series(record::REPEATED), 1.0)?;
                }
            }
        }
    }
}

/// Machines that are started at the same time, and looked at when all have answered.
fn together(way: &Way, call: &Call, machines: usize) -> Result<Vec<Taken>> {
    let started = thread::scope(|scope| {
        let threads: Vec<_> =
            (0..machines).map(|_| scope.spawn(|| Running::start(way, call))).collect();
        let ends = threads.into_iter().map(|thread| {
            let end = thread.join().map_err(|_| anyhow!("a measuring thread panicked"));
            end.and_then(|running| running)
        });
        // All of them, so that none is left to run when one has failed.
        ends.collect::<Vec<_>>()
    });
    let mut running = started.into_iter().collect::<Result<Vec<Running>>>()?;
    running.iter_mut().try_for_each(Running::look)?;
    running.into_iter().map(|one| one.end().context("ending a machine")).collect()
}
