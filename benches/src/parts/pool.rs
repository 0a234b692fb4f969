//! `pool`: reading an object from a memory node over TCP on loopback, by streams and bytes at once. Node
//! and clients are threads of this process, so that the processor time is that of both sides. Needs neither KVM
//! nor userfaultfd. Digests of pages are not compared here: that is `fetch`'s.

use std::hint::black_box;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use rustix::time::{ClockId, clock_gettime};
use varve_pool::client::{NodeClient, Transport};
use varve_pool::{Key, Keys, Node, NodeConfig};
use varve_snapshot::Digest;
use varve_tests::services::KEY;

use super::Effort;
use crate::progress::Progress;
use crate::recorder::{Recorder, Series};
use crate::report::Unit;

const STREAMS: [usize; 2] = [1, 4];
/// Bytes of a read, and MiB that are read in all: a page, a chunk, and a run of chunks.
const READS: [(usize, usize); 3] = [(4096, 48), (64 << 10, 512), (1 << 20, 768)];
const OBJECT: usize = 8 << 20;

pub fn run(effort: Effort, recorder: &mut Recorder) -> Result<()> {
    let keys = Keys::parse(&format!("acme {KEY}")).map_err(|e| anyhow!(e))?;
    let (tenant, key) = keys.only().context("no tenant")?;
    let (tenant, key): (_, Key) = (tenant.clone(), key.clone());
    let node = Node::start(NodeConfig {
        listen: "127.0.0.1:0".into(),
        keys,
        limit: 1 << 30,
        tenant_limit: None,
        store: None,
    })?;
    let (address, stop) = (node.address()?.to_string(), node.stop()?);
    let node = thread::spawn(move || node.run());
    let client = NodeClient::new(address, tenant, key).by(Transport::Tcp);
    let measured = measure(effort, &client, recorder);
    drop(client);
    stop.stop();
    node.join().map_err(|_| anyhow!("the node panicked"))?;
    measured
}

fn measure(effort: Effort, client: &NodeClient, recorder: &mut Recorder) -> Result<()> {
    let words = (0..OBJECT as u64 / 8).map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let object: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
    let id = Digest::of(&object).0;
    let mut holding = client.begin_to_hold()?;
    client.hold(&mut holding, id, &object)?;
    let mut progress = Progress::new("pool", STREAMS.len() * READS.len() * effort.runs);
    for _ in 0..effort.runs {
        for streams in STREAMS {
            for (bytes, mib) in READS {
                progress.step(&format!("{streams} streams, {bytes} bytes at once"));
                let mib = if effort.quick { mib / 16 } else { mib };
                let reads = (mib << 20) / streams / bytes;
                let (began, before) = (Instant::now(), cpu());
                read(client, id, streams, bytes, reads)?;
                let (time, cpu) = (began.elapsed(), cpu() - before);
                let (streams, bytes) = (streams.to_string(), bytes.to_string());
                let series = |name: &str, unit| {
                    let labels = [("streams", streams.as_str()), ("bytes at once", &bytes)];
                    Series::new("pool", name, unit).with(&labels)
                };
                let mib = mib as f64;
                let throughput = series("throughput", Unit::MibPerSecond);
                recorder.add(&throughput, mib / time.as_secs_f64())?;
                let of_a_gib = cpu.as_secs_f64() * 1e3 * 1024.0 / mib;
                recorder.add(&series("processor time of a GiB", Unit::Millis), of_a_gib)?;
            }
        }
    }
    Ok(())
}

fn read(
    client: &NodeClient,
    id: [u8; 32],
    streams: usize,
    bytes: usize,
    reads: usize,
) -> Result<()> {
    thread::scope(|scope| {
        let stream = |stream| {
            scope.spawn(move || {
                let mut buffer = vec![0; bytes];
                (0..reads).try_for_each(|n| {
                    let at = (n * streams + stream) * bytes % OBJECT;
                    client.read(id, at as u64, black_box(&mut buffer))
                })
            })
        };
        let all: Vec<_> = (0..streams).map(stream).collect();
        all.into_iter().try_for_each(|stream| {
            stream.join().map_err(|_| anyhow!("a stream panicked"))?.map_err(Into::into)
        })
    })
}

/// Processor time of this process up to now.
fn cpu() -> Duration {
    let now = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs() as u32)
}
