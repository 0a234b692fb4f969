//! What a CPU template makes of CPUID leaves and model-specific registers.

use kvm_bindings::{CpuId, kvm_cpuid_entry2, kvm_msr_entry};

use crate::arch::cpu_config::{Capability, CpuConfig, Register};

/// A template that asks for what this host has not.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TemplateError {
    /// A leaf that KVM does not give to guests.
    #[error("Template changes a CPUID entry not supported by KVM: Leaf: {0:#x}, Subleaf: {1:#x}")]
    Leaf(u32, u32),
    /// A register that a vCPU has not, or of which it does not take the value.
    #[error("Template changes an MSR entry not supported by KVM: Register Address: {0:#x}")]
    Msr(u32),
    /// A capability that KVM has not.
    #[error("Template needs a KVM capability that this host does not have: {0}")]
    Capability(u32),
}

/// The leaves that KVM supports, with the template's changes. What belongs to a vCPU and to the
/// topology is laid over them afterwards.
pub fn apply_cpuid(template: &CpuConfig, supported: &CpuId) -> Result<CpuId, TemplateError> {
    let mut entries: Vec<kvm_cpuid_entry2> = supported.as_slice().to_vec();
    for change in &template.cpuid_modifiers {
        let (leaf, subleaf) = (change.leaf, change.subleaf);
        let entry = entries
            .iter_mut()
            .find(|e| (e.function, e.index) == (leaf, subleaf))
            .ok_or(TemplateError::Leaf(leaf, subleaf))?;
        entry.flags = change.flags;
        for modifier in &change.modifiers {
            let register = match modifier.register {
                Register::Eax => &mut entry.eax,
                Register::Ebx => &mut entry.ebx,
                Register::Ecx => &mut entry.ecx,
                Register::Edx => &mut entry.edx,
            };
            *register = modifier.bitmap.apply(*register);
        }
    }
    Ok(CpuId::from_entries(&entries).expect("as many entries as the list had"))
}

/// Applies the template's changes to `values`, which hold every register that it names.
pub fn apply_msrs(template: &CpuConfig, values: &mut [kvm_msr_entry]) -> Result<(), TemplateError> {
    for change in &template.msr_modifiers {
        let entry = values
            .iter_mut()
            .find(|e| e.index == change.addr)
            .ok_or(TemplateError::Msr(change.addr))?;
        entry.data = change.bitmap.apply(entry.data);
    }
    Ok(())
}

/// The capabilities of KVM that the template needs. Those that it says are not needed are of no
/// account: varve asks for what it cannot do without, and for nothing else.
pub fn needed_capabilities(template: &CpuConfig) -> Vec<u32> {
    let needed = |capability: &Capability| match capability {
        Capability::Needed(number) => Some(*number),
        Capability::NotNeeded(_) => None,
    };
    template.kvm_capabilities.iter().filter_map(needed).collect()
}

/// Indices of the model-specific registers that the template changes.
pub fn msr_indices(template: &CpuConfig) -> Vec<u32> {
    template.msr_modifiers.iter().map(|change| change.addr).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn template() -> CpuConfig {
        serde_json::from_value(json!({
            "cpuid_modifiers": [{
                "leaf": "0x7", "subleaf": "0x0", "flags": 1, "modifiers": [
                    {"register": "eax", "bitmap": "0b1"}, {"register": "edx", "bitmap": "0b0x"},
                ],
            }],
            "msr_modifiers": [{"addr": "0x10a", "bitmap": "0b1x"}],
        }))
        .unwrap()
    }

    #[test]
    fn bits_change_where_the_template_says_so() {
        let leaf = |function, index| kvm_cpuid_entry2 {
            function,
            index,
            eax: 0xf0,
            edx: 3,
            ..Default::default()
        };
        let supported = CpuId::from_entries(&[leaf(7, 1), leaf(7, 0), leaf(1, 0)]).unwrap();
        let changed = apply_cpuid(&template(), &supported).unwrap();
        assert_eq!(changed.as_slice()[0], leaf(7, 1));
        assert_eq!(
            changed.as_slice()[1],
            kvm_cpuid_entry2 { eax: 0xf1, edx: 1, flags: 1, ..leaf(7, 0) }
        );
        assert_eq!(changed.as_slice()[2], leaf(1, 0));
        let without = CpuId::from_entries(&[leaf(7, 1)]).unwrap();
        assert_eq!(apply_cpuid(&template(), &without).unwrap_err(), TemplateError::Leaf(7, 0));

        let mut msrs = [kvm_msr_entry { index: 0x10a, data: 1, ..Default::default() }];
        apply_msrs(&template(), &mut msrs).unwrap();
        assert_eq!(msrs[0].data, 3);
        assert_eq!(apply_msrs(&template(), &mut []), Err(TemplateError::Msr(0x10a)));
        assert_eq!(msr_indices(&template()), [0x10a]);
    }
}
