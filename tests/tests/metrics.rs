//! Metrics and log of one machine: their shape, what is counted exactly, and what a restored copy of
//! it adds.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use varve_agent::protocol::{Direction, How, Request, Rng, RngReply};
use varve_skip::skipped;
use varve_snapshot::{MEMORY_FILE, STATE_FILE};
use varve_tests::images::image;
use varve_tests::network::{enter_private, ip, ping};
use varve_tests::{Restoring, Vm, command, metrics_shape};

const HOST: &str = "172.31.5.1";
const GUEST: Ipv4Addr = Ipv4Addr::new(172, 31, 5, 2);
const MIB: u64 = 1 << 20;
const ID: &str = "vm-metrics-1";

/// The lines of a metrics file, each of which begins with its time.
fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap();
    assert!(text.ends_with("}\n"), "whole lines: {text}");
    let parse = |line: &str| {
        assert!(line.starts_with("{\"utc_timestamp_ms\":"), "{line}");
        serde_json::from_str(line).unwrap()
    };
    text.lines().map(parse).collect()
}

/// Has a line written and returns it, as Firecracker's users do.
fn flush(vm: &Vm, path: &Path) -> Value {
    let before = lines(path).len();
    vm.control("PUT", "/actions", &json!({ "action_type": "FlushMetrics" }));
    let mut lines = lines(path);
    assert_eq!(lines.len(), before + 1);
    let line = lines.pop().unwrap();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis();
    let written = u128::from(line["utc_timestamp_ms"].as_u64().unwrap());
    assert!(now.abs_diff(written) < 5_000, "{written} at {now}");
    line
}

/// Requests to configure the machine, some of them wrong, and how often each is counted.
fn configure(vm: &Vm, metrics: &Path, log: &Path, net: bool) {
    let put = |path: &str, body: Value| vm.control("PUT", path, &body);
    put(
        "/logger",
        json!({ "log_path": log, "level": "Info", "show_level": true, "show_log_origin": true }),
    );
    put(
        "/metrics",
        json!({ "metrics_path": metrics, "emit_id": true, "properties": { "a": "b" } }),
    );
    let again = vm.refused("PUT", "/metrics", &json!({ "metrics_path": "/tmp/other" }));
    assert!(again.contains("Reinitialization of metrics not allowed"), "{again}");
    let loud = vm.refused("PUT", "/logger", &json!({ "level": "loud" }));
    assert!(loud.contains("\"loud\" is not a level"), "{loud}");
    let args = format!("console=ttyS0 reboot=k panic=-1 varve.ip={GUEST}/24,{HOST}");
    put(
        "/boot-source",
        json!({ "kernel_image_path": image("vmlinux"), "boot_args": args,
                "initrd_path": image("initramfs-tools.cpio") }),
    );
    put("/machine-config", json!({ "vcpu_count": 1, "mem_size_mib": 128 }));
    for drive in ["data", "more"] {
        let path = vm.dir().join(drive);
        fs::File::create(&path).unwrap().set_len(8 * MIB).unwrap();
        let body = json!({ "drive_id": drive, "is_root_device": false, "path_on_host": path });
        put(&format!("/drives/{drive}"), body);
    }
    vm.refused("PUT", "/drives/data", &json!({ "drive_id": "data" }));
    put("/vsock", json!({ "guest_cid": 3, "uds_path": vm.uds() }));
    put("/entropy", json!({}));
    if net {
        put("/network-interfaces/eth0", json!({ "iface_id": "eth0", "host_dev_name": "vmtap" }));
    }
    for path in ["/", "/version", "/version", "/machine-config"] {
        vm.control("GET", path, &Value::Null);
    }
    let flush = json!({ "action_type": "FlushMetrics" });
    assert!(vm.refused("PUT", "/actions", &flush).contains("before starting"));
    assert_eq!(fs::read_to_string(metrics).unwrap(), "", "nothing is written before the start");
    put("/actions", json!({ "action_type": "InstanceStart" }));
}

fn requests_are_counted(line: &Value, net: u64) {
    let put = &line["put_api_requests"];
    for (field, count) in [
        ("actions_count", 2),
        ("actions_fails", 1),
        ("boot_source_count", 1),
        ("boot_source_fails", 0),
        ("drive_count", 3),
        ("drive_fails", 1),
        ("logger_count", 2),
        ("logger_fails", 1),
        ("machine_cfg_count", 1),
        ("metrics_count", 2),
        ("metrics_fails", 1),
        ("network_count", net),
        ("vsock_count", 1),
        ("vsock_fails", 0),
    ] {
        assert_eq!(put[field], count, "{field}");
    }
    let get = &line["get_api_requests"];
    assert_eq!(get["instance_info_count"], 1);
    assert_eq!(get["vmm_version_count"], 2);
    assert_eq!(get["machine_cfg_count"], 1);
}

/// What a guest reads and writes is what its drive counts, to the byte, and no other drive does.
fn drives(vm: &mut Vm, metrics: &Path) {
    let bytes = 3 * MIB + 512;
    flush(vm, metrics);
    vm.block("vda", Direction::Read, 512, bytes, 0).unwrap();
    let line = flush(vm, metrics);
    let [data, more] = [&line["block_data"], &line["block_more"]];
    assert_eq!((&data["read_bytes"], &data["write_bytes"]), (&bytes.into(), &0.into()));
    assert!(data["read_count"].as_u64().unwrap() >= 4, "{data}");
    assert!(data["read_agg"]["sum_us"].as_u64().unwrap() > 0, "{data}");
    assert_eq!((&more["read_bytes"], &more["queue_event_count"]), (&0.into(), &0.into()));
    assert_eq!(line["vsock"]["conns_added"], 1, "the agent was asked once");
    assert_eq!(line["put_api_requests"]["actions_count"], 1, "since the line before");

    vm.block("vdb", Direction::Write, 0, MIB, 5).unwrap();
    let line = flush(vm, metrics);
    let more = &line["block_more"];
    assert_eq!((&more["read_bytes"], &more["write_bytes"]), (&0.into(), &MIB.into()));
    assert_eq!(more["flush_count"], 0, "an unsafe drive has no cache to flush");
    assert_eq!(line["block"]["write_bytes"], MIB);
    for field in
        ["activate_fails", "cfg_fails", "event_fails", "execute_fails", "invalid_reqs_count"]
    {
        assert_eq!(line["block"][field], 0, "{field}");
    }
}

/// Random bytes that a guest was given, and the packets that carried them.
fn entropy_and_vsock(vm: &mut Vm, metrics: &Path) {
    flush(vm, metrics);
    let reply: RngReply = vm.agent().call(&Request::Rng(Rng { bytes: 4096 })).unwrap();
    assert_eq!(reply.hex.len(), 8192);
    let line = flush(vm, metrics);
    assert!(line["entropy"]["entropy_bytes"].as_u64().unwrap() >= 4096, "{}", line["entropy"]);
    assert_eq!(line["entropy"]["entropy_event_fails"], 0);
    let vsock = |field: &str| line["vsock"][field].as_u64().unwrap();
    // The answer is one line of JSON with the bytes in hexadecimal.
    assert!((8192..9000).contains(&vsock("tx_bytes_count")), "{}", line["vsock"]);
    assert!((10..200).contains(&vsock("rx_bytes_count")), "{}", line["vsock"]);
    assert!(vsock("tx_packets_count") > 0 && vsock("rx_packets_count") > 0);
    assert!(line["vcpu"]["exit_mmio_write"].as_u64().unwrap() > 0, "interrupts are acknowledged");
    assert!(line["interrupts"]["triggers"].as_u64().unwrap() > 0);
}

/// The device has counted the frames and bytes that the tap has.
fn network(vm: &Vm) {
    ping(GUEST, 5, 900);
    let tap = || -> Value {
        let output =
            std::process::Command::new("ip").args(["-s", "-j", "link", "show", "vmtap"]).output();
        let links: Value = serde_json::from_slice(&output.unwrap().stdout).unwrap();
        links[0]["stats64"].clone()
    };
    // Frames that the two send by themselves may be under way.
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let before = tap();
        let totals = vm.control("GET", "/metrics", &Value::Null);
        let net = &totals["net_eth0"];
        let counted = json!({
            "rx": [net["tx_packets_count"], net["tx_bytes_count"]],
            "tx": [net["rx_packets_count"], net["rx_bytes_count"]],
        });
        let expected = |way: &str| json!([before[way]["packets"], before[way]["bytes"]]);
        let wanted = json!({ "rx": expected("rx"), "tx": expected("tx") });
        if counted == wanted {
            assert!(net["rx_bytes_count"].as_u64().unwrap() > 5 * 900);
            return;
        }
        assert!(Instant::now() < deadline, "{counted} is not {wanted}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// A snapshot of the machine, and how long it all took.
fn pause_snapshot_resume(vm: &Vm, metrics: &Path, dir: &Path) {
    vm.control("PATCH", "/vm", &json!({ "state": "Paused" }));
    let (state, memory) = (dir.join(STATE_FILE), dir.join(MEMORY_FILE));
    let create = json!({ "snapshot_path": state, "mem_file_path": memory });
    vm.control("PUT", "/snapshot/create", &create);
    vm.control("PATCH", "/vm", &json!({ "state": "Resumed" }));
    let line = flush(vm, metrics);
    let us = |field: &str| line["latencies_us"][field].as_u64().unwrap();
    for what in ["pause_vm", "full_create_snapshot", "resume_vm"] {
        let (whole, part) = (us(what), us(&format!("vmm_{what}")));
        assert!(part > 0 && part <= whole && whole < 60_000_000, "{what}: {part} of {whole} us");
    }
    assert_eq!((us("diff_create_snapshot"), us("vmm_load_snapshot")), (0, 0));
}

/// `varve metrics`, for a socket or a file; its one sample whose name and labels are `sample`.
fn exported(args: &[&std::ffi::OsStr], sample: &str) -> String {
    let all = [&["metrics".as_ref()], args].concat();
    let end = command::run(all);
    assert_eq!((end.code, end.stderr.as_str()), (Some(0), ""), "{end:?}");
    let found: Vec<_> =
        end.console.lines().filter_map(|l| l.strip_prefix(sample)?.strip_prefix(' ')).collect();
    let [value] = found[..] else { panic!("{} times {sample}:\n{}", found.len(), end.console) };
    value.to_owned()
}

/// Each line of the log is `TIME [ID:THREAD:LEVEL:FILE:LINE] MESSAGE`; the messages.
fn messages(log: &Path) -> Vec<String> {
    let text = fs::read_to_string(log).unwrap();
    let message = |line: &str| {
        let (time, rest) = line.split_once(" [").expect(line);
        let shape: String =
            time.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
        assert_eq!(shape, "0000-00-00T00:00:00.000000000", "{line}");
        let (origin, message) = rest.split_once("] ").expect(line);
        let parts: Vec<_> = origin.split(':').collect();
        let [id, thread, level, file, at] = parts[..] else { panic!("{line}") };
        assert_eq!(id, ID, "{line}");
        assert!(!thread.is_empty() && file.ends_with(".rs"), "{line}");
        assert!(["INFO", "WARN", "ERROR"].contains(&level), "{line}");
        assert!(at.parse::<u32>().unwrap() > 0, "{line}");
        message.to_owned()
    };
    text.lines().map(message).collect()
}

fn the_log_tells_the_story(log: &Path, snapshot: &Path) {
    let messages = messages(log);
    let mut story = messages.iter();
    for part in [
        "Running varve v".to_owned(),
        "PUT /metrics is refused: ".into(),
        "PUT /drives/data is refused: ".into(),
        "booting ".into(),
        "the vCPUs run".into(),
        "the vCPUs stand still".into(),
        format!("Full snapshot {:?} written in ", snapshot.join(STATE_FILE)),
        "the vCPUs run".into(),
        "the machine has ended: stopped by SIGHUP".into(),
    ] {
        assert!(story.any(|m| m.starts_with(&part)), "{part:?} is missing here: {messages:#?}");
    }
}

/// A copy of the machine has counters of its own, and those of its restore.
fn a_restored_copy(snapshot: &Path, drives: &[&str], interfaces: &[&str]) {
    let restoring = Restoring::from(snapshot).options("--strategy lazy --json");
    let metrics = restoring.dir().join("metrics");
    let log = restoring.dir().join("log");
    let mut vm = restoring.arg("--metrics-path").arg(&metrics).arg("--log-path").arg(&log).start();
    vm.info();
    let line = flush(&vm, &metrics);
    metrics_shape::check(&line, drives, interfaces, &["restore"]);
    assert_eq!(line["restore"]["strategy"], "lazy");
    assert!(line["latencies_us"]["vmm_load_snapshot"].as_u64().unwrap() > 0);
    vm.signal("TERM");
    let (end, _dir) = vm.wait_and_keep();
    let report: Value = serde_json::from_str(&end.console).unwrap();
    let last = lines(&metrics).pop().unwrap();
    for part in ["faults", "pages", "sources"] {
        assert_eq!(last["restore"][part], report["counters"][part], "{part}");
    }
    assert!(last["restore"]["pages"]["mapped"].as_u64().unwrap() >= (128 * MIB) / 4096);
    let log = fs::read_to_string(&log).unwrap();
    assert!(log.contains("[anonymous-instance:main] restored in "), "{log}");
    let pages = exported(&[metrics.as_ref()], "varve_restore_pages_total{what=\"mapped\"}");
    assert_eq!(pages, last["restore"]["pages"]["mapped"].to_string());
}

#[test]
fn one_machine_and_its_copy() {
    let private = enter_private();
    let net = private.is_ok();
    if let Err(reason) = private {
        skipped("net", "one_machine_and_its_copy (its network)", &reason);
    } else {
        ip("link set lo up");
        ip("tuntap add dev vmtap mode tap");
        ip(&format!("addr add {HOST}/24 dev vmtap"));
        ip("link set vmtap up");
    }
    let (all, interfaces) = (["data", "more"], if net { &["eth0"][..] } else { &[] });
    let start = format!("--id {ID} --start-time-us 1 --start-time-cpu-us 0 --parent-cpu-time-us 7");
    let mut vm = Vm::unconfigured(&start);
    let [metrics, log] = ["metrics", "log"].map(|name| vm.dir().join(name));
    configure(&vm, &metrics, &log, net);

    let first = lines(&metrics).remove(0);
    metrics_shape::check(&first, &all, interfaces, &["id", "properties"]);
    assert_eq!((&first["id"], &first["properties"]), (&ID.into(), &json!({ "a": "b" })));
    requests_are_counted(&first, net.into());
    assert!(first["api_server"]["process_startup_time_us"].as_u64().unwrap() > 0);
    assert!(first["api_server"]["process_startup_time_cpu_us"].as_u64().unwrap() > 7);

    vm.agent();
    drives(&mut vm, &metrics);
    entropy_and_vsock(&mut vm, &metrics);
    if net {
        network(&vm);
    }
    let console = vm.console().len() as u64;
    let printed = vm.control("GET", "/metrics", &Value::Null)["uart"]["write_count"].clone();
    assert_eq!(printed, console, "every byte on the console was counted");

    let folder = tempfile::Builder::new().prefix("varve-snapshot").tempdir().unwrap();
    pause_snapshot_resume(&vm, &metrics, folder.path());
    let socket = vm.api();
    let by_socket = ["--api-sock".as_ref(), socket.as_os_str()];
    let drive = "varve_api_requests_total{method=\"PUT\",resource=\"drive\"}";
    assert_eq!(exported(&by_socket, drive), "3");
    let read = "varve_block_write_bytes_total{drive=\"more\"}";
    assert_eq!(exported(&by_socket, read), MIB.to_string());

    vm.signal("HUP");
    let (end, dir) = vm.wait_and_keep();
    assert_eq!(end.code, Some(156), "{end:?}");
    let lines = lines(&metrics);
    for line in &lines {
        metrics_shape::check(line, &all, interfaces, &["id", "properties"]);
    }
    assert_eq!(lines.last().unwrap()["signals"]["sighup"], 1, "a last line at the end");
    let sum = |group: &str, field: &str| -> u64 {
        lines.iter().map(|line| line[group][field].as_u64().unwrap()).sum()
    };
    assert_eq!(sum("put_api_requests", "drive_count"), 3);
    let file = [metrics.as_os_str()];
    assert_eq!(exported(&file, drive), "3");
    assert_eq!(exported(&file, read), sum("block_more", "write_bytes").to_string());
    the_log_tells_the_story(&log, folder.path());
    // The copy has the drives and the tap of the machine that has gone.
    a_restored_copy(folder.path(), &all, interfaces);
    drop(dir);
}

/// A guest that panics, and a pipe whose reader is slow: the last line says what was lost.
#[test]
fn a_pipe_that_nobody_reads_holds_up_nothing() {
    let builder = Vm::builder().option("--memory", "128M").controlled();
    let pipe = builder.dir().join("pipe");
    let status = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
    assert!(status.success());
    let mut vm = builder.option("--metrics-path", &pipe).start();
    vm.info();
    let mut refused = 0;
    for _ in 0..40 {
        let flush = json!({ "action_type": "FlushMetrics" });
        let (status, answer) = vm.ask("PUT", "/actions", &flush);
        if status == 400 {
            let message = answer["fault_message"].as_str().unwrap();
            assert!(message.starts_with("Failed to write metrics: "), "{message}");
            refused += 1;
        }
    }
    assert!(refused > 5, "{refused}");
    let lost =
        vm.control("GET", "/metrics", &Value::Null)["logger"]["missed_metrics_count"].clone();
    assert_eq!(lost, refused);
    vm.info();
    vm.power(How::Panic);
    assert_eq!(vm.wait().code, Some(3));
}
