//! What the monitor itself counts, under the names of Firecracker's metrics (its
//! `src/vmm/src/logger/metrics.rs`). What devices count is in `varve_devices::metrics`.

use serde::Serialize;
use varve_devices::metrics::{Count, Times};

use crate::signal_handlers;

macro_rules! groups {
    ($($(#[$doc:meta])* $name:ident: $kind:ident { $($(#[$field_doc:meta])* $field:ident,)* })*) => {
        $($(#[$doc])*
        #[derive(Debug, Default, Serialize)]
        pub struct $name { $($(#[$field_doc])* pub $field: $kind,)* })*
    };
}

groups! {
    /// `api_server`, in microseconds.
    ApiServer: Count {
        /// From the start that `--start-time-us` names until requests were taken.
        process_startup_time_us,
        /// The same in processor time, with that of the parent.
        process_startup_time_cpu_us,
    }

    /// `deprecated_api`.
    DeprecatedApi: Count {
        /// Requests with deprecated fields or paths.
        deprecated_http_api_calls,
    }

    /// `get_api_requests`.
    GetRequests: Count {
        /// `/`.
        instance_info_count,
        /// `/machine-config`.
        machine_cfg_count,
        /// `/mmds`.
        mmds_count,
        /// `/version`.
        vmm_version_count,
        /// `/hotplug/memory`.
        hotplug_memory_count,
    }

    /// `put_api_requests`: requests, and those of them that were refused.
    PutRequests: Count {
        /// `/actions`.
        actions_count,
        /// Refused.
        actions_fails,
        /// `/boot-source`.
        boot_source_count,
        /// Refused.
        boot_source_fails,
        /// `/drives`.
        drive_count,
        /// Refused.
        drive_fails,
        /// `/logger`.
        logger_count,
        /// Refused.
        logger_fails,
        /// `/machine-config`.
        machine_cfg_count,
        /// Refused.
        machine_cfg_fails,
        /// `/cpu-config`.
        cpu_cfg_count,
        /// Refused.
        cpu_cfg_fails,
        /// `/metrics`.
        metrics_count,
        /// Refused.
        metrics_fails,
        /// `/network-interfaces`.
        network_count,
        /// Refused.
        network_fails,
        /// `/mmds` and `/mmds/config`.
        mmds_count,
        /// Refused.
        mmds_fails,
        /// `/vsock`.
        vsock_count,
        /// Refused.
        vsock_fails,
        /// `/pmem`.
        pmem_count,
        /// Refused.
        pmem_fails,
        /// `/serial`.
        serial_count,
        /// Refused.
        serial_fails,
        /// `/hotplug/memory`.
        hotplug_memory_count,
        /// Refused.
        hotplug_memory_fails,
    }

    /// `patch_api_requests`: requests, and those of them that were refused.
    PatchRequests: Count {
        /// `/drives`.
        drive_count,
        /// Refused.
        drive_fails,
        /// `/network-interfaces`.
        network_count,
        /// Refused.
        network_fails,
        /// `/machine-config`.
        machine_cfg_count,
        /// Refused.
        machine_cfg_fails,
        /// `/mmds`.
        mmds_count,
        /// Refused.
        mmds_fails,
        /// `/hotplug/memory`.
        hotplug_memory_count,
        /// Refused.
        hotplug_memory_fails,
    }

    /// `latencies_us`: how long the latest one took, in microseconds; those with `vmm_` without the
    /// way of the request.
    Latencies: Count {
        /// A full snapshot.
        full_create_snapshot,
        /// A diff snapshot.
        diff_create_snapshot,
        /// Loading a snapshot.
        load_snapshot,
        /// Pausing.
        pause_vm,
        /// Resuming.
        resume_vm,
        /// A full snapshot.
        vmm_full_create_snapshot,
        /// A diff snapshot.
        vmm_diff_create_snapshot,
        /// Loading a snapshot.
        vmm_load_snapshot,
        /// Pausing.
        vmm_pause_vm,
        /// Resuming.
        vmm_resume_vm,
    }

    /// The part of `logger` that is about metrics; see also [`crate::logger::Counts`].
    Flushes: Count {
        /// Lines that a full pipe or another error lost. What they counted is in the next one.
        missed_metrics_count,
        /// Errors while a line was made.
        metrics_fails,
    }

    /// `seccomp`.
    Seccomp: Count {
        /// System calls that the filters refused. The first one ends the process.
        num_faults,
    }

    /// `signals`.
    Signals: Count {
        /// SIGBUS.
        sigbus,
        /// SIGSEGV.
        sigsegv,
        /// SIGXFSZ.
        sigxfsz,
        /// SIGXCPU.
        sigxcpu,
        /// SIGPIPE.
        sigpipe,
        /// SIGHUP.
        sighup,
        /// SIGILL.
        sigill,
    }

    /// `vmm`.
    Vmm: Count {
        /// A thread has panicked.
        panic_count,
    }

    /// `pmem`; there is no such device.
    Pmem: Count {
        /// Failed activations.
        activate_fails,
        /// Failed accesses to the configuration space.
        cfg_fails,
        /// Failed events.
        event_fails,
        /// Notifications.
        queue_event_count,
    }
}

impl Signals {
    /// Takes over what the handlers of signals have counted.
    pub fn count(&self) {
        self.sigpipe.set(signal_handlers::sigpipes());
        if signal_handlers::sigxfszs() > 0 {
            self.sigxfsz.set(1);
        }
    }

    /// Counts a signal that ends the process.
    pub fn ended_by(&self, signal: i32) {
        let count = match signal {
            libc::SIGBUS => &self.sigbus,
            libc::SIGSEGV => &self.sigsegv,
            libc::SIGXFSZ => &self.sigxfsz,
            libc::SIGXCPU => &self.sigxcpu,
            libc::SIGILL => &self.sigill,
            _ => return,
        };
        count.set(1);
    }
}

/// `vcpu`: exits from the guest, and how long they took to handle.
#[derive(Debug, Default, Serialize)]
pub struct Vcpu {
    /// Reads of ports.
    pub exit_io_in: Count,
    /// Writes to ports.
    pub exit_io_out: Count,
    /// Reads of registers.
    pub exit_mmio_read: Count,
    /// Writes to registers.
    pub exit_mmio_write: Count,
    /// Exits that ended the machine.
    pub failures: Count,
    /// Guests that could not be told of a pause, because they have no kvm-clock.
    pub kvmclock_ctrl_fails: Count,
    /// Times of reads of ports.
    pub exit_io_in_agg: Times,
    /// Times of writes to ports.
    pub exit_io_out_agg: Times,
    /// Times of reads of registers.
    pub exit_mmio_read_agg: Times,
    /// Times of writes to registers.
    pub exit_mmio_write_agg: Times,
}

/// `memory_hotplug`; there is no such device.
#[derive(Debug, Default, Serialize)]
pub struct MemoryHotplug {
    activate_fails: Count,
    queue_event_fails: Count,
    queue_event_count: Count,
    plug_agg: Times,
    plug_count: Count,
    plug_bytes: Count,
    plug_fails: Count,
    unplug_agg: Times,
    unplug_count: Count,
    unplug_bytes: Count,
    unplug_fails: Count,
    unplug_discard_fails: Count,
    unplug_all_agg: Times,
    unplug_all_count: Count,
    unplug_all_fails: Count,
    state_agg: Times,
    state_count: Count,
    state_fails: Count,
}
