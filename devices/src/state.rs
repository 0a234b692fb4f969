//! Saving and restoring devices: bytes with a version, strict on the way back.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Why a saved state cannot be taken.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum StateError {
    /// Saved by a version that this build does not know.
    #[error("state version {found} is not known (this build reads up to {known})")]
    Version {
        /// Version in the saved state.
        found: u32,
        /// Newest version this build reads.
        known: u32,
    },
    /// The bytes do not decode, or some are left over.
    #[error("state of version {version} does not decode: {cause}")]
    Decode {
        /// Version in the saved state.
        version: u32,
        /// What the decoder said.
        cause: String,
    },
    /// It decodes, but holds a value that cannot be.
    #[error("state holds an impossible value: {0}")]
    Invalid(String),
}

/// A device whose state a snapshot keeps.
///
/// There is no default implementation on purpose: a device that forgets its state would come back
/// blank without a word. One that has none saves an empty blob.
pub trait Savable {
    /// Version of what [`Savable::save`] writes.
    fn version(&self) -> u32;
    /// The state as bytes. Called while vCPUs and event loop stand still.
    fn save(&self) -> Vec<u8>;
    /// Takes over a state saved earlier, into a device built from the same config. Called before
    /// any vCPU runs; on an error the device must not be used.
    fn restore(&mut self, version: u32, bytes: &[u8]) -> Result<(), StateError>;
}

/// [`Savable`] for a device that keeps nothing between two accesses: an empty blob, and nothing else
/// is taken back.
macro_rules! stateless {
    ($device:ty) => {
        impl $crate::state::Savable for $device {
            fn version(&self) -> u32 {
                1
            }

            fn save(&self) -> Vec<u8> {
                Vec::new()
            }

            fn restore(
                &mut self,
                version: u32,
                bytes: &[u8],
            ) -> Result<(), $crate::state::StateError> {
                $crate::state::decode::<()>(version, 1, bytes)
            }
        }
    };
}
pub(crate) use stateless;

/// Encodes a saved struct (postcard: compact, field order fixed by the struct).
pub fn encode<T: Serialize>(state: &T) -> Vec<u8> {
    postcard::to_stdvec(state).expect("plain data with no maps of unknown length always encodes")
}

/// Decodes a saved struct of version `known`; a different version or left-over bytes are errors.
pub fn decode<T: DeserializeOwned>(found: u32, known: u32, bytes: &[u8]) -> Result<T, StateError> {
    if found != known {
        return Err(StateError::Version { found, known });
    }
    let fail = |cause: String| StateError::Decode { version: found, cause };
    let (state, rest) = postcard::take_from_bytes(bytes).map_err(|e| fail(e.to_string()))?;
    if !rest.is_empty() {
        return Err(fail(format!("{} bytes left over", rest.len())));
    }
    Ok(state)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strict_about_version_and_length() {
        let bytes = encode(&(7u32, vec![1u8, 2]));
        assert_eq!(decode::<(u32, Vec<u8>)>(1, 1, &bytes), Ok((7, vec![1, 2])));
        assert_eq!(
            decode::<(u32, Vec<u8>)>(2, 1, &bytes),
            Err(StateError::Version { found: 2, known: 1 })
        );
        let mut long = bytes.clone();
        long.push(0);
        assert!(matches!(
            decode::<(u32, Vec<u8>)>(1, 1, &long),
            Err(StateError::Decode { version: 1, .. })
        ));
        for cut in 0..bytes.len() {
            assert!(decode::<(u32, Vec<u8>)>(1, 1, &bytes[..cut]).is_err());
        }
    }
}
