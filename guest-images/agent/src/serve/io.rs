//! `io`: times requests of one size to a block device, past the page cache, one at a time.

use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::fsync;
use rustix::io::{pread, pwrite};
use varve_agent::pattern;
use varve_agent::protocol::{Direction, Io, IoReply};

use super::block::{Buffer, CHUNK, SECTOR, open_direct, retry};

/// Bounds the list of times to 2 MiB.
const MAX_REQUESTS: u64 = 1 << 18;

/// Does the requests, and says how long they took.
pub fn run(request: &Io) -> Result<IoReply> {
    check(request)?;
    let (device, path) = open_direct(&request.device, request.direction)?;
    let mut memory = Buffer::new();
    let part = &mut memory.slice()[..request.request_bytes as usize];
    pattern::fill(request.seed, 0, part);
    let mut nanos = Vec::with_capacity(request.requests as usize);
    let start = Instant::now();
    for index in 0..request.requests {
        let place = place(request, index);
        let asked = Instant::now();
        let done = match request.direction {
            Direction::Read => retry(|| pread(&device, &mut part[..], place)),
            Direction::Write => retry(|| pwrite(&device, &part[..], place)),
        };
        nanos.push(asked.elapsed().as_nanos() as u64);
        let done = done.with_context(|| format!("{path}, {} bytes at {place}", part.len()))?;
        if done != part.len() {
            bail!("{path}: {done} of {} bytes at {place}", part.len());
        }
    }
    if request.direction == Direction::Write {
        fsync(&device).with_context(|| format!("cannot flush {path}"))?;
    }
    let micros = start.elapsed().as_micros() as u64;
    nanos.sort_unstable();
    Ok(IoReply {
        bytes: request.requests * request.request_bytes,
        micros,
        median_nanos: nanos[nanos.len() / 2],
        p99_nanos: nanos[(nanos.len() * 99).div_ceil(100) - 1],
    })
}

fn check(&Io { request_bytes, requests, span, .. }: &Io) -> Result<()> {
    ensure!(
        request_bytes.is_multiple_of(SECTOR) && (SECTOR..=CHUNK as u64).contains(&request_bytes),
        "request_bytes {request_bytes} must be a multiple of {SECTOR}, at most {CHUNK}"
    );
    ensure!(
        (1..=MAX_REQUESTS).contains(&requests),
        "requests {requests} must be from 1 to {MAX_REQUESTS}"
    );
    ensure!(span >= request_bytes, "span {span} has no room for {request_bytes} bytes");
    Ok(())
}

/// Where request number `index` goes. Places are multiples of the request's size.
fn place(request: &Io, index: u64) -> u64 {
    let places = request.span / request.request_bytes;
    let number = if request.random { pattern::word(request.seed, index) } else { index };
    number % places * request.request_bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn io(request_bytes: u64, requests: u64, span: u64) -> Io {
        let (device, direction) = ("none".to_owned(), Direction::Read);
        Io { device, direction, request_bytes, requests, span, random: false, seed: 3 }
    }

    #[test]
    fn places_stay_within_the_span() {
        let mut request = io(4096, 100, 10 * 4096 + 512);
        let inside = |place| place % 4096 == 0 && place + 4096 <= 10 * 4096 + 512;
        let in_order: Vec<_> = (0..11).map(|i| place(&request, i)).collect();
        assert_eq!(in_order[..3], [0, 4096, 8192]);
        assert_eq!(in_order[10], 0);
        assert!(in_order.iter().all(|&p| inside(p)));
        request.random = true;
        let scattered: Vec<_> = (0..100).map(|i| place(&request, i)).collect();
        assert!(scattered.iter().all(|&p| inside(p)));
        assert_eq!(scattered.iter().collect::<HashSet<_>>().len(), 10);
        assert_ne!(scattered[..3], in_order[..3]);
    }

    #[test]
    fn what_cannot_be_done_is_refused_by_name() {
        let error = |request: Io| run(&request).unwrap_err().to_string();
        assert!(error(io(100, 1, 4096)).contains("request_bytes 100"));
        assert!(error(io(0, 1, 4096)).contains("request_bytes 0"));
        assert!(error(io(2 << 20, 1, 4 << 20)).contains("request_bytes"));
        assert!(error(io(512, 0, 4096)).contains("requests 0"));
        assert!(error(io(512, u64::MAX, 4096)).contains("requests"));
        assert!(error(io(512, 1, 511)).contains("span 511"));
        assert!(error(io(512, 1, 512)).contains("/dev/none"));
    }
}
