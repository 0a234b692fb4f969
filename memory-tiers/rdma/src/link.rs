//! A reliable connection between two sides: a queue pair, and the other side's number.

use serde::{Deserialize, Serialize};
use sideway::ibverbs::AccessFlags;
use sideway::ibverbs::address::{AddressHandleAttribute, Gid};
use sideway::ibverbs::completion::GenericCompletionQueue;
use sideway::ibverbs::device_context::Mtu;
use sideway::ibverbs::queue_pair::{
    BasicQueuePair, QueuePair, QueuePairAttribute, QueuePairState, QueuePairType,
};

use crate::device::Domain;
use crate::error::RdmaError;
use crate::events::Completions;

/// Requests that may wait in a link's queue.
pub(crate) const REQUESTS: u32 = 32;
/// A packet that is not acknowledged is sent again after 4.096 us * 2^14 = 67 ms, ...
const TIMEOUT: u8 = 14;
/// ... so many times.
const RETRIES: u8 = 7;
/// Queue pair numbers and sequence numbers have 24 bits.
const MAX_24: u32 = 0xff_ffff;

/// What one side tells the other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// Address of its port.
    pub gid: [u8; 16],
    /// Number of its queue pair.
    pub number: u32,
    /// First sequence number of its packets.
    pub sequence: u32,
    /// Bytes of its packets, 256 to 4096.
    pub mtu: u32,
    /// Reads under way that it answers.
    pub reads: u8,
}

/// One side of a link, before it knows the other.
#[derive(Debug)]
pub struct Half {
    domain: Domain,
    pair: BasicQueuePair,
    completions: Completions,
    sequence: u32,
}

/// A link.
#[derive(Debug)]
pub struct Link {
    // Before its completion queue.
    pub(crate) pair: BasicQueuePair,
    pub(crate) completions: Completions,
    pub(crate) domain: Domain,
    /// Reads under way that the other side answers.
    pub(crate) reads: usize,
}

impl Half {
    /// A queue pair; `sequence` is any number, best a random one.
    pub fn new(domain: &Domain, sequence: u32) -> Result<Half, RdmaError> {
        let completions = Completions::new(&domain.port, REQUESTS)?;
        let queue = GenericCompletionQueue::from(completions.queue.clone());
        let mut builder = domain.domain.create_qp_builder();
        builder
            .setup_qp_type(QueuePairType::ReliableConnection)
            .setup_send_cq(queue.clone())
            .setup_recv_cq(queue)
            .setup_max_send_wr(REQUESTS)
            .setup_max_recv_wr(1);
        let mut pair = builder.build().map_err(RdmaError::verb("make a queue pair"))?;
        let mut init = QueuePairAttribute::new();
        init.setup_state(QueuePairState::Init)
            .setup_pkey_index(0)
            .setup_port(domain.port.number)
            .setup_access_flags(AccessFlags::RemoteRead);
        pair.modify(&init).map_err(RdmaError::verb("initialise a queue pair"))?;
        Ok(Half { domain: domain.clone(), pair, completions, sequence: sequence & MAX_24 })
    }

    /// What the other side has to know.
    pub fn endpoint(&self) -> Endpoint {
        Endpoint {
            gid: self.domain.port.gid.raw,
            number: self.pair.qp_number(),
            sequence: self.sequence,
            mtu: self.domain.port.info().mtu,
            reads: self.domain.port.reads,
        }
    }

    /// Joins it to the other side.
    pub fn join(self, other: &Endpoint) -> Result<Link, RdmaError> {
        let Half { domain, mut pair, completions, sequence } = self;
        if other.number > MAX_24 || other.sequence > MAX_24 {
            return Err(RdmaError::Endpoint("number"));
        }
        let theirs = mtu(other.mtu).ok_or(RdmaError::Endpoint("packet size"))?;
        let reads = other.reads.min(domain.port.reads);
        if reads == 0 {
            return Err(RdmaError::Endpoint("number of reads"));
        }
        let mut path = AddressHandleAttribute::new();
        path.setup_port(domain.port.number)
            .setup_service_level(0)
            .setup_grh_src_gid_index(domain.port.gid_index)
            .setup_grh_dest_gid(&Gid { raw: other.gid })
            .setup_grh_hop_limit(64);
        let mut receive = QueuePairAttribute::new();
        receive
            .setup_state(QueuePairState::ReadyToReceive)
            .setup_path_mtu(domain.port.mtu.min(theirs))
            .setup_dest_qp_num(other.number)
            .setup_rq_psn(other.sequence)
            .setup_max_dest_read_atomic(domain.port.reads)
            .setup_min_rnr_timer(12)
            .setup_address_vector(&path);
        pair.modify(&receive).map_err(RdmaError::verb("join the other side"))?;
        let mut send = QueuePairAttribute::new();
        send.setup_state(QueuePairState::ReadyToSend)
            .setup_sq_psn(sequence)
            .setup_timeout(TIMEOUT)
            .setup_retry_cnt(RETRIES)
            .setup_rnr_retry(RETRIES)
            .setup_max_read_atomic(reads);
        pair.modify(&send).map_err(RdmaError::verb("start a queue pair"))?;
        Ok(Link { pair, completions, domain, reads: reads.into() })
    }
}

/// A packet size as the verbs number it.
fn mtu(bytes: u32) -> Option<Mtu> {
    let all = [Mtu::Mtu256, Mtu::Mtu512, Mtu::Mtu1024, Mtu::Mtu2048, Mtu::Mtu4096];
    all.into_iter().find(|&mtu| 128 << (mtu as u32) == bytes)
}
