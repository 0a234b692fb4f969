//! A machine as it is configured piece by piece, in Firecracker's schema.
//!
//! A request of the API, or an entry of the configuration file, is checked against what is there
//! already and replaces what has its name. When the machine starts, the pieces become a
//! [`VmConfig`]; and what a running machine is, is told in the same pieces.

use varve_devices::limiter::BucketConfig;
use varve_devices::mmds::MmdsConfig;

use super::balloon::Balloon;
use super::boot_source::BootSource;
use super::drive::{Drive, DriveError};
use super::entropy::Entropy;
use super::error::ResourceError;
use super::full::FullConfig;
use super::machine_config::{CpuTemplate, MachineConfig, MachineConfigError, MachineConfigUpdate};
use super::network_interface::{NetworkError, NetworkInterface};
use super::serial::Serial;
use super::vsock::Vsock;
use crate::arch::cpu_config::CpuConfig;
use crate::config::{Console, VmConfig};

/// The pieces of a machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// What boots; nothing can start without.
    pub boot_source: Option<BootSource>,
    /// vCPUs and memory.
    pub machine: MachineConfig,
    /// Changes of what the guest sees of its processor.
    pub cpu: Option<CpuConfig>,
    /// Drives, the root device first.
    pub drives: Vec<Drive>,
    /// Network interfaces.
    pub nets: Vec<NetworkInterface>,
    /// Metadata service, on some of them.
    pub mmds: Option<MmdsConfig>,
    /// Sockets between host and guest.
    pub vsock: Option<Vsock>,
    /// Memory balloon.
    pub balloon: Option<Balloon>,
    /// Source of random numbers.
    pub entropy: Option<Entropy>,
    /// Serial console.
    pub console: Console,
    /// Limit of its output.
    pub console_limiter: Option<BucketConfig>,
    /// Report when the guest writes to the boot timer.
    pub boot_timer: bool,
}

impl Resources {
    /// Sets what boots.
    pub fn set_boot_source(&mut self, source: BootSource) -> Result<(), ResourceError> {
        self.boot_source = Some(source);
        Ok(())
    }

    /// Changes vCPUs and memory; all of it or nothing.
    pub fn update_machine(&mut self, update: MachineConfigUpdate) -> Result<(), ResourceError> {
        let machine = self.machine.updated(&update)?;
        if let Some(balloon) = &self.balloon
            && balloon.check(machine.mem_size_mib).is_err()
        {
            return Err(MachineConfigError::SmallerThanBalloon.into());
        }
        if update.cpu_template == Some(CpuTemplate::None) {
            self.cpu = None;
        }
        self.machine = machine;
        Ok(())
    }

    /// Sets what changes the guest's view of its processor.
    pub fn set_cpu_config(&mut self, cpu: CpuConfig) {
        self.cpu = Some(cpu);
    }

    /// Adds a drive, or replaces the one of its name. The root device comes first.
    pub fn set_drive(&mut self, drive: Drive) -> Result<(), ResourceError> {
        drive.check()?;
        let place = self.drives.iter().position(|d| d.drive_id == drive.drive_id);
        let root = self.drives.iter().position(|d| d.is_root_device);
        if drive.is_root_device && root.is_some() && root != place {
            return Err(DriveError::SecondRoot.into());
        }
        let is_root = drive.is_root_device;
        match place {
            Some(index) => {
                self.drives[index] = drive;
                if is_root {
                    self.drives.swap(0, index);
                }
            }
            None if is_root => self.drives.insert(0, drive),
            None => self.drives.push(drive),
        }
        Ok(())
    }

    /// Adds a network interface, or replaces the one of its name.
    pub fn set_net(&mut self, net: NetworkInterface) -> Result<(), ResourceError> {
        for other in self.nets.iter().filter(|n| n.iface_id != net.iface_id) {
            if let Some(mac) = net.guest_mac.filter(|_| net.guest_mac == other.guest_mac) {
                return Err(NetworkError::MacInUse(mac).into());
            }
            if net.host_dev_name == other.host_dev_name {
                let (tap, other) = (net.host_dev_name, other.iface_id.clone());
                return Err(NetworkError::TapInUse { tap, other }.into());
            }
        }
        match self.nets.iter_mut().find(|n| n.iface_id == net.iface_id) {
            Some(place) => *place = net,
            None => self.nets.push(net),
        }
        Ok(())
    }

    /// Sets the metadata service, which is reached by interfaces that are there.
    pub fn set_mmds(&mut self, mmds: MmdsConfig) -> Result<(), ResourceError> {
        mmds.validate(self.nets.iter().map(|net| net.iface_id.as_str()))?;
        self.mmds = Some(mmds);
        Ok(())
    }

    /// Sets the vsock device.
    pub fn set_vsock(&mut self, vsock: Vsock) -> Result<(), ResourceError> {
        self.vsock = Some(vsock);
        Ok(())
    }

    /// Sets the balloon.
    pub fn set_balloon(&mut self, balloon: Balloon) -> Result<(), ResourceError> {
        balloon.check(self.machine.mem_size_mib)?;
        self.balloon = Some(balloon);
        Ok(())
    }

    /// Sets the entropy device.
    pub fn set_entropy(&mut self, entropy: Entropy) -> Result<(), ResourceError> {
        self.entropy = Some(entropy);
        Ok(())
    }

    /// Sets where the serial console's output goes, and its limit.
    pub fn set_serial(&mut self, serial: Serial) -> Result<(), ResourceError> {
        let Serial { serial_out_path, rate_limiter } = serial;
        if let Some(path) = serial_out_path {
            self.console = Console::File(path);
        }
        self.console_limiter = rate_limiter;
        Ok(())
    }

    /// Sets all that a configuration file says.
    pub fn set_all(&mut self, full: FullConfig) -> Result<(), ResourceError> {
        if let Some(machine) = full.machine_config {
            self.update_machine(machine.into())?;
        }
        if let Some(source) = full.boot_source {
            self.set_boot_source(source)?;
        }
        full.drives.into_iter().try_for_each(|drive| self.set_drive(drive))?;
        full.network_interfaces.into_iter().try_for_each(|net| self.set_net(net))?;
        if let Some(mmds) = full.mmds_config {
            self.set_mmds(mmds)?;
        }
        if let Some(vsock) = full.vsock {
            self.set_vsock(vsock)?;
        }
        if let Some(balloon) = full.balloon {
            self.set_balloon(balloon)?;
        }
        if let Some(entropy) = full.entropy {
            self.set_entropy(entropy)?;
        }
        if let Some(serial) = full.serial {
            self.set_serial(serial)?;
        }
        Ok(())
    }

    /// The machine, or none if nothing is there to boot.
    pub fn to_config(&self) -> Option<VmConfig> {
        let mut boot = self.boot_source.as_ref()?.to_config();
        boot.root = self.drives.iter().find_map(Drive::root);
        Some(VmConfig {
            vcpus: self.machine.vcpu_count,
            smt: self.machine.smt,
            // Checked to be within what a machine may have.
            memory: self.machine.mem_size_mib << 20,
            huge_pages: self.machine.huge_pages.into(),
            track_dirty_pages: self.machine.track_dirty_pages,
            cpu: self.cpu.clone(),
            boot,
            drives: self.drives.iter().map(Drive::to_config).collect(),
            nets: self.nets.iter().map(NetworkInterface::to_config).collect(),
            mmds: self.mmds.clone(),
            vsock: self.vsock.as_ref().map(Vsock::to_config),
            balloon: self.balloon.as_ref().map(Balloon::to_config),
            entropy: self.entropy.is_some(),
            entropy_limiter: self.entropy.as_ref().and_then(|e| e.rate_limiter).unwrap_or_default(),
            console: self.console.clone(),
            console_limiter: self.console_limiter,
            boot_timer: self.boot_timer,
        })
    }
}

impl From<&VmConfig> for Resources {
    fn from(config: &VmConfig) -> Resources {
        let root = config.boot.root.as_ref();
        Resources {
            boot_source: Some(BootSource::from(&config.boot)),
            machine: MachineConfig::from(config),
            cpu: config.cpu.clone(),
            drives: config.drives.iter().map(|drive| Drive::of(drive, root)).collect(),
            nets: config.nets.iter().map(NetworkInterface::from).collect(),
            mmds: config.mmds.clone(),
            vsock: config.vsock.as_ref().map(Vsock::from),
            balloon: config.balloon.as_ref().map(Balloon::from),
            entropy: config.entropy.then(|| Entropy::of(config.entropy_limiter)),
            console: config.console.clone(),
            console_limiter: config.console_limiter,
            boot_timer: config.boot_timer,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::machine_config::HugePageConfig;
    use super::*;

    fn drive(id: &str, root: bool) -> Drive {
        let json = serde_json::json!({
            "drive_id": id, "is_root_device": root, "path_on_host": id, "is_read_only": true,
        });
        serde_json::from_value(json).unwrap()
    }

    fn net(id: &str, mac: &str) -> NetworkInterface {
        let json = serde_json::json!({
            "iface_id": id, "host_dev_name": format!("tap-{id}"), "guest_mac": mac,
        });
        serde_json::from_value(json).unwrap()
    }

    fn ids(resources: &Resources) -> Vec<&str> {
        resources.drives.iter().map(|d| d.drive_id.as_str()).collect()
    }

    #[test]
    fn the_root_device_is_first_and_alone() {
        let mut resources = Resources::default();
        for (id, root) in [("a", false), ("b", true), ("c", false), ("a", false)] {
            resources.set_drive(drive(id, root)).unwrap();
        }
        assert_eq!(ids(&resources), ["b", "a", "c"]);
        let error = resources.set_drive(drive("d", true)).unwrap_err().to_string();
        assert_eq!(error, "Drive config error: A root block device already exists!");
        let error = resources.set_drive(drive("a", true)).unwrap_err().to_string();
        assert_eq!(error, "Drive config error: A root block device already exists!");
        // No root any more, and then another one.
        resources.set_drive(drive("b", false)).unwrap();
        resources.set_drive(drive("c", true)).unwrap();
        assert_eq!(ids(&resources), ["c", "a", "b"]);
    }

    #[test]
    fn sizes_fit_each_other() {
        let mut resources = Resources::default();
        let balloon = |amount_mib| Balloon {
            amount_mib,
            deflate_on_oom: false,
            stats_polling_interval_s: 0,
            free_page_hinting: false,
            free_page_reporting: false,
        };
        let mut update = |update| resources.update_machine(update).map_err(|e| e.to_string());
        let mib = |mib| MachineConfigUpdate { mem_size_mib: Some(mib), ..Default::default() };
        let vcpus = |n, smt| MachineConfigUpdate {
            vcpu_count: Some(n),
            smt: Some(smt),
            ..Default::default()
        };
        for bad in [vcpus(0, false), vcpus(33, false), vcpus(3, true)] {
            let error = update(bad).unwrap_err();
            assert!(error.starts_with("Machine config error: The number of vCPUs must"), "{error}");
        }
        for good in [vcpus(32, true), vcpus(3, false), vcpus(1, true), mib(256)] {
            update(good).unwrap();
        }
        assert!(update(mib(0)).unwrap_err().contains("either 0, or not a multiple"));
        assert!(update(mib(u64::MAX)).unwrap_err().contains("from 32 to 65536 MiB"));
        let pool = Some(HugePageConfig::Hugetlbfs2M);
        let odd = MachineConfigUpdate { huge_pages: pool, ..mib(255) };
        assert!(update(odd).unwrap_err().contains("not a multiple"));
        assert_eq!(resources.machine.mem_size_mib, 256);

        let error = resources.set_balloon(balloon(257)).unwrap_err().to_string();
        assert_eq!(error, "Balloon config error: Amount of pages requested is too large.");
        resources.set_balloon(balloon(200)).unwrap();
        let error = resources.update_machine(mib(199)).unwrap_err().to_string();
        assert!(error.ends_with("smaller than the previously set balloon device target size."));
    }

    #[test]
    fn addresses_are_unique() {
        let mut resources = Resources::default();
        resources.set_net(net("a", "06:00:00:00:00:01")).unwrap();
        resources.set_net(net("a", "06:00:00:00:00:01")).unwrap();
        let error = resources.set_net(net("b", "06:00:00:00:00:01")).unwrap_err().to_string();
        let message = "Network config error: The MAC address is already in use: 06:00:00:00:00:01";
        assert_eq!(error, message);
        resources.set_net(net("b", "06:00:00:00:00:02")).unwrap();
        let same = NetworkInterface { iface_id: "c".into(), ..net("a", "06:00:00:00:00:03") };
        let error = resources.set_net(same).unwrap_err().to_string();
        assert!(error.contains("tap \"tap-a\" is interface \"a\"'s already"), "{error}");
        assert_eq!(resources.nets.len(), 2);
    }

    #[test]
    fn a_machine_is_told_as_it_was_described() {
        let mut resources = Resources::default();
        assert_eq!(resources.to_config(), None, "nothing to boot");
        let source = serde_json::json!({"kernel_image_path": "k"});
        resources.set_boot_source(serde_json::from_value(source).unwrap()).unwrap();
        let partition = Drive { partuuid: Some("0eaa91a0-01".into()), ..drive("root", true) };
        resources.set_drive(partition).unwrap();
        resources.set_drive(drive("data", false)).unwrap();
        resources.set_net(net("a", "06:00:00:00:00:01")).unwrap();
        let config = resources.to_config().unwrap();
        assert_eq!(config.root_parameter().unwrap(), "root=PARTUUID=0eaa91a0-01 ro");
        // What is said by leaving it out comes back as what it means.
        for drive in &mut resources.drives {
            drive.io_engine = Some(super::super::drive::IoEngine::Sync);
        }
        assert_eq!(Resources::from(&config), resources);
        let full = serde_json::to_value(FullConfig::from(resources)).unwrap();
        assert_eq!(full["boot-source"]["boot_args"], serde_json::Value::Null);
        assert_eq!(full["drives"][0]["partuuid"], "0eaa91a0-01");
        assert_eq!(full["machine-config"]["huge_pages"], "None");
        assert_eq!(full["vsock"], serde_json::Value::Null);
    }
}
