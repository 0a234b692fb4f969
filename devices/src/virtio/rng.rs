//! virtio entropy source over the host's random number generator (virtio 1.2, 5.4).

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use event_manager::EventSet;
use rustix::rand::{GetRandomFlags, getrandom};
use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use super::buffers::{Buffers, ChainError};
use super::{BrokenQueue, Chain, DeviceIo, Done, Failure, Source, Turn, VirtioDevice};
use crate::limiter::{Limiter, LimiterConfig, LimiterState};
use crate::memory::DeviceMemory;
use crate::metrics::EntropyMetrics;
use crate::state::{self, Savable, StateError};

/// Most bytes that one request gets; a driver that asks for more is given less and asks again
/// (virtio 1.2, 5.4.6: the device may use fewer bytes than the buffer has).
pub const MAX_BYTES: usize = 64 << 10;

/// Bytes of one turn: they are computed, which takes longer than moving them.
const TURN: u64 = 1 << 20;

const VERSION: u32 = 2;
const QUEUE: usize = 0;
const QUEUE_SIZE: u16 = 256;

/// An entropy source.
#[derive(Debug)]
pub struct Rng {
    limiter: Limiter,
    metrics: Arc<EntropyMetrics>,
}

impl Rng {
    /// An entropy source. Fails if the system has no timer for its limits.
    pub fn new(limits: LimiterConfig) -> io::Result<Rng> {
        Ok(Rng { limiter: Limiter::new(limits)?, metrics: Arc::default() })
    }

    /// What it counts.
    pub fn metrics(&self) -> Arc<EntropyMetrics> {
        self.metrics.clone()
    }

    /// Fills the writable part of `chain`. It waits if the limiter does not let it go yet.
    fn request(&mut self, chain: Chain, mem: &DeviceMemory, turn: &Turn) -> Done {
        let mut written = 0;
        let filled = match Buffers::new(chain, mem) {
            Ok(buffers) => {
                let len = buffers.writable.len().min(MAX_BYTES);
                if !self.limiter.take(len as u64) {
                    self.metrics.entropy_rate_limiter_throttled.inc();
                    return Done::Waits;
                }
                self.fill(buffers, len, &mut written)
            }
            Err(e) => Err(e),
        };
        if let Err(e) = filled {
            log::debug!("rng: malformed request: {e}");
            self.metrics.entropy_event_fails.inc();
        }
        self.metrics.entropy_event_count.inc();
        self.metrics.entropy_bytes.add(written.into());
        turn.bytes(written.into());
        if turn.work().bytes >= TURN {
            turn.end();
        }
        Done::Used(written)
    }

    /// Writes `left` random bytes, counted in `written`.
    fn fill(
        &self,
        mut buffers: Buffers,
        mut left: usize,
        written: &mut u32,
    ) -> Result<(), ChainError> {
        // Random bytes are never written straight to guest memory: the guest could watch them come.
        let mut bytes = [0u8; 1024];
        while left > 0 {
            let want = left.min(bytes.len());
            let got = match getrandom(&mut bytes[..want], GetRandomFlags::empty()) {
                Ok(n) => n,
                Err(rustix::io::Errno::INTR) => continue,
                Err(e) => {
                    log::error!("rng: getrandom: {e}");
                    self.metrics.host_rng_fails.inc();
                    return Ok(());
                }
            };
            buffers.writable.write_all(&bytes[..got])?;
            *written += got as u32;
            left -= got;
        }
        Ok(())
    }
}

impl VirtioDevice for Rng {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_RNG
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC
    }

    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}

    fn activate(&mut self, _features: u64) {}

    fn reset(&mut self) {}

    fn sources(&self) -> Vec<Source> {
        vec![Source { fd: self.limiter.as_raw_fd(), token: 0, events: EventSet::IN }]
    }

    fn queue_event(&mut self, queue: usize, io: &mut DeviceIo) -> Result<(), BrokenQueue> {
        if self.limiter.waits() {
            return Ok(());
        }
        let turn = io.turn;
        io.drain(queue, |chain, mem| self.request(chain, mem, turn))
    }

    fn failed(&self, failure: Failure) {
        match failure {
            Failure::Activation => self.metrics.activate_fails.inc(),
            Failure::Queue(_) => self.metrics.entropy_event_fails.inc(),
        }
    }

    fn source_event(
        &mut self,
        _token: u32,
        _events: EventSet,
        io: &mut DeviceIo,
    ) -> Result<(), BrokenQueue> {
        if !self.limiter.resume() {
            return Ok(());
        }
        self.metrics.rate_limiter_event_count.inc();
        self.queue_event(QUEUE, io)
    }
}

impl Savable for Rng {
    fn version(&self) -> u32 {
        VERSION
    }

    fn save(&self) -> Vec<u8> {
        state::encode(&self.limiter.save())
    }

    fn restore(&mut self, version: u32, bytes: &[u8]) -> Result<(), StateError> {
        // Before there were limits, there was no state.
        let limiter = match version {
            1 => state::decode::<()>(version, 1, bytes).map(|()| LimiterState::default())?,
            _ => state::decode(version, VERSION, bytes)?,
        };
        self.limiter.restore(limiter);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::testing::{BUFFERS, Rig};

    fn device() -> Option<Box<dyn VirtioDevice>> {
        Some(Box::new(Rng::new(LimiterConfig::default()).unwrap()))
    }

    crate::virtio::conformance::device_conformance!(device);

    #[test]
    fn fills_all_pieces_and_no_more() {
        let mut rig = Rig::new(device().unwrap());
        rig.push(0, &[(BUFFERS, 100, true), (BUFFERS + 200, 100, true)]);
        rig.push(0, &[(BUFFERS + 0x1000, 100, true)]);
        rig.notify(0);
        assert_eq!(rig.used(0), [(0, 200), (2, 100)]);
        for (from, len) in [(0, 100), (200, 100), (0x1000, 100)] {
            // All zero by chance: 1 in 2^800.
            assert!(rig.get(BUFFERS + from, len).iter().any(|&b| b != 0));
        }
        for (from, len) in [(100, 100), (300, 100), (0x1064, 100)] {
            assert_eq!(rig.get(BUFFERS + from, len), vec![0; len], "outside of the buffers");
        }
        assert_ne!(rig.get(BUFFERS, 100), rig.get(BUFFERS + 200, 100));
        assert!(rig.interrupts() > 0);
    }

    #[test]
    fn bounds_a_request() {
        let mut rig = Rig::new(device().unwrap());
        rig.push(0, &[(BUFFERS, 1 << 20, true)]);
        rig.notify(0);
        assert_eq!(rig.used(0), [(0, MAX_BYTES as u32)]);
        assert_eq!(rig.get(BUFFERS + MAX_BYTES as u64, 64), [0; 64]);
    }

    #[test]
    fn many_requests_take_many_turns() {
        let mut rig = Rig::new(device().unwrap());
        for _ in 0..256 {
            rig.push(0, &[(BUFFERS, 1 << 20, true)]);
        }
        rig.notify(0);
        assert_eq!(rig.used(0).len(), 256);
        assert_eq!(rig.transport.longest_turn().bytes, TURN);
    }

    #[test]
    fn leaves_readable_buffers_alone() {
        let mut rig = Rig::new(device().unwrap());
        rig.push(0, &[(BUFFERS, 64, false)]);
        rig.push(0, &[(BUFFERS, 64, false), (BUFFERS + 64, 64, true)]);
        rig.notify(0);
        assert_eq!(rig.used(0), [(0, 0), (1, 64)]);
        assert_eq!(rig.get(BUFFERS, 64), [0; 64]);
    }

    #[test]
    fn a_limit_counts_the_bytes_given() {
        let bucket =
            |size| crate::limiter::BucketConfig { size, one_time_burst: None, refill_time: 120 };
        let limits = LimiterConfig { bandwidth: Some(bucket(200)), ops: None };
        let mut rig = Rig::new(Box::new(Rng::new(limits).unwrap()));
        let start = std::time::Instant::now();
        for n in 0..4 {
            rig.push(0, &[(BUFFERS + n * 0x100, 100, true)]);
        }
        rig.notify(0);
        let mut used = rig.used(0);
        assert!((2..4).contains(&used.len()), "at once: {used:?}");
        while used.len() < 4 {
            assert!(rig.wait(5000) > 0, "the timer resumes: {used:?}");
            used.extend(rig.used(0));
        }
        assert_eq!(used, [(0, 100), (1, 100), (2, 100), (3, 100)]);
        assert!(start.elapsed().as_millis() >= 119, "{:?}", start.elapsed());
    }
}
