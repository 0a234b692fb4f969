//! Two hosts, each an emulated one with a soft-RoCE device: a machine on one runs on pages in the memory of
//! the other, until that is gone.
//!
//! It needs varve and the guest images; it runs with the feature `two-hosts`, and without it is reported as
//! ignored.

mod common;

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use common::{Lab, text};

/// Where the node listens: in the lab that listens, too.
const NODE: &str = "10.77.0.1:7421";

/// What the other host does. Its last machine is started when the node's host is gone.
const MACHINE: &str = r#"
set -e
reach() { /run/lab/busybox ping -c 1 -W 1 10.77.0.1 >/dev/null; }
packets() { cat /sys/class/infiniband/rxe0/ports/1/hw_counters/rcvd_pkts; }
restore() { "$VARVE" restore /tmp/s --strategy tiered --pool-keys "$KEYS" --tune pool_transport=rdma --json \
    --vsock /tmp/v --console off --invoke "hello $1"; }
for try in $(seq 60); do reach && break; sleep 1; done
"$VARVE" run --kernel "$IMAGES/vmlinux" --initrd "$IMAGES/initramfs.cpio" \
    --rootfs "$IMAGES/functions.ext4:ro" --memory 256M --vsock cid=3,uds=/tmp/v --console off \
    --cmdline 'console=ttyS0 reboot=k panic=-1' --invoke 'hello 1' --snapshot-on-ready /tmp/s >/dev/null
"$VARVE" snapshot tier /tmp/s >/dev/null
for try in $(seq 60); do "$VARVE" pool status "$NODE" --keys "$KEYS" && break; sleep 1; done
"$VARVE" pool publish /tmp/s --to "$NODE" --keys "$KEYS"
rm /tmp/s/cold-*
before=$(packets)
restore 2 >/tmp/report
cat /tmp/report
echo "packets $(($(packets) - before))"
echo 'the node may go'
while reach; do sleep 0.2; done
code=0; restore 3 || code=$?
echo "code $code"
"#;

#[test]
#[cfg_attr(not(feature = "two-hosts"), ignore = "skipped: needs the feature two-hosts")]
fn a_machine_runs_on_the_memory_of_another_host_until_that_is_gone() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap();
    let varve = root.join("target/debug/varve");
    assert!(varve.exists(), "{} is missing: run 'cargo build -p varve-vmm'", varve.display());
    let dir = tempfile::tempdir().unwrap();
    let keys = dir.path().join("keys");
    std::fs::write(&keys, format!("acme {}\n", "5".repeat(64))).unwrap();
    std::fs::set_permissions(&keys, PermissionsExt::from_mode(0o600)).unwrap();

    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let lab = |role: &str| {
        let net = format!("{role}={port}");
        let lab = Lab::run(&["--rdma", "--timeout", "400", "--net", &net]);
        let lab = lab.variable("NODE", NODE).variable("KEYS", keys.to_str().unwrap());
        let lab = lab.variable("VARVE", varve.to_str().unwrap());
        lab.variable("IMAGES", root.join("target/guest").to_str().unwrap())
    };
    let mut node =
        lab("listen").start(r#"exec "$VARVE" pool serve --listen "$NODE" --keys "$KEYS""#);
    let mut machine = lab("connect").start(MACHINE);
    let mut said = String::new();
    for line in BufReader::new(machine.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        if line == "the node may go" {
            node.kill().unwrap();
        }
        said += &line;
        said.push('\n');
    }
    let errors = text(&machine.wait_with_output().unwrap().stderr);
    let _ = node.kill();
    node.wait().unwrap();

    let number = |name: &str| {
        let found = said.lines().find_map(|line| line.strip_prefix(name)?.parse::<u64>().ok());
        found.unwrap_or_else(|| panic!("no {name:?} in {said}\n{errors}"))
    };
    // Pages came by reads of the device's own.
    let remote = said.contains("\"tier\": \"remote\"");
    assert!(remote && said.contains("\"greeting\""), "{said}\n{errors}");
    assert!(number("packets ") > 100, "{said}");
    assert_eq!(number("code "), 5, "{said}\n{errors}");
    assert!(errors.contains("10.77.0.1:7421") && errors.contains("image cold"), "{errors}");
}
