//! One replay, in this process: restores guest memory as the monitor does, makes the recorded
//! accesses, prints what it took.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use clap::{Args, FromArgMatches};
use rustix::time::{ClockId, clock_gettime};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use varve_memory_tiers::{
    Bucket, ColdPages, Costs, GuestMemory, GuestRam, Histogram, Hooks, HugeBlocks, HugePages,
    ImageInfo, ImageResolver, ImageSource, PageSource, Plan, Policy, PrefaultBarrier,
    ReadOnlyPages, Restore, SourceError, Strategy, Tier, open,
};
use varve_snapshot::{
    Access, Image, ImageEntry, ImageReader, ManifestReader, PAGE_SIZE, PageRange, Trace,
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use crate::outside::{number_after, thread_faults};

/// The command that runs this; its one argument is [`Conditions`] as JSON.
pub const COMMAND: &str = "replay-once";

/// Under which conditions.
#[derive(Clone, Debug, Args, Serialize, Deserialize)]
pub struct Conditions {
    /// Folder of a tiered snapshot
    #[arg(skip)]
    pub snapshot: PathBuf,
    /// The recorded accesses that are made
    #[arg(skip)]
    pub trace: PathBuf,
    /// The method
    #[arg(skip = Strategy::Lazy)]
    pub strategy: Strategy,
    /// Read-only pages: auto, mapped or copied
    #[arg(long, value_name = "HOW", value_parser = named::<ReadOnlyPages>, default_value = "auto")]
    pub read_only: ReadOnlyPages,
    /// Cold pages: mapped or paged
    #[arg(long, value_name = "HOW", value_parser = named::<ColdPages>, default_value = "mapped")]
    pub cold_pages: ColdPages,
    /// What is made ready before the accesses begin: nothing, written or all
    #[arg(long, value_name = "WHAT", value_parser = named::<PrefaultBarrier>, default_value = "nothing")]
    pub wait: PrefaultBarrier,
    /// Pages of guest memory: off, transparent or pool
    #[arg(long, value_name = "KIND", value_parser = named::<HugePages>, default_value = "off")]
    pub huge_pages: HugePages,
    /// Threads that populate memory beside the accesses
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub populate_threads: usize,
    /// Threads that make the accesses, as many as there were vCPUs
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub threads: usize,
    /// Computing between two accesses, in nanoseconds: time in which populating gets ahead
    #[arg(long, value_name = "NS", default_value_t = 0)]
    pub compute: u64,
    /// What an access to a page in place costs more than to local memory, in nanoseconds (CXL: 200 to
    /// 600)
    #[arg(long, value_name = "NS", default_value_t = 0)]
    pub delay: u64,
    /// Such accesses to each page that is read, in a whole invocation
    #[arg(long, value_name = "N", default_value_t = 16)]
    pub accesses: u32,
    /// What a read from a remote image takes more, in microseconds; the images are then only read,
    /// not mapped
    #[arg(long, value_name = "US", default_value_t = 0)]
    pub fetch_delay: u64,
    /// Images that are remote, if there is a fetch delay
    #[arg(long, value_name = "NAMES", value_delimiter = ',', default_value = "memory,cold")]
    pub remote: Vec<String>,
    /// Let the planner reckon with costs measured on this machine
    #[arg(long)]
    pub calibrate: bool,
    /// The costs that were measured
    #[arg(skip)]
    pub costs: Option<Costs>,
}

/// What one replay took. Times begin when the snapshot is opened.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Ran {
    /// The method that was used, never `auto`.
    pub strategy: String,
    /// Accesses made.
    pub accesses: u64,
    /// Microseconds until the plan stood.
    pub plan_us: f64,
    /// Until the guest could run.
    pub mapped_us: f64,
    /// Until the last access was made.
    pub end_us: f64,
    /// What the same accesses take afterwards in local memory: the limit of any restore.
    pub warm_us: f64,
    /// Processor time of the whole process until `end_us`.
    pub cpu_us: f64,
    /// Faults that the accessing threads took, as the kernel counts them.
    pub faults: u64,
    /// Those of them that waited for a disk.
    pub major_faults: u64,
    /// Mappings that guest memory consisted of at the end.
    pub mappings: usize,
    /// Proportional share of the process's memory at the end, in KiB.
    pub pss_kib: u64,
    /// Bytes that came from a disk for this process, read-ahead included.
    pub disk_bytes: u64,
    /// Bytes that the restore read, by tier.
    pub read: BTreeMap<String, u64>,
    /// Pages that were touched and only read in place, by image.
    pub in_place: BTreeMap<String, u64>,
    /// How long the accesses took, the reading of the clock included.
    pub touches: Vec<Bucket>,
}

/// A value by the name that reports have for it.
///
/// # Errors
///
/// If there is none of that name.
pub fn named<T: DeserializeOwned>(name: &str) -> Result<T, serde_json::Error> {
    serde_json::from_value(name.into())
}

/// Runs it with conditions as JSON, and prints [`Ran`] as JSON.
///
/// # Errors
///
/// If the snapshot cannot be restored.
pub fn main(conditions: &str) -> Result<()> {
    let conditions: Conditions = serde_json::from_str(conditions).context("conditions")?;
    let ran = once(&conditions)?;
    println!("{}", serde_json::to_string(&ran)?);
    Ok(())
}

/// One access.
#[derive(Clone, Copy, Debug)]
struct Touch {
    page: u64,
    read: bool,
    write: bool,
    in_place: InPlace,
}

/// Whether a page is used where its image is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum InPlace {
    No,
    /// Until populating has made it private.
    Until,
    Yes,
}

/// Restores and replays once, in this process.
///
/// # Errors
///
/// If the snapshot cannot be restored, or the trace is of other memory.
pub fn once(conditions: &Conditions) -> Result<Ran> {
    let trace = Trace::read(&conditions.trace)?;
    let policy = conditions.policy();
    let disk = disk_bytes()?;
    let cpu = cpu_us();
    let start = Instant::now();
    let us = || start.elapsed().as_secs_f64() * 1e6;

    let manifest = ManifestReader::open(&conditions.snapshot)?;
    let (plan, sources) = open(&manifest, &policy, conditions)?;
    let plan_us = us();
    let ram = Arc::new(GuestRam::with_pages(manifest.memory(), false, policy.huge_pages)?);
    let on_fatal = Box::new(|error| {
        eprintln!("varve-bench: {error}");
        std::process::exit(1)
    });
    let hooks = Hooks { stage2: None, on_fatal };
    let restore = Restore::start(ram.clone(), plan, sources, hooks)?;
    let mapped_us = us();

    // Not part of a restore.
    let pause = Instant::now();
    let (touches, in_place) = touches(&trace, restore.plan(), conditions.threads.max(1));
    let pause = pause.elapsed().as_secs_f64() * 1e6;
    restore.populate_beside()?;
    let latency = Histogram::default();
    let made = replay(ram.memory(), &touches, conditions, &latency)?;
    let pause = pause + made.looked.as_secs_f64() * 1e6;
    let end_us = us() - pause;
    let cpu_us = cpu_us() - cpu - pause;
    // What still populates belongs to the memory that the machine takes.
    restore.wait_populated();
    let start = Instant::now();
    let local = Conditions { delay: 0, ..conditions.clone() };
    replay(ram.memory(), &touches, &local, &Histogram::default())?;
    let warm_us = start.elapsed().as_secs_f64() * 1e6;
    let counters = restore.counters();
    let mut read = BTreeMap::new();
    for source in &counters.sources {
        *read.entry(source.tier.to_string()).or_default() += source.bytes_read;
    }
    Ok(Ran {
        strategy: restore.plan().strategy.name().into(),
        accesses: touches.iter().map(|part| part.len() as u64).sum(),
        plan_us,
        mapped_us,
        end_us,
        warm_us,
        cpu_us,
        faults: made.faults,
        major_faults: made.major,
        mappings: ram.mappings()?,
        pss_kib: pss_kib()?,
        disk_bytes: disk_bytes()? - disk,
        read,
        in_place,
        touches: latency.buckets(),
    })
}

impl Default for Conditions {
    /// What the command line has without options.
    fn default() -> Conditions {
        let command = Conditions::augment_args(clap::Command::new("replay"));
        let defaults = command.try_get_matches_from(["replay"]);
        let read = defaults.and_then(|found| Conditions::from_arg_matches(&found));
        read.unwrap_or_else(|error| unreachable!("defaults are values: {error}"))
    }
}

impl Conditions {
    /// What the memory crate is told.
    pub fn policy(&self) -> Policy {
        let mut policy = Policy::new(self.strategy);
        policy.read_only = self.read_only;
        policy.cold = self.cold_pages;
        policy.wait = self.wait;
        policy.huge_blocks = HugeBlocks::suited(self.wait);
        policy.huge_pages = self.huge_pages;
        policy.threads = self.populate_threads;
        policy.stage2 = false;
        policy.costs = self.costs.unwrap_or(policy.costs);
        policy.costs.remote_use = (self.delay * u64::from(self.accesses)) as f64;
        policy
    }
}

/// Modelled tiers: the files are local, and take longer.
impl ImageResolver for Conditions {
    fn info(&self, entry: &ImageEntry, local: &ImageInfo) -> Option<ImageInfo> {
        if self.fetch_delay > 0 && self.remote.contains(&entry.name) {
            Some(ImageInfo { tier: Tier::Remote, mappable: false, ..local.clone() })
        } else {
            (self.delay > 0).then(|| ImageInfo { tier: Tier::Cxl, ..local.clone() })
        }
    }

    fn open(
        &self,
        image: &Image,
        info: &ImageInfo,
    ) -> Result<Option<Arc<dyn PageSource>>, SourceError> {
        if info.tier != Tier::Remote {
            return Ok(None);
        }
        let reader = ImageReader::open(&self.snapshot, image.clone())?;
        let source = ImageSource::new(reader, info.clone());
        let delay = Duration::from_micros(self.fetch_delay);
        Ok(Some(Arc::new(Delayed { source, delay })))
    }
}

/// A source that takes longer.
struct Delayed {
    source: ImageSource,
    delay: Duration,
}

impl PageSource for Delayed {
    fn info(&self) -> &ImageInfo {
        self.source.info()
    }

    fn read(&self, first: u64, buffer: &mut [u8]) -> Result<(), SourceError> {
        thread::sleep(self.delay);
        self.source.read(first, buffer)
    }

    fn file(&self) -> Option<(&File, u64)> {
        None
    }
}

/// The accesses in their order, dealt out to threads, and the pages that are only read where they are,
/// by image.
fn touches(trace: &Trace, plan: &Plan, threads: usize) -> (Vec<Vec<Touch>>, BTreeMap<String, u64>) {
    let has = |ranges: &[PageRange], page: u64| {
        let at = ranges.partition_point(|range| range.end() <= page);
        ranges.get(at).is_some_and(|range| range.start() <= page)
    };
    let (mapped, copied) = (plan.in_place(), plan.made_private());
    let in_place = |page: u64| match has(&mapped, page) {
        true if has(&copied, page) => InPlace::Until,
        true => InPlace::Yes,
        false => InPlace::No,
    };
    let mut pages: Vec<_> = trace.pages().iter().collect();
    pages.sort_by_key(|page| page.order);
    let mut parts = vec![Vec::with_capacity(pages.len() / threads + 1); threads];
    let mut images = BTreeMap::new();
    let is_memory = |page| plan.memory().iter().any(|m| holds(m, page));
    let pages = pages.into_iter().filter(|p| is_memory(p.gfn * PAGE_SIZE));
    for (page, part) in pages.zip((0..threads).cycle()) {
        let write = page.access.has(Access::WRITTEN);
        let at = page.gfn * PAGE_SIZE;
        let read = page.access.has(Access::READ) || !write;
        let in_place = if write { InPlace::No } else { in_place(at) };
        if let Some(image) = plan.image_at(at).filter(|_| in_place == InPlace::Yes) {
            *images.entry(image.name.clone()).or_default() += 1;
        }
        parts[part].push(Touch { page: at, read, write, in_place });
    }
    (parts, images)
}

fn holds(range: &PageRange, address: u64) -> bool {
    (range.start()..range.end()).contains(&address)
}

/// What the accesses took.
#[derive(Clone, Copy, Debug, Default)]
struct Made {
    /// Faults.
    faults: u64,
    /// Those of them that waited for a disk.
    major: u64,
    /// Time in which no access was made, but looked where a page is; the most of any thread.
    looked: Duration,
}

/// Makes the accesses.
fn replay(
    memory: &GuestMemory,
    touches: &[Vec<Touch>],
    conditions: &Conditions,
    latency: &Histogram,
) -> Result<Made> {
    let delay = Duration::from_nanos(conditions.delay) * conditions.accesses;
    let compute = Duration::from_nanos(conditions.compute);
    let together = Barrier::new(touches.len());
    let pagemap = File::open("/proc/self/pagemap").context("/proc/self/pagemap")?;
    let part = |touches: &[Touch]| -> Result<Made> {
        let before = faults()?;
        let mut looked = Duration::ZERO;
        together.wait();
        for touch in touches {
            let at = GuestAddress(touch.page);
            let start = Instant::now();
            if touch.read {
                memory.read_obj::<u64>(at)?;
            }
            if touch.write {
                memory.write_obj(touch.page, at)?;
            }
            latency.add(start.elapsed());
            let start = Instant::now();
            let in_place = match touch.in_place {
                InPlace::Until if !delay.is_zero() => {
                    !is_private(&pagemap, memory.get_host_address(at)?)?
                }
                known => known == InPlace::Yes,
            };
            looked += start.elapsed();
            spin(if in_place { delay + compute } else { compute });
        }
        let after = faults()?;
        Ok(Made { faults: after.0 - before.0, major: after.1 - before.1, looked })
    };
    // The first part is this thread's: a machine of one vCPU has no other.
    let (own, others) = touches.split_first().context("no thread makes accesses")?;
    thread::scope(|scope| {
        let others: Vec<_> = others.iter().map(|o| scope.spawn(|| part(o))).collect();
        let mut sum = part(own)?;
        for other in others {
            let more = other.join().map_err(|_| anyhow!("an accessing thread panicked"))??;
            sum.faults += more.faults;
            sum.major += more.major;
            sum.looked = sum.looked.max(more.looked);
        }
        Ok(sum)
    })
}

/// Whether the page at `host` is this process's own: present, and of no file (bits 63 and 61 of
/// /proc/self/pagemap, Documentation/admin-guide/mm/pagemap.rst).
fn is_private(pagemap: &File, host: *mut u8) -> Result<bool> {
    let mut entry = [0; 8];
    let offset = host as u64 / PAGE_SIZE * entry.len() as u64;
    pagemap.read_exact_at(&mut entry, offset).context("/proc/self/pagemap")?;
    let entry = u64::from_le_bytes(entry);
    Ok(entry >> 63 == 1 && entry >> 61 & 1 == 0)
}

/// Keeps the processor busy, as computing and waiting for memory do.
fn spin(time: Duration) {
    if !time.is_zero() {
        let start = Instant::now();
        while start.elapsed() < time {
            std::hint::spin_loop();
        }
    }
}

/// This thread's faults, and those of them that waited for a disk.
fn faults() -> Result<(u64, u64)> {
    let text = fs::read_to_string("/proc/thread-self/stat").context("/proc/thread-self/stat")?;
    let (major, minor) = thread_faults(&text).with_context(|| format!("no faults in {text:?}"))?;
    Ok((minor + major, major))
}

fn cpu_us() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 * 1e6 + time.tv_nsec as f64 / 1e3
}

fn disk_bytes() -> Result<u64> {
    number(Path::new("/proc/self/io"), "read_bytes:")
}

fn pss_kib() -> Result<u64> {
    number(Path::new("/proc/self/smaps_rollup"), "Pss:")
}

/// The number after `name` in a file.
fn number(path: &Path, name: &str) -> Result<u64> {
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    number_after(&text, name).with_context(|| format!("{} has no {name}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_and_memory_of_this_process_are_read() {
        let before = faults().unwrap();
        // More than an allocator keeps for later.
        let pages = vec![1u8; 64 << 20];
        std::hint::black_box(&pages);
        assert!(faults().unwrap().0 > before.0);
        assert!(pss_kib().unwrap() > 100);
        assert!(number(Path::new("/proc/self/io"), "no such field").is_err());
    }

    #[test]
    fn private_pages_are_told_from_those_of_files() {
        let pagemap = File::open("/proc/self/pagemap").unwrap();
        let mut own = vec![1u8; 3 * PAGE_SIZE as usize];
        assert!(is_private(&pagemap, own[PAGE_SIZE as usize..].as_mut_ptr()).unwrap());
        let code = private_pages_are_told_from_those_of_files as *const () as *mut u8;
        assert!(!is_private(&pagemap, code).unwrap(), "a page of this program's file");
    }

    #[test]
    fn names_are_those_of_the_library() {
        assert_eq!(named::<ColdPages>("paged").unwrap(), ColdPages::Paged);
        assert!(named::<ColdPages>("boiled").unwrap_err().to_string().contains("paged"));
    }
}
