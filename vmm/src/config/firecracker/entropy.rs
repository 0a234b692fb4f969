//! `entropy`: a source of random numbers.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::config::ConfigError;

/// An entropy device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entropy {
    /// Not supported yet.
    pub rate_limiter: Option<Value>,
}

/// Why there is no such device.
#[derive(Debug, thiserror::Error)]
pub enum EntropyError {
    /// A field cannot be what it is.
    #[error(transparent)]
    Field(#[from] ConfigError),
}

impl Entropy {
    /// Checks the fields.
    pub fn check(&self) -> Result<(), EntropyError> {
        match self.rate_limiter {
            Some(_) => {
                let problem = "not supported by this version; remove it";
                Err(ConfigError::field("entropy.rate_limiter", problem).into())
            }
            None => Ok(()),
        }
    }
}
