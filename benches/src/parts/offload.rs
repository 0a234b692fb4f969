//! `offload`: how fast idle pages go to another host and come back, what that leaves resident, and what
//! the first call after it waits for.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use varve_agent::protocol::{Action, Invoke, InvokeReply, Memory, MemoryReply, Request};
use varve_tests::Vm;
use varve_tests::images::image;
use varve_tests::services::{RDMA_ADDRESS, Service, key_file};

use super::{Effort, agent};
use crate::progress::Progress;
use crate::recorder::{Recorder, Series};
use crate::report::Unit;

const MEMORY: &str = "256M";
/// What is called.
const FUNCTION: &str = "json";
/// Longest that pages are on their way.
const PATIENCE: Duration = Duration::from_secs(300);

pub fn run(effort: Effort, folder: &Path, recorder: &mut Recorder) -> Result<()> {
    let mut ways = vec![("tcp", "127.0.0.1")];
    match Path::new("/sys/class/infiniband/rxe0").exists() {
        true => ways.push(("rdma", RDMA_ADDRESS)),
        false => eprintln!("offload: no soft-RoCE device rxe0, so only TCP is measured"),
    }
    let mib = if effort.quick { 16 } else { 64 };
    let mut progress = Progress::new("offload", effort.runs * ways.len());
    let folder = tempfile::Builder::new().prefix("varve-bench").tempdir_in(folder)?;
    let keys = key_file(folder.path());
    for _ in 0..effort.runs {
        for &(transport, address) in &ways {
            progress.step(transport);
            let node = Service::node(address, &keys);
            let body =
                json!({ "to": [node.place], "keys": keys, "transport": transport, "idle_ms": 0 });
            once(mib, &body, &mut |name, unit, value| {
                let labels = [("transport", transport), ("memory", MEMORY)];
                recorder.add(&Series::new("offload", name, unit).with(&labels), value)
            })?;
        }
    }
    Ok(())
}

/// Where a figure goes.
type Add<'a> = &'a mut dyn FnMut(&str, Unit, f64) -> Result<()>;

fn once(mib: u64, body: &Value, add: Add) -> Result<()> {
    let mut vm = Vm::builder()
        .initrd(Some(image("initramfs.cpio")))
        .option("--memory", MEMORY)
        .option("--rootfs", format!("{}:ro", image("functions.ext4").display()))
        .arg("--allow-pool")
        .controlled()
        .start();
    memory(&mut vm, Action::Allocate, mib)?;
    memory(&mut vm, Action::Fill, mib)?;
    call(&mut vm, 1)?;
    call(&mut vm, 2)?;
    let warm = call(&mut vm, 3)?;
    let resident = vm.resident_kib();

    let (out, took) = until_idle(&vm, "/memory/offload", body)?;
    rates(add, "offload", out, took)?;
    add("resident, warm", Unit::Kib, resident as f64)?;
    add("resident, offloaded", Unit::Kib, vm.resident_kib() as f64)?;
    let first = call(&mut vm, 4)?;
    let second = call(&mut vm, 5)?;
    for (name, time) in [("call, warm", warm), ("call, first", first), ("call, second", second)] {
        add(name, Unit::Millis, time.as_secs_f64() * 1e3)?;
    }
    add("call, first to warm", Unit::Count, first.as_secs_f64() / warm.as_secs_f64())?;

    // What one thread of the guest reads from end to end.
    let before = fetched(&vm)?;
    let took = memory(&mut vm, Action::Verify, mib)?;
    let came = fetched(&vm)? - before;
    rates(add, "return by faults", came, took)?;
    let again = memory(&mut vm, Action::Verify, mib)?;
    add("read, offloaded to warm", Unit::Count, took.as_secs_f64() / again.as_secs_f64())?;

    let (out, _) = until_idle(&vm, "/memory/offload", body)?;
    let (left, took) = until_idle(&vm, "/memory/recall", &Value::Null)?;
    ensure!(left == 0, "{left} pages are out after a recall");
    rates(add, "recall", out, took)
}

fn rates(add: Add, name: &str, pages: u64, took: Duration) -> Result<()> {
    let per_second = pages as f64 / took.as_secs_f64();
    add(name, Unit::MibPerSecond, per_second / 256.0)?;
    add(&format!("{name}, pages"), Unit::PerSecond, per_second)
}

/// Asks, and waits until it is done; pages that are out then, and the time.
fn until_idle(vm: &Vm, target: &str, body: &Value) -> Result<(u64, Duration)> {
    let start = Instant::now();
    vm.control("PUT", target, body);
    loop {
        let report = vm.control("GET", "/memory/offload", &Value::Null);
        let took = start.elapsed();
        if let Some(error) = report["error"].as_str() {
            bail!("{target}: {error}");
        }
        if report["phase"] == "idle" {
            return Ok((report["out"].as_u64().context("no number of pages")?, took));
        }
        ensure!(took < PATIENCE, "{target}: {report}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn fetched(vm: &Vm) -> Result<u64> {
    let report = vm.control("GET", "/memory/offload", &Value::Null);
    report["fetched"].as_u64().context("no number of pages")
}

fn memory(vm: &mut Vm, action: Action, mib: u64) -> Result<Duration> {
    let mib = (action == Action::Allocate).then_some(mib);
    let request = Memory { name: "idle".into(), action, mib, seed: 1, threads: None };
    let reply: MemoryReply = agent(vm)?.call(&Request::Memory(request))?;
    Ok(Duration::from_micros(reply.micros))
}

fn call(vm: &mut Vm, seed: u64) -> Result<Duration> {
    let request = Invoke { function: FUNCTION.into(), seed, ..Invoke::default() };
    let start = Instant::now();
    let _: InvokeReply = agent(vm)?.call(&Request::Invoke(request))?;
    Ok(start.elapsed())
}
