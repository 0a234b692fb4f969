//! CPUID as the guest sees it: what KVM offers, made true for this machine's topology.
//!
//! All vCPUs are cores of one package with one thread each (two with `smt`). References: Intel SDM
//! 2A (CPUID) and AMD APM 3, appendix E.

use kvm_bindings::{CpuId, kvm_cpuid_entry2};

/// The part of the topology that CPUID tells.
#[derive(Clone, Copy, Debug)]
pub struct Topology {
    /// Number of vCPUs.
    pub vcpus: u8,
    /// Two threads a core.
    pub smt: bool,
}

impl Topology {
    fn threads_per_core(&self) -> u32 {
        if self.smt && self.vcpus > 1 { 2 } else { 1 }
    }

    fn cores(&self) -> u32 {
        u32::from(self.vcpus).div_ceil(self.threads_per_core())
    }

    /// Bits of an APIC id that number the thread inside a core.
    fn core_shift(&self) -> u32 {
        bits_for(self.threads_per_core())
    }

    /// Bits of an APIC id that number the thread inside the package.
    fn package_shift(&self) -> u32 {
        bits_for(self.cores()) + self.core_shift()
    }
}

/// Bits that number `count` things.
fn bits_for(count: u32) -> u32 {
    count.next_power_of_two().trailing_zeros()
}

const LEAF_EXTENDED_TOPOLOGY: u32 = 0xb;
const LEAF_EXTENDED_TOPOLOGY_V2: u32 = 0x1f;
const LEVEL_THREAD: u32 = 1;
const LEVEL_CORE: u32 = 2;

/// ECX of leaf 1: TSC deadline timer, which KVM's own APIC has, and the hypervisor bit.
const TSC_DEADLINE: u32 = 1 << 24;
const HYPERVISOR: u32 = 1 << 31;
/// EDX of leaf 1: more than one logical processor in the package.
const HTT: u32 = 1 << 28;
/// ECX of leaf 0x80000001: topology extensions, and the legacy multi-core bit.
const AMD_CMP_LEGACY: u32 = 1 << 1;

/// Entries for vCPU `id` from what KVM supports.
pub fn for_vcpu(supported: &CpuId, id: u8, topology: Topology) -> CpuId {
    let mut entries: Vec<kvm_cpuid_entry2> = supported.as_slice().to_vec();
    let amd = entries.iter().any(|e| e.function == 0 && e.ecx == u32::from_le_bytes(*b"cAMD"));
    replace_extended_topology(&mut entries, topology);
    for entry in &mut entries {
        adjust(entry, id.into(), topology, amd);
    }
    CpuId::from_entries(&entries).expect("no more entries than KVM gave, and its list fits")
}

/// The processor's vendor string (leaf 0).
pub fn vendor(entries: &[kvm_cpuid_entry2]) -> String {
    let leaf = entries.iter().find(|e| e.function == 0);
    let bytes = leaf.map(|e| [e.ebx, e.edx, e.ecx].map(u32::to_le_bytes).concat());
    String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned()
}

/// Lays out leaves 0xb and 0x1f: KVM reports the host's, or none.
fn replace_extended_topology(entries: &mut Vec<kvm_cpuid_entry2>, topology: Topology) {
    let has_v2 = entries.iter().any(|e| e.function == LEAF_EXTENDED_TOPOLOGY_V2);
    let is_topology = |f: u32| f == LEAF_EXTENDED_TOPOLOGY || f == LEAF_EXTENDED_TOPOLOGY_V2;
    entries.retain(|e| !is_topology(e.function));
    let max = entries.iter().find(|e| e.function == 0).map_or(0, |e| e.eax);
    let levels = [
        (LEVEL_THREAD, topology.core_shift(), topology.threads_per_core()),
        (LEVEL_CORE, topology.package_shift(), topology.vcpus.into()),
        (0, 0, 0),
    ];
    let mut leaf = |function: u32| {
        for (index, (kind, shift, count)) in (0u32..).zip(levels) {
            entries.push(kvm_cpuid_entry2 {
                function,
                index,
                flags: kvm_bindings::KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
                eax: shift,
                ebx: count,
                ecx: index | kind << 8,
                ..Default::default()
            });
        }
    };
    if max >= LEAF_EXTENDED_TOPOLOGY {
        leaf(LEAF_EXTENDED_TOPOLOGY);
    }
    if has_v2 {
        leaf(LEAF_EXTENDED_TOPOLOGY_V2);
    }
}

fn adjust(entry: &mut kvm_cpuid_entry2, apic_id: u32, topology: Topology, amd: bool) {
    let vcpus = u32::from(topology.vcpus);
    let threads = topology.threads_per_core();
    let put = |register: &mut u32, shift: u32, bits: u32, value: u32| {
        let mask = ((1u64 << bits) - 1) as u32;
        *register = *register & !(mask << shift) | (value & mask) << shift;
    };
    match entry.function {
        1 => {
            put(&mut entry.ebx, 24, 8, apic_id);
            put(&mut entry.ebx, 16, 8, vcpus);
            entry.ecx |= TSC_DEADLINE | HYPERVISOR;
            entry.edx = if vcpus > 1 { entry.edx | HTT } else { entry.edx & !HTT };
        }
        // Deterministic cache parameters: who shares each cache, and cores in the package.
        4 if entry.eax & 0x1f != 0 => {
            let level = entry.eax >> 5 & 7;
            let sharing = if level < 3 { threads } else { vcpus };
            put(&mut entry.eax, 14, 12, sharing.next_power_of_two() - 1);
            put(&mut entry.eax, 26, 6, topology.cores().next_power_of_two() - 1);
        }
        // Thermal and power management: the energy bias MSR does not exist here.
        6 => entry.ecx &= !(1 << 3),
        // Performance counters are not virtualised.
        0xa => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
        LEAF_EXTENDED_TOPOLOGY | LEAF_EXTENDED_TOPOLOGY_V2 => entry.edx = apic_id,
        0x8000_0001 if amd => {
            entry.ecx =
                if vcpus > 1 { entry.ecx | AMD_CMP_LEGACY } else { entry.ecx & !AMD_CMP_LEGACY };
        }
        0x8000_0008 if amd => {
            put(&mut entry.ecx, 0, 8, vcpus - 1);
            put(&mut entry.ecx, 12, 4, topology.package_shift());
        }
        // AMD cache topology: threads that share each cache.
        0x8000_001d if amd && entry.eax & 0x1f != 0 => {
            let level = entry.eax >> 5 & 7;
            let sharing = if level < 3 { threads } else { vcpus };
            put(&mut entry.eax, 14, 12, sharing - 1);
        }
        // AMD extended APIC id, core and node: one node.
        0x8000_001e if amd => {
            entry.eax = apic_id;
            entry.ebx = (apic_id / threads) | ((threads - 1) << 8);
            entry.ecx = 0;
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn supported(vendor: &[u8; 4]) -> CpuId {
        let leaf =
            |function, eax, ecx| kvm_cpuid_entry2 { function, eax, ecx, ..Default::default() };
        CpuId::from_entries(&[
            leaf(0, 0xd, u32::from_le_bytes(*vendor)),
            leaf(1, 0, 0),
            leaf(4, 1 << 5 | 1, 0),
            leaf(0xa, 7, 7),
            leaf(0xb, 9, 9),
            leaf(0x4000_0000, 1, 2),
            leaf(0x8000_0008, 0x3028, 0xffff_ffff),
            leaf(0x8000_001e, 0, 7),
        ])
        .unwrap()
    }

    fn get(cpuid: &CpuId, function: u32, index: u32) -> kvm_cpuid_entry2 {
        let mut found =
            cpuid.as_slice().iter().filter(|e| (e.function, e.index) == (function, index));
        let entry = *found.next().unwrap();
        assert!(found.next().is_none(), "leaf {function:#x} twice");
        entry
    }

    #[test]
    fn each_vcpu_has_its_apic_id() {
        for (vcpus, id) in [(1u8, 0u8), (2, 1), (8, 5), (32, 31)] {
            let topology = Topology { vcpus, smt: false };
            let cpuid = for_vcpu(&supported(b"cAMD"), id, topology);
            let one = get(&cpuid, 1, 0);
            assert_eq!((one.ebx >> 24, one.ebx >> 16 & 0xff), (id.into(), vcpus.into()));
            assert_eq!(one.ecx & HYPERVISOR, HYPERVISOR);
            assert_eq!(one.edx & HTT != 0, vcpus > 1);
            let (thread, core) = (get(&cpuid, 0xb, 0), get(&cpuid, 0xb, 1));
            assert_eq!((thread.eax, thread.ebx, thread.ecx, thread.edx), (0, 1, 0x100, id.into()));
            assert_eq!((core.ebx, core.ecx), (vcpus.into(), 0x201));
            assert!(1u32 << core.eax >= vcpus.into());
            assert_eq!(get(&cpuid, 0x8000_0008, 0).ecx & 0xff, u32::from(vcpus) - 1);
            assert_eq!(get(&cpuid, 0x8000_001e, 0).eax, u32::from(id));
            assert_eq!(get(&cpuid, 0xa, 0).eax, 0);
            assert_eq!(get(&cpuid, 0x4000_0000, 0).eax, 1, "KVM's own leaves stay");
        }
    }

    #[test]
    fn two_threads_a_core() {
        let topology = Topology { vcpus: 4, smt: true };
        let cpuid = for_vcpu(&supported(b"ntel"), 3, topology);
        let (thread, core) = (get(&cpuid, 0xb, 0), get(&cpuid, 0xb, 1));
        assert_eq!((thread.eax, thread.ebx), (1, 2));
        assert_eq!((core.eax, core.ebx), (2, 4));
        let cache = get(&cpuid, 4, 0).eax;
        assert_eq!((cache >> 14 & 0xfff, cache >> 26), (1, 1));
        assert_eq!(get(&cpuid, 0x8000_001e, 0).ecx, 7, "AMD's leaves are left on Intel");
    }
}
