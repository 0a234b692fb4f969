//! What can go wrong with a balloon.

/// Why a balloon cannot be made or does not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum BalloonError {
    /// The size does not fit the device's 32 bits of pages.
    #[error("a balloon of {0} MiB is too large: the device counts up to 16777215 MiB")]
    TooLarge(u32),
    /// There are no statistics.
    #[error("balloon statistics are off: set stats_polling_interval_s before the machine starts")]
    StatsDisabled,
    /// Statistics cannot be switched on or off.
    #[error(
        "balloon statistics cannot be switched on or off (an interval from or to 0) after the \
         machine started"
    )]
    StatsSwitch,
    /// Free page hinting is not on offer.
    #[error("free page hinting is off: set free_page_hinting before the machine starts")]
    HintingDisabled,
    /// The guest does not do free page hinting.
    #[error("the guest has no balloon driver running that does free page hinting")]
    HintingUnused,
    /// No descriptor for events or timer.
    #[error("balloon: cannot make its event descriptors")]
    Descriptor(#[source] std::io::Error),
}
