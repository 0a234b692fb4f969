//! Why a request is not understood, in Firecracker's words.

use crate::api::http::Method;

/// A request that is not understood. All are answered with status 400.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// There is no such path, or not with this method.
    #[error("Invalid request method and/or path: {} {path}.", method.name())]
    Path {
        /// The method.
        method: Method,
        /// The path, without its first slash.
        path: String,
    },
    /// A GET with a body.
    #[error("GET request cannot have a body.")]
    GetWithBody,
    /// A PUT or PATCH without one.
    #[error("Empty {} request.", .0.name())]
    Empty(Method),
    /// A path that lacks its name.
    #[error("The ID cannot be empty.")]
    NoId,
    /// A name that cannot be one.
    #[error("API Resource IDs can only contain alphanumeric characters and underscores.")]
    BadId,
    /// Path and body name different drives.
    #[error("The id from the path does not match the id from the body!")]
    OtherDrive,
    /// Path and body name different interfaces.
    #[error("The id from the path [{path}] does not match the id from the body [{body}]!")]
    OtherInterface {
        /// The path's.
        path: String,
        /// The body's.
        body: String,
    },
    /// The body does not say what it should.
    #[error("An error occurred when deserializing the json body of a request: {0}.")]
    Body(String),
}

/// The cause is in the text already, and ends there with a full stop: it is not told as a source, too.
impl From<serde_json::Error> for RequestError {
    fn from(error: serde_json::Error) -> RequestError {
        RequestError::Body(error.to_string())
    }
}
