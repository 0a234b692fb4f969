//! Whether this host can run a guest that was started on another: every processor feature that the
//! guest was told of must be here.

use kvm_bindings::kvm_cpuid_entry2;

use super::cpuid::vendor;

/// A register of a CPUID leaf that holds feature bits.
struct FeatureWord {
    function: u32,
    index: u32,
    register: fn(&kvm_cpuid_entry2) -> u32,
    name: &'static str,
    /// Bits that say something other than what the host offers: set by the monitor, by topology, or
    /// by the guest itself.
    ignore: u32,
}

const fn word(
    function: u32,
    index: u32,
    register: fn(&kvm_cpuid_entry2) -> u32,
    name: &'static str,
    ignore: u32,
) -> FeatureWord {
    FeatureWord { function, index, register, name, ignore }
}

/// Intel SDM 2A (CPUID), AMD APM 3 appendix E, and KVM's own leaves (Documentation/virt/kvm/x86).
const WORDS: [FeatureWord; 12] = [
    // TSC deadline, OSXSAVE, hypervisor.
    word(1, 0, |e| e.ecx, "ecx", 1 << 24 | 1 << 27 | 1 << 31),
    // Hyper-threading.
    word(1, 0, |e| e.edx, "edx", 1 << 28),
    word(7, 0, |e| e.ebx, "ebx", 0),
    // OSPKE.
    word(7, 0, |e| e.ecx, "ecx", 1 << 4),
    word(7, 0, |e| e.edx, "edx", 0),
    word(7, 1, |e| e.eax, "eax", 0),
    word(0xd, 0, |e| e.eax, "eax", 0),
    word(0xd, 1, |e| e.eax, "eax", 0),
    // Legacy multi-core.
    word(0x8000_0001, 0, |e| e.ecx, "ecx", 1 << 1),
    word(0x8000_0001, 0, |e| e.edx, "edx", 0),
    word(0x8000_0008, 0, |e| e.ebx, "ebx", 0),
    word(0x4000_0001, 0, |e| e.eax, "eax", 0),
];

fn leaf(entries: &[kvm_cpuid_entry2], function: u32, index: u32) -> Option<&kvm_cpuid_entry2> {
    entries.iter().find(|e| (e.function, e.index) == (function, index))
}

/// What a guest with the leaves `guest` would miss on a host that offers `host`: one line each.
pub fn missing(guest: &[kvm_cpuid_entry2], host: &[kvm_cpuid_entry2]) -> Vec<String> {
    let (theirs, ours) = (vendor(guest), vendor(host));
    if theirs != ours {
        return vec![format!("the snapshot is from a {theirs:?} processor, this one is {ours:?}")];
    }
    let absent = kvm_cpuid_entry2::default();
    WORDS
        .iter()
        .filter_map(|w| {
            let used = (w.register)(leaf(guest, w.function, w.index)?);
            let here = (w.register)(leaf(host, w.function, w.index).unwrap_or(&absent));
            let lost = used & !here & !w.ignore;
            (lost != 0).then(|| {
                let bits: Vec<String> =
                    (0..32).filter(|b| lost >> b & 1 != 0).map(|b| b.to_string()).collect();
                let (function, index, name) = (w.function, w.index, w.name);
                format!("CPUID leaf {function:#x}.{index} {name} bit {}", bits.join(", "))
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32, ebx: u32, ecx: u32, edx: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 { function, ebx, ecx, edx, ..Default::default() }
    }

    #[test]
    fn names_what_is_missing() {
        let guest = [entry(0, 1, 2, 3), entry(1, 0, 1 << 31 | 0b110, 0), entry(7, 1 << 5, 0, 0)];
        assert!(missing(&guest, &guest).is_empty());
        let less = [entry(0, 1, 2, 3), entry(1, 0, 0b010, 0)];
        assert_eq!(
            missing(&guest, &less),
            ["CPUID leaf 0x1.0 ecx bit 2", "CPUID leaf 0x7.0 ebx bit 5"]
        );
        let other = [entry(0, 9, 2, 3)];
        assert_eq!(missing(&guest, &other).len(), 1);
        assert!(missing(&guest, &other)[0].contains("processor"));
    }
}
