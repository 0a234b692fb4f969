//! `varve pager`: a process that brings the pages of other processes' machines, until a signal ends it.

use std::error::Error;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;
use varve_devices::socket_file::SocketFile;
use varve_memory_tiers::{ChunkCache, Pager, PagerSettings, Policy, Served, Strategy};
use varve_pool::client::Transport;
use varve_snapshot::{
    MANIFEST_FILE, ManifestReader, PAGE_SIZE, PageRange, STATE_FILE, StateFile, check_whole,
    memory_in, there,
};

use crate::cli::out::outln;
use crate::config::parse_size;
use crate::seccomp::{self, Choice, Tasks, Thread};
use crate::signal_handlers;
use crate::snapshot::choices::Choices;
use crate::snapshot::tuning::Tuning;
use crate::words::word;

/// Shown below the options.
pub const EXAMPLES: &str = "\
Examples:
  Serve the cold pages of a tiered snapshot from a pool; the machine itself needs no network and no
  keys:
    varve pager --listen /run/json.sock --snapshot snapshots/json --pool-keys pool.keys
    varve restore snapshots/json --pager /run/json.sock --invoke 'json 7'

  Handle page faults of Firecracker's machines (mem_backend of type Uffd), for a snapshot and for a
  raw memory file:
    varve pager --listen a.sock --snapshot snapshots/a --listen b.sock --snapshot b/memory.bin

  Print counters as a line of JSON on standard output, as also at the end:
    kill -USR1 $(pidof varve)";

/// Serve page faults of other processes' machines (Firecracker's UFFD protocol).
#[derive(Debug, Args)]
pub struct PagerArgs {
    /// Unix socket for machines of the --snapshot in the same position (repeatable)
    #[arg(long, value_name = "SOCKET", required = true)]
    listen: Vec<PathBuf>,

    /// Snapshot folder or raw memory file for the --listen in the same position (repeatable)
    #[arg(long, value_name = "DIR|FILE", required = true)]
    snapshot: Vec<PathBuf>,

    /// Keys of a pool, to fetch published images
    #[arg(long, value_name = "FILE")]
    pool_keys: Option<PathBuf>,

    /// Transport of the pool: RDMA where both sides have it (auto), tcp or rdma
    #[arg(long, value_name = "auto|tcp|rdma", value_parser = word::<Transport>,
          default_value = "auto")]
    pool_transport: Transport,

    /// Memory limit of the chunk cache that all machines share
    #[arg(long, value_name = "SIZE", value_parser = parse_size, default_value = "256M")]
    cache: u64,

    /// Fault threads per machine; one never waits for slow pages
    #[arg(long, value_name = "N", default_value_t = 4,
          value_parser = clap::value_parser!(u16).range(1..=64))]
    threads: u16,

    /// Limit of connected machines
    #[arg(long, value_name = "N", default_value_t = 1024,
          value_parser = clap::value_parser!(u32).range(1..))]
    machines: u32,

    /// No seccomp filters
    #[arg(long)]
    no_seccomp: bool,
}

/// Serves until SIGINT, SIGTERM or SIGHUP.
pub fn main(args: &PagerArgs) -> Result<ExitCode, Box<dyn Error>> {
    let (sockets, snapshots) = (args.listen.len(), args.snapshot.len());
    if sockets != snapshots {
        return Err(format!(
            "--listen is given {sockets} times and --snapshot {snapshots} times: each snapshot has a \
             socket of its own"
        )
        .into());
    }
    signal_handlers::install()?;
    // The handlers above end machines; a pager has its own for the same signals.
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP, SIGUSR1])?;
    seccomp::enter_as(
        Thread::Pager,
        &match args.no_seccomp {
            true => Choice::Off,
            false => Choice::Own(Tasks { pool: args.pool_keys.is_some(), ..Tasks::default() }),
        },
    )?;
    let cache = Arc::new(ChunkCache::new(args.cache));
    let settings = PagerSettings {
        threads: args.threads.into(),
        machines: args.machines.try_into().unwrap_or(usize::MAX),
        deadline: Policy::new(Strategy::Tiered).deadline,
    };
    let mut pager = Pager::new(settings, cache.clone())?;
    let mut bound = Vec::new();
    for (socket, snapshot) in args.listen.iter().zip(&args.snapshot) {
        let served = served(snapshot, args, &cache)?;
        let (listener, file) = bind(socket)?;
        bound.push(file);
        pager.serve(listener, served)?;
        // Scripts wait for this line.
        eprintln!("varve: pager listens at {} for {}", socket.display(), snapshot.display());
    }
    for _ in signals.forever().take_while(|&signal| signal == SIGUSR1) {
        outln!("{}", serde_json::to_string(&pager.counters())?);
    }
    drop(bound);
    outln!("{}", serde_json::to_string(&pager.counters())?);
    Ok(ExitCode::SUCCESS)
}

/// The snapshot at a path, whatever is there.
fn served(
    path: &Path,
    args: &PagerArgs,
    cache: &Arc<ChunkCache>,
) -> Result<Served, Box<dyn Error>> {
    let name = path.display().to_string();
    let found = fs::metadata(path).map_err(|e| format!("--snapshot {name}: {e}"))?;
    if !found.is_dir() {
        // What guest addresses its pages have is not known, and matters to messages only.
        let memory = PageRange::new(0, found.len()).map_err(|_| {
            format!("--snapshot {name}: {} bytes are no whole pages of {PAGE_SIZE}", found.len())
        })?;
        return Ok(Served::flat(name, path, &[memory])?);
    }
    if there(&path.join(MANIFEST_FILE))? {
        let choices = Choices {
            pool_keys: args.pool_keys.clone(),
            tune: Tuning { pool_transport: args.pool_transport, ..Tuning::default() },
            ..Choices::default()
        };
        let manifest = ManifestReader::open(&path.join(MANIFEST_FILE))?;
        let resolver = choices.resolver(&manifest)?;
        return Ok(Served::tiered(name, &manifest, &resolver, cache)?);
    }
    let state = StateFile::read(&path.join(STATE_FILE))?;
    let memory = memory_in(path, &state)?;
    check_whole(&state, &memory)?;
    Ok(Served::flat(name, &memory, &state.memory)?)
}

/// Listens at a socket. What an earlier pager left there is replaced, unless somebody listens.
fn bind(path: &Path) -> Result<(UnixListener, SocketFile), String> {
    let named = |e: std::io::Error| format!("--listen {}: {e}", path.display());
    match SocketFile::bind(path) {
        Err(e) if e.kind() == ErrorKind::AddrInUse => {}
        bound => return bound.map_err(named),
    }
    let is_socket = fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket());
    let refused = |e: std::io::Error| e.kind() == ErrorKind::ConnectionRefused;
    if !is_socket || !UnixStream::connect(path).is_err_and(refused) {
        return Err(format!("--listen {}: it is in use", path.display()));
    }
    fs::remove_file(path).map_err(named)?;
    SocketFile::bind(path).map_err(named)
}
