//! A configuration file as Firecracker's users have it, with every device, boots a real guest.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs::File;
use std::time::{Duration, Instant};

use serde_json::json;
use varve_agent::protocol::{How, Request, Rng, RngReply};
use varve_tests::images::image;
use varve_tests::vm::{CMDLINE, PATIENCE};
use varve_tests::{Vm, command};

#[test]
fn a_firecracker_file_boots_with_all_its_devices() {
    let builder = Vm::builder();
    let data = builder.dir().join("data.img");
    File::create(&data).unwrap().set_len(3 << 20).unwrap();
    let uds = builder.dir().join("v.sock");
    let tap = format!("vt{}", std::process::id());
    // As an exporter writes it: absent things are null, and the root device need not come first.
    let config = json!({
        "boot-source": {
            "kernel_image_path": image("vmlinux"),
            "initrd_path": image("initramfs.cpio"),
            "boot_args": CMDLINE,
        },
        "drives": [
            {"drive_id": "data", "path_on_host": data, "is_root_device": false,
             "is_read_only": false, "partuuid": null, "cache_type": "Writeback",
             "io_engine": "Sync", "rate_limiter": null, "socket": null},
            {"drive_id": "rootfs", "path_on_host": image("functions.ext4"),
             "is_root_device": true, "is_read_only": true},
        ],
        "machine-config": {"vcpu_count": 2, "mem_size_mib": 256, "smt": true,
                           "track_dirty_pages": false, "huge_pages": "None"},
        "cpu-config": null,
        "balloon": {"amount_mib": 16, "deflate_on_oom": false, "stats_polling_interval_s": 1},
        "network-interfaces": [
            {"iface_id": "eth0", "guest_mac": "06:00:AC:10:00:02", "host_dev_name": tap},
        ],
        "vsock": {"guest_cid": 7, "uds_path": uds},
        "logger": null, "metrics": null, "mmds-config": null,
        "entropy": {},
    });
    let mut vm = builder.config_file(config).start();

    let info = vm.info();
    assert_eq!((info.cpus, info.cid), (2, Some(7)));
    assert!(info.cmdline.contains(&format!("{CMDLINE} root=/dev/vda ro")), "{}", info.cmdline);
    let drives: Vec<_> = info
        .block
        .iter()
        .map(|d| (d.name.as_str(), d.bytes, d.read_only, d.serial.as_deref()))
        .collect();
    let root = image("functions.ext4").metadata().unwrap().len();
    assert_eq!(
        drives,
        [("vda", root, true, Some("rootfs")), ("vdb", 3 << 20, false, Some("data"))]
    );
    let eth0 = info.net.iter().find(|n| n.name == "eth0").expect("no eth0");
    assert_eq!(eth0.mac, "06:00:ac:10:00:02");

    // What the guest makes of `smt` is up to its processor: Linux asks AMD's only if they have
    // TOPOEXT, which an emulated one has not.
    assert!(vm.sh("cat /etc/os-release").contains("ID=debian"), "the root device is not the root");

    let random: RngReply = vm.agent().call(&Request::Rng(Rng { bytes: 32 })).unwrap();
    assert!(random.source.starts_with("virtio_rng"), "{random:?}");
    assert_eq!(random.hex.len(), 64);
    assert_ne!(random.hex, "0".repeat(64));

    let deadline = Instant::now() + PATIENCE;
    loop {
        let inflated = vm.sh("grep balloon_inflate /proc/vmstat");
        let pages: u64 = inflated.split_whitespace().nth(1).unwrap().parse().unwrap();
        if pages == (16 << 20) / 4096 {
            break;
        }
        assert!(Instant::now() < deadline, "the balloon has {pages} pages, not 4096");
        std::thread::sleep(Duration::from_millis(100));
    }

    // Its tap is its own.
    let kernel = image("vmlinux");
    let net = format!("tap={tap}");
    let second = command::run(["run", "--kernel", kernel.to_str().unwrap(), "--net", &net]);
    let message = format!(
        "varve: error: network interface \"net0\": tap {tap:?} is in use by another process: give \
         each machine a tap of its own\n"
    );
    assert_eq!((second.code, second.stderr), (Some(1), message));

    vm.power(How::Poweroff);
    let (end, _dir) = vm.wait_and_keep();
    assert_eq!((end.code, end.stderr.as_str()), (Some(0), "varve: guest power-off\n"), "{end:?}");
    assert!(end.console.contains("varve-agent: ready"), "{end:?}");
    assert!(!uds.exists(), "its socket is left behind");
    assert!(!std::path::Path::new("/sys/class/net").join(&tap).exists(), "its tap is left behind");
}
