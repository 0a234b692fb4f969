//! Sizes and offsets as a C compiler (gcc 12, x86-64) gives them for <infiniband/verbs.h>: of rdma-core
//! 44 (Debian 12), and of a later one that knows `active_speed_ex`. They differ only where it is said.

use std::mem::{align_of, offset_of, size_of};

use super::*;

#[test]
fn what_the_library_allocates_is_laid_out_as_there() {
    // Starts of longer structures: offsets alone.
    assert_eq!(offset_of!(Context, ops), 8);
    assert_eq!(offset_of!(Ops, poll_cq), 88);
    assert_eq!(offset_of!(Ops, req_notify_cq), 96);
    assert_eq!(offset_of!(Ops, post_send), 200);
    assert_eq!(offset_of!(Qp, qp_num), 52);
    assert_eq!((size_of::<Mr>(), offset_of!(Mr, addr)), (48, 16));
    assert_eq!((offset_of!(Mr, lkey), offset_of!(Mr, rkey)), (36, 40));
    assert_eq!((size_of::<Channel>(), offset_of!(Channel, fd)), (16, 8));
}

#[test]
fn what_the_library_fills_in_is_as_large_as_there() {
    assert_eq!((size_of::<DeviceAttr>(), align_of::<DeviceAttr>()), (232, 8));
    assert_eq!(offset_of!(DeviceAttr, max_qp_rd_atom), 144);
    assert_eq!(offset_of!(DeviceAttr, max_qp_init_rd_atom), 156);
    assert_eq!(offset_of!(DeviceAttr, phys_port_cnt), 227);
    // 52 in rdma-core 44, 56 with `active_speed_ex`.
    assert_eq!((size_of::<PortAttr>(), align_of::<PortAttr>()), (56, 4));
    assert_eq!(offset_of!(PortAttr, state), 0);
    assert_eq!(offset_of!(PortAttr, active_mtu), 8);
    assert_eq!(offset_of!(PortAttr, gid_tbl_len), 12);
    assert_eq!((size_of::<GidEntry>(), align_of::<GidEntry>()), (32, 8));
    assert_eq!(offset_of!(GidEntry, gid_index), 16);
    assert_eq!(offset_of!(GidEntry, port_num), 20);
    assert_eq!(offset_of!(GidEntry, gid_type), 24);
    assert_eq!((size_of::<Wc>(), align_of::<Wc>()), (48, 8));
    assert_eq!((offset_of!(Wc, wr_id), offset_of!(Wc, status)), (0, 8));
}

#[test]
fn what_the_library_reads_is_laid_out_as_there() {
    assert_eq!((size_of::<QpInitAttr>(), align_of::<QpInitAttr>()), (64, 8));
    assert_eq!((offset_of!(QpInitAttr, cap), size_of::<QpCap>()), (32, 20));
    assert_eq!(offset_of!(QpInitAttr, qp_type), 52);
    assert_eq!(offset_of!(QpInitAttr, sq_sig_all), 56);
    assert_eq!((size_of::<AhAttr>(), align_of::<AhAttr>()), (32, 8));
    assert_eq!(offset_of!(AhAttr, flow_label), 16);
    assert_eq!((offset_of!(AhAttr, sgid_index), offset_of!(AhAttr, hop_limit)), (20, 21));
    assert_eq!((offset_of!(AhAttr, dlid), offset_of!(AhAttr, sl)), (24, 26));
    assert_eq!((offset_of!(AhAttr, is_global), offset_of!(AhAttr, port_num)), (29, 30));
    assert_eq!((size_of::<Sge>(), align_of::<Sge>()), (16, 8));
    assert_eq!((offset_of!(Sge, length), offset_of!(Sge, lkey)), (8, 12));
    assert_eq!((size_of::<SendWr>(), align_of::<SendWr>()), (128, 8));
    assert_eq!((offset_of!(SendWr, next), offset_of!(SendWr, sg_list)), (8, 16));
    assert_eq!((offset_of!(SendWr, num_sge), offset_of!(SendWr, opcode)), (24, 28));
    assert_eq!(offset_of!(SendWr, send_flags), 32);
    assert_eq!((offset_of!(SendWr, remote_addr), offset_of!(SendWr, rkey)), (40, 48));
}

#[test]
fn attributes_of_queue_pairs_are_laid_out_as_there() {
    assert_eq!((size_of::<QpAttr>(), align_of::<QpAttr>()), (144, 8));
    assert_eq!(offset_of!(QpAttr, qp_state), 0);
    assert_eq!(offset_of!(QpAttr, path_mtu), 8);
    assert_eq!((offset_of!(QpAttr, rq_psn), offset_of!(QpAttr, sq_psn)), (20, 24));
    assert_eq!(offset_of!(QpAttr, dest_qp_num), 28);
    assert_eq!((offset_of!(QpAttr, qp_access_flags), offset_of!(QpAttr, cap)), (32, 36));
    assert_eq!((offset_of!(QpAttr, ah_attr), offset_of!(QpAttr, alt_ah_attr)), (56, 88));
    assert_eq!(offset_of!(QpAttr, pkey_index), 120);
    assert_eq!(offset_of!(QpAttr, max_rd_atomic), 126);
    assert_eq!(offset_of!(QpAttr, max_dest_rd_atomic), 127);
    assert_eq!((offset_of!(QpAttr, min_rnr_timer), offset_of!(QpAttr, port_num)), (128, 129));
    assert_eq!((offset_of!(QpAttr, timeout), offset_of!(QpAttr, retry_cnt)), (130, 131));
    assert_eq!((offset_of!(QpAttr, rnr_retry), offset_of!(QpAttr, rate_limit)), (132, 136));
}
