//! `entropy`: a source of random numbers.

use serde::{Deserialize, Serialize};
use varve_devices::limiter::LimiterConfig;

/// An entropy device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entropy {
    /// Limits of what the guest takes.
    pub rate_limiter: Option<LimiterConfig>,
}

impl Entropy {
    /// The entropy device of a machine with these limits.
    pub fn of(limits: LimiterConfig) -> Entropy {
        Entropy { rate_limiter: limits.given() }
    }
}
