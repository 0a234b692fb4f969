//! virtio-net over a tap (virtio 1.2, 5.1): one pair of queues, checksum and segmentation
//! offloads both ways, merged receive buffers.
//!
//! Frames move straight between the tap and guest memory (`rx.rs`, `tx.rs`), each with the header
//! of 12 bytes that driver and kernel agree on; the device reads none of it.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use event_manager::EventSet;
use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_GUEST_UFO, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_UFO,
    VIRTIO_NET_F_MAC, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use super::{BrokenQueue, DeviceIo, Failure, Source, VirtioDevice, read_config_bytes};
use crate::limiter::{Limiter, LimiterConfig, LimiterState};
use crate::metrics::NetMetrics;
use crate::state::{self, Savable, StateError};

mod detour;
mod error;
mod rx;
mod tap;
mod tx;

pub use detour::Detour;
pub use error::NetError;
use tap::Tap;

const VERSION: u32 = 2;
const QUEUE_SIZE: u16 = 256;
const RX: usize = 0;
const TX: usize = 1;

const SOURCE_TAP: u32 = 0;
const SOURCE_RX_LIMITER: u32 = 1;
const SOURCE_TX_LIMITER: u32 = 2;
const SOURCE_DETOUR: u32 = 3;

/// Bytes of a frame's header (virtio 1.2, 5.1.6).
const HEADER: usize = 12;
/// Longest frame with its header: 64 KiB of segments yet to be cut, and Ethernet's header
/// (virtio 1.2, 5.1.6.3.1).
const MAX_FRAME: usize = 65562;
/// Smallest MTU (virtio 1.2, 5.1.4.1).
const MIN_MTU: u16 = 68;

/// What the user asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetConfig {
    /// Name of the device.
    pub id: String,
    /// Name of the host's tap. It is created if there is none and this process may do so.
    pub tap: String,
    /// Address of the guest's end; without one the guest chooses it.
    pub mac: Option<[u8; 6]>,
    /// Largest packet that the guest shall send, in bytes without Ethernet's header.
    pub mtu: Option<u16>,
    /// Limits of what the guest receives.
    #[serde(default)]
    pub rx_limiter: LimiterConfig,
    /// Limits of what the guest sends.
    #[serde(default)]
    pub tx_limiter: LimiterConfig,
}

/// A network device.
pub struct Net {
    config: NetConfig,
    tap: Tap,
    rx_limiter: Limiter,
    tx_limiter: Limiter,
    /// Another station on the guest's cable, whose frames never reach the tap.
    detour: Option<Box<dyn Detour>>,
    /// A received frame may take several buffers.
    mergeable: bool,
    /// The tap had no room for the guest's next frame.
    blocked: bool,
    /// The tap cannot be read any more.
    lost: bool,
    metrics: Arc<NetMetrics>,
}

/// What a snapshot kept before there were limits: what the guest was told and believes.
#[derive(Serialize, Deserialize)]
struct NetStateV1 {
    mac: Option<[u8; 6]>,
    mtu: Option<u16>,
}

/// What a snapshot keeps: the same, and what is left of the limits.
#[derive(Serialize, Deserialize)]
struct NetStateV2 {
    mac: Option<[u8; 6]>,
    mtu: Option<u16>,
    rx_limiter: LimiterState,
    tx_limiter: LimiterState,
}

impl Net {
    /// Attaches to the tap.
    pub fn new(config: NetConfig) -> Result<Net, NetError> {
        if let Some(mac) = config.mac
            && mac[0] & 1 != 0
        {
            return Err(NetError::Mac(mac));
        }
        if let Some(mtu) = config.mtu.filter(|&mtu| mtu < MIN_MTU) {
            return Err(NetError::Mtu(mtu));
        }
        let tap = Tap::open(&config.tap, HEADER)?;
        Net::on(tap, config)
    }

    fn on(tap: Tap, config: NetConfig) -> Result<Net, NetError> {
        let rx_limiter = Limiter::new(config.rx_limiter).map_err(NetError::Timer)?;
        let tx_limiter = Limiter::new(config.tx_limiter).map_err(NetError::Timer)?;
        Ok(Net {
            config,
            tap,
            rx_limiter,
            tx_limiter,
            detour: None,
            mergeable: false,
            blocked: false,
            lost: false,
            metrics: Arc::default(),
        })
    }

    /// What it counts.
    pub fn metrics(&self) -> Arc<NetMetrics> {
        self.metrics.clone()
    }

    /// Puts another station on the guest's cable.
    pub fn with_detour(mut self, detour: Box<dyn Detour>) -> Net {
        self.detour = Some(detour);
        self
    }

    /// Replaces limits of what the guest receives and sends; see [`Limiter::update`].
    pub fn update_limiters(&mut self, rx: LimiterConfig, tx: LimiterConfig) {
        self.rx_limiter.update(rx);
        self.tx_limiter.update(tx);
    }

    fn rearm(&self) {
        if let Err(e) = self.tap.rearm() {
            log::error!("net {:?}: tap {:?}: {e}", self.config.id, self.config.tap);
        }
    }

    fn set_offloads(&self, bits: u32) {
        if let Err(e) = self.tap.set_offloads(bits) {
            log::error!("net {:?}: offloads of tap {:?}: {e}", self.config.id, self.config.tap);
        }
    }
}

const fn bit(feature: u32) -> u64 {
    1 << feature
}

/// What the kernel may leave to a driver that took `features`.
fn offloads(features: u64) -> u32 {
    // Without checksums there is nothing to leave (virtio 1.2, 5.1.3.1).
    if features & bit(VIRTIO_NET_F_GUEST_CSUM) == 0 {
        return 0;
    }
    let by_feature = [
        (VIRTIO_NET_F_GUEST_TSO4, libc::TUN_F_TSO4),
        (VIRTIO_NET_F_GUEST_TSO6, libc::TUN_F_TSO6),
        (VIRTIO_NET_F_GUEST_UFO, libc::TUN_F_UFO),
    ];
    by_feature
        .into_iter()
        .filter(|&(feature, _)| features & bit(feature) != 0)
        .fold(libc::TUN_F_CSUM, |bits, (_, offload)| bits | offload)
}

impl VirtioDevice for Net {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_NET
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE; 2]
    }

    fn features(&self) -> u64 {
        let always = [
            VIRTIO_NET_F_CSUM,
            VIRTIO_NET_F_GUEST_CSUM,
            VIRTIO_NET_F_GUEST_TSO4,
            VIRTIO_NET_F_GUEST_TSO6,
            VIRTIO_NET_F_GUEST_UFO,
            VIRTIO_NET_F_HOST_TSO4,
            VIRTIO_NET_F_HOST_TSO6,
            VIRTIO_NET_F_HOST_UFO,
            VIRTIO_NET_F_MRG_RXBUF,
            VIRTIO_RING_F_EVENT_IDX,
            VIRTIO_RING_F_INDIRECT_DESC,
        ];
        let mac = self.config.mac.map(|_| VIRTIO_NET_F_MAC);
        let mtu = self.config.mtu.map(|_| VIRTIO_NET_F_MTU);
        always.into_iter().chain(mac).chain(mtu).fold(0, |bits, feature| bits | bit(feature))
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        // virtio 1.2, 5.1.4: mac, status and number of queue pairs (neither is offered), mtu.
        let mut config = [0u8; 12];
        config[..6].copy_from_slice(&self.config.mac.unwrap_or_default());
        config[10..].copy_from_slice(&self.config.mtu.unwrap_or_default().to_le_bytes());
        read_config_bytes(&config, offset, data);
    }

    fn activate(&mut self, features: u64) {
        self.set_offloads(offloads(features));
        self.mergeable = features & bit(VIRTIO_NET_F_MRG_RXBUF) != 0;
        // Frames that came for an earlier driver, or for none, caused their event already.
        self.rearm();
    }

    fn reset(&mut self) {
        self.set_offloads(0);
        self.mergeable = false;
        self.blocked = false;
        if let Some(detour) = &mut self.detour {
            detour.reset();
        }
    }

    fn sources(&self) -> Vec<Source> {
        let source = |fd: RawFd, token| Source { fd, token, events: EventSet::IN };
        let detour = self.detour.as_ref().map(|detour| source(detour.timer(), SOURCE_DETOUR));
        let own = [
            source(self.tap.event_fd(), SOURCE_TAP),
            source(self.rx_limiter.as_raw_fd(), SOURCE_RX_LIMITER),
            source(self.tx_limiter.as_raw_fd(), SOURCE_TX_LIMITER),
        ];
        own.into_iter().chain(detour).collect()
    }

    fn queue_event(&mut self, queue: usize, io: &mut DeviceIo) -> Result<(), BrokenQueue> {
        match queue {
            RX => {
                self.metrics.rx_queue_event_count.inc();
                self.receive(io)
            }
            TX => {
                self.metrics.tx_queue_event_count.inc();
                self.transmit(io)
            }
            _ => Ok(()),
        }
    }

    fn failed(&self, failure: Failure) {
        match failure {
            Failure::Activation => self.metrics.activate_fails.inc(),
            Failure::Queue(_) => self.metrics.event_fails.inc(),
        }
    }

    fn source_event(
        &mut self,
        token: u32,
        _events: EventSet,
        io: &mut DeviceIo,
    ) -> Result<(), BrokenQueue> {
        match token {
            SOURCE_RX_LIMITER if self.rx_limiter.resume() => {
                self.metrics.rx_event_rate_limiter_count.inc();
                self.receive(io)
            }
            SOURCE_TX_LIMITER if self.tx_limiter.resume() => {
                self.metrics.tx_rate_limiter_event_count.inc();
                self.transmit(io)
            }
            SOURCE_TAP => {
                self.metrics.rx_tap_event_count.inc();
                self.tap.acknowledge();
                if self.blocked {
                    self.transmit(io)?;
                }
                self.receive(io)
            }
            SOURCE_DETOUR => {
                self.tick();
                self.answer(io)
            }
            _ => Ok(()),
        }
    }
}

impl Savable for Net {
    fn version(&self) -> u32 {
        VERSION
    }

    fn save(&self) -> Vec<u8> {
        state::encode(&NetStateV2 {
            mac: self.config.mac,
            mtu: self.config.mtu,
            rx_limiter: self.rx_limiter.save(),
            tx_limiter: self.tx_limiter.save(),
        })
    }

    fn restore(&mut self, version: u32, bytes: &[u8]) -> Result<(), StateError> {
        let NetStateV2 { mac, mtu, rx_limiter, tx_limiter } = match version {
            1 => {
                let NetStateV1 { mac, mtu } = state::decode(version, 1, bytes)?;
                let full = LimiterState::default();
                NetStateV2 { mac, mtu, rx_limiter: full, tx_limiter: full }
            }
            _ => state::decode(version, VERSION, bytes)?,
        };
        if (mac, mtu) != (self.config.mac, self.config.mtu) {
            return Err(StateError::Invalid(format!(
                "network device {:?} had MAC {mac:x?} and MTU {mtu:?}, here it has {:x?} and {:?}",
                self.config.id, self.config.mac, self.config.mtu
            )));
        }
        self.rx_limiter.restore(rx_limiter);
        self.tx_limiter.restore(tx_limiter);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
