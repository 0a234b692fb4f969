//! What a report says of the place where it was made: machine, monitor, revision, date.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use anyhow::{Context, Result, bail};
use rustix::fs::statfs;
use varve_tests::command;
use varve_tests::images::{root, varve};

use crate::report::{Clock, Host, MachineInfo, MonitorInfo};

/// `f_type` of tmpfs (statfs(2)).
const TMPFS_MAGIC: i64 = 0x0102_1994;
/// The same of overlayfs.
const OVERLAYFS_MAGIC: i64 = 0x794c_7630;

/// The machine. The lab says that it is one, and that its clock counts instructions.
pub fn machine() -> Result<MachineInfo> {
    let lab = is_lab();
    Ok(MachineInfo {
        host: if lab { Host::Lab } else { Host::Native },
        clock: if lab && is_set("LAB_ICOUNT") { Clock::Virtual } else { Clock::Real },
        cpu: field("/proc/cpuinfo", "model name")?,
        cpus: std::thread::available_parallelism().context("number of CPUs")?.get(),
        memory_mib: kib(&field("/proc/meminfo", "MemTotal")?)? >> 10,
        kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
    })
}

/// Whether this is the lab: it says so.
pub fn is_lab() -> bool {
    is_set("LAB")
}

fn is_set(name: &str) -> bool {
    std::env::var_os(name).is_some_and(|value| value == "1")
}

/// The monitor that the harness starts.
pub fn monitor() -> Result<MonitorInfo> {
    let binary = varve();
    let said = command::run(["--version"]);
    if said.code != Some(0) {
        bail!("{} --version: {}", binary.display(), said.stderr.trim());
    }
    Ok(MonitorInfo {
        version: version(&said.console),
        bytes: binary.metadata().with_context(|| binary.display().to_string())?.len(),
        binary: binary.display().to_string(),
    })
}

/// The monitor's own name and version: it names another release first, whose interface it speaks.
fn version(said: &str) -> String {
    let own = said.lines().find(|line| line.starts_with("varve "));
    own.and_then(|line| line.split(',').next()).unwrap_or(said).trim().to_owned()
}

/// Commit of the checkout, if git knows one.
pub fn revision() -> Option<String> {
    let git = |args: &[&str]| {
        let output = Command::new("git").arg("-C").arg(root()).args(args).output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        output.status.success().then(|| text.trim().to_owned())
    };
    let commit = git(&["rev-parse", "--short=12", "HEAD"])?;
    // Without the index' lock: it may be on a file system that cannot be written.
    let changed = git(&["--no-optional-locks", "status", "--porcelain", "--untracked-files=no"])?;
    Some(if changed.is_empty() { commit } else { format!("{commit}-dirty") })
}

/// Now, in UTC, as RFC 3339 has it.
pub fn date() -> String {
    humantime::format_rfc3339_seconds(SystemTime::now()).to_string()
}

/// A folder whose files are in memory, so that no disk is measured.
pub fn memory_folder() -> Result<PathBuf> {
    let places = ["/dev/shm", "/run", "/tmp"];
    let in_memory =
        |path: &&str| is_in_memory(Path::new(path)) && tempfile::tempfile_in(path).is_ok();
    let found = places.iter().find(|path| in_memory(path));
    found.map(PathBuf::from).with_context(|| format!("none of {places:?} is a tmpfs to write to"))
}

/// Whether a folder's files are nowhere but in memory. In the lab all that is written goes to a tmpfs,
/// through an overlay.
pub fn is_in_memory(folder: &Path) -> bool {
    let kind = statfs(folder).map_or(0, |found| found.f_type);
    kind == TMPFS_MAGIC || kind == OVERLAYFS_MAGIC && is_set("LAB")
}

/// The first value of a field in a file of lines `name : value`.
fn field(path: &str, name: &str) -> Result<String> {
    let text =
        fs::read_to_string(Path::new(path)).with_context(|| format!("cannot read {path}"))?;
    find(&text, name).with_context(|| format!("{path} has no {name:?}"))
}

fn find(text: &str, name: &str) -> Option<String> {
    let mut fields = text.lines().filter_map(|line| line.split_once(':'));
    fields.find(|(key, _)| key.trim() == name).map(|(_, value)| value.trim().to_owned())
}

fn kib(value: &str) -> Result<u64> {
    let number = value.strip_suffix(" kB").and_then(|number| number.trim().parse().ok());
    number.with_context(|| format!("{value:?} is no size in kB"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_their_whole_name() {
        let text = "model\t\t: 6\nmodel name\t: Some CPU: fast\n\nMemTotal:   2048 kB\n";
        assert_eq!(find(text, "model name").unwrap(), "Some CPU: fast");
        assert_eq!(kib(&find(text, "MemTotal").unwrap()).unwrap(), 2048);
        assert_eq!(find(text, "name"), None);
        assert!(kib("2048").is_err());
    }

    #[test]
    fn the_version_is_the_monitors_own() {
        assert_eq!(version("Other v1\n\nvarve 0.1.0, which\n"), "varve 0.1.0");
        assert_eq!(version("varve 0.1.0\n"), "varve 0.1.0");
    }

    #[test]
    fn dates_are_rfc_3339() {
        let date = date();
        assert_eq!((date.len(), &date[10..11], &date[19..]), (20, "T", "Z"), "{date}");
    }
}
