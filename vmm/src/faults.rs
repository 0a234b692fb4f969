//! What vCPUs cost: page faults that the kernel answers for them by itself, exits, processor time, all
//! counted by the kernel. Faults that the monitor answers are counted by `varve-memory-tiers`.
//!
//! UNSAFETY: kvm-ioctls has no wrapper for KVM_GET_STATS_FD yet, rustix none for getrusage(2).
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::ops::AddAssign;
use std::os::fd::FromRawFd;
use std::os::unix::fs::FileExt;

use kvm_bindings::{KVMIO, kvm_stats_desc, kvm_stats_header};
use kvm_ioctls::VcpuFd;
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;
use vmm_sys_util::ioctl::ioctl;
use vmm_sys_util::ioctl_io_nr;

ioctl_io_nr!(KVM_GET_STATS_FD, KVMIO, 0xce);

/// What was counted since the machine was built. Faults do not depend on what the guest does with its own page
/// tables, only on host memory and second-level tables.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct VcpuFaults {
    /// Host faults of the vCPUs' threads without I/O: pages mapped, allocated, or copied on a write.
    /// One page may take two: one when it is read, one when it is written.
    pub minor: u64,
    /// Host faults of the vCPUs' threads that waited for I/O.
    pub major: u64,
    /// Faults of second-level page tables that KVM answered by mapping a page; each is an exit. `None`
    /// if KVM does not count them (before Linux 5.14).
    pub stage2: Option<u64>,
    /// Times that the vCPUs left the guest, for whatever reason. `None` as above.
    pub exits: Option<u64>,
    /// Processor time of the vCPUs' threads, the guest's included, in microseconds.
    #[serde(skip)]
    pub cpu_us: u64,
}

impl VcpuFaults {
    /// Those of one vCPU; to be called on its own thread.
    pub fn of_this_thread(vcpu: &VcpuFd) -> io::Result<VcpuFaults> {
        let Usage { minor, major, cpu_us } = of_this_thread()?;
        let stats = stats(vcpu);
        let stat = |name| stats.as_ref().ok().and_then(|file| stat(file, name).ok());
        Ok(VcpuFaults { minor, major, stage2: stat("pf_fixed"), exits: stat("exits"), cpu_us })
    }
}

impl AddAssign for VcpuFaults {
    fn add_assign(&mut self, other: VcpuFaults) {
        self.minor += other.minor;
        self.major += other.major;
        self.stage2 = self.stage2.zip(other.stage2).map(|(a, b)| a + b);
        self.exits = self.exits.zip(other.exits).map(|(a, b)| a + b);
        self.cpu_us += other.cpu_us;
    }
}

impl std::iter::Sum for VcpuFaults {
    fn sum<I: Iterator<Item = VcpuFaults>>(all: I) -> VcpuFaults {
        let mut sum = VcpuFaults { stage2: Some(0), exits: Some(0), ..VcpuFaults::default() };
        all.for_each(|one| sum += one);
        sum
    }
}

/// Processor time, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct CpuTime {
    /// Of the vCPUs' threads, the guest's included.
    pub vcpus_us: u64,
    /// Of the whole process, threads that have ended included.
    pub process_us: u64,
}

impl CpuTime {
    /// Until now, with what vCPUs were found to have used.
    pub fn now(vcpus: &VcpuFaults) -> CpuTime {
        let process_us = nanos(ClockId::ProcessCPUTime) / 1000;
        CpuTime { vcpus_us: vcpus.cpu_us, process_us }
    }
}

/// A clock's time in nanoseconds.
pub fn nanos(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs()
}

/// What the kernel counts of a thread.
struct Usage {
    minor: u64,
    major: u64,
    cpu_us: u64,
}

/// Of this thread. Not from /proc, which a jail has not.
fn of_this_thread() -> io::Result<Usage> {
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the call fills the structure that it is given.
    if unsafe { libc::getrusage(libc::RUSAGE_THREAD, usage.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: plain numbers, all of which were zeroed before.
    let usage = unsafe { usage.assume_init() };
    let micros =
        |time: libc::timeval| time.tv_sec.unsigned_abs() * 1_000_000 + time.tv_usec.unsigned_abs();
    Ok(Usage {
        minor: usage.ru_minflt.unsigned_abs(),
        major: usage.ru_majflt.unsigned_abs(),
        cpu_us: micros(usage.ru_utime) + micros(usage.ru_stime),
    })
}

/// The file with a vCPU's statistics.
fn stats(vcpu: &VcpuFd) -> io::Result<File> {
    // SAFETY: the call takes no argument.
    let fd = unsafe { ioctl(vcpu, KVM_GET_STATS_FD()) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { File::from_raw_fd(fd) })
}

/// One number of a file of statistics (KVM API, 4.133).
fn stat(file: &File, wanted: &str) -> io::Result<u64> {
    let mut header = [0; size_of::<kvm_stats_header>()];
    file.read_exact_at(&mut header, 0)?;
    let word = |bytes: &[u8], at: usize| -> io::Result<u32> {
        let word = bytes.get(at..at + 4).and_then(|word| word.try_into().ok());
        Ok(u32::from_ne_bytes(word.ok_or(io::ErrorKind::InvalidData)?))
    };
    let name_size = word(&header, 4)? as usize;
    let (count, descriptors, data) = (word(&header, 8)?, word(&header, 16)?, word(&header, 20)?);
    let fixed = size_of::<kvm_stats_desc>();
    let mut descriptor = vec![0; fixed + name_size.min(256)];
    for index in 0..u64::from(count) {
        let at = u64::from(descriptors) + index * (fixed + name_size) as u64;
        file.read_exact_at(&mut descriptor, at)?;
        let name = descriptor.get(fixed..).unwrap_or_default();
        if name.split(|&byte| byte == 0).next() == Some(wanted.as_bytes()) {
            let mut value = [0; 8];
            let at = u64::from(data) + u64::from(word(&descriptor, 8)?);
            file.read_exact_at(&mut value, at)?;
            return Ok(u64::from_ne_bytes(value));
        }
    }
    Err(io::ErrorKind::NotFound.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_of_a_thread() {
        let own = || of_this_thread().unwrap().minor;
        let before = own();
        let touched = std::hint::black_box(vec![1u8; 8 << 20]);
        assert!(own() >= before + 4, "{before} {} {}", own(), touched.len());
    }

    #[test]
    fn a_sum_is_unknown_where_a_part_is() {
        let known = VcpuFaults { minor: 1, major: 2, stage2: Some(3), exits: Some(9), cpu_us: 5 };
        let sum: VcpuFaults = [known, known].into_iter().sum();
        let twice = VcpuFaults { minor: 2, major: 4, stage2: Some(6), exits: Some(18), cpu_us: 10 };
        assert_eq!(sum, twice);
        let unknown = VcpuFaults { stage2: None, ..known };
        assert_eq!([known, unknown].into_iter().sum::<VcpuFaults>().stage2, None);
    }

    #[test]
    fn a_file_of_statistics() {
        use std::io::Write;
        let mut file = tempfile::tempfile().unwrap();
        let words = |words: &[u32]| words.iter().flat_map(|w| w.to_ne_bytes()).collect::<Vec<_>>();
        let mut bytes = words(&[0, 8, 2, 24, 24, 72]);
        for (name, offset) in [(b"pf_other", 0), (b"fixed\0\0\0", 8)] {
            bytes.extend(words(&[0, 1 << 16, offset, 0]));
            bytes.extend(name);
        }
        bytes.extend(5u64.to_ne_bytes());
        bytes.extend(6u64.to_ne_bytes());
        file.write_all(&bytes).unwrap();
        assert_eq!((stat(&file, "pf_other").unwrap(), stat(&file, "fixed").unwrap()), (5, 6));
        assert!(stat(&file, "fix").is_err());
        file.set_len(80).unwrap();
        assert!(stat(&file, "fixed").is_err(), "the value is cut off");
    }
}
