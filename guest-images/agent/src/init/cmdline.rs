//! What the kernel's command line asks of init. Words that are not init's are ignored.

use std::net::Ipv4Addr;

use anyhow::{Context, Result, bail};

use super::boot_timer;

/// Init's part of the command line.
#[derive(Debug, Default, PartialEq)]
pub struct Cmdline {
    /// `varve.boot_timer=0x…`: the physical address of the boot timer.
    pub boot_timer: Option<u64>,
    /// `varve.root=` (or `root=`), with `rootfstype=` and `varve.overlay=`.
    pub root: Option<Root>,
    /// `varve.ip=`.
    pub network: Option<Network>,
}

/// The root file system.
#[derive(Debug, PartialEq)]
pub struct Root {
    /// Its device, such as `/dev/vda`.
    pub device: String,
    /// Its type; ext4 unless `rootfstype=` says otherwise.
    pub kind: String,
    /// Whether writes go to memory, and the device stays as it is; off by `varve.overlay=off`.
    pub overlay: bool,
}

/// The address of `eth0`.
#[derive(Debug, PartialEq)]
pub struct Network {
    /// Its address.
    pub address: Ipv4Addr,
    /// How many of its bits name the network.
    pub prefix: u8,
    /// The default route.
    pub gateway: Option<Ipv4Addr>,
}

impl Cmdline {
    /// Reads `/proc/cmdline`.
    pub fn read() -> Result<Self> {
        Self::parse(&std::fs::read_to_string("/proc/cmdline").context("cannot read /proc/cmdline")?)
    }

    fn parse(line: &str) -> Result<Self> {
        let value = |key: &str| {
            line.split_whitespace()
                .filter_map(|word| word.split_once('='))
                .rfind(|pair| pair.0 == key)
        };
        let value = |key: &str| value(key).map(|(_, value)| value);
        let overlay = match value("varve.overlay") {
            None | Some("on") => true,
            Some("off") => false,
            Some(other) => bail!("varve.overlay={other}: write on or off"),
        };
        let root = value("varve.root").or_else(|| value("root")).map(|device| Root {
            device: device.to_owned(),
            kind: value("rootfstype").unwrap_or("ext4").to_owned(),
            overlay,
        });
        if let Some(root) = &root
            && !root.device.starts_with("/dev/")
        {
            bail!("root={}: write a device, such as /dev/vda", root.device);
        }
        Ok(Self {
            boot_timer: value("varve.boot_timer").map(boot_timer::parse).transpose()?,
            root,
            network: value("varve.ip").map(Network::parse).transpose()?,
        })
    }
}

impl Network {
    fn parse(text: &str) -> Result<Self> {
        let parts = || {
            let (own, gateway) = match text.split_once(',') {
                Some((own, gateway)) => (own, Some(gateway.parse().ok()?)),
                None => (text, None),
            };
            let (address, prefix) = own.split_once('/')?;
            let prefix = prefix.parse().ok().filter(|prefix| *prefix <= 32)?;
            Some(Self { address: address.parse().ok()?, prefix, gateway })
        };
        parts().with_context(|| format!("varve.ip={text}: write it as 172.16.0.2/24,172.16.0.1"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_others_are_ignored() {
        let line = "console=ttyS0 quiet ip=dhcp nokaslr -- x\n";
        assert_eq!(Cmdline::parse(line).unwrap(), Cmdline::default());
    }

    #[test]
    fn all_words_are_understood_and_the_last_of_a_kind_counts() {
        let line = "root=/dev/vdb varve.root=/dev/vdx varve.root=/dev/vda rootfstype=squashfs varve.overlay=off \
                    varve.boot_timer=0xc0000000 varve.ip=172.16.0.2/24,172.16.0.1";
        let parsed = Cmdline::parse(line).unwrap();
        let root = Root { device: "/dev/vda".into(), kind: "squashfs".into(), overlay: false };
        assert_eq!(parsed.root, Some(root));
        assert_eq!(parsed.boot_timer, Some(0xc000_0000));
        let network = parsed.network.unwrap();
        assert_eq!((network.address, network.prefix), (Ipv4Addr::new(172, 16, 0, 2), 24));
        assert_eq!(network.gateway, Some(Ipv4Addr::new(172, 16, 0, 1)));
    }

    #[test]
    fn bad_values_are_named() {
        for (line, part) in [
            ("varve.ip=172.16.0.2", "varve.ip=172.16.0.2"),
            ("varve.ip=172.16.0.2/33", "/33"),
            ("varve.ip=172.16.0.2/24,gateway", "gateway"),
            ("varve.boot_timer=12", "12"),
            ("varve.overlay=maybe", "maybe"),
            ("root=UUID=12", "UUID=12"),
        ] {
            let error = Cmdline::parse(line).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
