//! The command line: Firecracker's jailer's arguments, and what they must be.

use std::path::{Component, Path, PathBuf};

use clap::Parser;

use crate::cgroup::Setting;
use crate::limits::Limits;

/// Starts a monitor that sees nothing of the host but its own folder, devices, user and network.
#[derive(Debug, Parser)]
#[command(name = "varve-jailer", version, about)]
#[command(
    after_help = "Arguments after -- are the monitor's. Run as root. docs/isolation.md says \
                        what is done, in which order."
)]
pub struct Args {
    /// Name of the machine: letters, digits and hyphens, at most 64
    #[arg(long, value_parser = parse_id)]
    pub id: String,

    /// The monitor's program; it is copied into the jail
    #[arg(long, value_name = "FILE")]
    pub exec_file: PathBuf,

    /// User that the monitor runs as
    #[arg(long, value_parser = parse_owner)]
    pub uid: u32,

    /// Group that the monitor runs as
    #[arg(long, value_parser = parse_owner)]
    pub gid: u32,

    /// Folder below which jails are made: DIR/PROGRAM/ID/root
    #[arg(long, value_name = "DIR", default_value = "/srv/jailer")]
    pub chroot_base_dir: PathBuf,

    /// Network namespace to join, as in /var/run/netns
    #[arg(long, value_name = "FILE")]
    pub netns: Option<PathBuf>,

    /// Leave the terminal: a new session, without standard input and output
    #[arg(long)]
    pub daemonize: bool,

    /// Run the monitor as the first process of a new PID namespace
    #[arg(long)]
    pub new_pid_ns: bool,

    /// Value of a control group's file, as cpu.shares=10 (repeat for more)
    #[arg(long = "cgroup", value_name = "FILE=VALUE")]
    pub cgroups: Vec<Setting>,

    /// Version of the control groups
    #[arg(long, value_name = "1|2", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=2))]
    pub cgroup_version: u8,

    /// Control group below which the machine's own is made [default: the program's name]
    #[arg(long, value_name = "PATH", value_parser = parse_parent)]
    pub parent_cgroup: Option<PathBuf>,

    /// Limit: fsize=BYTES, the longest file that is written, or no-file=N, how many descriptors are
    /// open [default: no-file=2048] (repeat for both)
    #[arg(long = "resource-limit", value_name = "RESOURCE=VALUE")]
    pub limits: Vec<String>,

    /// Arguments of the monitor
    #[arg(last = true, value_name = "ARGUMENTS")]
    pub monitor: Vec<std::ffi::OsString>,
}

impl Args {
    /// What `--resource-limit` says.
    pub fn limits(&self) -> Result<Limits, String> {
        Limits::parse(&self.limits)
    }
}

fn parse_id(id: &str) -> Result<String, String> {
    let fits = (1..=64).contains(&id.len());
    match id.chars().find(|c| !c.is_ascii_alphanumeric() && *c != '-') {
        Some(c) => Err(format!("{c:?} is neither letter, digit nor hyphen")),
        None if fits => Ok(id.into()),
        None => Err(format!("it has {} characters, not 1 to 64", id.len())),
    }
}

/// The largest number is none to the kernel: "leave it as it is", which here is root.
fn parse_owner(text: &str) -> Result<u32, String> {
    let number = text.parse().ok().filter(|&n| n != u32::MAX);
    number.ok_or_else(|| "a number from 0 to 4294967294 is wanted".into())
}

fn parse_parent(text: &str) -> Result<PathBuf, String> {
    let path = Path::new(text);
    let plain = path.components().all(|part| matches!(part, Component::Normal(_)));
    if plain && !text.is_empty() {
        Ok(path.into())
    } else {
        Err("a relative path without '.' and '..' is wanted".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAST: [&str; 9] =
        ["varve-jailer", "--id", "a", "--exec-file", "/varve", "--uid", "1", "--gid", "2"];

    fn parse(more: &[&str]) -> Result<Args, String> {
        Args::try_parse_from(LEAST.iter().chain(more)).map_err(|e| e.to_string())
    }

    #[test]
    fn firecrackers_arguments_are_taken() {
        let args = parse(&[
            "--cgroup",
            "cpuset.cpus=0-1",
            "--cgroup=io.max=8:0 rbps=1",
            "--cgroup-version",
            "2",
            "--parent-cgroup",
            "all/some",
            "--resource-limit",
            "fsize=7",
            "--daemonize",
            "--new-pid-ns",
            "--netns",
            "/run/netns/x",
            "--",
            "--config-file",
            "vm.json",
        ])
        .unwrap();
        assert_eq!((args.uid, args.gid, args.cgroup_version), (1, 2, 2));
        assert_eq!(args.chroot_base_dir, Path::new("/srv/jailer"));
        assert_eq!(args.monitor, ["--config-file", "vm.json"]);
        assert_eq!((args.cgroups.len(), args.daemonize, args.new_pid_ns), (2, true, true));
    }

    #[test]
    fn wrong_values_name_their_argument() {
        let cases: [(&[&str], &str); 9] = [
            (&["--id", "b"], "--id"),
            (&["--uid=4294967295"], "--uid"),
            (&["--cgroup", "cpu.shares"], "--cgroup"),
            (&["--cgroup", "../x.y=1"], "--cgroup"),
            (&["--cgroup-version", "3"], "--cgroup-version"),
            (&["--parent-cgroup", "a/../b"], "--parent-cgroup"),
            (&["--parent-cgroup", "/a"], "--parent-cgroup"),
            (&["--node", "0"], "--node"),
            (&["monitor-argument"], "monitor-argument"),
        ];
        for (more, named) in cases {
            let error = parse(more).unwrap_err();
            assert!(error.contains(named), "{more:?}: {error}");
        }
        for id in ["", "a b", "../x", "a/b", "a.b", &"x".repeat(65)] {
            assert!(parse_id(id).is_err(), "{id:?}");
        }
        assert_eq!(parse_id(&"x".repeat(64)), Ok("x".repeat(64)));
    }
}
