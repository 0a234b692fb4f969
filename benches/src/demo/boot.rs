//! A machine that boots the function image, and calls to its agent.

use std::os::unix::net::UnixStream;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use varve_agent::client::Client;
use varve_agent::protocol::{How, Invoke, InvokeReply, Request};
use varve_tests::images::image;
use varve_tests::{Vm, VmBuilder};

/// Functions and inputs that are shown first.
const FUNCTIONS: [(&str, u64); 3] = [("hello", 1), ("json", 2), ("pagerank", 3)];

/// A machine with the function image and a boot timer.
pub fn machine(memory: &str) -> VmBuilder {
    Vm::builder()
        .initrd(Some(image("initramfs.cpio")))
        .option("--rootfs", format!("{}:ro", image("functions.ext4").display()))
        .option("--memory", memory)
        .arg("--boot-timer")
}

/// What the monitor's boot timer has said.
pub fn boot_times(vm: &Vm) -> Vec<String> {
    let messages = vm.stderr();
    let lines = messages.lines().filter_map(|line| line.strip_prefix("varve: boot timer: "));
    lines.map(str::to_owned).collect()
}

/// Calls a function: its answer, and the milliseconds that it took.
pub fn invoke(
    agent: &mut Client<UnixStream>,
    function: &str,
    seed: u64,
) -> Result<(InvokeReply, f64)> {
    let args = serde_json::Value::Null;
    let request = Invoke { function: function.into(), seed, args, timeout_s: None };
    let start = Instant::now();
    let reply = agent
        .call(&Request::Invoke(request))
        .with_context(|| format!("calling {function} with input {seed}"))?;
    Ok((reply, start.elapsed().as_secs_f64() * 1e3))
}

/// Ends a machine from inside; its folder is kept.
pub fn power_off(mut vm: Vm) -> Result<tempfile::TempDir> {
    vm.power(How::Poweroff);
    let (end, folder) = vm.wait_and_keep();
    ensure!(end.code == Some(0), "the guest ended badly: {end:?}");
    Ok(folder)
}

/// Boots, calls three functions twice each, and says what it took.
pub fn show() -> Result<()> {
    println!("Boot: a Debian guest with Python, one vCPU, 512 MiB");
    let mut vm = machine("512M").start();
    let mut agent = vm.agent();
    for line in boot_times(&vm) {
        println!("  {line} (from process start)");
    }
    for (name, seed) in FUNCTIONS {
        for warmth in ["first call", "warm call"] {
            let (reply, took) = invoke(&mut agent, name, seed)?;
            println!(
                "  {name:<10} seed {seed}  {warmth:<10} {took:>9.1} ms  checksum {:.16}  {}",
                reply.checksum, reply.facts
            );
        }
    }
    power_off(vm)?;
    println!("  the guest powered off, varve exited with 0");
    Ok(())
}
