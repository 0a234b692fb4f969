//! `varve-jailer`: starts a monitor where it can reach nothing but what is its own.
//!
//! Firecracker's jailer's arguments and order (docs/isolation.md): control groups, limits and network
//! first, while the host can be seen; then a root folder of its own, devices in it, and at last the
//! monitor in place of this process, as another user and without an environment.

mod args;
mod cgroup;
mod limits;
mod lock;
mod root;
mod sys;

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use rustix::time::{ClockId, clock_gettime};

use args::Args;
use cgroup::Hierarchies;

fn main() -> ExitCode {
    let (started, started_cpu) = (micros(ClockId::Monotonic), micros(ClockId::ProcessCPUTime));
    let closed = sys::close_inherited().context("cannot close inherited descriptors");
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(u8::from(error.use_stderr()));
        }
    };
    let done = closed.and_then(|()| jail(&args, started, started_cpu));
    if let Err(error) = done {
        eprintln!("varve-jailer: error: {error:#}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// Microseconds that a clock shows.
fn micros(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    time.tv_sec.unsigned_abs() * 1_000_000 + time.tv_nsec.unsigned_abs() / 1000
}

/// Builds the jail and runs the monitor in it. Returns where the monitor is a child, or where
/// something failed.
fn jail(args: &Args, started: u64, started_cpu: u64) -> Result<()> {
    let limits = args.limits().map_err(anyhow::Error::msg)?;
    let (program, name) = program(&args.exec_file)?;
    let root = root_of(args, &name)?;
    let devices = root::devices(&std::fs::read_to_string("/proc/misc").unwrap_or_default());

    root::make(&root)?;
    let lock = lock::take(root.parent().unwrap_or(&root), &args.id)?;
    root::copy_program(&program, &root.join(&name))?;
    if let Some(path) = &args.netns {
        join_network(path).with_context(|| format!("--netns {}", path.display()))?;
    }
    let mounts = std::fs::read_to_string("/proc/mounts").context("/proc/mounts")?;
    let groups = Hierarchies::parse(&mounts, args.cgroup_version);
    let pid = std::process::id();
    match args.parent_cgroup.as_deref() {
        Some(parent) if args.cgroups.is_empty() => groups.join(parent, &args.id, pid)?,
        parent => {
            let parent = parent.unwrap_or(Path::new(&name));
            groups.apply(&args.cgroups, parent, &args.id, pid)?;
        }
    }
    let null = File::options().read(true).write(true).open("/dev/null").context("/dev/null")?;
    limits.install().context("--resource-limit")?;

    root::enter(&root)?;
    root::furnish(&devices, args.uid, args.gid)?;
    if args.daemonize {
        daemonize(&null).context("--daemonize")?;
    }
    drop(null);
    let spent = micros(ClockId::ProcessCPUTime).saturating_sub(started_cpu);
    lock::leave_to_monitor(&lock)?;
    run(args, &Path::new("/").join(&name), started, spent)
}

/// The monitor's program, and its name.
fn program(path: &Path) -> Result<(PathBuf, String)> {
    let named = || format!("--exec-file {}", path.display());
    let program = path.canonicalize().with_context(named)?;
    ensure!(program.is_file(), "{}: it is not a file", named());
    let name = program.file_name().and_then(OsStr::to_str);
    let name = name.with_context(|| format!("{}: its name is not UTF-8", named()))?.to_owned();
    Ok((program, name))
}

fn root_of(args: &Args, name: &str) -> Result<PathBuf> {
    let base = &args.chroot_base_dir;
    let named = || format!("--chroot-base-dir {}", base.display());
    let base = base.canonicalize().with_context(named)?;
    ensure!(base.is_dir(), "{}: it is not a folder", named());
    Ok(base.join(name).join(&args.id).join("root"))
}

fn join_network(path: &Path) -> std::io::Result<()> {
    let network = File::open(path)?;
    Ok(move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))?)
}

/// Goes on as a process that no terminal can reach: a child of the leader of a new session.
fn daemonize(null: &File) -> std::io::Result<()> {
    sys::leave_parent()?;
    rustix::process::setsid()?;
    sys::leave_parent()?;
    dup2_stdin(null)?;
    dup2_stdout(null)?;
    dup2_stderr(null)?;
    Ok(())
}

/// Runs the monitor, in place of this process or, in a PID namespace, as a child of it.
fn run(args: &Args, program: &Path, started: u64, spent: u64) -> Result<()> {
    let mut monitor = Command::new(program);
    monitor
        .args(["--id", &args.id])
        .args(["--start-time-us", &started.to_string()])
        // The monitor's own processor time starts from here; this process's comes on top.
        .args(["--start-time-cpu-us", "0"])
        .args(["--parent-cpu-time-us", &spent.to_string()])
        .args(&args.monitor)
        .env_clear()
        // Gives up all other groups, too.
        .uid(args.uid)
        .gid(args.gid);
    let pid_file = program.with_added_extension("pid");
    let cannot = || {
        format!(
            "cannot run {} in the jail; a dynamically linked program needs its libraries there",
            program.display()
        )
    };
    if args.new_pid_ns {
        sys::unshare_pids().context("--new-pid-ns")?;
        let child = monitor.spawn().with_context(cannot)?;
        return root::write_pid(&pid_file, child.id());
    }
    root::write_pid(&pid_file, std::process::id())?;
    Err(monitor.exec()).with_context(cannot)
}
