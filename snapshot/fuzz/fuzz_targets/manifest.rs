//! Feeds the parser of manifests with damaged files; what it accepts must survive a round trip.
#![no_main]

mod reseal;

use libfuzzer_sys::fuzz_target;
use varve_snapshot::Manifest;

fuzz_target!(|bytes: &[u8]| {
    let _ = Manifest::from_bytes(bytes);
    if let Ok(read) = Manifest::from_bytes(&reseal::reseal(bytes)) {
        let again = read.to_bytes().expect("what was read can be written");
        assert_eq!(Manifest::from_bytes(&again), Ok(read));
    }
});
