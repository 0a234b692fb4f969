//! Feeds the API with bytes of a connection, and each route with bodies.
#![no_main]

use libfuzzer_sys::fuzz_target;
use varve_vmm::api::Request;
use varve_vmm::api::http::{Parsed, parse};
use varve_vmm::api::request;

const MAX_BODY: usize = 4096;

fuzz_target!(|bytes: &[u8]| {
    let [route, rest @ ..] = bytes else { return };
    if let Some(route) = request::ROUTES.get(usize::from(*route)) {
        let path = route.path.replace(['{', '}'], "");
        let _ = request::parse(&Request { method: route.method, path, body: rest.to_vec() });
        return;
    }
    let mut input = rest;
    while let Parsed::Request { request, len, keep_alive } = parse(input, MAX_BODY) {
        assert!((1..=input.len()).contains(&len) && request.body.len() <= MAX_BODY);
        let _ = request::parse(&request);
        if !keep_alive {
            break;
        }
        input = &input[len..];
    }
});
