//! Page faults that the kernel answers for vCPUs by itself: how many, counted by the kernel. What the
//! monitor answers is counted by `varve-memory-tiers`.
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
use serde::Serialize;
use vmm_sys_util::ioctl::ioctl;
use vmm_sys_util::ioctl_io_nr;

ioctl_io_nr!(KVM_GET_STATS_FD, KVMIO, 0xce);

/// Faults since the machine was built. They do not depend on what the guest does with its own page
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
}

impl VcpuFaults {
    /// Those of one vCPU; to be called on its own thread.
    pub fn of_this_thread(vcpu: &VcpuFd) -> io::Result<VcpuFaults> {
        let (minor, major) = of_this_thread()?;
        Ok(VcpuFaults { minor, major, stage2: stage2(vcpu).ok() })
    }
}

impl AddAssign for VcpuFaults {
    fn add_assign(&mut self, other: VcpuFaults) {
        self.minor += other.minor;
        self.major += other.major;
        self.stage2 = self.stage2.zip(other.stage2).map(|(a, b)| a + b);
    }
}

impl std::iter::Sum for VcpuFaults {
    fn sum<I: Iterator<Item = VcpuFaults>>(all: I) -> VcpuFaults {
        let mut sum = VcpuFaults { stage2: Some(0), ..VcpuFaults::default() };
        all.for_each(|one| sum += one);
        sum
    }
}

/// Minor and major faults of this thread. Not from /proc, which a jail has not.
fn of_this_thread() -> io::Result<(u64, u64)> {
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the call fills the structure that it is given.
    if unsafe { libc::getrusage(libc::RUSAGE_THREAD, usage.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: plain numbers, all of which were zeroed before.
    let usage = unsafe { usage.assume_init() };
    Ok((usage.ru_minflt.unsigned_abs(), usage.ru_majflt.unsigned_abs()))
}

/// `pf_fixed` of a vCPU.
fn stage2(vcpu: &VcpuFd) -> io::Result<u64> {
    // SAFETY: the call takes no argument.
    let fd = unsafe { ioctl(vcpu, KVM_GET_STATS_FD()) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else's.
    let file = unsafe { File::from_raw_fd(fd) };
    stat(&file, "pf_fixed")
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
        let own = || of_this_thread().unwrap().0;
        let before = own();
        let touched = std::hint::black_box(vec![1u8; 8 << 20]);
        assert!(own() >= before + 4, "{before} {} {}", own(), touched.len());
    }

    #[test]
    fn a_sum_is_unknown_where_a_part_is() {
        let known = VcpuFaults { minor: 1, major: 2, stage2: Some(3) };
        let sum: VcpuFaults = [known, known].into_iter().sum();
        assert_eq!(sum, VcpuFaults { minor: 2, major: 4, stage2: Some(6) });
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
