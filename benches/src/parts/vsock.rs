//! `vsock`: throughput of streams between host and guest, and the latency of a request.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use varve_agent::client::{Client, connect_vsock};
use varve_agent::protocol::{Ping, Request, Stream, Transfer};
use varve_agent::{STREAM_PORT, pattern};
use varve_tests::Vm;
use varve_tests::images::image;

use super::{Effort, LONGEST_ANSWER, agent};
use crate::progress::Progress;
use crate::recorder::{Recorder, Series};
use crate::report::Unit;

/// Bytes of all streams together, in one direction.
const BYTES: u64 = 32 << 20;
const PINGS: usize = 100;
const STREAMS: [u64; 2] = [1, 16];
const SEED: u64 = 7;

#[derive(Clone, Copy)]
enum Way {
    ToGuest,
    ToHost,
}

pub fn run(effort: Effort, recorder: &mut Recorder) -> Result<()> {
    let mut vm =
        Vm::builder().initrd(Some(image("initramfs.cpio"))).option("--memory", "256M").start();
    let mut agent = agent(&mut vm)?;
    let bytes = if effort.quick { BYTES / 8 } else { BYTES };
    let mut progress = Progress::new("vsock", effort.runs * 5);
    for _ in 0..effort.runs {
        for streams in STREAMS {
            for (way, name) in [(Way::ToGuest, "host to guest"), (Way::ToHost, "guest to host")] {
                progress.step(&format!("{name}, {streams} at once"));
                let time = transfer(&vm.uds(), way, streams, bytes / streams)
                    .with_context(|| format!("{name}, {streams} at once"))?;
                let series = Series::new("vsock", name, Unit::MibPerSecond)
                    .with(&[("streams", &streams.to_string())]);
                recorder.add(&series, bytes as f64 / f64::from(1 << 20) / time.as_secs_f64())?;
            }
        }
        progress.step("requests");
        let series = Series::new("vsock", "request and answer", Unit::Micros);
        for _ in 0..PINGS {
            let start = Instant::now();
            let _: Ping = agent.call(&Request::Ping).context("ping")?;
            recorder.add(&series, start.elapsed().as_secs_f64() * 1e6)?;
        }
    }
    Ok(())
}

/// Moves `bytes` bytes by each of `streams` streams, all at once, and says how long it took.
/// Connections stand before the clock runs.
fn transfer(uds: &Path, way: Way, streams: u64, bytes: u64) -> Result<Duration> {
    let mut data = vec![0; usize::try_from(bytes)?];
    pattern::fill(SEED, 0, &mut data);
    let checksum = pattern::crc32(SEED, bytes);
    let connections = (0..streams)
        .map(|_| connect_vsock(uds, STREAM_PORT))
        .collect::<Result<Vec<_>, _>>()
        .context("cannot connect")?;
    for connection in &connections {
        connection.set_read_timeout(Some(LONGEST_ANSWER))?;
        connection.set_write_timeout(Some(LONGEST_ANSWER))?;
    }
    let start_line = Barrier::new(connections.len() + 1);
    thread::scope(|scope| {
        let (data, start_line) = (&data, &start_line);
        let threads: Vec<_> = connections
            .into_iter()
            .map(|connection| {
                scope.spawn(move || {
                    start_line.wait();
                    match way {
                        Way::ToGuest => send(connection, data, checksum),
                        Way::ToHost => receive(connection, data),
                    }
                })
            })
            .collect();
        start_line.wait();
        let start = Instant::now();
        for thread in threads {
            thread.join().map_err(|_| anyhow::anyhow!("a stream's thread panicked"))??;
        }
        Ok(start.elapsed())
    })
}

fn open(connection: &mut UnixStream, stream: &Stream) -> Result<()> {
    Ok(varve_agent::frame::write_line(connection, stream)?)
}

/// The guest answers when it has everything, with a checksum.
fn send(mut connection: UnixStream, data: &[u8], checksum: u32) -> Result<()> {
    open(&mut connection, &Stream::Sink { bytes: data.len() as u64 })?;
    connection.write_all(data)?;
    let answer: Transfer = Client::new(connection).answer()?;
    ensure!(answer.crc32 == checksum, "the guest got other data than were sent");
    Ok(())
}

fn receive(mut connection: UnixStream, expected: &[u8]) -> Result<()> {
    open(&mut connection, &Stream::Source { bytes: expected.len() as u64, seed: SEED })?;
    let mut buffer = vec![0; 256 << 10];
    let mut place = 0;
    loop {
        let count = connection.read(&mut buffer)?;
        if count == 0 {
            ensure!(place == expected.len(), "the guest sent {place} bytes only");
            return Ok(());
        }
        let wanted = expected.get(place..place + count);
        ensure!(wanted == Some(&buffer[..count]), "other data than expected after byte {place}");
        place += count;
    }
}
