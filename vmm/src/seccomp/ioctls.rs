//! Numbers of the ioctls that varve uses, by who may call them.

use kvm_bindings::*;
use linux_raw_sys::ioctl as raw;
use rustix::ioctl::{Opcode, opcode};

/// The group of KVM's numbers (linux/kvm.h).
const KVM: u8 = KVMIO as u8;

const fn kvm(number: u8) -> Opcode {
    opcode::none(KVM, number)
}

const fn kvm_takes<T>(number: u8) -> Opcode {
    opcode::write::<T>(KVM, number)
}

const fn kvm_gives<T>(number: u8) -> Opcode {
    opcode::read::<T>(KVM, number)
}

const fn kvm_trades<T>(number: u8) -> Opcode {
    opcode::read_write::<T>(KVM, number)
}

/// On a vCPU, by its own thread. KVM_RUN stands first: it is looked for in this order.
pub const VCPU: &[u32] = &[
    kvm(0x80),                          // KVM_RUN
    kvm(0xad),                          // KVM_KVMCLOCK_CTRL
    kvm_gives::<kvm_regs>(0x81),        // KVM_GET_REGS
    kvm_gives::<kvm_sregs>(0x83),       // KVM_GET_SREGS
    kvm_trades::<kvm_msrs>(0x88),       // KVM_GET_MSRS
    kvm_gives::<kvm_lapic_state>(0x8e), // KVM_GET_LAPIC
    kvm_trades::<kvm_cpuid2>(0x91),     // KVM_GET_CPUID2
    kvm_gives::<kvm_mp_state>(0x98),    // KVM_GET_MP_STATE
    kvm_gives::<kvm_vcpu_events>(0x9f), // KVM_GET_VCPU_EVENTS
    kvm_gives::<kvm_debugregs>(0xa1),   // KVM_GET_DEBUGREGS
    kvm(0xa3),                          // KVM_GET_TSC_KHZ
    kvm_gives::<kvm_xsave>(0xa4),       // KVM_GET_XSAVE
    kvm_gives::<kvm_xsave>(0xcf),       // KVM_GET_XSAVE2
    kvm_gives::<kvm_xcrs>(0xa6),        // KVM_GET_XCRS
    kvm(0xce),                          // KVM_GET_STATS_FD
];

/// Making and restoring a machine, and its own state.
pub const MACHINE: &[u32] = &[
    kvm(0x00),                                      // KVM_GET_API_VERSION
    kvm(0x01),                                      // KVM_CREATE_VM
    kvm_trades::<kvm_msr_list>(0x02),               // KVM_GET_MSR_INDEX_LIST
    kvm(0x03),                                      // KVM_CHECK_EXTENSION
    kvm(0x04),                                      // KVM_GET_VCPU_MMAP_SIZE
    kvm_trades::<kvm_cpuid2>(0x05),                 // KVM_GET_SUPPORTED_CPUID
    kvm(0x41),                                      // KVM_CREATE_VCPU
    kvm_takes::<kvm_dirty_log>(0x42),               // KVM_GET_DIRTY_LOG
    kvm_takes::<kvm_userspace_memory_region>(0x46), // KVM_SET_USER_MEMORY_REGION
    kvm(0x47),                                      // KVM_SET_TSS_ADDR
    kvm_takes::<u64>(0x48),                         // KVM_SET_IDENTITY_MAP_ADDR
    kvm(0x60),                                      // KVM_CREATE_IRQCHIP
    kvm_trades::<kvm_irqchip>(0x62),                // KVM_GET_IRQCHIP
    kvm_gives::<kvm_irqchip>(0x63),                 // KVM_SET_IRQCHIP
    kvm_takes::<kvm_irqfd>(0x76),                   // KVM_IRQFD
    kvm_takes::<kvm_pit_config>(0x77),              // KVM_CREATE_PIT2
    kvm_takes::<kvm_ioeventfd>(0x79),               // KVM_IOEVENTFD
    kvm_takes::<kvm_clock_data>(0x7b),              // KVM_SET_CLOCK
    kvm_gives::<kvm_clock_data>(0x7c),              // KVM_GET_CLOCK
    kvm_takes::<kvm_regs>(0x82),                    // KVM_SET_REGS
    kvm_takes::<kvm_sregs>(0x84),                   // KVM_SET_SREGS
    kvm_takes::<kvm_msrs>(0x89),                    // KVM_SET_MSRS
    kvm_takes::<kvm_fpu>(0x8d),                     // KVM_SET_FPU
    kvm_takes::<kvm_lapic_state>(0x8f),             // KVM_SET_LAPIC
    kvm_takes::<kvm_cpuid2>(0x90),                  // KVM_SET_CPUID2
    kvm_takes::<kvm_mp_state>(0x99),                // KVM_SET_MP_STATE
    kvm_gives::<kvm_pit_state2>(0x9f),              // KVM_GET_PIT2
    kvm_takes::<kvm_pit_state2>(0xa0),              // KVM_SET_PIT2
    kvm_takes::<kvm_vcpu_events>(0xa0),             // KVM_SET_VCPU_EVENTS
    kvm(0xa2),                                      // KVM_SET_TSC_KHZ
    kvm_takes::<kvm_debugregs>(0xa2),               // KVM_SET_DEBUGREGS
    kvm_takes::<kvm_enable_cap>(0xa3),              // KVM_ENABLE_CAP
    kvm_takes::<kvm_xsave>(0xa5),                   // KVM_SET_XSAVE
    kvm_takes::<kvm_xcrs>(0xa7),                    // KVM_SET_XCRS
    kvm_takes::<kvm_msr_filter>(0xc6),              // KVM_X86_SET_MSR_FILTER
];

/// Of a machine that runs, by the main thread: pages that were written, and what a snapshot holds of the
/// machine itself. A vCPU's state is read by its own thread.
pub const RUNNING: &[u32] = &[
    kvm_trades::<kvm_msr_list>(0x02),  // KVM_GET_MSR_INDEX_LIST
    kvm(0x03),                         // KVM_CHECK_EXTENSION
    kvm_trades::<kvm_cpuid2>(0x05),    // KVM_GET_SUPPORTED_CPUID
    kvm_takes::<kvm_dirty_log>(0x42),  // KVM_GET_DIRTY_LOG
    kvm_trades::<kvm_irqchip>(0x62),   // KVM_GET_IRQCHIP
    kvm_gives::<kvm_clock_data>(0x7c), // KVM_GET_CLOCK
    kvm_gives::<kvm_pit_state2>(0x9f), // KVM_GET_PIT2
];

/// Filling second-level page tables: KVM_PRE_FAULT_MEMORY.
pub const PREFAULT: &[u32] = &[kvm_trades::<kvm_pre_fault_memory>(0xd5)];

/// Answering for missing pages.
pub const FAULTS: &[u32] = &[
    raw::UFFDIO_COPY,
    raw::UFFDIO_ZEROPAGE,
    raw::UFFDIO_WRITEPROTECT,
    raw::UFFDIO_WAKE,
    // When no page is offloaded any more.
    raw::UFFDIO_UNREGISTER,
];

/// Watching memory for missing pages.
pub const WATCH: &[u32] = &[
    opcode::none(0xaa, 0), // USERFAULTFD_IOC_NEW, on /dev/userfaultfd
    raw::UFFDIO_API,
    raw::UFFDIO_REGISTER,
];

/// A tap for a network interface.
pub const TAP: &[u32] =
    &[raw::TUNSETIFF, raw::TUNSETOFFLOAD, raw::TUNSETVNETHDRSZ, raw::TUNGETFEATURES];

/// What a driver's start changes on a tap, from the vCPU that it runs on.
pub const TAP_ACTIVE: &[u32] = &[raw::TUNSETOFFLOAD];

/// A drive that is a block device, and its size.
pub const DISK: &[u32] = &[raw::BLKGETSIZE64, raw::BLKSSZGET, raw::BLKPBSZGET];

/// The terminal's mode, which every thread that ends the process gives back.
pub const TERMINAL: &[u32] = &[
    raw::TCGETS,
    raw::TCSETS,
    raw::TCSETSW,
    raw::TCSETSF,
    raw::TCGETS2,
    raw::TCSETS2,
    raw::TCSETSW2,
    raw::TCSETSF2,
    raw::TIOCGPGRP,
    raw::TIOCGWINSZ,
];

/// Sockets that do not block.
pub const SOCKET: &[u32] = &[raw::FIONBIO, raw::FIONREAD];

/// RDMA_VERBS_IOCTL (rdma/rdma_user_ioctl_cmds.h), whose argument says what is wanted.
pub const VERBS: &[u32] = &[opcode::read_write::<[u64; 3]>(0x1b, 1)];
