//! QEMU's command line for an emulated host, and starting it.
//!
//! The same function makes the arguments of a run and those that name a saved lab: what is a run's
//! own (descriptors, folders, TCP ports) comes in by [`Wiring`].

use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::machine::Machine;
use crate::place::Place;
use crate::ports::PORTS;

/// Names another QEMU than the one that is installed.
pub const QEMU_VARIABLE: &str = "VARVE_LAB_QEMU";

/// Hidden, because QEMU 7.2 spoils the flags around cmpxchg16b, and guests in the lab crash.
const CPU: &str = "max,+svm,-cx16";
/// Hidden with instruction counting, since TCG does them a byte at a time.
const CPU_ICOUNT: &str = ",-erms,-fsrm";
/// 2^1 ns of virtual time for each instruction.
const ICOUNT: &str = "shift=1";
/// Always: the console, no wait for a dead kernel, none of the costly checks at boot, and programs at
/// fixed addresses: QEMU finds translated code by its address, and would translate each process anew.
/// With two nodes Linux would unmap pages of whoever has used a processor for a second, to see which node
/// uses them; on hardware the same call ends long before.
const PARAMETERS: &str = "console=ttyS0 panic=-1 quiet nokaslr norandmaps numa_balancing=disable \
    mitigations=off tsc=reliable no_timer_check audit=0 apparmor=0 init_on_alloc=0 random.trust_cpu=on nowatchdog \
    8250.nr_uarts=1 rdinit=/init";

/// What is a run's own in the arguments.
#[derive(Clone, Debug)]
pub struct Wiring {
    /// QEMU's end of the serial console.
    pub console: RawFd,
    /// QEMU's ends of [`PORTS`].
    pub ports: [RawFd; 5],
    /// The folders that are written through.
    pub shares: Vec<PathBuf>,
    /// The other end of the network device's cable.
    pub cable: String,
}

impl Wiring {
    /// The same for all runs of `machine`: a lab that is to be saved has these for its wiring.
    pub fn none(machine: &Machine) -> Self {
        Self {
            console: 0,
            ports: [0; 5],
            shares: vec![PathBuf::from("/"); machine.rw.len()],
            // An end that leads nowhere, with the same offloads (none) as a socket.
            cable: "hubport,id=net,hubid=0".to_owned(),
        }
    }
}

/// The kernel and the first file system of the emulated host.
#[derive(Clone, Debug)]
pub struct Boot {
    /// An ELF image with a PVH entry.
    pub vmlinux: PathBuf,
    /// A `newc` archive.
    pub initramfs: PathBuf,
}

/// QEMU's program for `machine`: the one that [`QEMU_VARIABLE`] names; the built one, if the machine
/// needs that and it is there; or the one that is installed.
pub fn program(machine: &Machine, place: &Place) -> Result<PathBuf> {
    if let Some(named) = std::env::var_os(QEMU_VARIABLE) {
        return Ok(named.into());
    }
    let built = place.built_qemu();
    if machine.is_delicate() && built.exists() {
        return Ok(built);
    }
    if machine.icount && machine.cpus > 1 {
        bail!(
            "--icount --cpus {}: with the installed QEMU what CPUs do beside each other would take as long as if one \
             did it; `tests/lab/qemu/build` makes one in which it does not (docs/lab.md)",
            machine.cpus
        );
    }
    Ok("qemu-system-x86_64".into())
}

/// Starts QEMU, `program`, with `arguments`; it is killed when this process ends, however that comes
/// about. What it complains of goes to `stderr`.
pub fn start(program: &Path, arguments: &[String], stderr: Stdio) -> Result<Child> {
    Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "--"])
        .arg(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(stderr)
        .spawn()
        .with_context(|| format!("cannot start `setpriv {}`", program.display()))
}

/// The arguments for `machine`.
pub fn arguments(machine: &Machine, boot: &Boot, wiring: &Wiring) -> Vec<String> {
    let mut line = Line::default();
    line.words("-nodefaults -no-user-config -display none -no-reboot");
    let hmat = if machine.cxl.is_some() { ",hmat=on" } else { "" };
    line.pair("-M", format!("q35,usb=off,sata=off,smbus=off,vmport=off,hpet=off{hmat}"));
    processor(machine, &mut line);
    memory(machine, &mut line);
    line.pair("-kernel", path(&boot.vmlinux));
    line.pair("-initrd", path(&boot.initramfs));
    line.pair("-append", parameters(machine));
    line.chardev("console", wiring.console);
    line.words("-serial chardev:console -device isa-debug-exit,iobase=0xf4,iosize=1");
    line.words("-device virtio-serial-pci,id=serial,max_ports=6");
    for (index, (name, fd)) in PORTS.iter().zip(wiring.ports).enumerate() {
        let number = index + 1;
        line.chardev(name, fd);
        let port = format!("virtserialport,bus=serial.0,nr={number},chardev={name},name={name}");
        line.pair("-device", port);
    }
    line.share("root", Path::new("/"), ",readonly=on");
    for (index, share) in wiring.shares.iter().enumerate() {
        line.share(&share_tag(index), share, "");
    }
    if let Some(net) = machine.net {
        let mac = if net.listens { "52:54:00:76:00:01" } else { "52:54:00:76:00:02" };
        line.pair("-netdev", wiring.cable.clone());
        line.pair("-device", format!("virtio-net-pci,netdev=net,mac={mac},romfile="));
    }
    line.0
}

/// The mount tag of the folder that is the `index`th to be written through.
pub fn share_tag(index: usize) -> String {
    format!("rw{index}")
}

fn processor(machine: &Machine, line: &mut Line) {
    // One thread with counted instructions: QEMU can not count those of several. CPUs run in turn, and in
    // the QEMU that tests/lab/qemu/build makes they share the time that it takes.
    let thread = if machine.icount { "single" } else { "multi" };
    line.pair("-accel", format!("tcg,thread={thread},tb-size=512"));
    line.pair("-cpu", format!("{CPU}{}", if machine.icount { CPU_ICOUNT } else { "" }));
    let cpus = machine.cpus;
    line.pair("-smp", format!("{cpus},maxcpus={cpus},sockets=1,cores={cpus},threads=1"));
    if machine.icount {
        line.pair("-icount", ICOUNT.to_owned());
    }
}

fn memory(machine: &Machine, line: &mut Line) {
    line.pair("-m", machine.total().to_string());
    let Some(cxl) = machine.cxl else { return };
    for (node, size) in [(0, machine.node0()), (1, cxl)] {
        line.pair("-object", format!("memory-backend-ram,id=node{node},size={size}M"));
    }
    let last = machine.cpus - 1;
    line.pair("-numa", format!("node,nodeid=0,cpus=0-{last},memdev=node0,initiator=0"));
    line.pair("-numa", "node,nodeid=1,memdev=node1,initiator=0".to_owned());
    line.pair("-numa", "dist,src=0,dst=1,val=20".to_owned());
    line.pair("-numa", "dist,src=1,dst=0,val=20".to_owned());
    // Latencies in ns as of DRAM and of CXL; they are told to the kernel, and not emulated.
    for (node, latency, bandwidth) in [(0, 100, "200G"), (1, 250, "50G")] {
        let target = format!("hmat-lb,initiator=0,target={node},hierarchy=memory");
        for kind in ["access", "read", "write"] {
            line.pair("-numa", format!("{target},data-type={kind}-latency,latency={latency}"));
        }
        for kind in ["access", "read", "write"] {
            let value = format!("{target},data-type={kind}-bandwidth,bandwidth={bandwidth}");
            line.pair("-numa", value);
        }
    }
}

fn parameters(machine: &Machine) -> String {
    let mut text = PARAMETERS.to_owned();
    for (start, size) in machine.persistent().into_iter().flatten().flatten() {
        text += &format!(" memmap={size}M!{start}M");
    }
    if !machine.append.is_empty() {
        text = text + " " + &machine.append;
    }
    text
}

fn path(path: &Path) -> String {
    path.display().to_string()
}

/// Arguments in the making.
#[derive(Default)]
struct Line(Vec<String>);

impl Line {
    fn words(&mut self, words: &str) {
        self.0.extend(words.split_whitespace().map(str::to_owned));
    }

    fn pair(&mut self, option: &str, value: String) {
        self.0.extend([option.to_owned(), value]);
    }

    fn chardev(&mut self, name: &str, fd: RawFd) {
        self.pair("-chardev", format!("socket,id={name},fd={fd}"));
    }

    fn share(&mut self, tag: &str, folder: &Path, more: &str) {
        // QEMU takes a doubled comma for one in a value.
        let folder = path(folder).replace(',', ",,");
        let security = "security_model=none,multidevs=remap";
        self.pair("-fsdev", format!("local,id={tag},path={folder},{security}{more}"));
        self.pair("-device", format!("virtio-9p-pci,fsdev={tag},mount_tag={tag}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Net;

    fn machine() -> Machine {
        Machine {
            mem: 1024,
            cpus: 1,
            kernel: None,
            dax: None,
            devdax: None,
            cxl: None,
            rdma: false,
            icount: false,
            net: None,
            append: String::new(),
            rw: vec![],
        }
    }

    fn line(machine: &Machine) -> String {
        let boot = Boot { vmlinux: "/k/vmlinux".into(), initramfs: "/k/initramfs".into() };
        arguments(machine, &boot, &Wiring::none(machine)).join(" ")
    }

    #[test]
    fn what_guests_depend_on_is_always_there() {
        let line = line(&machine());
        assert!(line.contains("-cpu max,+svm,-cx16 "), "{line}");
        assert!(line.contains("-smp 1,"), "{line}");
        assert!(line.contains("path=/,security_model=none,multidevs=remap,readonly=on"), "{line}");
        assert!(!line.contains("-numa ") && !line.contains("memmap") && !line.contains("netdev"));
    }

    #[test]
    fn the_built_qemu_is_for_labs_that_need_it_once_it_is_there() {
        if std::env::var_os(QEMU_VARIABLE).is_some() {
            return varve_skip::skip!("qemu", format!("{QEMU_VARIABLE} names one for all"));
        }
        let dir = tempfile::tempdir().unwrap();
        let place = Place::at(dir.path());
        let plain = machine();
        let counting = Machine { icount: true, ..machine() };
        let many = Machine { cpus: 2, ..machine() };
        let both = Machine { icount: true, cpus: 2, ..machine() };
        let found = |machine: &Machine| program(machine, &place);
        let installed = Path::new("qemu-system-x86_64");
        for machine in [&plain, &counting, &many] {
            assert_eq!(found(machine).unwrap(), installed);
        }
        let error = found(&both).unwrap_err().to_string();
        assert!(error.contains("tests/lab/qemu/build"), "{error}");
        let built = place.built_qemu();
        std::fs::create_dir(built.parent().unwrap()).unwrap();
        std::fs::write(&built, "").unwrap();
        assert_eq!(found(&plain).unwrap(), installed);
        for machine in [&counting, &many, &both] {
            assert_eq!(found(machine).unwrap(), built);
        }
    }

    #[test]
    fn options_reach_the_command_line() {
        let net = Some(Net { listens: true, port: 4000 });
        let append = "foo=bar".to_owned();
        let (dax, cxl, icount) = (Some(256), Some(512), true);
        let line = line(&Machine { dax, cxl, net, icount, append, ..machine() });
        for part in [
            "-m 1792 ",
            "memory-backend-ram,id=node0,size=1280M",
            "memory-backend-ram,id=node1,size=512M",
            ",hmat=on",
            "memmap=256M!1024M foo=bar",
            "-icount shift=1",
            "thread=single",
            "-cx16,-erms,-fsrm",
            "-netdev hubport,id=net",
        ] {
            assert!(line.contains(part), "`{part}` is not in {line}");
        }
    }

    #[test]
    fn a_comma_in_a_folder_is_no_option() {
        let machine = Machine { rw: vec!["/a,b".into()], ..machine() };
        let wiring = Wiring { shares: machine.rw.clone(), ..Wiring::none(&machine) };
        let boot = Boot { vmlinux: "/k".into(), initramfs: "/i".into() };
        let line = arguments(&machine, &boot, &wiring).join(" ");
        assert!(line.contains("id=rw0,path=/a,,b,security_model"), "{line}");
    }
}
