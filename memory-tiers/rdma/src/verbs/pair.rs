//! Queue pairs, and the requests that they take.
//!
//! UNSAFETY: calls of the library on objects that live as long as their values.
#![allow(unsafe_code)]

use std::ffi::c_int;
use std::io;
use std::ptr;
use std::sync::Arc;

use super::abi;
use super::completion::CompletionQueue;
use super::handle::{Handle, answered};
use super::memory::ProtectionDomain;

/// A queue pair of a reliable connection, with one completion queue for both directions.
#[derive(Debug)]
pub(crate) struct QueuePair {
    raw: Handle<abi::Qp>,
    number: u32,
    domain: Arc<ProtectionDomain>,
    /// Lives as long as the pair, which completes to it.
    _completions: Arc<CompletionQueue>,
}

/// A request to read the other side's memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Read {
    /// What its completion names.
    pub id: u64,
    /// Where the bytes go: an address here, ...
    pub local: u64,
    /// ... and its key.
    pub local_key: u32,
    /// Number of bytes.
    pub len: u32,
    /// Where the bytes are: an address there, ...
    pub remote: u64,
    /// ... and its key.
    pub remote_key: u32,
}

impl QueuePair {
    /// A pair that takes `requests` at a time.
    pub fn new(
        domain: &Arc<ProtectionDomain>,
        completions: &Arc<CompletionQueue>,
        requests: u32,
    ) -> io::Result<QueuePair> {
        // A provider takes both for its own.
        if !Arc::ptr_eq(domain.context(), completions.context()) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut attributes = abi::QpInitAttr {
            send_cq: completions.raw(),
            recv_cq: completions.raw(),
            cap: abi::QpCap {
                max_send_wr: requests,
                max_recv_wr: 1,
                max_send_sge: 1,
                max_recv_sge: 1,
                max_inline_data: 0,
            },
            qp_type: abi::TYPE_RC,
            ..Default::default()
        };
        let create = domain.context().library().ibv_create_qp;
        // SAFETY: the domain and the queue are there, of the same device, and outlive the pair, which
        // holds them.
        let raw = Handle::new(unsafe { create(domain.raw(), &mut attributes) })?;
        // SAFETY: the pair was just made, and its number never changes.
        let number = unsafe { (*raw.raw()).qp_num };
        Ok(QueuePair { raw, number, domain: domain.clone(), _completions: completions.clone() })
    }

    /// The number by which the other side knows it.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Changes what `mask` names to what `attributes` say.
    pub fn modify(&mut self, mut attributes: abi::QpAttr, mask: c_int) -> io::Result<()> {
        let modify = self.domain.context().library().ibv_modify_qp;
        // SAFETY: the pair is there, and the attributes are numbers only.
        answered(unsafe { modify(self.raw.raw(), &mut attributes, mask) })
    }

    /// Asks for a read.
    ///
    /// # Safety
    ///
    /// Until the request completes, or the pair and its domain are gone, the local bytes are mapped,
    /// if their key is good for them, and nobody else uses them.
    pub unsafe fn read(&mut self, read: Read) -> io::Result<()> {
        let post = self.domain.context().post_send()?;
        let mut range = abi::Sge { addr: read.local, length: read.len, lkey: read.local_key };
        let mut request = abi::SendWr {
            wr_id: read.id,
            sg_list: &mut range,
            num_sge: 1,
            opcode: abi::WR_RDMA_READ,
            send_flags: abi::SEND_SIGNALED,
            remote_addr: read.remote,
            rkey: read.remote_key,
            ..Default::default()
        };
        let mut refused = ptr::null_mut();
        // SAFETY: the pair is there, and of the device whose function it is. The request and its range
        // are copied before the call ends, and no other follows it. What it writes to is what the
        // caller vouches for.
        answered(unsafe { post(self.raw.raw(), &mut request, &mut refused) })
    }
}

impl Drop for QueuePair {
    fn drop(&mut self) {
        // SAFETY: the pair is there, and nothing is made from pairs.
        unsafe { (self.domain.context().library().ibv_destroy_qp)(self.raw.raw()) };
    }
}
