//! Random numbers from the host, and memory that goes back to it and returns.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::thread;
use std::time::{Duration, Instant};

use varve_agent::protocol::{Action, ExecReply, How, Request, Rng, RngReply};
use varve_tests::Vm;
use varve_tests::guest::shell;

const KIB_PER_MIB: u64 = 1024;

#[test]
fn random_numbers_from_the_host() {
    let mut vm = Vm::builder().option("--memory", "128M").arg("--entropy").start();
    let mut draw = |bytes| -> Vec<u8> {
        let reply: RngReply = vm.agent().call(&Request::Rng(Rng { bytes })).unwrap();
        assert!(reply.source.starts_with("virtio_rng"), "{}", reply.source);
        let digits = reply.hex.as_bytes().chunks(2);
        digits
            .map(|two| u8::from_str_radix(std::str::from_utf8(two).unwrap(), 16).unwrap())
            .collect()
    };
    assert_eq!(draw(1).len(), 1);
    let draws = [draw(65_536), draw(65_536)];
    for bytes in &draws {
        assert_eq!(bytes.len(), 65_536);
        // 524,288 fair coins: a deviation of 2,200 is six times the standard one.
        let ones: u32 = bytes.iter().map(|byte| byte.count_ones()).sum();
        assert!(ones.abs_diff(262_144) < 2_200, "{ones} bits of 524288 are one");
        // No stretch comes twice, as it would from a buffer that nobody filled.
        let mut parts: Vec<&[u8]> = bytes.chunks(16).collect();
        parts.sort_unstable();
        parts.dedup();
        assert_eq!(parts.len(), 4096);
    }
    assert_ne!(draws[0], draws[1]);
    power_off(vm);
}

/// Pages that the guest has given to the balloon and taken back (`balloon_inflate` and
/// `balloon_deflate` of `/proc/vmstat`), in MiB.
fn ballooned(vm: &mut Vm) -> (u64, u64) {
    let mut mib = |key| vm.number("/proc/vmstat", key) * 4 / KIB_PER_MIB;
    (mib("balloon_inflate"), mib("balloon_deflate"))
}

/// Waits until the balloon has got as many MiB as it asked for.
fn wait_for_inflation(vm: &mut Vm, mib: u64) {
    wait_until(|| match ballooned(vm).0 {
        got if got >= mib => Ok(()),
        got => Err(format!("the balloon has {got} of {mib} MiB")),
    });
    assert_eq!(ballooned(vm), (mib, 0));
}

/// Waits until there is no error left.
fn wait_until(mut check: impl FnMut() -> Result<(), String>) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while let Err(what) = check() {
        assert!(Instant::now() < deadline, "{what}");
        thread::sleep(Duration::from_millis(100));
    }
}

fn power_off(mut vm: Vm) {
    vm.power(How::Poweroff);
    let end = vm.wait();
    assert_eq!((end.code, end.stderr.as_str()), (Some(0), "varve: guest power-off\n"), "{end:?}");
}

/// A process of the guest that needs `mib` MiB of memory at once; whether it got them.
fn needs(vm: &mut Vm, mib: u64) -> ExecReply {
    let script = format!("dd if=/dev/zero of=/dev/null bs={mib}M count=1");
    // The shell hands over to it, so that it is what the kernel may kill.
    vm.agent().call(&shell(&format!("exec {script}"))).unwrap()
}

/// A balloon that keeps what it got: the guest has so much less to use.
#[test]
fn an_inflated_balloon_takes_memory_from_the_guest() {
    let mut plain = Vm::builder().option("--memory", "160M").start();
    let whole = plain.info().memory_kib;
    let got = needs(&mut plain, 80);
    assert_eq!(got.code, Some(0), "{got:?}");
    power_off(plain);

    let mut vm = Vm::builder().option("--memory", "160M").option("--balloon", "size=72M").start();
    wait_for_inflation(&mut vm, 72);
    // The driver takes the balloon's pages out of the sum of its memory.
    let left = vm.info().memory_kib;
    assert!((whole - left).abs_diff(72 * KIB_PER_MIB) < 1024, "{left} of {whole} KiB are left");
    let refused = needs(&mut vm, 80);
    // Refused at once, or killed on the way.
    let died = refused.signal == Some(9) || refused.stderr.contains("out of memory");
    assert!(died, "{refused:?}");
    assert_eq!(ballooned(&mut vm), (72, 0));
    power_off(vm);
}

/// One that gives memory back before the guest kills a process for it.
#[test]
fn a_balloon_deflates_when_the_guest_is_out_of_memory() {
    let balloon = "size=72M,deflate-on-oom,stats=1";
    let mut vm = Vm::builder().option("--memory", "160M").option("--balloon", balloon).start();
    wait_for_inflation(&mut vm, 72);
    let got = needs(&mut vm, 80);
    assert_eq!(got.code, Some(0), "{got:?}");
    let (_, deflated) = ballooned(&mut vm);
    assert!(deflated > 0);
    power_off(vm);
}

/// What the guest frees goes back to the host by itself, and is zero when it comes again.
#[test]
fn freed_pages_are_reported_and_returned() {
    let options = "size=0,reporting";
    let mut vm = Vm::builder().option("--memory", "256M").option("--balloon", options).start();
    for round in 1..=3 {
        // Fresh memory is zero, also where the host took a page away, and keeps what is written.
        vm.memory("a", Action::Allocate, 96, 0);
        vm.memory("a", Action::Verify, 0, 0);
        vm.memory("a", Action::Fill, 0, round);
        vm.memory("a", Action::Verify, 0, 0);
        let filled = vm.resident_kib();
        vm.memory("a", Action::Free, 0, 0);
        // The driver reports two seconds after they became free, and only whole blocks of 2 MiB and
        // more: what else is in use keeps some of them from being whole.
        let goal = filled - 64 * KIB_PER_MIB;
        wait_until(|| match vm.resident_kib() {
            resident if resident < goal => Ok(()),
            resident => Err(format!("round {round}: of {filled} KiB, {resident} are left")),
        });
    }
    power_off(vm);
}

/// Without reporting, the host does not learn of it.
#[test]
fn freed_pages_stay_without_reporting() {
    let mut vm = Vm::builder().option("--memory", "256M").option("--balloon", "size=0").start();
    vm.memory("a", Action::Allocate, 96, 0);
    vm.memory("a", Action::Fill, 0, 1);
    let filled = vm.resident_kib();
    vm.memory("a", Action::Free, 0, 0);
    thread::sleep(Duration::from_secs(5));
    assert!(vm.resident_kib() + 8 * KIB_PER_MIB > filled, "{filled}, now {}", vm.resident_kib());
    power_off(vm);
}
