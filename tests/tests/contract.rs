//! The API as it is described beside the code, operation by operation and field by field, against the
//! real process: before there is a machine, and after.

#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "../../vmm/src/api/request/description.rs"]
mod description;

use std::fs;

use description::{Description, Operation};
use serde_json::{Value, json};
use varve_tests::images::image;
use varve_tests::{Vm, network};

const DESCRIPTION: &str = include_str!("../../vmm/src/api/openapi.json");
const BEFORE: &str = "The requested operation is not supported before starting the microVM.";
const AFTER: &str = "The requested operation is not supported after starting the microVM.";

/// The value with real files in place of names that begin with `@`.
fn with_files(value: &Value, vm: &Vm) -> Value {
    match value {
        Value::String(name) => match name.strip_prefix('@') {
            Some("kernel") => json!(image("vmlinux")),
            Some("image") => {
                let path = vm.dir().join("image");
                fs::write(&path, [0; 4096]).unwrap();
                json!(path)
            }
            Some(name) => json!(vm.dir().join(name)),
            None => value.clone(),
        },
        Value::Array(items) => items.iter().map(|item| with_files(item, vm)).collect(),
        Value::Object(fields) => {
            let fields = fields.iter().map(|(name, field)| (name.clone(), with_files(field, vm)));
            Value::Object(fields.collect())
        }
        _ => value.clone(),
    }
}

/// Whether the example has something that the description says varve has not.
fn asks_too_much(operation: &Operation, description: &Description, body: &Value) -> bool {
    operation.is_unsupported()
        || operation.body().is_some_and(|schema| description.has_unsupported(schema, body))
}

fn refused(vm: &Vm, operation: &Operation, body: &Value) -> String {
    let (status, answer) = vm.ask(&operation.method, &operation.target(Some(body)), body);
    let message = answer["fault_message"].as_str().unwrap_or_default();
    assert!(
        status == 400 && !message.is_empty(),
        "{} {body}: {status} {answer}",
        operation.shown()
    );
    message.to_owned()
}

#[test]
fn before_the_start() {
    network::enter_private().unwrap();
    network::ip("tuntap add tap0 mode tap");
    let description = Description::parse(DESCRIPTION);
    let mut vm = Vm::unconfigured("");
    for operation in description.operations() {
        let examples = match operation.body() {
            Some(schema) => description.examples(schema),
            None => vec![Value::Null],
        };
        for example in examples {
            let body = with_files(&example, &vm);
            let shown = format!("{} {body}", operation.shown());
            if operation.when() == "after-start" {
                assert_eq!(refused(&vm, &operation, &body), BEFORE, "{shown}");
                continue;
            }
            if asks_too_much(&operation, &description, &body) {
                let message = refused(&vm, &operation, &body);
                assert!(message.contains("not supported"), "{shown}: {message}");
                continue;
            }
            match operation.path {
                // They need a machine or a snapshot, which other tests have.
                "/actions" | "/snapshot/load" => continue,
                // Only the first one counts in a process.
                "/logger" | "/metrics" | "/mmds/config" => vm = Vm::unconfigured(""),
                // What is merged into must be there.
                "/mmds" => drop(vm.control("PUT", "/mmds", &json!({}))),
                _ => {}
            }
            if operation.path == "/mmds/config" {
                let eth0 = json!({"iface_id": "eth0", "host_dev_name": "tap0"});
                vm.control("PUT", "/network-interfaces/eth0", &eth0);
            }
            let body = with_files(&example, &vm);
            let target = operation.target(Some(&body));
            let (status, answer) = vm.ask(&operation.method, &target, &body);
            let nothing_there = matches!(operation.path, "/balloon") && operation.method == "GET";
            assert!(status == 200 || status == 204 || nothing_there, "{shown}: {status} {answer}");
        }
        if !operation.is_unsupported() {
            wrong_bodies_are_refused(&vm, &operation, &description);
        }
    }
    let (status, answer) = vm.ask("PUT", "/no/such", &json!({}));
    assert_eq!(status, 400);
    assert!(answer["fault_message"].as_str().unwrap().contains("no/such"), "{answer}");
}

fn wrong_bodies_are_refused(vm: &Vm, operation: &Operation, description: &Description) {
    // Metadata is any JSON.
    let Some(schema) = operation.body().filter(|_| operation.path != "/mmds") else { return };
    for body in description.counterexamples(schema) {
        refused(vm, operation, &body);
    }
}

#[test]
fn after_the_start() {
    let description = Description::parse(DESCRIPTION);
    let mut vm = Vm::unconfigured("");
    let put = |target: &str, body: Value| drop(vm.control("PUT", target, &body));
    put(
        "/boot-source",
        json!({"kernel_image_path": image("vmlinux"),
        "initrd_path": image("initramfs.cpio"), "boot_args": varve_tests::vm::CMDLINE}),
    );
    let drive = json!({"drive_id": "rootfs", "is_root_device": false, "path_on_host": "@image"});
    put("/drives/rootfs", with_files(&drive, &vm));
    put("/vsock", json!({"guest_cid": 3, "uds_path": vm.uds()}));
    put(
        "/balloon",
        json!({"amount_mib": 0, "deflate_on_oom": true, "free_page_hinting": true,
        "stats_polling_interval_s": 1}),
    );
    put("/mmds", json!({}));
    put("/actions", json!({"action_type": "InstanceStart"}));
    vm.agent();
    for operation in description.operations() {
        let examples = match operation.body() {
            Some(schema) => description.examples(schema),
            None => vec![Value::Null],
        };
        for body in examples {
            let body = with_files(&body, &vm);
            let shown = format!("{} {body}", operation.shown());
            match (operation.when(), operation.path) {
                ("before-start", _) => {
                    assert_eq!(refused(&vm, &operation, &body), AFTER, "{shown}");
                    break;
                }
                // Without a recording, metrics, a network interface or a pool; hinting and snapshots
                // have tests of their own.
                (
                    _,
                    "/trace"
                    | "/actions"
                    | "/network-interfaces/{iface_id}"
                    | "/snapshot/create"
                    | "/memory/offload",
                )
                | (_, "/balloon/hinting/start" | "/balloon/hinting/stop") => {}
                _ if operation.is_unsupported() => {}
                _ => {
                    let target = operation.target(Some(&body));
                    let (status, answer) = vm.ask(&operation.method, &target, &body);
                    assert!(status == 200 || status == 204, "{shown}: {status} {answer}");
                }
            }
        }
        if !operation.is_unsupported() {
            wrong_bodies_are_refused(&vm, &operation, &description);
        }
    }
    // After all that, the guest is well.
    vm.control("PATCH", "/vm", &json!({"state": "Resumed"}));
    vm.agent();
}
