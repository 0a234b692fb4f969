//! What <infiniband/verbs.h> of rdma-core lays out: structures and numbers, only those in use.
//!
//! The layouts are part of the library's stable interface (symbol versions IBVERBS_1.1 and later of
//! libibverbs.so.1). Structures that the library allocates may end here before they end there; those
//! that it fills in are as large as there. C's enumerations are plain numbers: the other side may
//! know more values. What is not used starts with `_`.

use std::ffi::{c_int, c_uint, c_void};

/// `IBV_PORT_ACTIVE` of `ibv_port_state`.
pub(crate) const PORT_ACTIVE: u32 = 4;
/// `IBV_GID_TYPE_ROCE_V2` of `ibv_gid_type`.
pub(crate) const GID_ROCE_V2: u32 = 2;
/// `IBV_ACCESS_LOCAL_WRITE` of `ibv_access_flags`.
pub(crate) const ACCESS_LOCAL_WRITE: c_uint = 1;
/// `IBV_ACCESS_REMOTE_READ` of `ibv_access_flags`.
pub(crate) const ACCESS_REMOTE_READ: c_uint = 1 << 2;
/// `IBV_QPT_RC` of `ibv_qp_type`: a reliable connection.
pub(crate) const TYPE_RC: u32 = 2;
/// `IBV_WR_RDMA_READ` of `ibv_wr_opcode`.
pub(crate) const WR_RDMA_READ: u32 = 4;
/// `IBV_SEND_SIGNALED` of `ibv_send_flags`: the request makes a completion.
pub(crate) const SEND_SIGNALED: c_uint = 1 << 1;

/// `ibv_qp_state`.
pub(crate) mod state {
    /// `IBV_QPS_INIT`.
    pub(crate) const INIT: u32 = 1;
    /// `IBV_QPS_RTR`: ready to receive.
    pub(crate) const RECEIVE: u32 = 2;
    /// `IBV_QPS_RTS`: ready to send.
    pub(crate) const SEND: u32 = 3;
}

/// `ibv_qp_attr_mask`: which fields of a [`QpAttr`] are meant.
pub(crate) mod mask {
    use std::ffi::c_int;

    pub(crate) const STATE: c_int = 1;
    pub(crate) const ACCESS_FLAGS: c_int = 1 << 3;
    pub(crate) const PKEY_INDEX: c_int = 1 << 4;
    pub(crate) const PORT: c_int = 1 << 5;
    pub(crate) const AV: c_int = 1 << 7;
    pub(crate) const PATH_MTU: c_int = 1 << 8;
    pub(crate) const TIMEOUT: c_int = 1 << 9;
    pub(crate) const RETRY_CNT: c_int = 1 << 10;
    pub(crate) const RNR_RETRY: c_int = 1 << 11;
    pub(crate) const RQ_PSN: c_int = 1 << 12;
    pub(crate) const MAX_QP_RD_ATOMIC: c_int = 1 << 13;
    pub(crate) const MIN_RNR_TIMER: c_int = 1 << 15;
    pub(crate) const SQ_PSN: c_int = 1 << 16;
    pub(crate) const MAX_DEST_RD_ATOMIC: c_int = 1 << 17;
    pub(crate) const DEST_QPN: c_int = 1 << 20;
}

/// `ibv_device`.
#[repr(C)]
pub(crate) struct Device([u8; 0]);

/// `ibv_pd`.
#[repr(C)]
pub(crate) struct Pd([u8; 0]);

/// `ibv_cq`.
#[repr(C)]
pub(crate) struct Cq([u8; 0]);

/// The start of `ibv_context`, whose `ops` are the verbs that the header has as inline functions.
#[repr(C)]
pub(crate) struct Context {
    _device: *mut Device,
    pub ops: Ops,
}

/// `ibv_poll_cq`: how many completions were put where there is room for so many, or less than 0.
pub(crate) type PollCq = unsafe extern "C" fn(*mut Cq, c_int, *mut Wc) -> c_int;
/// `ibv_req_notify_cq`: 0, or an errno.
pub(crate) type ReqNotifyCq = unsafe extern "C" fn(*mut Cq, c_int) -> c_int;
/// `ibv_post_send`: 0, or an errno and the request that was not taken.
pub(crate) type PostSend = unsafe extern "C" fn(*mut Qp, *mut SendWr, *mut *mut SendWr) -> c_int;

/// The start of `ibv_context_ops`.
#[repr(C)]
pub(crate) struct Ops {
    _query_device_to_create_cq: [*const c_void; 11],
    pub poll_cq: Option<PollCq>,
    pub req_notify_cq: Option<ReqNotifyCq>,
    _cq_event_to_destroy_qp: [*const c_void; 12],
    pub post_send: Option<PostSend>,
}

/// `ibv_device_attr`.
#[repr(C)]
#[derive(Debug, Default)]
pub(crate) struct DeviceAttr {
    _fw_ver_to_page_size_cap: [u64; 12],
    _vendor_id_to_max_pd: [u32; 12],
    pub max_qp_rd_atom: c_int,
    _max_ee_rd_atom: c_int,
    _max_res_rd_atom: c_int,
    pub max_qp_init_rd_atom: c_int,
    _max_ee_init_rd_atom_to_max_srq_sge: [u32; 16],
    _max_pkeys: u16,
    _local_ca_ack_delay: u8,
    pub phys_port_cnt: u8,
}

/// `ibv_port_attr` with all that was ever added to it. The exported `ibv_query_port` fills in less: the
/// first 48 bytes, to `flags`, which is what programs of before had.
#[repr(C)]
#[derive(Debug, Default)]
pub(crate) struct PortAttr {
    pub state: u32,
    _max_mtu: u32,
    pub active_mtu: u32,
    pub gid_tbl_len: c_int,
    _port_cap_flags_to_active_speed_ex: [u32; 10],
}

/// `ibv_gid_entry`.
#[repr(C, align(8))]
#[derive(Clone, Debug, Default)]
pub(crate) struct GidEntry {
    pub gid: [u8; 16],
    pub gid_index: u32,
    pub port_num: u32,
    pub gid_type: u32,
    _ndev_ifindex: u32,
}

/// `ibv_mr`.
#[repr(C)]
pub(crate) struct Mr {
    _context: *mut Context,
    _pd: *mut Pd,
    pub addr: *mut c_void,
    _length: usize,
    _handle: u32,
    pub lkey: u32,
    pub rkey: u32,
}

/// `ibv_comp_channel`.
#[repr(C)]
pub(crate) struct Channel {
    _context: *mut Context,
    pub fd: c_int,
    _refcnt: c_int,
}

/// The start of `ibv_qp`.
#[repr(C)]
pub(crate) struct Qp {
    _context_to_srq: [*mut c_void; 6],
    _handle: u32,
    pub qp_num: u32,
}

/// `ibv_qp_cap`.
#[repr(C)]
#[derive(Debug, Default)]
pub(crate) struct QpCap {
    pub max_send_wr: u32,
    pub max_recv_wr: u32,
    pub max_send_sge: u32,
    pub max_recv_sge: u32,
    pub max_inline_data: u32,
}

/// `ibv_qp_init_attr`.
#[repr(C)]
#[derive(Debug, Default)]
pub(crate) struct QpInitAttr {
    pub qp_context: *mut c_void,
    pub send_cq: *mut Cq,
    pub recv_cq: *mut Cq,
    pub srq: *mut c_void,
    pub cap: QpCap,
    pub qp_type: u32,
    pub sq_sig_all: c_int,
}

/// `ibv_ah_attr`, whose first four fields are its `ibv_global_route`.
#[repr(C, align(8))]
#[derive(Debug, Default)]
pub(crate) struct AhAttr {
    pub dgid: [u8; 16],
    pub flow_label: u32,
    pub sgid_index: u8,
    pub hop_limit: u8,
    pub traffic_class: u8,
    pub _end_of_route: u8,
    pub dlid: u16,
    pub sl: u8,
    pub src_path_bits: u8,
    pub static_rate: u8,
    pub is_global: u8,
    pub port_num: u8,
}

/// `ibv_qp_attr`.
#[repr(C)]
#[derive(Debug, Default)]
pub(crate) struct QpAttr {
    pub qp_state: u32,
    pub cur_qp_state: u32,
    pub path_mtu: u32,
    pub path_mig_state: u32,
    pub qkey: u32,
    pub rq_psn: u32,
    pub sq_psn: u32,
    pub dest_qp_num: u32,
    pub qp_access_flags: c_uint,
    pub cap: QpCap,
    pub ah_attr: AhAttr,
    pub alt_ah_attr: AhAttr,
    pub pkey_index: u16,
    pub alt_pkey_index: u16,
    pub en_sqd_async_notify: u8,
    pub sq_draining: u8,
    pub max_rd_atomic: u8,
    pub max_dest_rd_atomic: u8,
    pub min_rnr_timer: u8,
    pub port_num: u8,
    pub timeout: u8,
    pub retry_cnt: u8,
    pub rnr_retry: u8,
    pub alt_port_num: u8,
    pub alt_timeout: u8,
    pub rate_limit: u32,
}

/// `ibv_sge`.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Sge {
    pub addr: u64,
    pub length: u32,
    pub lkey: u32,
}

/// `ibv_send_wr`, whose union `wr` is that of reads and writes.
#[repr(C)]
#[derive(Debug, Default)]
pub(crate) struct SendWr {
    pub wr_id: u64,
    pub next: *mut SendWr,
    pub sg_list: *mut Sge,
    pub num_sge: c_int,
    pub opcode: u32,
    pub send_flags: c_uint,
    pub imm_data: u32,
    pub remote_addr: u64,
    pub rkey: u32,
    pub _rest: [u32; 19],
}

/// `ibv_wc`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Wc {
    pub wr_id: u64,
    pub status: u32,
    _opcode_to_dlid_path_bits: [u32; 9],
}

#[cfg(test)]
#[path = "abi_tests.rs"]
mod tests;
