//! The metadata service: a guest reads what the host wrote, through its network interface, in both
//! versions, before and after a snapshot.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::net::Ipv4Addr;

use serde_json::{Value, json};
use varve_skip::skipped;
use varve_tests::images::image;
use varve_tests::network::{enter_private, ip, ping};
use varve_tests::vm::CMDLINE;
use varve_tests::{Restoring, Vm, command};

const HOST: &str = "172.31.0.1";
const GUEST: Ipv4Addr = Ipv4Addr::new(172, 31, 0, 2);
const ADDRESS: &str = "169.254.170.2";
const TAP: &str = "mmtap";

/// The host's end of the guest's network, which is the guest's default route.
fn set_up_tap() {
    ip(&format!("tuntap add dev {TAP} mode tap"));
    ip(&format!("addr add {HOST}/24 dev {TAP}"));
    ip(&format!("link set {TAP} up"));
}

/// A machine with a control socket whose service is `mmds`. Its guest is up.
fn machine(mmds: &Value) -> Vm {
    let builder = Vm::builder();
    let config = json!({
        "boot-source": {
            "kernel_image_path": image("vmlinux"),
            "initrd_path": image("initramfs-tools.cpio"),
            "boot_args": format!("{CMDLINE} varve.ip={GUEST}/24,{HOST}"),
        },
        "network-interfaces": [{"iface_id": "eth0", "host_dev_name": TAP}],
        "vsock": {"guest_cid": 3, "uds_path": builder.dir().join("v.sock")},
        "mmds-config": mmds,
    });
    let mut vm = builder.config_file(config).controlled().start();
    vm.agent();
    vm
}

/// The guest's command for one request to `address`.
fn request(address: &str, request: &str, headers: &[&str]) -> String {
    let headers: String = headers.iter().map(|header| format!("{header}\\r\\n")).collect();
    let head = format!("{request} HTTP/1.1\\r\\nConnection: close\\r\\n{headers}\\r\\n");
    format!("printf '{head}' | nc -w 20 {address} 80")
}

/// One request of the guest, and the whole answer.
fn ask(vm: &mut Vm, text: &str, headers: &[&str]) -> String {
    vm.sh(&request(ADDRESS, text, headers))
}

/// The body of an answer with status 200.
fn read(vm: &mut Vm, path: &str, headers: &[&str]) -> String {
    let answer = ask(vm, &format!("GET {path}"), headers);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{answer:?}"));
    assert!(head.starts_with("HTTP/1.1 200 OK"), "{answer}");
    body.to_owned()
}

#[track_caller]
fn refused(answer: &str, status: &str, text: &str) {
    assert!(
        answer.starts_with(&format!("HTTP/1.1 {status}")) && answer.ends_with(text),
        "{answer}"
    );
}

/// A token of the guest, as a header.
fn token(vm: &mut Vm) -> String {
    let answer = ask(vm, "PUT /latest/api/token", &["X-aws-ec2-metadata-token-ttl-seconds: 60"]);
    let (head, token) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{answer:?}"));
    assert!(head.contains("X-aws-ec2-metadata-token-ttl-seconds: 60"), "{head}");
    format!("X-metadata-token: {token}")
}

#[test]
fn a_guest_reads_its_metadata_and_so_does_its_copy() {
    if let Err(reason) = enter_private() {
        return skipped("net", "a_guest_reads_its_metadata_and_so_does_its_copy", &reason);
    }
    set_up_tap();
    let mmds = json!({"version": "V2", "network_interfaces": ["eth0"], "ipv4_address": ADDRESS});
    let mut vm = machine(&mmds);
    let config = vm.control("GET", "/vm/config", &Value::Null);
    assert_eq!(config["mmds-config"]["version"], "V2", "{config}");
    assert_eq!(config["mmds-config"]["imds_compat"], false, "{config}");
    assert_eq!(vm.control("GET", "/mmds", &Value::Null), json!({}));
    let long = "0123456789".repeat(4000);
    let document = json!({"latest": {"meta-data": {"ami-id": "ami-1", "long": long}}});
    vm.control("PUT", "/mmds", &document);

    // By the default route first, which is the host's.
    refused(&ask(&mut vm, "GET /", &[]), "401", "header to specify the session token.");
    refused(&ask(&mut vm, "GET /", &["X-metadata-token: 0"]), "401", "MMDS token not valid.");
    vm.sh(&format!("ip route add {ADDRESS} dev eth0"));
    let own = token(&mut vm);
    assert_eq!(read(&mut vm, "/latest/meta-data/ami-id", &[&own]), "ami-1");
    assert_eq!(read(&mut vm, "/latest/", &[&own]), "meta-data/");
    let json = "Accept: application/json";
    assert_eq!(read(&mut vm, "/latest/meta-data/ami-id", &[&own, json]), "\"ami-1\"");
    assert!(read(&mut vm, "/latest/meta-data/long", &[&own]) == long);
    refused(&ask(&mut vm, "GET /no", &[&own]), "404", "Resource not found: /no.");
    refused(&ask(&mut vm, "POST /", &[&own]), "405", "Not allowed HTTP method.");
    vm.control("PATCH", "/mmds", &json!({"latest": {"meta-data": {"ami-id": "ami-2"}}}));
    assert_eq!(read(&mut vm, "/latest/meta-data/ami-id", &[&own]), "ami-2");
    // Nobody listens elsewhere, and the tap's network is as it always was.
    vm.sh(&format!("! nc -w 10 {ADDRESS} 81 </dev/null"));
    ping(GUEST, 2, 1000);

    let dir = tempfile::Builder::new().prefix("varve-mmds").tempdir().unwrap();
    vm.snapshot("--keep-paused", dir.path());
    // Both have one tap.
    drop(vm);
    let mut copy = Restoring::from(dir.path()).start();
    copy.agent();
    // Neither document nor tokens are in the snapshot; the guest knows the address still.
    assert_eq!(copy.control("GET", "/mmds", &Value::Null), json!({}));
    refused(&ask(&mut copy, "GET /latest", &[&own]), "401", "MMDS token not valid.");
    let own = token(&mut copy);
    refused(&ask(&mut copy, "GET /latest", &[&own]), "404", "Resource not found: /latest.");
    copy.control("PUT", "/mmds", &json!({"latest": "copy"}));
    assert_eq!(read(&mut copy, "/latest", &[&own]), "copy");
    ping(GUEST, 1, 1000);
}

#[test]
fn the_first_version_by_the_default_route() {
    if let Err(reason) = enter_private() {
        return skipped("net", "the_first_version_by_the_default_route", &reason);
    }
    set_up_tap();
    let mut vm = machine(&json!({"network_interfaces": ["eth0"]}));
    vm.control("PUT", "/mmds", &json!({"latest": {"id": "i-7", "n": 1}}));
    let get =
        |path: &str, headers: &[&str]| request("169.254.169.254", &format!("GET {path}"), headers);
    assert!(vm.sh(&get("/latest/id", &[])).ends_with("\r\n\r\ni-7"));
    assert!(vm.sh(&get("/latest", &["X-metadata-token: 0"])).ends_with("\r\n\r\nid\nn"));
    let answer = vm.sh(&get("/", &["Accept: application/json"]));
    assert!(answer.ends_with(r#"{"latest":{"id":"i-7","n":1}}"#), "{answer}");
    refused(&vm.sh(&get("/latest/n", &[])), "501", "The value has an unsupported type.");
    // As many at once as there are connections.
    let one = get("/latest/id", &[]);
    vm.sh(&format!(
        "for i in $(seq 20); do {{ {one}; }} >/tmp/o$i & done; wait
         [ $(cat /tmp/o* | grep -c i-7) = 20 ]"
    ));
}

/// No machine is needed for any of this.
#[test]
fn the_document_as_the_host_sees_it() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("metadata.json");
    fs::write(&file, r#"{"a": {"b": 1}}"#).unwrap();
    let vm = Vm::unconfigured(&format!("--metadata {} --mmds-size-limit 20", file.display()));
    let get = |vm: &Vm| vm.control("GET", "/mmds", &Value::Null);
    assert_eq!(get(&vm), json!({"a": {"b": 1}}));
    vm.control("PATCH", "/mmds", &json!({"a": {"b": null, "c": "x"}}));
    assert_eq!(get(&vm), json!({"a": {"c": "x"}}));
    for method in ["PUT", "PATCH"] {
        let (status, answer) = vm.ask(method, "/mmds", &json!({"a": "0123456789abcdef"}));
        assert_eq!(
            (status, &answer["fault_message"]),
            (413, &json!("The MMDS patch request doesn't fit."))
        );
    }
    assert_eq!(get(&vm), json!({"a": {"c": "x"}}));
    vm.control("PUT", "/mmds", &json!("text"));
    assert_eq!(get(&vm), json!("text"));

    let config =
        |id: &str, address: &str| json!({"network_interfaces": [id], "ipv4_address": address});
    let refused = |body: &Value| vm.refused("PUT", "/mmds/config", body);
    let unknown = refused(&config("eth0", ADDRESS));
    assert!(unknown.contains("does not correspond to any existing network interface"), "{unknown}");
    let far = refused(&config("eth0", "10.0.0.1"));
    assert_eq!(far, "MMDS config error: The MMDS IPv4 address is not link local.");
    let nobody = refused(&json!({"network_interfaces": []}));
    assert!(nobody.ends_with("that allow forwarding MMDS requests is empty."), "{nobody}");
    for bad in [json!({"version": "V2"}), json!({"network_interfaces": [], "version": "V3"})] {
        assert!(refused(&bad).contains("deserializing"), "{bad}");
    }
    assert_eq!(vm.control("GET", "/vm/config", &Value::Null)["mmds-config"], Value::Null);
    drop(vm);

    let empty = Vm::unconfigured("");
    assert_eq!(get(&empty), json!({}));
    let patch = empty.refused("PATCH", "/mmds", &json!({"a": 1}));
    assert_eq!(patch, "The MMDS data store is not initialized.");
    drop(empty);

    for (content, said) in [("{", "line 1"), ("[1, 2, 3, 4, 5, 6, 7]", "--mmds-size-limit")] {
        fs::write(&file, content).unwrap();
        let end = command::run([
            "--no-api",
            "--config-file",
            "none",
            "--mmds-size-limit",
            "10",
            "--metadata",
            file.to_str().unwrap(),
        ]);
        assert!(end.stderr.contains("--metadata") && end.stderr.contains(said), "{end:?}");
        assert_eq!(end.code, Some(1), "{end:?}");
    }
}
