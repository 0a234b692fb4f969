//! A device that is on its transport, by its own type: how the monitor changes it while it runs.

use std::any::Any;
use std::marker::PhantomData;
use std::sync::Arc;

use super::transport::Transport;
use super::{DeviceIo, VirtioDevice};

/// The handle of a device. For requests of the monitor: another image, other limits.
///
/// A call holds the device's lock, as an event of the device does.
#[derive(Clone)]
pub struct DeviceHandle<D> {
    transport: Arc<Transport>,
    kind: PhantomData<fn() -> D>,
}

impl<D: VirtioDevice> DeviceHandle<D> {
    /// The handle of the device on `transport`, if that is a `D`.
    pub fn new(transport: Arc<Transport>) -> Option<DeviceHandle<D>> {
        transport
            .with_device(|device, _| (device as &mut dyn Any).is::<D>())
            .then_some(DeviceHandle { transport, kind: PhantomData })
    }

    /// Runs `f` with the device, active or not.
    pub fn with<R>(&self, f: impl FnOnce(&mut D, &mut DeviceIo) -> R) -> R {
        self.transport.with_device(|device, io| {
            let device = (device as &mut dyn Any).downcast_mut();
            f(device.expect("the type was checked, and a transport keeps its device"), io)
        })
    }
}
