//! All devices of a machine by name: admitted one by one, saved all at once.

use std::collections::BTreeMap;
use std::sync::Arc;

use varve_devices::state::{Savable, StateError};

use crate::error::VmmError;

/// The saved state of one device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceBlob {
    /// Version of the bytes.
    pub version: u32,
    /// What the device wrote.
    pub bytes: Vec<u8>,
}

/// Device states of a snapshot, by device name.
pub type DeviceBlobs = BTreeMap<String, DeviceBlob>;

/// The devices of a machine.
#[derive(Default)]
pub struct DeviceSet {
    devices: Vec<(String, Arc<dyn Savable + Send + Sync>)>,
    saved: Option<DeviceBlobs>,
}

impl DeviceSet {
    /// A set for a machine that boots.
    pub fn new() -> DeviceSet {
        DeviceSet::default()
    }

    /// A set for a machine that is restored: each device takes its state as it is admitted.
    pub fn restoring(saved: DeviceBlobs) -> DeviceSet {
        DeviceSet { devices: Vec::new(), saved: Some(saved) }
    }

    /// Takes a device in, with its saved state if the machine is being restored.
    pub fn admit<D: Savable + Send + Sync + 'static>(
        &mut self,
        name: &str,
        mut device: D,
    ) -> Result<Arc<D>, VmmError> {
        if let Some(saved) = &mut self.saved {
            let wrap = |source| VmmError::State { name: name.into(), source };
            let missing = || wrap(StateError::Invalid("the snapshot has no state for it".into()));
            let blob = saved.remove(name).ok_or_else(missing)?;
            device.restore(blob.version, &blob.bytes).map_err(wrap)?;
        }
        let device = Arc::new(device);
        self.devices.push((name.to_owned(), device.clone()));
        Ok(device)
    }

    /// Ends admission: a state that no device took is an error, never lost in silence.
    pub fn complete(&mut self) -> Result<(), VmmError> {
        match self.saved.take().and_then(|saved| saved.into_keys().next()) {
            None => Ok(()),
            Some(name) => Err(VmmError::State {
                name,
                source: StateError::Invalid("the machine has no such device".into()),
            }),
        }
    }

    /// The state of every device. Only while vCPUs and event loop stand still.
    pub fn save(&self) -> DeviceBlobs {
        self.devices
            .iter()
            .map(|(name, device)| {
                let blob = DeviceBlob { version: device.version(), bytes: device.save() };
                (name.clone(), blob)
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Byte(u8);
    impl Savable for Byte {
        fn version(&self) -> u32 {
            1
        }
        fn save(&self) -> Vec<u8> {
            vec![self.0]
        }
        fn restore(&mut self, version: u32, bytes: &[u8]) -> Result<(), StateError> {
            self.0 = varve_devices::state::decode(version, 1, bytes)?;
            Ok(())
        }
    }

    #[test]
    fn every_state_finds_its_device() {
        let mut set = DeviceSet::new();
        set.admit("a", Byte(7)).unwrap();
        set.complete().unwrap();
        let saved = set.save();

        let mut back = DeviceSet::restoring(saved.clone());
        assert_eq!(back.admit("a", Byte(0)).unwrap().0, 7);
        back.complete().unwrap();
        assert_eq!(back.save(), saved);

        let mut missing = DeviceSet::restoring(saved.clone());
        assert!(missing.admit("b", Byte(0)).is_err());
        let mut left_over = DeviceSet::restoring(saved);
        assert!(left_over.complete().is_err());
    }
}
