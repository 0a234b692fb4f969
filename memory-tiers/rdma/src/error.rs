//! What can go wrong with verbs.

use std::error::Error;
use std::time::Duration;

/// A verb failed.
#[derive(Debug, thiserror::Error)]
pub enum RdmaError {
    /// A call on the device failed.
    #[error("RDMA: cannot {what}")]
    Verb {
        /// What was tried.
        what: &'static str,
        /// The answer.
        source: Box<dyn Error + Send + Sync>,
    },
    /// A read ended with an error; the link is of no more use.
    #[error("RDMA: a read ended with {status}")]
    Failed {
        /// The completion's status.
        status: String,
    },
    /// No completion came in time.
    #[error("RDMA: no answer within {} ms", .0.as_millis())]
    Silent(Duration),
    /// More was asked for than there is.
    #[error("RDMA: {len} bytes at {offset} of a remote range of {has}")]
    Outside {
        /// First byte.
        offset: u64,
        /// Number of bytes.
        len: u64,
        /// Length of the range.
        has: u64,
    },
    /// The other side's endpoint makes no sense.
    #[error("RDMA: peer sent an invalid {0}")]
    Endpoint(&'static str),
}

impl RdmaError {
    /// A failed call, for `map_err`.
    pub(crate) fn verb<E>(what: &'static str) -> impl FnOnce(E) -> RdmaError
    where
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        move |source| RdmaError::Verb { what, source: source.into() }
    }
}
