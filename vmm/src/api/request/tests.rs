//! Bodies that Firecracker's users send, and those that are refused.

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::api::http::{Method, Request};

fn ask(method: Method, path: &str, body: &str) -> Result<Action, String> {
    let request = Request { method, path: path.into(), body: body.into() };
    parse(&request).map_err(|e| e.to_string())
}

fn refused(method: Method, path: &str, body: &str) -> String {
    ask(method, path, body).expect_err(path)
}

#[test]
fn each_route_is_found_and_names_are_unique() {
    let mut seen = std::collections::HashSet::new();
    for route in ROUTES {
        assert!(seen.insert((route.method.name(), route.path)), "{} twice", route.path);
        let body = if route.body == Some(true) { "?" } else { "" };
        let path = route.path.replace(['{', '}'], "");
        if let Err(message) = ask(route.method, &path, body) {
            assert!(message.contains("deserializing"), "{path}: {message}");
        }
    }
}

#[test]
fn paths_and_methods() {
    assert_eq!(ask(Method::Get, "/", ""), Ok(Action::DescribeInstance));
    assert_eq!(ask(Method::Get, "/vm/config/", ""), Ok(Action::DescribeConfig));
    let unknown = "Invalid request method and/or path:";
    assert_eq!(refused(Method::Get, "/foo", ""), format!("{unknown} GET foo."));
    assert_eq!(refused(Method::Delete, "/vm", ""), format!("{unknown} DELETE vm."));
    assert_eq!(refused(Method::Put, "/vm/x", "{}"), format!("{unknown} PUT vm/x."));
    assert_eq!(refused(Method::Get, "/", "{}"), "GET request cannot have a body.");
    assert_eq!(refused(Method::Get, "/foo", "{}"), "GET request cannot have a body.");
    assert_eq!(refused(Method::Put, "/vsock", ""), "Empty PUT request.");
    assert_eq!(refused(Method::Patch, "/vm", ""), "Empty PATCH request.");
}

/// Some clients append a name to paths that have none, as `PUT /vsock/vsock0`.
#[test]
fn segments_behind_a_route_are_ignored_unless_routes_branch_there() {
    let vsock = r#"{"guest_cid": 3, "uds_path": "v"}"#;
    assert!(matches!(ask(Method::Put, "/vsock/vsock0", vsock), Ok(Action::SetVsock(_))));
    assert_eq!(ask(Method::Get, "/version/1/2", ""), Ok(Action::DescribeVersion));
    let drive = r#"{"drive_id": "a", "is_root_device": false, "path_on_host": "x"}"#;
    assert!(matches!(ask(Method::Put, "/drives/a/b", drive), Ok(Action::SetDrive(_))));
    let other = refused(Method::Put, "/drives/b/a", drive);
    assert_eq!(other, "The id from the path does not match the id from the body!");
    for (method, path, body) in [
        (Method::Get, "/x", ""),
        (Method::Get, "/balloon/x", ""),
        (Method::Patch, "/balloon/x", r#"{"amount_mib": 1}"#),
        (Method::Put, "/mmds/x", "{}"),
        (Method::Get, "/vm/x", ""),
        (Method::Put, "/snapshot/x", "{}"),
    ] {
        let message = refused(method, path, body);
        assert!(message.starts_with("Invalid request method and/or path"), "{path}: {message}");
    }
}

#[test]
fn names_in_paths() {
    let drive = r#"{"drive_id": "a", "is_root_device": false, "path_on_host": "x"}"#;
    assert!(
        matches!(ask(Method::Put, "/drives/a", drive), Ok(Action::SetDrive(d)) if d.drive_id == "a")
    );
    assert_eq!(refused(Method::Put, "/drives", drive), "The ID cannot be empty.");
    assert_eq!(refused(Method::Put, "/drives/", drive), "The ID cannot be empty.");
    let odd = refused(Method::Put, "/drives/a-b", drive);
    assert_eq!(odd, "API Resource IDs can only contain alphanumeric characters and underscores.");
    let other = refused(Method::Put, "/drives/b", drive);
    assert_eq!(other, "The id from the path does not match the id from the body!");
    let net = r#"{"iface_id": "eth0", "host_dev_name": "tap0"}"#;
    let other = refused(Method::Put, "/network-interfaces/eth1", net);
    let message = "The id from the path [eth1] does not match the id from the body [eth0]!";
    assert_eq!(other, message);
}

#[test]
fn bodies() {
    let start = Ok(Action::StartInstance);
    assert_eq!(ask(Method::Put, "/actions", r#"{"action_type": "InstanceStart"}"#), start);
    let unknown = refused(Method::Put, "/actions", r#"{"action_type": "Dance"}"#);
    let prefix = "An error occurred when deserializing the json body of a request: ";
    assert!(unknown.starts_with(&format!("{prefix}unknown variant `Dance`")), "{unknown}");
    let named = r#"{"guest_cid": 3, "uds_path": "v", "vsock_id": "v"}"#;
    assert!(ask(Method::Put, "/vsock", named).unwrap().is_deprecated());
    let plain = r#"{"guest_cid": 3, "uds_path": "v"}"#;
    assert!(!ask(Method::Put, "/vsock", plain).unwrap().is_deprecated());
    let field = refused(Method::Put, "/vsock", r#"{"guest_cid": 3, "uds_path": "v", "x": 1}"#);
    assert!(field.contains("unknown field `x`") && field.ends_with('.'), "{field}");
    assert_eq!(refused(Method::Patch, "/machine-config", "{}"), "Empty PATCH request.");
    let stop = Ok(Action::StartHinting(HintingStart { acknowledge_on_stop: false }));
    let path = "/balloon/hinting/start";
    assert_eq!(ask(Method::Patch, path, r#"{"acknowledge_on_stop": false}"#), stop);
    assert_eq!(ask(Method::Patch, path, ""), Ok(Action::StartHinting(HintingStart::default())));
    let create = json!({"snapshot_path": "s", "mem_file_path": "m"}).to_string();
    let Ok(Action::CreateSnapshot(create)) = ask(Method::Put, "/snapshot/create", &create) else {
        panic!()
    };
    assert_eq!(create.snapshot_type, SnapshotType::Full);
}

proptest! {
    #[test]
    fn never_panics(path in "/[a-z{}/_-]{0,30}", body in ".{0,60}", method in 0usize..4) {
        let method = [Method::Get, Method::Put, Method::Patch, Method::Delete][method];
        let _ = ask(method, &path, &body);
    }

    #[test]
    fn never_panics_on_routes(route in 0..ROUTES.len(), body in ".{0,60}") {
        let Route { method, path, .. } = &ROUTES[route];
        let _ = ask(*method, path, &body);
    }
}
