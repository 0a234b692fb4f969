//! Requests to the API that were damaged at random: they are understood or refused, and never more of
//! the input is taken than is there. `make fuzz` runs many more of them.

#![allow(clippy::unwrap_used, reason = "tests")]

use proptest::prelude::*;
use proptest::sample::Index;
use varve_vmm::api::Method::{Get, Patch, Put};
use varve_vmm::api::http::{Parsed, parse};
use varve_vmm::api::{Method, Request, request};

const MAX_BODY: usize = 4096;

/// One good request for each body that there is.
const GOOD: &[(Method, &str, &str)] = &[
    (Get, "/", ""),
    (Get, "/vm/config", ""),
    (Put, "/actions", r#"{"action_type": "InstanceStart"}"#),
    (
        Put,
        "/balloon",
        r#"{"amount_mib": 8, "deflate_on_oom": true, "stats_polling_interval_s": 1}"#,
    ),
    (Patch, "/balloon", r#"{"amount_mib": 8}"#),
    (Patch, "/balloon/statistics", r#"{"stats_polling_interval_s": 2}"#),
    (Patch, "/balloon/hinting/start", r#"{"acknowledge_on_stop": false}"#),
    (
        Put,
        "/boot-source",
        r#"{"kernel_image_path": "k", "initrd_path": "i", "boot_args": "quiet"}"#,
    ),
    (
        Put,
        "/cpu-config",
        r#"{"kvm_capabilities": ["!121"], "cpuid_modifiers": [{"leaf": "0x1", "subleaf": "0x0",
            "flags": 0, "modifiers": [{"register": "ecx", "bitmap": "0bx0"}]}],
            "msr_modifiers": [{"addr": "0x1a0", "bitmap": "0b1x"}]}"#,
    ),
    (
        Put,
        "/drives/a",
        r#"{"drive_id": "a", "is_root_device": false, "path_on_host": "p", "is_read_only": true,
            "cache_type": "Writeback", "io_engine": "Sync", "rate_limiter":
            {"bandwidth": {"size": 1000, "one_time_burst": 2000, "refill_time": 100}}}"#,
    ),
    (Patch, "/drives/a", r#"{"drive_id": "a", "path_on_host": "p"}"#),
    (Put, "/entropy", r#"{"rate_limiter": {"bandwidth": {"size": 1000, "refill_time": 100}}}"#),
    (Put, "/logger", r#"{"log_path": "l", "level": "Info", "show_level": true}"#),
    (Put, "/machine-config", r#"{"vcpu_count": 2, "mem_size_mib": 256, "huge_pages": "2M"}"#),
    (Patch, "/machine-config", r#"{"track_dirty_pages": true}"#),
    (Put, "/metrics", r#"{"metrics_path": "m"}"#),
    (Put, "/mmds", r#"{"latest": {"meta-data": {"id": "i-1", "n": [1, 2.5, null]}}}"#),
    (Put, "/mmds/config", r#"{"version": "V2", "network_interfaces": ["e"]}"#),
    (
        Put,
        "/network-interfaces/e",
        r#"{"iface_id": "e", "host_dev_name": "t", "guest_mac": "06:00:00:00:00:01"}"#,
    ),
    (
        Put,
        "/snapshot/create",
        r#"{"snapshot_type": "Diff", "snapshot_path": "s", "mem_file_path": "m"}"#,
    ),
    (
        Put,
        "/snapshot/load",
        r#"{"snapshot_path": "s", "mem_backend": {"backend_type": "Uffd", "backend_path": "u"},
            "resume_vm": true, "network_overrides": [{"iface_id": "e", "host_dev_name": "t"}],
            "vsock_override": {"uds_path": "v"}, "clock_realtime": true}"#,
    ),
    (
        Put,
        "/snapshot/load",
        r#"{"mem_backend": {"backend_type": "Tiered", "backend_path": "d"},
            "restore": {"strategy": "tiered", "wait": "written", "threads": 2}}"#,
    ),
    (Put, "/trace", r#"{"action": "Mark", "label": "warm"}"#),
    (Patch, "/vm", r#"{"state": "Paused"}"#),
    (Put, "/vsock", r#"{"guest_cid": 3, "uds_path": "v"}"#),
];

fn encoded((method, path, body): &(Method, &str, &str)) -> Vec<u8> {
    let (name, length) = (method.name(), body.len());
    let head = format!("{name} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n");
    format!("{head}\r\n{body}").into_bytes()
}

/// All that the API makes of an input: the requests in it, and whether it hangs up then.
fn understood(mut input: &[u8]) -> (Vec<Request>, bool) {
    let mut requests = Vec::new();
    loop {
        match parse(input, MAX_BODY) {
            Parsed::Partial { .. } => return (requests, false),
            Parsed::Bad(response) => {
                assert!([400, 413].contains(&response.status), "{response:?}");
                assert!(response.body.is_some_and(|body| body.contains("fault_message")));
                return (requests, true);
            }
            Parsed::Request { request, len, keep_alive } => {
                assert!((1..=input.len()).contains(&len), "{len} of {}", input.len());
                assert!(request.body.len() <= MAX_BODY);
                if let Err(error) = request::parse(&request) {
                    assert!(!error.to_string().is_empty());
                }
                requests.push(request);
                if !keep_alive {
                    return (requests, true);
                }
                input = &input[len..];
            }
        }
    }
}

/// A piece of damage.
#[derive(Clone, Debug)]
enum Damage {
    Set(Index, u8),
    Insert(Index, Vec<u8>),
    Remove(Index, usize),
    Repeat(Index, usize),
    /// A number grows.
    Digits(Index, u64),
}

fn damage() -> impl Strategy<Value = Damage> {
    let at = any::<Index>;
    let insert = prop_oneof![
        prop::collection::vec(any::<u8>(), 1..20),
        prop::sample::select(
            &["{", "[", "\"", "null", "-1", "1e999", "\\u0000", "\r\n", "\r\n\r\n"][..]
        )
        .prop_map(|text| text.as_bytes().to_vec()),
    ];
    prop_oneof![
        (at(), any::<u8>()).prop_map(|(at, byte)| Damage::Set(at, byte)),
        (at(), insert).prop_map(|(at, bytes)| Damage::Insert(at, bytes)),
        (at(), 1..40usize).prop_map(|(at, len)| Damage::Remove(at, len)),
        (at(), 1..200usize).prop_map(|(at, len)| Damage::Repeat(at, len)),
        (at(), any::<u64>()).prop_map(|(at, number)| Damage::Digits(at, number)),
    ]
}

fn apply(bytes: &mut Vec<u8>, damage: &Damage) {
    if bytes.is_empty() {
        return;
    }
    let place = |at: &Index, len: usize| at.index(len);
    let len = bytes.len();
    match damage {
        Damage::Set(at, byte) => bytes[place(at, len)] = *byte,
        Damage::Insert(at, more) => {
            let at = place(at, len);
            bytes.splice(at..at, more.iter().copied());
        }
        Damage::Remove(at, count) => {
            let at = place(at, len);
            bytes.drain(at..(at + count).min(len));
        }
        Damage::Repeat(at, count) => {
            let at = place(at, len);
            let piece = bytes[at..(at + count).min(len)].to_vec();
            bytes.splice(at..at, piece);
        }
        Damage::Digits(at, number) => {
            let digits: Vec<usize> = (0..len).filter(|&i| bytes[i].is_ascii_digit()).collect();
            if let Some(at) = (!digits.is_empty()).then(|| digits[place(at, digits.len())]) {
                bytes.splice(at..=at, number.to_string().into_bytes());
            }
        }
    }
}

#[test]
fn undamaged_requests_are_understood() {
    for good in GOOD {
        let (requests, bad) = understood(&encoded(good));
        assert!(!bad && requests.len() == 1, "{good:?}");
        request::parse(&requests[0]).unwrap_or_else(|error| panic!("{good:?}: {error}"));
    }
}

proptest! {
    #[test]
    fn damaged_requests(
        picked in prop::collection::vec(0..GOOD.len(), 1..4),
        harm in prop::collection::vec(damage(), 1..6),
        cut in any::<Index>(),
    ) {
        let mut input: Vec<u8> = picked.iter().flat_map(|&good| encoded(&GOOD[good])).collect();
        harm.iter().for_each(|harm| apply(&mut input, harm));
        let (all, _) = understood(&input);
        // Whatever has not come yet, what came first is understood alike.
        let (some, _) = understood(&input[..cut.index(input.len() + 1)]);
        prop_assert_eq!(&all[..some.len().min(all.len())], &some[..]);
    }

    #[test]
    fn damaged_bodies(good in 0..GOOD.len(), harm in prop::collection::vec(damage(), 1..6)) {
        let (method, path, body) = GOOD[good];
        let mut body = body.as_bytes().to_vec();
        harm.iter().for_each(|harm| apply(&mut body, harm));
        if let Err(error) = request::parse(&Request { method, path: path.into(), body }) {
            prop_assert!(!error.to_string().is_empty());
        }
    }
}
