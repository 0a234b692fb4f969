//! The virtio-mmio register file (virtio 1.2, 4.2.2), modern interface only.

use std::sync::Arc;

use virtio_queue::QueueT;

pub use super::transport::Transport;
use super::transport::{Core, VIRTIO_F_VERSION_1, status};
use crate::bus::BusDevice;

/// Bytes of one device's register window.
pub const MMIO_LEN: u64 = 0x1000;
/// Offset of the doorbell; its value is a queue index.
pub const QUEUE_NOTIFY: u64 = 0x50;

const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const VERSION: u32 = 2;
const VENDOR: u32 = u32::from_le_bytes(*b"varv");

const MAGIC_VALUE: u64 = 0x00;
const DEVICE_VERSION: u64 = 0x04;
const DEVICE_ID: u64 = 0x08;
const VENDOR_ID: u64 = 0x0c;
const DEVICE_FEATURES: u64 = 0x10;
const DEVICE_FEATURES_SEL: u64 = 0x14;
const DRIVER_FEATURES: u64 = 0x20;
const DRIVER_FEATURES_SEL: u64 = 0x24;
const QUEUE_SEL: u64 = 0x30;
const QUEUE_NUM_MAX: u64 = 0x34;
const QUEUE_NUM: u64 = 0x38;
const QUEUE_READY: u64 = 0x44;
const INTERRUPT_STATUS: u64 = 0x60;
const INTERRUPT_ACK: u64 = 0x64;
const STATUS: u64 = 0x70;
const QUEUE_DESC_LOW: u64 = 0x80;
const QUEUE_DESC_HIGH: u64 = 0x84;
const QUEUE_DRIVER_LOW: u64 = 0x90;
const QUEUE_DRIVER_HIGH: u64 = 0x94;
const QUEUE_DEVICE_LOW: u64 = 0xa0;
const QUEUE_DEVICE_HIGH: u64 = 0xa4;
const SHM_LEN_LOW: u64 = 0xb0;
const SHM_BASE_HIGH: u64 = 0xbc;
const CONFIG_GENERATION: u64 = 0xfc;
const CONFIG: u64 = 0x100;

/// A [`Transport`] on the memory bus.
#[derive(Clone)]
pub struct MmioTransport(pub Arc<Transport>);

impl MmioTransport {
    fn read_register(&self, offset: u64) -> u32 {
        // A vCPU in its interrupt handler must not wait for the device's lock.
        if offset == INTERRUPT_STATUS {
            return self.0.interrupt.status();
        }
        let core = &mut *self.0.core();
        let queue = core.queues.get(core.queue_select as usize);
        match offset {
            MAGIC_VALUE => MAGIC,
            DEVICE_VERSION => VERSION,
            DEVICE_ID => core.device.device_type(),
            VENDOR_ID => VENDOR,
            DEVICE_FEATURES => half(core.offered_features(), core.features_select),
            QUEUE_NUM_MAX => queue.map_or(0, |q| q.max_size().into()),
            QUEUE_READY => queue.is_some_and(|q| q.ready()).into(),
            STATUS => core.status,
            // No shared memory regions: a length of all ones (virtio 1.2, 4.2.2).
            SHM_LEN_LOW..=SHM_BASE_HIGH => u32::MAX,
            CONFIG_GENERATION => core.config_generation,
            _ => 0,
        }
    }

    fn write_register(&self, offset: u64, value: u32) {
        match offset {
            INTERRUPT_ACK => return self.0.interrupt.acknowledge(value),
            QUEUE_NOTIFY => return self.0.ring(value),
            _ => {}
        }
        let core = &mut *self.0.core();
        match offset {
            DEVICE_FEATURES_SEL => core.features_select = value,
            DRIVER_FEATURES_SEL => core.driver_features_select = value,
            QUEUE_SEL => core.queue_select = value,
            DRIVER_FEATURES if negotiating(core) => set_driver_features(core, value),
            STATUS => self.write_status(core, value),
            QUEUE_NUM..=QUEUE_DEVICE_HIGH if queues_open(core) => write_queue(core, offset, value),
            _ => log::debug!("{}: write of {value:#x} to {offset:#x} ignored", self.0.name()),
        }
    }

    fn write_status(&self, core: &mut Core, value: u32) {
        if value == 0 {
            core.reset();
            self.0.interrupt.set_status(0);
            self.0.notify_changed();
            return;
        }
        // The driver may only add bits; the device's own bit is not the driver's to set.
        let added = value & !core.status & !status::DEVICE_NEEDS_RESET;
        if added & status::FEATURES_OK != 0 && !features_acceptable(core) {
            log::warn!(
                "{}: driver features {:#x} refused (offered {:#x})",
                self.0.name(),
                core.driver_features,
                core.offered_features()
            );
            core.status |= added & !status::FEATURES_OK & !status::DRIVER_OK;
            return;
        }
        let starts = added & status::DRIVER_OK != 0;
        if starts && (core.status | added) & status::FEATURES_OK == 0 {
            log::warn!("{}: DRIVER_OK before FEATURES_OK ignored", self.0.name());
            return;
        }
        core.status |= added;
        if starts {
            self.0.activate(core);
        }
    }
}

fn half(value: u64, select: u32) -> u32 {
    match select {
        0 => value as u32,
        1 => (value >> 32) as u32,
        _ => 0,
    }
}

fn negotiating(core: &Core) -> bool {
    core.status & status::DRIVER != 0
        && core.status & (status::FEATURES_OK | status::FAILED | status::DEVICE_NEEDS_RESET) == 0
}

fn queues_open(core: &Core) -> bool {
    core.status & status::FEATURES_OK != 0
        && core.status & (status::DRIVER_OK | status::FAILED | status::DEVICE_NEEDS_RESET) == 0
}

fn features_acceptable(core: &Core) -> bool {
    core.driver_features & !core.offered_features() == 0
        && core.driver_features & VIRTIO_F_VERSION_1 != 0
}

fn set_driver_features(core: &mut Core, value: u32) {
    let (shift, value) = match core.driver_features_select {
        0 => (0, u64::from(value)),
        1 => (32, u64::from(value)),
        _ => return,
    };
    core.driver_features = core.driver_features & !(0xffff_ffff << shift) | value << shift;
}

fn write_queue(core: &mut Core, offset: u64, value: u32) {
    let Some(queue) = core.queues.get_mut(core.queue_select as usize) else { return };
    match offset {
        // Sizes and addresses that break the rules are kept out by the queue itself.
        QUEUE_NUM => queue.set_size(u16::try_from(value).unwrap_or(0)),
        QUEUE_READY => queue.set_ready(value == 1),
        QUEUE_DESC_LOW => queue.set_desc_table_address(Some(value), None),
        QUEUE_DESC_HIGH => queue.set_desc_table_address(None, Some(value)),
        QUEUE_DRIVER_LOW => queue.set_avail_ring_address(Some(value), None),
        QUEUE_DRIVER_HIGH => queue.set_avail_ring_address(None, Some(value)),
        QUEUE_DEVICE_LOW => queue.set_used_ring_address(Some(value), None),
        QUEUE_DEVICE_HIGH => queue.set_used_ring_address(None, Some(value)),
        _ => {}
    }
}

impl BusDevice for MmioTransport {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(config) = offset.checked_sub(CONFIG) {
            self.0.core().device.read_config(config, data);
        } else if data.len() == 4 && offset.is_multiple_of(4) {
            data.copy_from_slice(&self.read_register(offset).to_le_bytes());
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Some(config) = offset.checked_sub(CONFIG) {
            let core = &mut *self.0.core();
            // The driver may write it once it drives the device (virtio 1.2, 2.5.1).
            if core.status & status::DRIVER != 0 {
                core.device.write_config(config, data);
            }
        } else if let Ok(value) = <[u8; 4]>::try_from(data)
            && offset.is_multiple_of(4)
        {
            self.write_register(offset, u32::from_le_bytes(value));
        }
    }
}

#[cfg(test)]
#[path = "mmio_tests.rs"]
mod tests;
