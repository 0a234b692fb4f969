//! A machine's state as blobs of a state file.

use serde::Serialize;
use serde::de::DeserializeOwned;
use varve_devices::state as blob;
use varve_snapshot::{HostIdentity, PageRange, StateBlob, StateFile};

use crate::arch::vcpu_state::{VCPU_STATE_VERSION, VcpuStateV1};
use crate::arch::vm_state::VM_STATE_VERSION;
use crate::config::{MAX_VCPUS, VmConfig};
use crate::device_set::DeviceBlob;
use crate::error::VmmError;
use crate::machine::saved::SavedMachine;

const KVM: &str = "kvm";
const VCPU: &str = "vcpu/";
const DEVICE: &str = "device/";

/// The state file of a machine with `memory`, but for what it says of its memory file.
pub fn store(
    config: &VmConfig,
    saved: &SavedMachine,
    memory: Vec<PageRange>,
    host: HostIdentity,
) -> Result<StateFile, VmmError> {
    let SavedMachine { vm, vcpus, devices } = saved;
    let kvm = |name: String, version, bytes| StateBlob { name, version, bytes };
    let mut blobs = vec![kvm(KVM.into(), VM_STATE_VERSION, encode(vm))];
    for (id, vcpu) in vcpus.iter().enumerate() {
        blobs.push(kvm(format!("{VCPU}{id}"), VCPU_STATE_VERSION, encode(vcpu)));
    }
    for (name, DeviceBlob { version, bytes }) in devices {
        blobs.push(kvm(format!("{DEVICE}{name}"), *version, bytes.clone()));
    }
    Ok(StateFile {
        vmm_version: env!("CARGO_PKG_VERSION").into(),
        memory_file: None,
        config: serde_json::to_vec(config)
            .map_err(|e| VmmError::SavedState { name: "config".into(), cause: e.to_string() })?,
        host,
        memory,
        blobs,
        ..StateFile::default()
    })
}

fn encode<T: Serialize>(state: &T) -> Vec<u8> {
    blob::encode(state)
}

/// The machine that a state file describes. Every blob must find its place.
pub fn load(file: StateFile) -> Result<(VmConfig, SavedMachine), VmmError> {
    let bad = |name: &str, cause: String| VmmError::SavedState { name: name.into(), cause };
    let config: VmConfig =
        serde_json::from_slice(&file.config).map_err(|e| bad("config", e.to_string()))?;
    config.validate()?;
    if config.memory != file.memory_bytes() {
        let cause = format!("{} bytes, the memory map has {}", config.memory, file.memory_bytes());
        return Err(bad("config.memory", cause));
    }
    let mut saved_vm = None;
    let mut vcpus: Vec<Option<VcpuStateV1>> = (0..config.vcpus).map(|_| None).collect();
    let mut devices = std::collections::BTreeMap::new();
    for StateBlob { name, version, bytes } in file.blobs {
        if let Some(device) = name.strip_prefix(DEVICE) {
            devices.insert(device.to_owned(), DeviceBlob { version, bytes });
        } else if let Some(id) = name.strip_prefix(VCPU) {
            let slot = id.parse::<u8>().ok().filter(|&id| id < MAX_VCPUS);
            let slot = slot.and_then(|id| vcpus.get_mut(usize::from(id)));
            let slot = slot.ok_or_else(|| bad(&name, "the machine has no such vCPU".into()))?;
            *slot = Some(decode(&name, version, VCPU_STATE_VERSION, &bytes)?);
        } else if name == KVM {
            saved_vm = Some(decode(&name, version, VM_STATE_VERSION, &bytes)?);
        } else {
            return Err(bad(&name, "this version of varve does not know it".into()));
        }
    }
    let vcpus = vcpus
        .into_iter()
        .enumerate()
        .map(|(id, vcpu)| vcpu.ok_or_else(|| bad(&format!("{VCPU}{id}"), "missing".into())))
        .collect::<Result<_, _>>()?;
    let vm = saved_vm.ok_or_else(|| bad(KVM, "missing".into()))?;
    Ok((config, SavedMachine { vm, vcpus, devices }))
}

fn decode<T: DeserializeOwned>(
    name: &str,
    found: u32,
    known: u32,
    bytes: &[u8],
) -> Result<T, VmmError> {
    blob::decode(found, known, bytes)
        .map_err(|e| VmmError::SavedState { name: name.into(), cause: e.to_string() })
}
