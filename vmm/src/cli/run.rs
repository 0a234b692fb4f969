//! `varve run`: its options, and the machine that they mean.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use varve_devices::boot_timer::{AGENT_READY, INIT_REACHED};
use varve_devices::limiter::LimiterConfig;
use varve_devices::virtio::balloon::BalloonConfig;
use varve_devices::virtio::block::BlockConfig;
use varve_devices::virtio::net::NetConfig;
use varve_devices::virtio::vsock::VsockConfig;
use varve_memory_tiers::HugePages;
use varve_snapshot::{MEMORY_FILE, STATE_FILE};

use super::agent::Invocation;
use super::invoker::Invoker;
use super::keyval::KeyValues;
use super::observe::ObserveArgs;
use super::seccomp::SeccompArgs;
use crate::api;
use crate::arch::kernel::BootProtocol;
use crate::config::MAX_BODY;
use crate::config::firecracker::network_interface::MacAddr;
use crate::config::firecracker::{self, Resources};
use crate::config::{BootConfig, ConfigError, Console, RootDrive, VmConfig, parse_size};
use crate::end::End;
use crate::instance::InstanceId;
use crate::monitor::Monitor;
use crate::observe::Observe;
use crate::seccomp::Tasks;
use crate::snapshot::flat::Extent;
use crate::stdio::{last_words, say};

/// Shown below the options.
pub const EXAMPLES: &str = "\
Examples:
  Boot a kernel with an initrd on this terminal (Ctrl-C ends the machine):
    varve run --kernel vmlinux --initrd initramfs.cpio

  Add a read-only root file system, a second vCPU and a vsock:
    varve run --kernel vmlinux --rootfs root.ext4:ro --vcpus 2 --memory 512M \\
              --vsock cid=3,uds=/tmp/vm.sock

  Boot the machine of a Firecracker configuration file:
    varve run --config-file vm.json";

/// Command line of a guest whose user gives none: console on the serial port, and a panic or reboot
/// ends the machine.
const DEFAULT_CMDLINE: &str = "console=ttyS0 reboot=k panic=-1";

const NET: &str = "tap=NAME[,mac=06:00:ac:10:00:02][,mtu=1500]";
const VSOCK: &str = "cid=3,uds=PATH";
const BALLOON: &str = "size=64M[,deflate-on-oom][,reporting][,hinting][,stats=SECONDS]";

/// Boot a guest and run it until it ends.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Kernel: an uncompressed ELF vmlinux, or a bzImage (vmlinuz)
    #[arg(long, value_name = "FILE", required_unless_present = "config_file")]
    kernel: Option<PathBuf>,

    /// Initial RAM disk
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,

    /// Kernel command line [default: "console=ttyS0 reboot=k panic=-1"]
    #[arg(long, value_name = "TEXT")]
    cmdline: Option<String>,

    /// How to enter the kernel
    #[arg(long, value_name = "PROTOCOL", default_value = "auto")]
    boot_protocol: Protocol,

    /// Raw image of the root file system, /dev/vda in the guest; :ro makes it read-only
    #[arg(long, value_name = "FILE[:ro]")]
    rootfs: Option<String>,

    /// Raw image of a further drive (repeatable)
    #[arg(long = "drive", value_name = "FILE[:ro]")]
    drives: Vec<String>,

    /// Network interface on a tap device (repeatable): tap=NAME[,mac=…][,mtu=…]
    #[arg(long = "net", value_name = "tap=NAME")]
    nets: Vec<String>,

    /// Host-guest sockets: the host connects to UDS and writes "CONNECT <port>"; the guest's
    /// connections to port P come to UDS_P
    #[arg(long, value_name = "cid=3,uds=PATH")]
    vsock: Option<String>,

    /// Memory balloon: size=64M[,deflate-on-oom][,reporting][,hinting][,stats=SECONDS]
    #[arg(long, value_name = "size=SIZE")]
    balloon: Option<String>,

    /// Add an entropy device (virtio-rng)
    #[arg(long)]
    entropy: bool,

    /// Memory, in bytes or with a unit K, M or G [default: 256M]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    memory: Option<u64>,

    /// Number of vCPUs, 1 to 32 [default: 1]
    #[arg(long, value_name = "N")]
    vcpus: Option<u8>,

    /// Track written pages, for diff snapshots
    #[arg(long)]
    track_dirty_pages: bool,

    /// Serial console: stdio, file=PATH (output only) or off [default: stdio, or as --config-file
    /// says]
    #[arg(long, value_name = "WHERE", value_parser = parse_console)]
    console: Option<Console>,

    /// Firecracker configuration file; replaces the options that describe the machine
    #[arg(long, value_name = "FILE", conflicts_with_all = [
        "kernel", "initrd", "cmdline", "rootfs", "drives", "nets", "vsock", "balloon", "entropy",
        "memory", "vcpus", "track_dirty_pages",
    ])]
    config_file: Option<PathBuf>,

    /// Unix socket of the API, with Firecracker's paths
    #[arg(long, value_name = "PATH")]
    api_sock: Option<PathBuf>,

    /// Folder for a snapshot, written when the guest's agent is ready and has answered every
    /// --invoke; then end
    #[arg(long, value_name = "DIR")]
    snapshot_on_ready: Option<PathBuf>,

    /// Call 'FUNCTION SEED [JSON]' of the guest's agent before the snapshot (repeatable)
    #[arg(long = "invoke", value_name = "CALL", requires = "snapshot_on_ready",
          value_parser = Invocation::parse)]
    calls: Vec<Invocation>,

    /// Report when the guest's init starts and its agent is ready (adds the boot timer's address to
    /// the command line)
    #[arg(long)]
    boot_timer: bool,

    #[command(flatten)]
    seccomp: SeccompArgs,

    #[command(flatten)]
    observe: ObserveArgs,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Protocol {
    /// PVH where the kernel has it, else the Linux protocol
    Auto,
    /// Linux 64-bit boot protocol
    Linux,
    /// PVH
    Pvh,
}

/// Boots the guest and waits for its end.
pub fn main(args: RunArgs, start: Instant) -> Result<ExitCode, Box<dyn Error>> {
    let api = args.api_sock.is_some();
    let saves = api || args.snapshot_on_ready.is_some();
    args.seccomp.enter(Tasks { api, saves, pool: false })?;
    let mut monitor = Monitor::new(InstanceId::default(), start, Arc::new(report_boot_time))?;
    args.observe.observe()?.begin(monitor.id(), monitor.metrics())?;
    if let Some(path) = &args.api_sock {
        api::listen(&mut monitor, path, MAX_BODY)?;
    }
    let (calls, snapshot) = (args.calls.clone(), args.snapshot_on_ready.clone());
    let (config, observe) = args.into_config()?;
    observe.begin(monitor.id(), monitor.metrics())?;
    monitor.boot(config, start)?;
    let end = match snapshot {
        Some(dir) => run_to_snapshot(&mut monitor, calls, &dir)?,
        None => monitor.run(|_| Ok(()))?,
    };
    drop(monitor);
    last_words(&format!("varve: {end}"));
    Ok(ExitCode::from(end.exit_code()))
}

/// Runs until the agent is ready and has answered `calls`, then makes a snapshot, and that is the
/// end.
fn run_to_snapshot(
    monitor: &mut Monitor,
    calls: Vec<Invocation>,
    dir: &Path,
) -> Result<End, Box<dyn Error>> {
    let vsock = monitor.config()?.vsock.as_ref();
    let uds = vsock.ok_or("--snapshot-on-ready needs --vsock, to ask the guest's agent")?;
    let invoker = Invoker::start(uds.uds_path.clone(), calls, monitor.start(), |_| Ok(()))?;
    monitor.subscribe(invoker.clone());
    let mut failed = None;
    let end = monitor.run(|monitor| {
        match invoker.take() {
            Some(Ok(_)) => {
                monitor.pause()?;
                let (state, memory) = (dir.join(STATE_FILE), dir.join(MEMORY_FILE));
                monitor.save(Extent::Full, &state, &memory)?;
            }
            Some(Err(error)) => failed = Some(error),
            None => return Ok(()),
        }
        monitor.end().announce(End::Done);
        Ok(())
    })?;
    match (failed, &end) {
        (Some(error), _) => Err(error.into()),
        (None, End::Done) => Ok(end),
        (None, end) => Err(format!("there is no snapshot: {end}").into()),
    }
}

/// Prints what the boot timer was told, one line each, for people and scripts.
fn report_boot_time(mark: u8, time: Duration) {
    let what = match mark {
        INIT_REACHED => "init reached",
        AGENT_READY => "agent ready",
        _ => return,
    };
    log::info!("{what} after {time:.3?}");
    say(&format!("varve: boot timer: {what} after {:.3} ms", time.as_secs_f64() * 1e3));
}

impl RunArgs {
    fn into_config(self) -> Result<(VmConfig, Observe), ConfigError> {
        let protocol = match self.boot_protocol {
            Protocol::Auto => BootProtocol::Auto,
            Protocol::Linux => BootProtocol::Linux64,
            Protocol::Pvh => BootProtocol::Pvh,
        };
        let mut observe = Observe::default();
        let mut config = match &self.config_file {
            Some(path) => {
                let mut resources = Resources::default();
                observe = firecracker::read(path, &mut resources)?;
                let missing = || ConfigError::field("boot-source", "missing");
                resources.to_config().ok_or_else(missing)?
            }
            None => self.machine()?,
        };
        config.boot.protocol = protocol;
        if let Some(console) = self.console {
            config.console = console;
        }
        config.boot_timer = self.boot_timer;
        Ok((config, observe))
    }

    fn machine(&self) -> Result<VmConfig, ConfigError> {
        let kernel =
            self.kernel.clone().ok_or_else(|| ConfigError::field("--kernel", "missing"))?;
        let cmdline = self.cmdline.clone().unwrap_or_else(|| DEFAULT_CMDLINE.into());
        let mut drives = Vec::new();
        let mut root = None;
        if let Some(text) = &self.rootfs {
            let drive = parse_drive(text, "rootfs".into());
            if !cmdline.split_whitespace().any(|p| p.starts_with("root=")) {
                root = Some(RootDrive { drive: drive.id.clone(), partuuid: None });
            }
            drives.push(drive);
        }
        for (index, text) in self.drives.iter().enumerate() {
            drives.push(parse_drive(text, format!("drive{index}")));
        }
        let nets = self
            .nets
            .iter()
            .enumerate()
            .map(|(i, text)| parse_net(text, format!("net{i}")))
            .collect::<Result<_, _>>()
            .map_err(|e| ConfigError::field("--net", e))?;
        let field = |name: &'static str| move |e: String| ConfigError::field(name, e);
        Ok(VmConfig {
            vcpus: self.vcpus.unwrap_or(1),
            smt: false,
            memory: self.memory.unwrap_or(256 << 20),
            huge_pages: HugePages::Off,
            track_dirty_pages: self.track_dirty_pages,
            cpu: None,
            boot: BootConfig {
                kernel,
                initrd: self.initrd.clone(),
                cmdline,
                protocol: BootProtocol::Auto,
                root,
            },
            drives,
            nets,
            mmds: None,
            vsock: self.vsock.as_deref().map(parse_vsock).transpose().map_err(field("--vsock"))?,
            balloon: self
                .balloon
                .as_deref()
                .map(parse_balloon)
                .transpose()
                .map_err(field("--balloon"))?,
            entropy: self.entropy,
            entropy_limiter: LimiterConfig::default(),
            console: Console::default(),
            console_limiter: None,
            boot_timer: false,
        })
    }
}

pub fn parse_console(text: &str) -> Result<Console, String> {
    match text.split_once('=') {
        Some(("file", path)) if !path.is_empty() => Ok(Console::File(path.into())),
        None if text == "stdio" => Ok(Console::Stdio),
        None if text == "off" => Ok(Console::Off),
        _ => Err("one of stdio, file=PATH and off".into()),
    }
}

fn parse_drive(text: &str, id: String) -> BlockConfig {
    let (path, read_only) = match text.strip_suffix(":ro") {
        Some(path) => (path, true),
        None => (text.strip_suffix(":rw").unwrap_or(text), false),
    };
    BlockConfig {
        id,
        path: path.into(),
        read_only,
        flush: true,
        limiter: LimiterConfig::default(),
        apart: false,
    }
}

fn parse_net(text: &str, id: String) -> Result<NetConfig, String> {
    let mut kv = KeyValues::parse(NET, text)?;
    let tap = kv.require("tap")?.to_owned();
    let mac = kv
        .take("mac")?
        .map(|m| m.parse().map_err(|_| format!("{m:?} is not a MAC; write {NET}")))
        .transpose()?;
    let mtu = kv
        .take("mtu")?
        .map(|m| m.parse().map_err(|_| format!("{m:?} is not an MTU; write {NET}")))
        .transpose()?;
    kv.finish()?;
    Ok(NetConfig {
        id,
        tap,
        mac: mac.map(|MacAddr(bytes)| bytes),
        mtu,
        rx_limiter: LimiterConfig::default(),
        tx_limiter: LimiterConfig::default(),
    })
}

fn parse_vsock(text: &str) -> Result<VsockConfig, String> {
    let mut kv = KeyValues::parse(VSOCK, text)?;
    let cid = kv.require("cid")?;
    let guest_cid = cid.parse().map_err(|_| format!("{cid:?} is not a CID; write {VSOCK}"))?;
    let uds_path = kv.require("uds")?.into();
    kv.finish()?;
    Ok(VsockConfig { guest_cid, uds_path })
}

fn parse_balloon(text: &str) -> Result<BalloonConfig, String> {
    let mut kv = KeyValues::parse(BALLOON, text)?;
    let size = parse_size(kv.take("size")?.unwrap_or("0"))?;
    let stats = kv.take("stats")?.unwrap_or("0");
    let config = BalloonConfig {
        amount_mib: u32::try_from(size >> 20).map_err(|_| format!("{size} is too large"))?,
        deflate_on_oom: kv.flag("deflate-on-oom")?,
        stats_polling_interval_s: stats
            .parse()
            .map_err(|_| format!("{stats:?} are not seconds; write {BALLOON}"))?,
        free_page_reporting: kv.flag("reporting")?,
        free_page_hinting: kv.flag("hinting")?,
    };
    kv.finish()?;
    Ok(config)
}
