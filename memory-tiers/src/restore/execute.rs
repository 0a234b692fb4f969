//! Carrying out a plan on guest memory: what must be done before the guest runs, and starting what
//! runs beside it (`populate`, `faults`).

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use varve_snapshot::{PageClass, PageRange};

use crate::error::TierError;
use crate::fault::answer::FaultContext;
use crate::fault::external::ExternalHandler;
use crate::fault::stats::Stats;
use crate::fault::threads::FaultThreads;
use crate::fault::watched::Watched;
use crate::plan::bridge::height;
use crate::plan::huge_blocks::HugeBlocks;
use crate::plan::ops::{Action, Op, Plan};
use crate::plan::stored::by_image;
use crate::ram::guest_ram::GuestRam;
use crate::ram::sys::uffd::Watch;
use crate::restore::census::Census;
use crate::restore::counters::Counters;
use crate::restore::mapped::Ends;
use crate::restore::workers::Workers;
use crate::restore::{copy, populate};
use crate::source::page_cache::reads_far;
use crate::source::page_source::{PageSource, Sources, source_of};

/// The second-level page tables, which guest memory's owner does not know.
pub trait Stage2: Send + Sync {
    /// Maps pages for reading, and brings in those that are not present, so that the guest's first touch
    /// does not exit; for pages that are private, or only read. Whether it works changes time only.
    fn prefault(&self, pages: PageRange) -> std::io::Result<()>;
}

/// Pages, for some of which a thread takes as long to start as they do to be made ready.
const MANY: u64 = 256;

/// What the machine gives to a restore.
pub struct Hooks {
    /// Where stage-2 is filled, if it can be.
    pub stage2: Option<Box<dyn Stage2>>,
    /// Called when a page cannot be had. The machine must end: who waits for the page waits for
    /// ever, since no other content would be right. Called from a thread of the restore.
    pub on_fatal: Box<dyn Fn(TierError) + Send + Sync>,
}

/// What all threads of a restore share.
pub(crate) struct Shared {
    pub ram: Arc<GuestRam>,
    pub plan: Plan,
    pub sources: Sources,
    pub stage2: Option<Box<dyn Stage2>>,
    pub on_fatal: Arc<dyn Fn(TierError) + Send + Sync>,
    pub stats: Arc<Stats>,
    /// Populating beside the guest may begin.
    pub begin: OnceLock<()>,
    /// Populating ends.
    pub cancelled: AtomicBool,
    /// What must be there of the images that are mapped; once somebody has asked.
    pub ends: OnceLock<Ends>,
}

impl Shared {
    /// Source of an image; [`Restore::start`] has checked that there are as many as images.
    pub fn source(&self, image: varve_snapshot::ImageId) -> Result<&dyn PageSource, TierError> {
        source_of(&self.sources, image)
    }

    fn counters(&self) -> Counters {
        let mappings = self.ram.mappings().ok();
        self.stats.counters(&self.plan, mappings)
    }
}

/// A restore under way. It answers faults until it is dropped, which must be after the vCPUs and
/// devices are gone: a page that is asked for later is waited for in vain.
pub struct Restore {
    shared: Arc<Shared>,
    answers: Option<Answers>,
    populating: Mutex<Vec<JoinHandle<()>>>,
}

impl Restore {
    /// Carries out all of `plan` that must precede the guest, on memory that is fresh. `sources` are
    /// the images that the plan was made for; those that its layout does not name may be missing.
    pub fn start(
        ram: Arc<GuestRam>,
        plan: Plan,
        sources: Sources,
        hooks: Hooks,
    ) -> Result<Restore, TierError> {
        fits(&ram, &plan, &sources)?;
        let stats = Arc::new(Stats::new(sources.len()));
        let Hooks { stage2, on_fatal } = hooks;
        let cancelled = AtomicBool::new(false);
        let shared = Arc::new(Shared {
            ram,
            plan,
            sources,
            stage2,
            on_fatal: on_fatal.into(),
            stats,
            begin: OnceLock::new(),
            cancelled,
            ends: OnceLock::new(),
        });
        let workers =
            Workers::of(if waits(&shared.plan) { shared.plan.policy.workers() } else { 1 })?;
        let started = Instant::now();
        let watched = lay(&shared)?;
        shared.stats.lay_time.add_time(started);
        let started = Instant::now();
        let copies = copy::ask(&shared)?;
        populate::ask(&shared);
        copy::carry_out(&shared, watched.clone(), copies, &workers)?;
        shared.stats.copy_time.add_time(started);
        let answers = watched.map(|w| answer_for(&shared, w)).transpose()?;
        let restore = Restore { shared, answers, populating: Mutex::default() };
        let started = Instant::now();
        populate::before(&restore.shared, &workers)?;
        restore.shared.stats.before_time.add_time(started);
        Ok(restore)
    }

    /// Starts the threads that populate what remains, and what they can do before that: they put it in order, and
    /// ask the disk for it. To be called as soon as the guest's mappings stand.
    pub fn prepare_beside(&self) -> Result<(), TierError> {
        let mut threads = self.threads();
        if threads.is_empty() {
            if reads_alone_later(&self.shared.plan) {
                read_cold_alone(&self.shared)?;
            }
            threads.extend(populate::beside(&self.shared)?);
        }
        Ok(())
    }

    /// Populates what remains, by threads. To be called when the guest is about to run, and not while threads
    /// are started and files are mapped: a thread that populates takes the lock of all mappings again before
    /// one that wants it for itself has woken up, which then waits for 4 ms and more (`rwsem`, Linux 5.11 and
    /// later).
    pub fn populate_beside(&self) -> Result<(), TierError> {
        self.prepare_beside()?;
        let _ = self.shared.begin.set(());
        Ok(())
    }

    /// Waits until nothing remains to be populated, once that has begun.
    pub fn wait_populated(&self) {
        let threads: Vec<_> = self.threads().drain(..).collect();
        for thread in threads {
            let _ = thread.join();
        }
    }

    /// Has the populating threads end early; what they have not reached faults as it is touched.
    pub fn cancel(&self) {
        self.shared.cancelled.store(true, Ordering::Relaxed);
        // Who has not begun waits for that.
        let _ = self.shared.begin.set(());
    }

    /// The plan.
    pub fn plan(&self) -> &Plan {
        &self.shared.plan
    }

    /// What was done up to now.
    pub fn counters(&self) -> Counters {
        self.shared.counters()
    }

    /// The means to ask for [`Restore::counters`] from anywhere; nothing once this is dropped.
    pub fn watch_counters(&self) -> impl Fn() -> Option<Counters> + Send + Sync + use<> {
        let shared = Arc::downgrade(&self.shared);
        move || shared.upgrade().map(|shared| shared.counters())
    }

    /// What is in memory now, by class; see [`Census`].
    pub fn census(&self) -> Result<Census, TierError> {
        Census::take(&self.shared.ram, &self.shared.plan)
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Whether threads of this process answer faults.
    pub(crate) fn answers(&self) -> bool {
        matches!(self.answers, Some(Answers::Here { .. }))
    }

    fn threads(&self) -> MutexGuard<'_, Vec<JoinHandle<()>>> {
        self.populating.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Restore {
    fn drop(&mut self) {
        self.cancel();
        // First the threads that may wait for an answer, then those that answer.
        self.wait_populated();
        self.answers.take();
    }
}

/// Who answers for pages that are asked for, until this is dropped.
enum Answers {
    Here { _threads: FaultThreads },
    External { _handler: ExternalHandler },
}

/// Has what is `watched` answered for: by threads of this process, or by a pager.
fn answer_for(shared: &Shared, watched: Arc<Watched>) -> Result<Answers, TierError> {
    let plan = &shared.plan;
    if let Some(pager) = &plan.policy.pager {
        let on_fatal = shared.on_fatal.clone();
        let handler = ExternalHandler::hand_over(&shared.ram, &watched, pager, on_fatal)?;
        return Ok(Answers::External { _handler: handler });
    }
    let context = FaultContext {
        regions: shared.ram.places().clone(),
        page_size: varve_snapshot::PAGE_SIZE,
        watched,
        layout: plan.layout.clone(),
        order: Arc::new(by_image(&plan.layout)),
        sources: shared.sources.clone(),
        stats: shared.stats.clone(),
        deadline: plan.policy.deadline,
        on_fatal: shared.on_fatal.clone(),
    };
    let threads = FaultThreads::start(context, plan.policy.fault_threads)?;
    Ok(Answers::Here { _threads: threads })
}

/// Whether `plan` was made for this memory and these images.
fn fits(ram: &GuestRam, plan: &Plan, sources: &Sources) -> Result<(), TierError> {
    let other = |what: &str| Err(TierError::Plan(what.into()));
    if !ram.regions().iter().map(|r| r.pages).eq(plan.memory.iter().copied()) {
        return other("it is for other guest memory");
    }
    if ram.huge_pages() != plan.policy.huge_pages {
        return other("it is for memory of other pages");
    }
    let mut used = vec![false; plan.images.len()];
    for image in plan.used_images() {
        used[usize::from(image.0)] = true;
    }
    for (at, (image, _)) in plan.images.iter().zip(used).enumerate().filter(|(_, i)| i.1) {
        match sources.get(at).and_then(Option::as_deref) {
            Some(source) if source.info() != image => return other("it is for other images"),
            Some(source) if image.mappable && source.file().is_none() => {
                return Err(TierError::Plan(format!("image {} cannot be mapped", image.name)));
            }
            Some(_) => {}
            None => return Err(TierError::Plan(format!("image {} is not open", image.name))),
        }
    }
    Ok(())
}

/// Whether the guest waits for so much that it is worth to start threads for it.
fn waits(plan: &Plan) -> bool {
    let copies = |op: &Op| !matches!(op.action, Action::Map | Action::Watch | Action::Clear);
    let copied = plan.ops.iter().filter(|op| copies(op)).map(|op| op.pages.pages());
    let populated = plan.before.iter().map(|step| step.pages.pages());
    copied.chain(populated).sum::<u64>() > MANY
}

/// Lays watches and mappings, bottom-up.
fn lay(shared: &Shared) -> Result<Option<Arc<Watched>>, TierError> {
    let Shared { ram, plan, stats, .. } = shared;
    let mut watched = None;
    let knows_cold = plan.strategy.traits().classes;
    let mut lowest = knows_cold && !reads_alone_later(plan);
    for op in &plan.ops {
        if lowest && height(op.layer) > height(PageClass::Cold) {
            // What is laid over these mappings next is none of theirs.
            read_cold_alone(shared)?;
            lowest = false;
        }
        match (op.action, op.from) {
            (Action::Watch, _) => {
                let watched = match &watched {
                    Some(watched) => watched,
                    None => {
                        let new = Arc::new(match plan.policy.pager {
                            Some(_) => Watched::by_handler()?,
                            None => Watched::open(Watch::Missing)?,
                        });
                        ram.watch(new.clone())?;
                        watched.insert(new)
                    }
                };
                watched.add(ram, op.pages, Watch::Missing)?;
            }
            (Action::Map, Some(from)) => {
                let source = shared.source(from.image)?;
                let unmapped = || TierError::Plan("an image cannot be mapped".into());
                let (file, offset) = source.file().ok_or_else(unmapped)?;
                ram.lay_file(op.pages, file, offset + from.page * varve_snapshot::PAGE_SIZE)?;
                stats.mapped.add(op.pages.pages());
            }
            (Action::Clear, _) => ram.lay_fresh(op.pages)?,
            (Action::Block, _) if plan.policy.huge_blocks == HugeBlocks::Madvise => {
                ram.lay_fresh_huge(op.pages)?;
            }
            (Action::Block, _) => ram.lay_fresh(op.pages)?,
            _ => {}
        }
    }
    if lowest {
        read_cold_alone(shared)?;
    }
    // What giving pages back may use: half of what the plan and the process leave.
    ram.set_room(plan.policy.max_mappings / 6);
    Ok(watched)
}

/// Whether [`read_cold_alone`] can wait until the guest runs, as it takes a while to find out how far around a
/// page the disk reads: no mappings come over the cold ones, and nothing touches these before.
fn reads_alone_later(plan: &Plan) -> bool {
    let traits = plan.strategy.traits();
    traits.classes && traits.one_layer && plan.before.is_empty()
}

/// Has touches of cold pages bring in no others from the disk: those are not needed, and keep the disk from
/// what is.
fn read_cold_alone(shared: &Shared) -> Result<(), TierError> {
    let Shared { ram, plan, .. } = shared;
    let mut far = BTreeMap::new();
    let cold = plan.ops.iter().filter(|op| (op.action, op.layer) == (Action::Map, PageClass::Cold));
    for (op, from) in cold.filter_map(|op| Some((op, op.from?))) {
        let Some((file, _)) = shared.source(from.image)?.file() else { continue };
        if *far.entry(from.image).or_insert_with(|| reads_far(file)) {
            ram.call("advise", op.pages, |r, o, len| r.read_alone(o, len))?;
        }
    }
    Ok(())
}
