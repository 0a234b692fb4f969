//! Devices of a machine that are controlled while it runs.

use varve_devices::i8042::I8042;
use varve_devices::virtio::balloon::BalloonHandle;
use varve_devices::virtio::block::Block;
use varve_devices::virtio::net::Net;
use varve_devices::virtio::{DeviceHandle, VirtioDevice};

use super::Machine;

impl Machine {
    /// The keyboard.
    pub fn keyboard(&self) -> &I8042 {
        &self.keyboard
    }

    /// Control of a drive, if there is one of that id.
    pub fn drive(&self, id: &str) -> Option<DeviceHandle<Block>> {
        self.device(&format!("block:{id}"))
    }

    /// Control of a network interface, if there is one of that id.
    pub fn net(&self, id: &str) -> Option<DeviceHandle<Net>> {
        self.device(&format!("net:{id}"))
    }

    fn device<D: VirtioDevice>(&self, name: &str) -> Option<DeviceHandle<D>> {
        let transport = self.transports.iter().find(|t| t.name() == name)?;
        DeviceHandle::new(transport.clone())
    }

    /// Control of the balloon, if there is one.
    pub fn balloon(&self) -> Option<&BalloonHandle> {
        self.balloon.as_ref()
    }
}
