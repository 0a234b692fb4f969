//! Feeds the metadata service's TCP/IP stack with what a guest sends when it means no good; it has to
//! serve a well-behaved one afterwards.
#![no_main]

mod guest;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|script: &[u8]| guest::misbehave(script));
