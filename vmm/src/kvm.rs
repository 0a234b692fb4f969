//! The virtual machine as KVM has it: memory slots, interrupt controller, event descriptors.
//!
//! UNSAFETY: a memory slot lets the guest reach host memory; registering one is the only unsafe
//! call here.
#![allow(unsafe_code)]

use std::sync::Arc;

use kvm_bindings::{
    CpuId, KVM_CAP_DIRTY_LOG_RING, KVM_CAP_GUEST_MEMFD, KVM_CAP_MEMORY_FAULT_INFO,
    KVM_CAP_PRE_FAULT_MEMORY, KVM_CAP_X86_DISABLE_EXITS, KVM_MAX_CPUID_ENTRIES,
    KVM_MEM_LOG_DIRTY_PAGES, KVM_PIT_SPEAKER_DUMMY, kvm_pit_config, kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, VcpuFd, VmFd};
use varve_devices::interrupt::IrqLine;
use varve_memory_tiers::GuestRam;
use vmm_sys_util::eventfd::EventFd;

use crate::arch::kvm_error::KvmError;
use crate::arch::layout;
use crate::arch::vcpu_state::VcpuStateV1;
use crate::arch::vm_state::{self, VmStateV1};
use crate::async_faults::AsyncFaults;
use crate::stage2::{PREFAULT_VCPUS, Prefault};

fn call(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> KvmError {
    move |e| KvmError::Call(what, e)
}

/// What the monitor cannot do without.
const REQUIRED: &[(Cap, &str)] = &[
    (Cap::Irqchip, "an in-kernel interrupt controller (KVM_CAP_IRQCHIP)"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
    (Cap::Pit2, "KVM_CAP_PIT2"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT (Linux 4.13)"),
];

/// What is to be seen of the guest's memory accesses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Watching {
    /// KVM keeps a log of the pages that the guest writes.
    pub writes: bool,
    /// Each first access is a fault of the vCPU's own thread, and of the guest's own kind.
    pub accesses: bool,
}

/// A machine in KVM. Field order is drop order: the slots go before the memory behind them.
pub struct KvmVm {
    fd: VmFd,
    kvm: Kvm,
    async_faults: Option<Arc<AsyncFaults>>,
    ram: Arc<GuestRam>,
}

impl KvmVm {
    /// Creates a machine over `ram` with its interrupt controllers and timer.
    pub fn new(ram: Arc<GuestRam>, vcpus: u8, watch: Watching) -> Result<KvmVm, KvmError> {
        let kvm = Kvm::new().map_err(KvmError::Open)?;
        let version = kvm.get_api_version();
        if version != 12 {
            return Err(KvmError::ApiVersion(version));
        }
        if let Some((_, name)) = REQUIRED.iter().find(|(cap, _)| !kvm.check_extension(*cap)) {
            return Err(KvmError::Missing(name));
        }
        let allowed = kvm.get_max_vcpus();
        if usize::from(vcpus) > allowed {
            return Err(KvmError::TooManyVcpus { wanted: vcpus, allowed });
        }
        let fd = create_vm(&kvm)?;
        fd.set_identity_map_address(layout::KVM_IDENTITY_MAP)
            .map_err(call("KVM_SET_IDENTITY_MAP_ADDR"))?;
        fd.set_tss_address(layout::KVM_TSS as usize).map_err(call("KVM_SET_TSS_ADDR"))?;
        // Before any vCPU: each takes its local APIC from it.
        fd.create_irq_chip().map_err(call("KVM_CREATE_IRQCHIP"))?;
        // Port 0x61 reads as an idle speaker, without an exit each time.
        let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
        fd.create_pit2(pit).map_err(call("KVM_CREATE_PIT2"))?;
        let withhold = || Arc::new(AsyncFaults::withhold(&fd, vcpus));
        let async_faults = watch.accesses.then(withhold);
        let vm = KvmVm { fd, kvm, async_faults, ram };
        vm.register_memory(watch.writes)?;
        Ok(vm)
    }

    fn register_memory(&self, log_writes: bool) -> Result<(), KvmError> {
        let flags = if log_writes { KVM_MEM_LOG_DIRTY_PAGES } else { 0 };
        for (slot, region) in (0u32..).zip(self.ram.regions()) {
            let memory = kvm_userspace_memory_region {
                slot,
                guest_phys_addr: region.pages.start(),
                memory_size: region.pages.len(),
                userspace_addr: region.host,
                flags,
            };
            // SAFETY: the region is a mapping that `self.ram` keeps, and `self.fd` is dropped before
            // `self.ram`; Rust code touches it by volatile accesses only, as it must with a guest
            // that changes it at any time.
            unsafe { self.fd.set_user_memory_region(memory) }
                .map_err(call("KVM_SET_USER_MEMORY_REGION"))?;
        }
        Ok(())
    }

    /// The pages that the guest wrote since the last call, one bitmap for each region of memory.
    pub fn take_write_log(&self) -> Result<Vec<Vec<u64>>, KvmError> {
        (0u32..)
            .zip(self.ram.regions())
            .map(|(slot, region)| self.fd.get_dirty_log(slot, region.pages.len() as usize))
            .collect::<Result<_, _>>()
            .map_err(call("KVM_GET_DIRTY_LOG"))
    }

    /// A new vCPU with APIC id `id`.
    pub fn create_vcpu(&self, id: u8) -> Result<VcpuFd, KvmError> {
        self.fd.create_vcpu(id.into()).map_err(call("KVM_CREATE_VCPU"))
    }

    /// The CPUID leaves that this host can give to a guest.
    pub fn supported_cpuid(&self) -> Result<CpuId, KvmError> {
        self.kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(call("KVM_GET_SUPPORTED_CPUID"))
    }

    /// Whether this host's KVM has a capability.
    pub fn has_capability(&self, number: u32) -> bool {
        self.fd.check_extension_raw(number.into()) > 0
    }

    /// The MSRs that this host saves and restores.
    pub fn msr_indices(&self) -> Result<Vec<u32>, KvmError> {
        let list = self.kvm.get_msr_index_list().map_err(call("KVM_GET_MSR_INDEX_LIST"))?;
        Ok(list.as_slice().to_vec())
    }

    /// What the guest has of asynchronous page faults, if they are withheld from it.
    pub fn async_faults(&self) -> Option<&Arc<AsyncFaults>> {
        self.async_faults.as_ref()
    }

    /// The machine's own state. Only while its vCPUs are paused.
    pub fn save(&self) -> Result<VmStateV1, KvmError> {
        vm_state::save(&self.fd)
    }

    /// Takes over a state, after the vCPUs were created and before one runs.
    pub fn restore(&self, state: &VmStateV1) -> Result<(), KvmError> {
        vm_state::restore(&self.fd, state)
    }

    /// Sets the guest's clock once more, now that its vCPUs have their states, and tells whether the guest
    /// can read it without system calls.
    ///
    /// # Errors
    ///
    /// If KVM fails.
    pub fn set_clock(&self, state: &VmStateV1) -> Result<bool, KvmError> {
        vm_state::set_clock(&self.fd, state)?;
        self.clock_is_stable()
    }

    /// Whether the guest can read its clock without system calls.
    ///
    /// # Errors
    ///
    /// If KVM does not tell.
    pub fn clock_is_stable(&self) -> Result<bool, KvmError> {
        vm_state::clock_is_stable(&self.fd)
    }

    /// The means to fill second-level page tables ahead of the guest, for so many threads at a time (there
    /// are no more than two such means), where this host's KVM can; with vCPUs like the guest's vCPU `like`.
    pub fn prefault(&self, like: &VcpuStateV1, threads: usize) -> Option<Prefault> {
        if self.fd.check_extension_raw(KVM_CAP_PRE_FAULT_MEMORY.into()) == 0 {
            return None;
        }
        let ids = PREFAULT_VCPUS.iter().take(threads);
        // As many as this host gives.
        let vcpus: Vec<_> = ids.map_while(|&id| self.create_vcpu(id).ok()).collect();
        if vcpus.is_empty() {
            return None;
        }
        Prefault::new(vcpus, like).inspect_err(|e| log::debug!("no pre-fault vCPU: {e}")).ok()
    }

    /// Makes each write to `line` an edge on interrupt `gsi`.
    pub fn connect_irq(&self, line: &IrqLine, gsi: u32) -> Result<(), KvmError> {
        self.fd.register_irqfd(line.event(), gsi).map_err(call("KVM_IRQFD"))
    }

    /// Makes a guest write of `value` to the 32-bit register at `address` a write to `event`,
    /// without an exit to the monitor.
    pub fn connect_doorbell(
        &self,
        event: &EventFd,
        address: u64,
        value: u32,
    ) -> Result<(), KvmError> {
        self.fd
            .register_ioevent(event, &IoEventAddress::Mmio(address), value)
            .map_err(call("KVM_IOEVENTFD"))
    }
}

/// What a host's KVM can do beyond what the monitor cannot do without: names, and whether it can.
pub fn options() -> Result<Vec<(&'static str, bool)>, KvmError> {
    let kvm = Kvm::new().map_err(KvmError::Open)?;
    let has = |number: u32| kvm.check_extension_raw(number.into()) > 0;
    Ok([
        ("pre_fault_memory", KVM_CAP_PRE_FAULT_MEMORY),
        ("disable_exits", KVM_CAP_X86_DISABLE_EXITS),
        ("dirty_log_ring", KVM_CAP_DIRTY_LOG_RING),
        ("memory_fault_info", KVM_CAP_MEMORY_FAULT_INFO),
        ("guest_memfd", KVM_CAP_GUEST_MEMFD),
    ]
    .map(|(name, number)| (name, has(number)))
    .into())
}

/// KVM_CREATE_VM gives up when a signal comes while it waits.
fn create_vm(kvm: &Kvm) -> Result<VmFd, KvmError> {
    loop {
        match kvm.create_vm() {
            Err(e) if e.errno() == libc::EINTR => continue,
            result => return result.map_err(call("KVM_CREATE_VM")),
        }
    }
}
