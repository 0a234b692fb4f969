//! What the host's kernel knows of a running monitor.

use std::fs;

use crate::Vm;

impl Vm {
    /// Memory of the monitor that is resident, the guest's included, in KiB.
    pub fn resident_kib(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().strip_suffix(" kB").unwrap().parse().unwrap()
    }

    /// A sum over all mappings of the monitor (proc_pid_smaps(5)), in KiB: `AnonHugePages`,
    /// `Private_Hugetlb`.
    ///
    /// # Panics
    ///
    /// If the kernel does not tell.
    pub fn mappings_kib(&self, field: &str) -> u64 {
        let rollup = fs::read_to_string(format!("/proc/{}/smaps_rollup", self.pid())).unwrap();
        let value = rollup.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        value.unwrap().trim().strip_suffix(" kB").unwrap().parse().unwrap()
    }

    /// How many descriptors the monitor has open.
    pub fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap().count()
    }
}
