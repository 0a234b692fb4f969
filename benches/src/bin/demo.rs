//! The demo: boots the function image, invokes three functions, prints what it took.

use std::time::Instant;

use anyhow::{Context, Result};
use varve_agent::protocol::{How, Invoke, InvokeReply, Request};
use varve_tests::Vm;
use varve_tests::images::image;

const FUNCTIONS: [(&str, u64); 3] = [("hello", 1), ("json", 2), ("pagerank", 3)];

fn main() -> Result<()> {
    let rootfs = format!("{}:ro", image("functions.ext4").display());
    println!("varve demo: a Debian guest with Python, one vCPU, 512 MiB");
    let mut vm = Vm::builder()
        .initrd(Some(image("initramfs.cpio")))
        .option("--rootfs", rootfs)
        .option("--memory", "512M")
        .arg("--boot-timer")
        .start();
    let mut agent = vm.agent();
    for line in vm.stderr().lines().filter_map(|l| l.strip_prefix("varve: boot timer: ")) {
        println!("  {line} (from process start)");
    }
    for (name, seed) in FUNCTIONS {
        for warmth in ["first call", "warm call"] {
            let start = Instant::now();
            let request = Invoke {
                function: name.into(),
                seed,
                args: serde_json::Value::Null,
                timeout_s: None,
            };
            let reply: InvokeReply = agent
                .call(&Request::Invoke(request))
                .with_context(|| format!("{name} with seed {seed}"))?;
            println!(
                "  {name:<10} seed {seed}  {warmth:<10} {:>9.1} ms  checksum {}  {}",
                start.elapsed().as_secs_f64() * 1e3,
                &reply.checksum[..16],
                reply.facts
            );
        }
    }
    vm.power(How::Poweroff);
    let end = vm.wait();
    anyhow::ensure!(end.code == Some(0), "the guest ended badly: {end:?}");
    println!("  the guest powered off, varve exited with 0");
    Ok(())
}
