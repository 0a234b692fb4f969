//! A machine by API alone, as Firecracker's users make one: configured piece by piece, started,
//! changed, paused, snapshotted; and every request that comes at the wrong time or says nonsense.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::net::UnixStream;

use serde_json::{Value, json};
use varve_agent::protocol::How;
use varve_snapshot::{MEMORY_FILE, STATE_FILE};
use varve_tests::images::image;
use varve_tests::vm::CMDLINE;
use varve_tests::{Restoring, Vm};

const BEFORE: &str = "The requested operation is not supported before starting the microVM.";
const AFTER: &str = "The requested operation is not supported after starting the microVM.";

fn start() -> Value {
    json!({ "action_type": "InstanceStart" })
}

/// What is told before there is a machine, and what is refused.
#[test]
fn before_the_start() {
    let vm = Vm::unconfigured("--id some-vm --http-api-max-payload-size 1000");
    let info = vm.control("GET", "/", &Value::Null);
    assert_eq!((&info["id"], &info["state"]), (&json!("some-vm"), &json!("Not started")));
    let version = vm.control("GET", "/version", &Value::Null)["firecracker_version"].clone();
    assert_eq!(version.as_str().unwrap().split('.').count(), 3);
    let machine = json!({"vcpu_count": 1, "mem_size_mib": 128, "smt": false,
                         "track_dirty_pages": false, "huge_pages": "None"});
    assert_eq!(vm.control("GET", "/machine-config", &Value::Null), machine);
    let none = vm.refused("GET", "/balloon", &Value::Null);
    assert_eq!(none, "Balloon config error: No balloon device found.");

    for (method, target, body) in [
        ("PATCH", "/vm", json!({"state": "Paused"})),
        ("PATCH", "/vm", json!({"state": "Resumed"})),
        ("PUT", "/snapshot/create", json!({"snapshot_path": "s", "mem_file_path": "m"})),
        ("PATCH", "/balloon", json!({"amount_mib": 1})),
        ("GET", "/balloon/statistics", Value::Null),
        ("PATCH", "/balloon/hinting/start", Value::Null),
        ("GET", "/memory", Value::Null),
        ("PUT", "/actions", json!({"action_type": "SendCtrlAltDel"})),
        ("PUT", "/actions", json!({"action_type": "FlushMetrics"})),
    ] {
        assert_eq!(vm.refused(method, target, &body), BEFORE, "{method} {target}");
    }
    let kernel = "Start microvm error: Cannot start microvm without kernel configuration.";
    assert_eq!(vm.refused("PUT", "/actions", &start()), kernel);

    // What does not exist on this host is found out at once.
    let absent = "No such file or directory (os error 2)";
    let missing = json!({"kernel_image_path": "/no/such"});
    let message = vm.refused("PUT", "/boot-source", &missing);
    let opened = format!("Boot source error: The kernel file cannot be opened: {absent}");
    assert_eq!(message, format!("{opened} \"/no/such\""));
    let missing = json!({"drive_id": "a", "is_root_device": false, "path_on_host": "/no/such"});
    let message = vm.refused("PUT", "/drives/a", &missing);
    let backend = "Drive config error: Unable to create the virtio block device: Virtio backend \
                   error: Error manipulating the backing file:";
    assert_eq!(message, format!("{backend} {absent} /no/such"));
    let cid = json!({"guest_cid": 2, "uds_path": vm.uds()});
    assert!(vm.refused("PUT", "/vsock", &cid).contains("guest_cid 2 is reserved"));
    assert!(!vm.uds().exists());
    // What varve has not is refused by name.
    for (target, body, word) in [
        (
            "/machine-config",
            json!({"vcpu_count": 1, "mem_size_mib": 64, "cpu_template": "T2"}),
            "T2",
        ),
        ("/drives/a", json!({"drive_id": "a", "is_root_device": false, "socket": "s"}), "vhost"),
        ("/pmem/a", json!({"id": "a", "path_on_host": "p"}), "/pmem"),
        ("/hotplug/memory", json!({"total_size_mib": 1024}), "/hotplug/memory"),
    ] {
        let message = vm.refused("PUT", target, &body);
        assert!(message.contains(word) && message.contains("not supported"), "{message}");
    }
    let (status, answer) = vm.ask("PUT", "/mmds", &json!("x".repeat(1000)));
    let limit =
        "Request payload with size 1002 is larger than the limit of 1000 allowed by server.";
    assert_eq!((status, &answer["fault_message"]), (413, &json!(limit)));
    vm.signal("TERM");
    assert_eq!(vm.wait().code, Some(0));
}

#[test]
fn a_machine_by_requests_alone() {
    let mut vm = Vm::unconfigured("--id by-requests");
    let put = |vm: &Vm, target: &str, body: Value| {
        assert_eq!(vm.control("PUT", target, &body), Value::Null, "{target}");
    };
    // Somebody who never finishes a request costs nobody anything.
    let mut slow = UnixStream::connect(vm.api()).unwrap();
    slow.write_all(b"PUT /boot-source HTTP/1.1\r\nContent-Length: 100\r\n\r\n{").unwrap();

    // Something that is no kernel: the machine does not start, and can still be started.
    let data = vm.dir().join("data.img");
    File::create(&data).unwrap().set_len(1 << 20).unwrap();
    put(&vm, "/boot-source", json!({"kernel_image_path": data}));
    for _ in 0..2 {
        put(&vm, "/vsock", json!({"guest_cid": 3, "uds_path": vm.uds(), "vsock_id": "v"}));
        assert!(vm.uds().exists(), "it is there before the machine");
    }
    let reserved = json!({"guest_cid": 1, "uds_path": vm.uds()});
    assert!(vm.refused("PUT", "/vsock", &reserved).contains("reserved"));
    assert!(vm.uds().exists(), "what is refused changes nothing");
    let bits = |low: &str| format!("0b{}{low}", "x".repeat(64 - low.len()));
    let msr = |addr: &str| json!([{"addr": addr, "bitmap": bits("1")}]);
    put(&vm, "/cpu-config", json!({"msr_modifiers": msr("0x9999")}));
    let message = vm.refused("PUT", "/actions", &start());
    assert!(
        message.starts_with("Start microvm error: ") && message.contains("data.img"),
        "{message}"
    );
    assert_eq!(vm.control("GET", "/", &Value::Null)["state"], "Not started");
    assert!(!vm.uds().exists(), "the socket of a machine that does not exist");

    let source = json!({"kernel_image_path": image("vmlinux"),
                        "initrd_path": image("initramfs-tools.cpio"), "boot_args": CMDLINE});
    put(&vm, "/boot-source", source.clone());
    let message = vm.refused("PUT", "/actions", &start());
    let guest = "Start microvm error: Failed to create guest config: Template changes an MSR entry";
    assert_eq!(message, format!("{guest} not supported by KVM: Register Address: 0x9999"));
    // Fast string operations stay on; the guest shall not see SSE3.
    let template = json!({
        "kvm_capabilities": ["0"],
        "cpuid_modifiers": [{"leaf": "0x1", "subleaf": "0x0", "flags": 0,
                             "modifiers": [{"register": "ecx", "bitmap": "0b0"}]}],
        "msr_modifiers": msr("0x1a0"),
    });
    put(&vm, "/cpu-config", template);
    let drive = |id: &str, root, read_only, path: &std::path::Path| {
        json!({"drive_id": id, "is_root_device": root, "is_read_only": read_only,
               "path_on_host": path, "cache_type": "Writeback", "io_engine": "Async",
               "partuuid": null, "rate_limiter": null, "socket": null})
    };
    put(&vm, "/drives/data", drive("data", false, true, &data));
    put(&vm, "/drives/data", drive("data", false, false, &data));
    let root = drive("root", true, true, &image("functions.ext4"));
    put(&vm, "/drives/root", root.clone());
    let second = vm.refused("PUT", "/drives/data", &drive("data", true, false, &data));
    assert_eq!(second, "Drive config error: A root block device already exists!");
    put(&vm, "/machine-config", json!({"vcpu_count": 2, "mem_size_mib": 256}));
    vm.control("PATCH", "/machine-config", &json!({"track_dirty_pages": true}));
    put(
        &vm,
        "/balloon",
        json!({"amount_mib": 0, "deflate_on_oom": true,
                                "stats_polling_interval_s": 1}),
    );
    put(&vm, "/entropy", json!({}));
    let loading = json!({"snapshot_path": "s", "mem_file_path": "m"});
    let message = vm.refused("PUT", "/snapshot/load", &loading);
    assert!(message.ends_with("not allowed after configuring boot-specific resources."));

    let described = vm.control("GET", "/vm/config", &Value::Null);
    assert_eq!(described["boot-source"], source);
    assert_eq!(described["drives"], json!([root, drive("data", false, false, &data)]));
    assert_eq!(described["vsock"], json!({"guest_cid": 3, "uds_path": vm.uds()}));
    assert_eq!(described["machine-config"]["track_dirty_pages"], true);
    put(&vm, "/actions", start());

    let info = vm.info();
    assert_eq!((info.cpus, info.cid), (2, Some(3)));
    assert!(info.cmdline.contains(&format!("{CMDLINE} root=/dev/vda ro")), "{}", info.cmdline);
    let drives: Vec<_> =
        info.block.iter().map(|d| (d.name.as_str(), d.serial.as_deref().unwrap())).collect();
    assert_eq!(drives, [("vda", "root"), ("vdb", "data")]);
    assert_eq!(vm.control("GET", "/", &Value::Null)["state"], "Running");
    let flags = vm.sh("grep -m1 ^flags /proc/cpuinfo");
    let has = |flag: &str| flags.split_whitespace().any(|f| f == flag);
    assert!(has("sse2") && !has("pni"), "{flags}");
    assert_eq!(vm.control("GET", "/vm/config", &Value::Null), described, "as it was described");

    for (target, body) in [
        ("/actions", start()),
        ("/boot-source", source),
        ("/machine-config", json!({"vcpu_count": 1, "mem_size_mib": 256})),
        ("/drives/root", root),
        ("/network-interfaces/e", json!({"iface_id": "e", "host_dev_name": "t"})),
        ("/vsock", json!({"guest_cid": 4, "uds_path": "v"})),
        ("/balloon", json!({"amount_mib": 1, "deflate_on_oom": true})),
        ("/entropy", json!({})),
        ("/snapshot/load", loading),
    ] {
        assert_eq!(vm.refused("PUT", target, &body), AFTER, "{target}");
    }
    let patch = json!({"vcpu_count": 1});
    assert_eq!(vm.refused("PATCH", "/machine-config", &patch), AFTER);

    vm.control("PATCH", "/balloon", &json!({"amount_mib": 8}));
    assert_eq!(vm.control("GET", "/balloon", &Value::Null)["amount_mib"], 8);
    vm.control("PATCH", "/balloon/statistics", &json!({"stats_polling_interval_s": 2}));
    assert_eq!(vm.control("GET", "/balloon/statistics", &Value::Null)["target_mib"], 8);
    let large = vm.refused("PATCH", "/balloon", &json!({"amount_mib": 257}));
    assert_eq!(large, "Balloon update error: Amount of pages requested is too large.");

    let dir = vm.dir().join("snapshot");
    fs::create_dir(&dir).unwrap();
    let (state, memory) = (dir.join(STATE_FILE), dir.join(MEMORY_FILE));
    let create = json!({"snapshot_path": state, "mem_file_path": memory});
    let running = vm.refused("PUT", "/snapshot/create", &create);
    assert_eq!(running, "Create snapshot error: the microVM must be paused first.");
    for _ in 0..2 {
        vm.control("PATCH", "/vm", &json!({"state": "Paused"}));
    }
    assert_eq!(vm.control("GET", "/", &Value::Null)["state"], "Paused");
    put(&vm, "/snapshot/create", create);
    let describe = varve_tests::command::run(["--describe-snapshot", state.to_str().unwrap()]);
    assert_eq!((describe.code, describe.console.as_str()), (Some(0), "v1.2.0\n"));
    assert_eq!(memory.metadata().unwrap().len(), 256 << 20);
    let as_it_is = vm.control("GET", "/vm/config", &Value::Null);
    vm.control("PATCH", "/vm", &json!({"state": "Resumed"}));
    assert_eq!(vm.info().cpus, 2, "it goes on");

    // A machine that was restored tells the same of itself, but for the socket of its own.
    let mut copy = Restoring::from(&dir).start();
    assert_eq!(copy.info().cpus, 2);
    let mut restored = copy.control("GET", "/vm/config", &Value::Null);
    assert_eq!(restored["vsock"]["uds_path"], json!(copy.uds()));
    restored["vsock"] = as_it_is["vsock"].clone();
    assert_eq!(restored, as_it_is);
    assert_eq!(copy.refused("PUT", "/boot-source", &json!({"kernel_image_path": "k"})), AFTER);
    drop(copy);

    drop(slow);
    vm.power(How::Reboot);
    let api = vm.api();
    let (end, _dir) = vm.wait_and_keep();
    assert_eq!(end.code, Some(0), "{end:?}");
    assert!(!api.exists(), "its socket is left behind");
}
