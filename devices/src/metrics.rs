//! What devices count while they work, under the names of Firecracker's metrics.
//!
//! A device makes its own counters and hands them out; whoever writes metrics reads them at any
//! time, from any thread. They only grow: what happened since an earlier look is the reader's
//! subtraction. A field whose event cannot happen in this machine stays 0, because readers of
//! Firecracker's metrics expect it. The names and meanings are those of the `metrics.rs` files
//! below Firecracker's `src/vmm/src/devices`.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use serde::{Serialize, Serializer};

/// A number that any thread adds to or sets.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    /// One more.
    pub fn inc(&self) {
        self.add(1);
    }

    /// `n` more.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }

    /// From now on `n`; for what is a state and no count of events.
    pub fn set(&self, n: u64) {
        self.0.store(n, Relaxed);
    }

    /// The number now.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

impl Serialize for Count {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.get())
    }
}

/// The shortest, the longest and the sum of several times, in microseconds.
#[derive(Debug, Default, Serialize)]
pub struct Times {
    /// 0 before there is one.
    min_us: Count,
    max_us: Count,
    sum_us: Count,
}

impl Times {
    /// Something took `time`.
    pub fn record(&self, time: Duration) {
        let us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        self.sum_us.add(us);
        self.max_us.0.fetch_max(us, Relaxed);
        let shorter = |min: u64| (min == 0 || us < min).then_some(us);
        let _ = self.min_us.0.fetch_update(Relaxed, Relaxed, shorter);
    }

    /// Something took from `start` until now.
    pub fn record_since(&self, start: Instant) {
        self.record(start.elapsed());
    }
}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $kind:ident,)* })*) => {
        $($(#[$doc])*
        #[derive(Debug, Default, Serialize)]
        pub struct $name { $($(#[$field_doc])* pub $field: $kind,)* })*
    };
}

counters! {
    /// One drive.
    BlockMetrics {
        /// The driver gave queues that cannot be used.
        activate_fails: Count,
        /// Failed accesses to the configuration space.
        cfg_fails: Count,
        /// Notifications that came without a request.
        no_avail_buffer: Count,
        /// Events after which the queue was broken.
        event_fails: Count,
        /// Requests that the host's file system failed.
        execute_fails: Count,
        /// Requests that break the rules.
        invalid_reqs_count: Count,
        /// Flushes.
        flush_count: Count,
        /// Notifications.
        queue_event_count: Count,
        /// Times that a rate limiter let the queue go on.
        rate_limiter_event_count: Count,
        /// Changes of the image or the limits.
        update_count: Count,
        /// Changes that failed.
        update_fails: Count,
        /// Bytes read by the guest.
        read_bytes: Count,
        /// Bytes written by the guest.
        write_bytes: Count,
        /// Reads that succeeded.
        read_count: Count,
        /// Writes that succeeded.
        write_count: Count,
        /// Times of reads.
        read_agg: Times,
        /// Times of writes.
        write_agg: Times,
        /// Times that a rate limiter stopped the queue.
        rate_limiter_throttled_events: Count,
        /// Times that an asynchronous engine was full. There is none.
        io_engine_throttled_events: Count,
        /// Requests left in the queue after an event.
        remaining_reqs_count: Count,
    }

    /// One network interface; rx is towards the guest.
    NetMetrics {
        /// The driver gave queues that cannot be used.
        activate_fails: Count,
        /// Failed accesses to the configuration space.
        cfg_fails: Count,
        /// Changes of the MAC by the guest. It cannot.
        mac_address_updates: Count,
        /// Frames had to wait because the guest had no buffer for them.
        no_rx_avail_buffer: Count,
        /// Notifications that came without a frame.
        no_tx_avail_buffer: Count,
        /// Events after which a queue was broken.
        event_fails: Count,
        /// Notifications of new buffers.
        rx_queue_event_count: Count,
        /// Times that a rate limiter let receiving go on.
        rx_event_rate_limiter_count: Count,
        /// Times that a rate limiter stopped receiving.
        rx_rate_limiter_throttled: Count,
        /// Events of the tap.
        rx_tap_event_count: Count,
        /// Bytes of frames, without the virtio header.
        rx_bytes_count: Count,
        /// Frames.
        rx_packets_count: Count,
        /// Frames that were lost, and buffers that were of no use.
        rx_fails: Count,
        /// Reads of the tap that gave a frame.
        rx_count: Count,
        /// Reads of the tap that failed.
        tap_read_fails: Count,
        /// Writes to the tap that failed.
        tap_write_fails: Count,
        /// Times of writes to the tap.
        tap_write_agg: Times,
        /// Bytes of frames, without the virtio header.
        tx_bytes_count: Count,
        /// Frames that break the rules.
        tx_malformed_frames: Count,
        /// Frames that were lost.
        tx_fails: Count,
        /// Frames that were sent.
        tx_count: Count,
        /// Frames that were sent.
        tx_packets_count: Count,
        /// Frames of which only a part could be read. Frames are sent where they lie.
        tx_partial_reads: Count,
        /// Notifications of new frames.
        tx_queue_event_count: Count,
        /// Times that a rate limiter let sending go on.
        tx_rate_limiter_event_count: Count,
        /// Times that a rate limiter stopped sending.
        tx_rate_limiter_throttled: Count,
        /// Frames with another source address than the interface's.
        tx_spoofed_mac_count: Count,
        /// Frames left in the queue after an event.
        tx_remaining_reqs_count: Count,
    }

    /// The vsock device; rx is towards the guest.
    VsockMetrics {
        /// The driver gave queues that cannot be used.
        activate_fails: Count,
        /// Failed accesses to the configuration space.
        cfg_fails: Count,
        /// Events after which the receive queue was broken.
        rx_queue_event_fails: Count,
        /// Events after which the transmit queue was broken.
        tx_queue_event_fails: Count,
        /// Events after which the event queue was broken.
        ev_queue_event_fails: Count,
        /// Host sockets that could not be watched.
        muxer_event_fails: Count,
        /// Failed events of connections.
        conn_event_fails: Count,
        /// Notifications of new buffers.
        rx_queue_event_count: Count,
        /// Notifications of new packets.
        tx_queue_event_count: Count,
        /// Payload for the guest, in bytes.
        rx_bytes_count: Count,
        /// Payload of the guest, in bytes.
        tx_bytes_count: Count,
        /// Packets for the guest.
        rx_packets_count: Count,
        /// Packets of the guest.
        tx_packets_count: Count,
        /// Connections made.
        conns_added: Count,
        /// Connections that ran out of time.
        conns_killed: Count,
        /// Connections ended, one way or the other.
        conns_removed: Count,
        /// Scans for connections out of time, where Firecracker's list of them had overflown.
        killq_resync: Count,
        /// Failed writes of payload that had waited for the host's socket.
        tx_flush_fails: Count,
        /// Failed writes to a host's socket.
        tx_write_fails: Count,
        /// Failed reads of a host's socket.
        rx_read_fails: Count,
    }

    /// The balloon.
    BalloonMetrics {
        /// The driver gave queues that cannot be used.
        activate_fails: Count,
        /// Failed accesses to the configuration space.
        cfg_fails: Count,
        /// Requests to take pages.
        inflate_count: Count,
        /// Statistics from the driver.
        stats_updates_count: Count,
        /// Statistics that break the rules.
        stats_update_fails: Count,
        /// Requests to give pages back.
        deflate_count: Count,
        /// Requests that break the rules, and events after which a queue was broken.
        event_fails: Count,
        /// Reports of free pages.
        free_page_report_count: Count,
        /// Bytes given back to the host for them.
        free_page_report_freed: Count,
        /// Reports that break the rules.
        free_page_report_fails: Count,
        /// Hints of free pages.
        free_page_hint_count: Count,
        /// Bytes given back to the host for them.
        free_page_hint_freed: Count,
        /// Hints that break the rules.
        free_page_hint_fails: Count,
    }

    /// The source of random numbers.
    EntropyMetrics {
        /// The driver gave queues that cannot be used.
        activate_fails: Count,
        /// Requests that break the rules, and events after which the queue was broken.
        entropy_event_fails: Count,
        /// Requests.
        entropy_event_count: Count,
        /// Random bytes for the guest.
        entropy_bytes: Count,
        /// Times that the host had none.
        host_rng_fails: Count,
        /// Times that a rate limiter stopped the queue.
        entropy_rate_limiter_throttled: Count,
        /// Times that a rate limiter let the queue go on.
        rate_limiter_event_count: Count,
    }

    /// The serial port.
    UartMetrics {
        /// Writes of the guest whose byte or interrupt was lost.
        error_count: Count,
        /// Flushes of the output. It is not buffered.
        flush_count: Count,
        /// Reads of another size than one byte.
        missed_read_count: Count,
        /// Writes of another size than one byte, and bytes that were lost.
        missed_write_count: Count,
        /// Bytes that the guest read.
        read_count: Count,
        /// Bytes that the guest wrote.
        write_count: Count,
        /// Bytes that a rate limiter dropped.
        rate_limiter_dropped_bytes: Count,
    }

    /// The keyboard controller.
    I8042Metrics {
        /// Failed resets.
        error_count: Count,
        /// Reads of another size than one byte.
        missed_read_count: Count,
        /// Writes of another size than one byte.
        missed_write_count: Count,
        /// Reads.
        read_count: Count,
        /// Resets.
        reset_count: Count,
        /// Writes.
        write_count: Count,
    }

    /// The metadata service; rx is from the guest.
    MmdsMetrics {
        /// Frames that were for it.
        rx_accepted: Count,
        /// Of these, frames that made no sense.
        rx_accepted_err: Count,
        /// Of these, frames that were out of the ordinary.
        rx_accepted_unusual: Count,
        /// Frames that were no Ethernet.
        rx_bad_eth: Count,
        /// Requests with a token that does not hold.
        rx_invalid_token: Count,
        /// Requests without a token where one is needed.
        rx_no_token: Count,
        /// Frames taken in.
        rx_count: Count,
        /// Bytes of frames sent.
        tx_bytes: Count,
        /// Times that frames were sent.
        tx_count: Count,
        /// Frames that could not be sent.
        tx_errors: Count,
        /// Frames sent.
        tx_frames: Count,
        /// TCP connections made.
        connections_created: Count,
        /// TCP connections ended.
        connections_destroyed: Count,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_keep_the_extremes() {
        let times = Times::default();
        for us in [7, 3, 12] {
            times.record(Duration::from_micros(us));
        }
        let Times { min_us, max_us, sum_us } = &times;
        assert_eq!([min_us.get(), max_us.get(), sum_us.get()], [3, 12, 22]);
    }

    #[test]
    fn threads_lose_nothing() {
        let count = Count::default();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..10_000).for_each(|_| count.inc()));
            }
        });
        assert_eq!(count.get(), 40_000);
    }
}
