//! A reliable connection between two sides: a queue pair, and the other side's number.

use serde::{Deserialize, Serialize};

use crate::device::Domain;
use crate::error::RdmaError;
use crate::events::Completions;
use crate::verbs::abi::{ACCESS_REMOTE_READ, AhAttr, QpAttr, mask, state};
use crate::verbs::{Mtu, QueuePair};

/// Requests that may wait in a link's queue.
pub(crate) const REQUESTS: u32 = 32;
/// A packet that is not acknowledged is sent again after 4.096 us * 2^14 = 67 ms, ...
const TIMEOUT: u8 = 14;
/// ... so many times.
const RETRIES: u8 = 7;
/// Routers that a packet may pass.
const HOPS: u8 = 64;
/// A side that is not ready asks for 0.64 ms (InfiniBand's table 45): reads need nobody to be ready.
const NOT_READY: u8 = 12;
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
    pair: QueuePair,
    completions: Completions,
    sequence: u32,
}

/// A link.
#[derive(Debug)]
pub struct Link {
    pub(crate) pair: QueuePair,
    pub(crate) completions: Completions,
    pub(crate) domain: Domain,
    /// Reads under way that the other side answers.
    pub(crate) reads: usize,
}

impl Half {
    /// A queue pair; `sequence` is any number, best a random one.
    pub fn new(domain: &Domain, sequence: u32) -> Result<Half, RdmaError> {
        let completions = Completions::new(&domain.port, REQUESTS)?;
        let mut pair = QueuePair::new(&domain.domain, &completions.queue, REQUESTS)
            .map_err(RdmaError::verb("make a queue pair"))?;
        let init = QpAttr {
            qp_state: state::INIT,
            pkey_index: 0,
            port_num: domain.port.number,
            qp_access_flags: ACCESS_REMOTE_READ,
            ..QpAttr::default()
        };
        let given = mask::STATE | mask::PKEY_INDEX | mask::PORT | mask::ACCESS_FLAGS;
        pair.modify(init, given).map_err(RdmaError::verb("initialise a queue pair"))?;
        Ok(Half { domain: domain.clone(), pair, completions, sequence: sequence & MAX_24 })
    }

    /// What the other side has to know.
    pub fn endpoint(&self) -> Endpoint {
        Endpoint {
            gid: self.domain.port.gid,
            number: self.pair.number(),
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
        let theirs = Mtu::of(other.mtu).ok_or(RdmaError::Endpoint("packet size"))?;
        let reads = other.reads.min(domain.port.reads);
        if reads == 0 {
            return Err(RdmaError::Endpoint("number of reads"));
        }
        let path = AhAttr {
            dgid: other.gid,
            sgid_index: domain.port.gid_index,
            hop_limit: HOPS,
            is_global: 1,
            port_num: domain.port.number,
            ..AhAttr::default()
        };
        let receive = QpAttr {
            qp_state: state::RECEIVE,
            path_mtu: domain.port.mtu.min(theirs).number(),
            dest_qp_num: other.number,
            rq_psn: other.sequence,
            max_dest_rd_atomic: domain.port.reads,
            min_rnr_timer: NOT_READY,
            ah_attr: path,
            ..QpAttr::default()
        };
        let given = mask::STATE
            | mask::PATH_MTU
            | mask::DEST_QPN
            | mask::RQ_PSN
            | mask::MAX_DEST_RD_ATOMIC
            | mask::MIN_RNR_TIMER
            | mask::AV;
        pair.modify(receive, given).map_err(RdmaError::verb("join the other side"))?;
        let send = QpAttr {
            qp_state: state::SEND,
            sq_psn: sequence,
            timeout: TIMEOUT,
            retry_cnt: RETRIES,
            rnr_retry: RETRIES,
            max_rd_atomic: reads,
            ..QpAttr::default()
        };
        let given = mask::STATE
            | mask::SQ_PSN
            | mask::TIMEOUT
            | mask::RETRY_CNT
            | mask::RNR_RETRY
            | mask::MAX_QP_RD_ATOMIC;
        pair.modify(send, given).map_err(RdmaError::verb("start a queue pair"))?;
        Ok(Link { pair, completions, domain, reads: reads.into() })
    }
}
