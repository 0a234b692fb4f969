//! Feeds the metadata service with bytes of a connection: each is answered, or waits for more.
#![no_main]

mod guest;

use libfuzzer_sys::fuzz_target;
use varve_devices::mmds::Service;
use varve_devices::mmds::http::{MAX_REQUEST, answer};

fuzz_target!(|bytes: &[u8]| {
    let mut input = &bytes[..bytes.len().min(MAX_REQUEST)];
    let mmds = guest::mmds(100);
    for version in ["V1", "V2"] {
        let service = Service::new(mmds.clone(), &guest::config(version));
        while let Some(answered) = answer(input, |request| service.respond(request)) {
            assert!(answered.output.starts_with(b"HTTP/1."));
            assert!((1..=input.len()).contains(&answered.taken));
            input = &input[answered.taken..];
            if answered.close {
                break;
            }
        }
    }
});
