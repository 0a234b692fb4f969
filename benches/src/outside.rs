//! What the kernel tells of a process from outside, whichever monitor it is (proc(5), and KVM's files
//! below debugfs).

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// KVM's counters of each machine, named PID-FD.
const KVM: &str = "/sys/kernel/debug/kvm";
/// Monitors name the threads of vCPUs so: varve, Firecracker.
const VCPUS: [&str; 2] = ["vcpu", "fc_vcpu"];

/// Memory and input of a process, in KiB.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Outside {
    /// Proportional share of its memory.
    pub pss: u64,
    /// The part of it that belongs to files and shared memory, not to this process alone.
    pub pss_shared: u64,
    /// Read from disks for this process, read-ahead included.
    pub disk: u64,
}

impl Outside {
    /// Of a process.
    ///
    /// # Errors
    ///
    /// If it has ended.
    pub fn of(pid: u32) -> Result<Outside> {
        let read = |file: &str| {
            let path = format!("/proc/{pid}/{file}");
            fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))
        };
        let (memory, io) = (read("smaps_rollup")?, read("io")?);
        let of = |text: &str, name: &str| number_after(text, name).unwrap_or(0);
        Ok(Outside {
            pss: number_after(&memory, "Pss:").context("no Pss in smaps_rollup")?,
            pss_shared: of(&memory, "Pss_File:") + of(&memory, "Pss_Shmem:"),
            disk: of(&io, "read_bytes:") >> 10,
        })
    }
}

/// The number after `name` at the beginning of a line.
pub fn number_after(text: &str, name: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(name))?;
    value.split_whitespace().next()?.parse().ok()
}

/// The vCPUs of any monitor; what this host does not tell is missing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Vcpus {
    /// Host faults, those that waited for I/O first.
    pub host_faults: Option<(u64, u64)>,
    /// Faults of second-level page tables.
    pub stage2: Option<u64>,
    /// Exits.
    pub exits: Option<u64>,
    /// Processor time of vCPU threads, and of all others that have not ended, in milliseconds.
    pub cpu_ms: Option<(f64, f64)>,
}

/// Of a process.
pub fn vcpus(pid: u32) -> Vcpus {
    let machine = fs::read_dir(KVM).ok().and_then(|entries| {
        let mut names = entries.filter_map(|e| e.ok()?.file_name().into_string().ok());
        names.find(|name| name.split('-').next() == Some(&pid.to_string()))
    });
    let kvm = |counter: &str| {
        let path = Path::new(KVM).join(machine.as_ref()?).join(counter);
        fs::read_to_string(path).ok()?.trim().parse().ok()
    };
    let mut found = Vcpus { stage2: kvm("pf_fixed"), exits: kvm("exits"), ..Vcpus::default() };
    let (mut faults, mut vcpu_ms, mut other_ms) = (None, 0.0, 0.0);
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    for task in tasks.map(|task| task.path()) {
        let read = |file: &str| fs::read_to_string(task.join(file)).unwrap_or_default();
        let (name, stat, ran) = (read("comm"), read("stat"), read("schedstat"));
        let ran: Option<u64> = ran.split_whitespace().next().and_then(|ns| ns.parse().ok());
        let ms = ran.unwrap_or(0) as f64 / 1e6;
        if VCPUS.iter().any(|prefix| name.starts_with(prefix)) {
            let (major, minor) = faults.unwrap_or((0, 0));
            faults = thread_faults(&stat).map(|(more, rest)| (major + more, minor + rest));
            vcpu_ms += ms;
        } else {
            other_ms += ms;
        }
    }
    found.host_faults = faults;
    found.cpu_ms = (vcpu_ms > 0.0).then_some((vcpu_ms, other_ms));
    found
}

/// Major and minor faults in a thread's `stat` (proc(5)).
pub fn thread_faults(stat: &str) -> Option<(u64, u64)> {
    // The name, in brackets, may hold anything.
    let (_, fields) = stat.rsplit_once(')')?;
    let field = |nth: usize| fields.split_whitespace().nth(nth)?.parse().ok();
    Some((field(9)?, field(7)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_seen() {
        let found = Outside::of(std::process::id()).unwrap();
        assert!(found.pss > found.pss_shared && found.pss_shared > 0, "{found:?}");
        assert!(Outside::of(0).is_err());
    }

    #[test]
    fn fields_of_stat_are_counted_behind_the_name() {
        let stat = "7 (vcpu) 0 (x) S 1 2 3 4 5 6 70 8 90 10 11";
        assert_eq!(thread_faults(stat), Some((90, 70)));
        assert_eq!(thread_faults("7 (vcpu) S 1"), None);
    }

    #[test]
    fn a_process_without_vcpus_has_no_figures_of_them() {
        let found = vcpus(std::process::id());
        assert_eq!((found.host_faults, found.cpu_ms), (None, None));
    }
}
