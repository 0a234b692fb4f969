//! What a monitor is called, and which Firecracker it stands in for.

use std::fmt;
use std::str::FromStr;

/// The Firecracker release whose command line and API varve speaks. Tools that choose their requests
/// by version are told this one.
pub const FIRECRACKER_VERSION: &str = "1.16.0";

/// Longest id, in bytes.
const MAX_ID: usize = 64;

/// Name of a machine among those of its host: 1 to 64 letters, digits and hyphens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstanceId(String);

/// Text that names no machine.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum InstanceIdError {
    /// Something else than a letter, digit or hyphen.
    #[error("invalid char ({0}) at position {1}; letters, digits and '-' are possible")]
    Char(char, usize),
    /// Too short or too long.
    #[error("invalid len ({0}); the length must be between 1 and {MAX_ID}")]
    Len(usize),
}

impl FromStr for InstanceId {
    type Err = InstanceIdError;

    fn from_str(text: &str) -> Result<InstanceId, InstanceIdError> {
        if !(1..=MAX_ID).contains(&text.len()) {
            return Err(InstanceIdError::Len(text.len()));
        }
        match text.chars().enumerate().find(|(_, c)| *c != '-' && !c.is_alphanumeric()) {
            Some((place, c)) => Err(InstanceIdError::Char(c, place)),
            None => Ok(InstanceId(text.into())),
        }
    }
}

impl Default for InstanceId {
    fn default() -> InstanceId {
        InstanceId("anonymous-instance".into())
    }
}

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids() {
        let id = |text: &str| text.parse::<InstanceId>();
        assert_eq!(id("vm-1").unwrap().to_string(), "vm-1");
        assert_eq!(id(&"a".repeat(64)).unwrap().to_string().len(), 64);
        assert_eq!(id(""), Err(InstanceIdError::Len(0)));
        assert_eq!(id(&"a".repeat(65)), Err(InstanceIdError::Len(65)));
        assert_eq!(id("a_b"), Err(InstanceIdError::Char('_', 1)));
        assert_eq!(id("../x"), Err(InstanceIdError::Char('.', 0)));
    }
}
