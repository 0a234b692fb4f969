//! The error of a KVM call.

/// What KVM refused.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// /dev/kvm does not open.
    #[error("cannot open /dev/kvm ({0}): {hint}", hint = open_hint(.0))]
    Open(kvm_ioctls::Error),
    /// A KVM from before 2007.
    #[error("KVM API version {0}, need 12")]
    ApiVersion(i32),
    /// A capability is missing.
    #[error("this host's KVM lacks {0}")]
    Missing(&'static str),
    /// An ioctl failed.
    #[error("{0}")]
    Call(&'static str, #[source] kvm_ioctls::Error),
    /// A saved state that this host cannot take.
    #[error("{0}")]
    State(String),
    /// More vCPUs than this host's KVM runs.
    #[error("{wanted} vCPUs asked for; this host's KVM allows {allowed}")]
    TooManyVcpus {
        /// Asked for.
        wanted: u8,
        /// Allowed.
        allowed: usize,
    },
}

fn open_hint(error: &kvm_ioctls::Error) -> &'static str {
    match error.errno() {
        libc::ENOENT => {
            "load the kvm_intel or kvm_amd module, or enable virtualization in firmware"
        }
        libc::EACCES | libc::EPERM => "add this user to the group that owns it (usually kvm)",
        libc::ENODEV | libc::ENXIO => "the kernel has no virtualization on this processor",
        _ => "virtual machines need it",
    }
}
