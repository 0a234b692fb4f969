//! Feeds the parser of traces with damaged files; what it accepts must survive a round trip.
#![no_main]

mod reseal;

use libfuzzer_sys::fuzz_target;
use varve_snapshot::Trace;

fuzz_target!(|bytes: &[u8]| {
    let _ = Trace::from_bytes(bytes);
    if let Ok(read) = Trace::from_bytes(&reseal::reseal(bytes)) {
        let again = read.to_bytes();
        assert_eq!(Trace::from_bytes(&again), Ok(read));
    }
});
