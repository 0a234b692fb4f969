//! ACPI tables of a hardware-reduced platform (ACPI 6.5, 4.1): XSDT, FADT, MADT and a DSDT that
//! announces the devices.
//!
//! Distribution kernels have no other way to find virtio-mmio devices.

use acpi_tables::aml::{
    Arg, Device, EISAName, Equal, IO, If, Interrupt, Memory32Fixed, Method, Name, Notify, ONE,
    Package, Path, ResourceTemplate, Scope, ZERO,
};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{
    EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic,
};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, AmlSink};
use varve_devices::i8042::{I8042_BASE, I8042_IRQ};
use varve_devices::serial::{COM_LEN, COM1_BASE, COM1_IRQ};
use varve_devices::virtio::mmio::MMIO_LEN;
use varve_devices::{power, pvpanic};
use varve_memory_tiers::GuestMemory;
use vm_memory::{Bytes, GuestAddress};

use super::layout;

const OEM: [u8; 6] = *b"VARVE ";
const TABLE: [u8; 8] = *b"MICROVM ";
const REVISION: u32 = 1;

/// Boot architecture flags: a keyboard controller, no VGA, no MSI, no CMOS clock to probe (ACPI 6.5,
/// 5.2.9.3).
const IAPC_BOOT_ARCH: u16 = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 5;

/// A virtio-mmio window and its interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MmioSlot {
    /// Guest physical address of the registers.
    pub base: u64,
    /// Interrupt.
    pub gsi: u32,
}

/// What the tables describe.
#[derive(Clone, Debug)]
pub struct Platform {
    /// Number of vCPUs; APIC ids count from 0.
    pub vcpus: u8,
    /// virtio devices.
    pub virtio: Vec<MmioSlot>,
    /// Interrupt on which the VM generation id's change is told.
    pub vmgenid_gsi: u32,
}

/// Why there are no tables.
#[derive(Debug, thiserror::Error)]
pub enum AcpiError {
    /// They are larger than the place for them.
    #[error("ACPI tables end at {end:#x}, past {limit:#x}")]
    TooLarge {
        /// First address after the tables.
        end: u64,
        /// First address that is not theirs.
        limit: u64,
    },
    /// Guest memory does not take them.
    #[error("cannot write ACPI tables to guest memory")]
    Memory(#[from] vm_memory::GuestMemoryError),
}

/// Writes all tables into guest memory; returns the root pointer's address.
pub fn write_tables(mem: &GuestMemory, platform: &Platform) -> Result<u64, AcpiError> {
    let mut next = layout::ACPI_TABLES;
    let mut put = |table: &dyn Aml| -> Result<u64, AcpiError> {
        let address = next;
        let bytes = bytes_of(table);
        next = (address + bytes.len() as u64).next_multiple_of(16);
        if next > layout::RSDP {
            return Err(AcpiError::TooLarge { end: next, limit: layout::RSDP });
        }
        mem.write_slice(&bytes, GuestAddress(address))?;
        Ok(address)
    };
    let dsdt = put(&dsdt(platform))?;
    let fadt = put(&fadt(dsdt))?;
    let madt = put(&madt(platform.vcpus))?;
    let mut xsdt = XSDT::new(OEM, TABLE, REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = put(&xsdt)?;
    mem.write_slice(&bytes_of(&Rsdp::new(OEM, xsdt)), GuestAddress(layout::RSDP))?;
    Ok(layout::RSDP)
}

fn bytes_of(table: &dyn Aml) -> Vec<u8> {
    struct Bytes(Vec<u8>);
    impl AmlSink for Bytes {
        fn byte(&mut self, byte: u8) {
            self.0.push(byte);
        }
    }
    let mut bytes = Bytes(Vec::new());
    table.to_aml_bytes(&mut bytes);
    bytes.0
}

fn fadt(dsdt: u64) -> impl Aml {
    let port = |port: u64| GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, port);
    let mut table = FADTBuilder::new(OEM, TABLE, REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton);
    table.iapc_boot_arch = IAPC_BOOT_ARCH.into();
    table.reset_reg = port(power::POWER_BASE + power::RESET);
    table.reset_value = power::RESET_VALUE;
    table.sleep_control_reg = port(power::POWER_BASE);
    table.sleep_status_reg = port(power::POWER_BASE + power::SLEEP_STATUS);
    table.hypervisor_vendor_identity = u64::from_le_bytes(*b"varve\0\0\0").into();
    table.finalize()
}

fn madt(vcpus: u8) -> MADT {
    let mut table =
        MADT::new(OEM, TABLE, REVISION, LocalInterruptController::Address(layout::LOCAL_APIC));
    table.add_structure(IoApic::new(0, layout::IO_APIC, 0));
    for id in 0..vcpus {
        table.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    table
}

fn dsdt(platform: &Platform) -> Sdt {
    let mut table = Sdt::new(*b"DSDT", 36, 6, OEM, TABLE, REVISION);
    let mut add = |object: &dyn Aml| table.append_slice(&bytes_of(object));
    for (index, slot) in platform.virtio.iter().enumerate() {
        add(&Virtio { index, slot: *slot });
    }
    add(&Platform0);
    add(&VmGenId { gsi: platform.vmgenid_gsi });
    // Values of SLP_TYPa and SLP_TYPb for soft off (ACPI 6.5, 7.4.2.6).
    let s5 = power::SLEEP_TYPE_S5;
    add(&Name::new("_S5_".into(), &Package::new(vec![&s5, &s5, &ZERO, &ZERO])));
    table.update_checksum();
    table
}

/// An edge-triggered, active-high interrupt that is not shared.
fn edge(gsi: u32) -> Interrupt {
    Interrupt::new(true, true, false, false, gsi)
}

struct Virtio {
    index: usize,
    slot: MmioSlot,
}

impl Aml for Virtio {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let path: Path = format!("_SB_.V{:03}", self.index).as_str().into();
        Device::new(
            path,
            vec![
                // The id under which Linux's virtio_mmio driver binds.
                &Name::new("_HID".into(), &"LNRO0005"),
                &Name::new("_UID".into(), &(self.index as u32)),
                &Name::new("_CCA".into(), &ONE),
                &Name::new(
                    "_CRS".into(),
                    &ResourceTemplate::new(vec![
                        &Memory32Fixed::new(true, self.slot.base as u32, MMIO_LEN as u32),
                        &edge(self.slot.gsi),
                    ]),
                ),
            ],
        )
        .to_aml_bytes(sink);
    }
}

/// The serial port, the keyboard controller and the panic port.
struct Platform0;

impl Aml for Platform0 {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let (com, panic) = (COM1_BASE as u16, pvpanic::PVPANIC_PORT as u16);
        let (data, command) = (I8042_BASE as u16, I8042_BASE as u16 + 4);
        Scope::new(
            "_SB_".into(),
            vec![
                &Device::new(
                    "COM1".into(),
                    vec![
                        &Name::new("_HID".into(), &EISAName::new("PNP0501")),
                        &Name::new("_UID".into(), &ZERO),
                        &Name::new("_DDN".into(), &"COM1"),
                        &Name::new(
                            "_CRS".into(),
                            &ResourceTemplate::new(vec![
                                &edge(COM1_IRQ),
                                &IO::new(com, com, 1, COM_LEN as u8),
                            ]),
                        ),
                    ],
                ),
                &Device::new(
                    "PS2_".into(),
                    vec![
                        // A keyboard; a mouse would be a device of its own.
                        &Name::new("_HID".into(), &EISAName::new("PNP0303")),
                        &Name::new(
                            "_CRS".into(),
                            &ResourceTemplate::new(vec![
                                &IO::new(data, data, 1, 1),
                                &IO::new(command, command, 1, 1),
                                &edge(I8042_IRQ),
                            ]),
                        ),
                    ],
                ),
                &Device::new(
                    "PEVT".into(),
                    vec![
                        &Name::new("_HID".into(), &"QEMU0001"),
                        &Name::new("_STA".into(), &0xfu8),
                        &Name::new(
                            "_CRS".into(),
                            &ResourceTemplate::new(vec![&IO::new(panic, panic, 1, 1)]),
                        ),
                    ],
                ),
            ],
        )
        .to_aml_bytes(sink);
    }
}

/// The VM generation id and the event device that tells of its change (ACPI 6.5, 5.6.9).
struct VmGenId {
    gsi: u32,
}

impl Aml for VmGenId {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let (low, high) = (layout::VMGENID as u32, (layout::VMGENID >> 32) as u32);
        let generation: Path = "\\_SB_.VGEN".into();
        Scope::new(
            "_SB_".into(),
            vec![
                &Device::new(
                    "VGEN".into(),
                    vec![
                        &Name::new("_HID".into(), &"VRVE0001"),
                        // Both spellings that drivers look for.
                        &Name::new(
                            "_CID".into(),
                            &Package::new(vec![&"VMGENCTR", &"VM_Gen_Counter"]),
                        ),
                        &Name::new("_DDN".into(), &"VM_Gen_Counter"),
                        &Name::new("ADDR".into(), &Package::new(vec![&low, &high])),
                    ],
                ),
                &Device::new(
                    "GED_".into(),
                    vec![
                        &Name::new("_HID".into(), &"ACPI0013"),
                        &Name::new("_UID".into(), &ZERO),
                        &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&edge(self.gsi)])),
                        &Method::new(
                            "_EVT".into(),
                            1,
                            true,
                            vec![&If::new(
                                &Equal::new(&Arg(0), &self.gsi),
                                vec![&Notify::new(&generation, &0x80u8)],
                            )],
                        ),
                    ],
                ),
            ],
        )
        .to_aml_bytes(sink);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use varve_memory_tiers::GuestRam;
    use varve_snapshot::PageRange;

    fn tables(vcpus: u8, devices: u32) -> GuestRam {
        let ram = GuestRam::new(&[PageRange::new(0, 1 << 20).unwrap()], false).unwrap();
        let virtio = (0..devices)
            .map(|i| MmioSlot { base: layout::VIRTIO_MMIO + 0x1000 * u64::from(i), gsi: 5 + i })
            .collect();
        let platform = Platform { vcpus, virtio, vmgenid_gsi: 23 };
        assert_eq!(write_tables(ram.memory(), &platform).unwrap(), layout::RSDP);
        ram
    }

    fn table(ram: &GuestRam, address: u64) -> Vec<u8> {
        let len: u32 = ram.memory().read_obj(GuestAddress(address + 4)).unwrap();
        let mut bytes = vec![0; len as usize];
        ram.memory().read_slice(&mut bytes, GuestAddress(address)).unwrap();
        let sum = bytes.iter().fold(0u8, |a, b| a.wrapping_add(*b));
        assert_eq!(sum, 0, "checksum of the table at {address:#x}");
        bytes
    }

    fn word(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
    }

    #[test]
    fn a_kernel_can_walk_them() {
        for (vcpus, devices) in [(1, 0), (32, 18)] {
            let ram = tables(vcpus, devices);
            let mut rsdp = [0u8; 36];
            ram.memory().read_slice(&mut rsdp, GuestAddress(layout::RSDP)).unwrap();
            assert_eq!(rsdp[..8], *b"RSD PTR ");
            assert_eq!(rsdp.iter().fold(0u8, |a, b| a.wrapping_add(*b)), 0);
            let xsdt = table(&ram, word(&rsdp, 24));
            assert_eq!(xsdt[..4], *b"XSDT");
            let fadt = table(&ram, word(&xsdt, 36));
            assert_eq!(fadt[..4], *b"FACP");
            let flags = u32::from_le_bytes(fadt[112..116].try_into().unwrap());
            assert_ne!(flags & 1 << 20, 0, "hardware reduced");
            let madt = table(&ram, word(&xsdt, 44));
            assert_eq!(madt[..4], *b"APIC");
            let mut at = 44;
            let mut apics = 0;
            while at < madt.len() {
                if madt[at] == 0 {
                    assert_eq!((madt[at + 2], madt[at + 3]), (apics, apics));
                    apics += 1;
                }
                at += usize::from(madt[at + 1]);
            }
            assert_eq!((apics, at), (vcpus, madt.len()));
            let dsdt = table(&ram, word(&fadt, 140));
            assert_eq!(dsdt[..4], *b"DSDT");
            let found = dsdt.windows(8).filter(|w| *w == b"LNRO0005").count();
            assert_eq!(found, devices as usize);
        }
    }
}
