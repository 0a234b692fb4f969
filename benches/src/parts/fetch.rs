//! `fetch`: a page that is missing, from where it is until it can be read: out of a local file, a
//! pool by TCP and by RDMA, directly or through a pager, one at a time or with its chunk. Needs
//! userfaultfd, but no KVM.

use std::fs::File;
use std::net::TcpListener;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use varve_memory_tiers::{
    ColdPages, GuestRam, Hooks, ImageResolver, Policy, Restore, Strategy, TierError, open,
};
use varve_pool::client::Transport;
use varve_pool::{Key, Keys, Places, Pool, Wanted};
use varve_snapshot::{
    Access, LocalFiles, ManifestReader, Mechanism, PAGE_SIZE, PageAccess, PageRange, StateFile,
    TierInput, TierOptions, Trace, tier,
};
use varve_tests::services::{KEY, RDMA_ADDRESS, Service, key_file};
use vm_memory::{Bytes, GuestAddress};

use super::Effort;
use crate::progress::Progress;
use crate::recorder::{Recorder, Series};
use crate::report::Unit;

/// Pages that come at once.
const CHUNKS: [u32; 2] = [1, 16];
/// Most pages of guest memory, of which the first is hot, the rest cold.
const PAGES: u64 = 4096;
const MIB: f64 = 1048576.0;
/// Every so many pages one is touched where latency is measured: never two of a chunk.
const STRIDE: u64 = 16;

/// Where pages come from.
#[derive(Clone, Copy, Debug)]
struct Way {
    name: &'static str,
    pool: Option<Transport>,
    pager: bool,
    /// Another machine had them fetched before.
    again: bool,
}

const fn way(name: &'static str, pool: Option<Transport>, pager: bool, again: bool) -> Way {
    Way { name, pool, pager, again }
}

/// The first is what the others are compared with.
const WAYS: [Way; 7] = [
    way("file", None, false, false),
    way("tcp", Some(Transport::Tcp), false, false),
    way("rdma", Some(Transport::Rdma), false, false),
    way("pager: file", None, true, false),
    way("pager: tcp", Some(Transport::Tcp), true, false),
    way("pager: rdma", Some(Transport::Rdma), true, false),
    way("pager: cached", Some(Transport::Tcp), true, true),
];

pub fn run(effort: Effort, folder: &Path, recorder: &mut Recorder) -> Result<()> {
    let folder = tempfile::Builder::new().prefix("varve-bench").tempdir_in(folder)?;
    let pages = if effort.quick { PAGES / 4 } else { PAGES };
    let keys = key_file(folder.path());
    // Where soft-RoCE or a card is, as in the lab.
    let rdma = TcpListener::bind((RDMA_ADDRESS, 0)).is_ok();
    let node = Service::node(if rdma { RDMA_ADDRESS } else { "127.0.0.1" }, &keys);
    let mut snapshots = Vec::new();
    for chunk in CHUNKS {
        let snapshot = folder.path().join(chunk.to_string());
        make(folder.path(), &snapshot, pages, chunk)?;
        publish(&snapshot, &node)?;
        snapshots.push((chunk, snapshot));
    }
    let ways: Vec<Way> =
        WAYS.into_iter().filter(|w| rdma || w.pool != Some(Transport::Rdma)).collect();
    let mut progress = Progress::new("fetch", CHUNKS.len() * ways.len() * effort.runs);
    for _ in 0..effort.runs {
        for (chunk, snapshot) in &snapshots {
            let mut base = None;
            for way in &ways {
                progress.step(&format!("{}, {chunk} pages at once", way.name));
                let found = measure(*way, snapshot, &keys, folder.path(), pages)
                    .with_context(|| format!("{}, {chunk} pages at once", way.name))?;
                let chunk = chunk.to_string();
                let series = |name: &str, unit| {
                    let labels = [("from", way.name), ("pages at once", chunk.as_str())];
                    Series::new("fetch", name, unit).with(&labels)
                };
                recorder.add(&series("latency", Unit::Micros), found.latency)?;
                recorder.add(&series("throughput", Unit::MibPerSecond), found.throughput)?;
                let base = base.get_or_insert(found.latency);
                recorder.add(&series("latency / file", Unit::Times), found.latency / *base)?;
            }
        }
    }
    Ok(())
}

/// What one run shows.
struct Found {
    /// Median of touches that wait for a fetch each, in microseconds.
    latency: f64,
    /// Of all pages in order by one thread, in MiB a second.
    throughput: f64,
}

fn measure(way: Way, snapshot: &Path, keys: &Path, folder: &Path, pages: u64) -> Result<Found> {
    let socket = folder.join("pager.sock");
    let keys_option = ["--pool-keys", keys.to_str().context("a folder's name is not UTF-8")?];
    let transport = way.pool.map_or("tcp", |t| if t == Transport::Rdma { "rdma" } else { "tcp" });
    let transport = ["--pool-transport", transport];
    let options = if way.pool.is_some() { [keys_option, transport].concat() } else { Vec::new() };
    // A pager is new for each machine, and has nothing in its cache: but for one that is to.
    let pager = || way.pager.then(|| Service::pager(&socket, snapshot, &options));
    let policy = || Policy {
        cold: ColdPages::Paged,
        pager: way.pager.then(|| socket.clone()),
        ..Policy::new(Strategy::Tiered)
    };
    let machine = || -> Result<Machine> {
        let elsewhere: Box<dyn ImageResolver> = match way.pool.filter(|_| !way.pager) {
            Some(transport) => {
                Box::new(Pool::new(Places::read(snapshot)?, Keys::read(keys)?, transport))
            }
            None => Box::new(()),
        };
        Machine::start(snapshot, &policy(), &*elsewhere, pages)
    };
    let mut serving = pager();
    if way.again {
        machine()?.touch_all(pages)?;
    }
    let one = machine()?;
    let mut touches = Vec::new();
    for page in spread(pages / STRIDE) {
        let started = Instant::now();
        one.touch(1 + page * STRIDE)?;
        touches.push(started.elapsed().as_secs_f64() * 1e6);
    }
    touches.sort_by(f64::total_cmp);
    let latency = touches[touches.len() / 2];
    drop(one);
    if !way.again {
        drop(serving.take());
        serving = pager();
    }
    let one = machine()?;
    let started = Instant::now();
    one.touch_all(pages)?;
    let throughput = ((pages - 1) * PAGE_SIZE) as f64 / MIB / started.elapsed().as_secs_f64();
    drop(one);
    drop(serving);
    Ok(Found { latency, throughput })
}

/// All numbers below `count`, in an order that nobody reads ahead for.
fn spread(count: u64) -> impl Iterator<Item = u64> {
    // Prime, so that it meets each.
    (0..count).map(move |n| n * 7919 % count)
}

/// Restored memory, in this process.
struct Machine {
    ram: Arc<GuestRam>,
    _restore: Restore,
}

impl Machine {
    fn start(
        snapshot: &Path,
        policy: &Policy,
        elsewhere: &dyn ImageResolver,
        pages: u64,
    ) -> Result<Machine> {
        let manifest = ManifestReader::open(snapshot)?;
        let (plan, sources) = open(&manifest, policy, elsewhere)?;
        let ram = Arc::new(GuestRam::new(&[PageRange::new(0, pages * PAGE_SIZE)?], false)?);
        // Who touches the page would wait for ever.
        let on_fatal = Box::new(|error: TierError| {
            eprintln!("varve-bench: {error}: {:?}", std::error::Error::source(&error));
            std::process::exit(1);
        });
        let hooks = Hooks { stage2: None, on_fatal };
        let restore = Restore::start(ram.clone(), plan, sources, hooks)?;
        Ok(Machine { ram, _restore: restore })
    }

    fn touch(&self, page: u64) -> Result<()> {
        let found: u64 = self.ram.memory().read_obj(GuestAddress(page * PAGE_SIZE))?;
        ensure!(found == word(page), "page {page} holds {found:#x}");
        Ok(())
    }

    fn touch_all(&self, pages: u64) -> Result<()> {
        (1..pages).try_for_each(|page| self.touch(page))
    }
}

fn word(page: u64) -> u64 {
    (page + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1
}

/// A tiered snapshot with one hot page, whose chunks have so many pages.
fn make(folder: &Path, out: &Path, pages: u64, chunk_pages: u32) -> Result<()> {
    let (memory, state): (PathBuf, PathBuf) = (folder.join("memory"), folder.join("state"));
    let file = File::create(&memory)?;
    for page in 0..pages {
        let words = word(page).to_le_bytes().repeat(PAGE_SIZE as usize / 8);
        file.write_all_at(&words, page * PAGE_SIZE)?;
    }
    let range = PageRange::new(0, pages * PAGE_SIZE)?;
    StateFile {
        vmm_version: env!("CARGO_PKG_VERSION").into(),
        memory_file: Some("memory".into()),
        config: b"{}".to_vec(),
        memory: vec![range],
        ..StateFile::default()
    }
    .write(&LocalFiles, &state)?;
    let hot = PageAccess {
        gfn: 0,
        order: 0,
        access: Access::READ,
        invocation: 0,
        runs: 1,
        runs_written: 0,
    };
    let trace = Trace::new(Mechanism::UffdWp, 1, vec!["one".into()], vec![hot])?;
    let input = TierInput { state: &state, memory: &memory, traces: &[trace], out };
    tier(&LocalFiles, &input, &TierOptions { chunk_pages, ..TierOptions::default() })?;
    Ok(())
}

fn publish(snapshot: &Path, node: &Service) -> Result<()> {
    let key = Key::from_hex(KEY).context("the tests' key is none")?;
    let tenant = "acme".to_owned().try_into().map_err(anyhow::Error::msg)?;
    let wanted = Wanted { nodes: vec![node.place.clone()], copies: 1, tenant, key };
    let manifest = ManifestReader::open(snapshot)?;
    let image = manifest.named("cold")?;
    varve_pool::publish(snapshot, "cold", &image.path(manifest.folder()), &wanted, |_| {})?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_page_is_what_it_should_be() {
        let folder = tempfile::tempdir().unwrap();
        let snapshot = folder.path().join("s");
        make(folder.path(), &snapshot, 64, 4).unwrap();
        let policy = Policy { cold: ColdPages::Paged, ..Policy::new(Strategy::Tiered) };
        match Machine::start(&snapshot, &policy, &(), 64) {
            Ok(machine) => machine.touch_all(64).unwrap(),
            Err(e) => varve_skip::skip!("uffd", e),
        }
        let mut all: Vec<u64> = spread(60).collect();
        all.sort_unstable();
        assert!(all.into_iter().eq(0..60));
    }
}
