//! HTTP/1.1 as far as a control socket needs it: requests in, responses out, with limits.

use serde_json::json;
use varve_devices::mmds::http::content_length;

/// Longest request line and headers.
pub const MAX_HEAD: usize = 16 << 10;
/// Most headers.
const MAX_HEADERS: usize = 64;

/// Methods that a path may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Read.
    Get,
    /// Set or do.
    Put,
    /// Change a part.
    Patch,
    /// Remove.
    Delete,
}

impl Method {
    /// As it is written in a request.
    pub fn name(self) -> &'static str {
        match self {
            Method::Get => "GET",
            Method::Put => "PUT",
            Method::Patch => "PATCH",
            Method::Delete => "DELETE",
        }
    }
}

/// A request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Its method.
    pub method: Method,
    /// Its path, without a query.
    pub path: String,
    /// Its body.
    pub body: Vec<u8>,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// Status code.
    pub status: u16,
    /// JSON, or nothing.
    pub body: Option<String>,
    /// The request used something that Firecracker will do without some day.
    pub deprecated: bool,
}

impl Response {
    /// 204: done, nothing to say.
    pub fn no_content() -> Response {
        Response { status: 204, body: None, deprecated: false }
    }

    /// 200 with a JSON body.
    pub fn ok(body: &serde_json::Value) -> Response {
        Response { status: 200, body: Some(body.to_string()), deprecated: false }
    }

    /// An error, worded as Firecracker words it: `{"fault_message": …}`.
    pub fn fault(status: u16, message: impl std::fmt::Display) -> Response {
        let body = json!({ "fault_message": message.to_string() });
        Response { status, body: Some(body.to_string()), deprecated: false }
    }

    /// The bytes on the wire.
    pub fn encode(&self, keep_alive: bool) -> Vec<u8> {
        let reason = match self.status {
            200 => "OK",
            204 => "No Content",
            400 => "Bad Request",
            404 => "Not Found",
            405 => "Method Not Allowed",
            413 => "Payload Too Large",
            503 => "Service Unavailable",
            _ => "Internal Server Error",
        };
        let connection = if keep_alive { "keep-alive" } else { "close" };
        let mut head = format!(
            "HTTP/1.1 {} {reason}\r\nServer: varve\r\nConnection: {connection}\r\n",
            self.status
        );
        if self.deprecated {
            head.push_str("Deprecation: true\r\n");
        }
        match &self.body {
            Some(body) => {
                let len = body.len();
                head.push_str("Content-Type: application/json\r\n");
                head.push_str(&format!("Content-Length: {len}\r\n\r\n{body}"));
            }
            None if self.status == 204 => head.push_str("\r\n"),
            None => head.push_str("Content-Length: 0\r\n\r\n"),
        }
        head.into_bytes()
    }
}

/// What is at the front of a connection's input.
#[derive(Debug, PartialEq, Eq)]
pub enum Parsed {
    /// Not a whole request yet; with `expects_continue` the client waits to be told to go on.
    Partial {
        /// The head is there and asks for `100 Continue`.
        expects_continue: bool,
    },
    /// A request that takes this many bytes of the input.
    Request {
        /// The request.
        request: Request,
        /// Its bytes.
        len: usize,
        /// The client may send another one.
        keep_alive: bool,
    },
    /// Something that cannot be answered but by this, after which the connection closes.
    Bad(Response),
}

/// Parses the front of `input`; bodies are at most `max_body` bytes.
pub fn parse(input: &[u8], max_body: usize) -> Parsed {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut head = httparse::Request::new(&mut headers);
    let head_len = match head.parse(input) {
        Ok(httparse::Status::Complete(len)) if len <= MAX_HEAD => len,
        Ok(httparse::Status::Partial) if input.len() < MAX_HEAD => {
            return Parsed::Partial { expects_continue: false };
        }
        Ok(_) => return Parsed::Bad(Response::fault(400, "Request head is too long.")),
        Err(e) => return Parsed::Bad(Response::fault(400, format!("Invalid request: {e}."))),
    };
    let header = |name: &str| {
        head.headers
            .iter()
            .find(|h| h.name.eq_ignore_ascii_case(name))
            .map(|h| String::from_utf8_lossy(h.value).trim().to_ascii_lowercase())
    };
    if header("transfer-encoding").is_some() {
        return Parsed::Bad(Response::fault(400, "Transfer-Encoding is not supported."));
    }
    let body_len = match content_length(head.headers) {
        Ok(len) if len <= max_body => len,
        Ok(len) => {
            let message = format!(
                "Request payload with size {len} is larger than the limit of {max_body} allowed \
                 by server."
            );
            return Parsed::Bad(Response::fault(413, message));
        }
        Err(problem) => return Parsed::Bad(Response::fault(400, problem)),
    };
    let len = head_len.saturating_add(body_len);
    if input.len() < len {
        let expects_continue = header("expect").is_some_and(|v| v == "100-continue");
        return Parsed::Partial { expects_continue };
    }
    let method = match head.method {
        Some("GET") => Method::Get,
        Some("PUT") => Method::Put,
        Some("PATCH") => Method::Patch,
        Some("DELETE") => Method::Delete,
        other => {
            let message = format!("Invalid HTTP method: {}.", other.unwrap_or_default());
            return Parsed::Bad(Response::fault(400, message));
        }
    };
    let target = head.path.unwrap_or("/");
    let path = target.split('?').next().unwrap_or(target).to_owned();
    // Clients of HTTP/1.0 keep their connection too, as Firecracker lets them.
    let keep_alive = header("connection").as_deref() != Some("close");
    let request = Request { method, path, body: input[head_len..len].to_vec() };
    Parsed::Request { request, len, keep_alive }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PUT: &[u8] = b"PUT /vm?x=1 HTTP/1.1\r\nContent-Length: 2\r\nHost: a\r\n\r\n{}GET";

    #[test]
    fn a_request_in_pieces() {
        for cut in 0..PUT.len() - 3 {
            assert_eq!(parse(&PUT[..cut], 100), Parsed::Partial { expects_continue: false });
        }
        let request = Request { method: Method::Put, path: "/vm".into(), body: b"{}".to_vec() };
        let len = PUT.len() - 3;
        assert_eq!(parse(PUT, 100), Parsed::Request { request, len, keep_alive: true });
    }

    #[test]
    fn limits_and_nonsense() {
        let status = |input: &[u8]| match parse(input, 10) {
            Parsed::Bad(response) => response.status,
            other => panic!("{other:?}"),
        };
        assert_eq!(status(b"PUT / HTTP/1.1\r\nContent-Length: 11\r\n\r\n"), 413);
        for length in ["-1", "+1", "", "1, 1", "1 1", "0x1", "99999999999999999999"] {
            let put = format!("PUT / HTTP/1.1\r\nContent-Length: {length}\r\n\r\n{{}}");
            assert_eq!(status(put.as_bytes()), 400, "{length:?}");
        }
        let twice = b"PUT / HTTP/1.1\r\nContent-Length: 1\r\ncontent-length: 2\r\n\r\n{}";
        assert_eq!(status(twice), 400);
        assert_eq!(status(b"PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"), 400);
        assert_eq!(status(b"BREW / HTTP/1.1\r\n\r\n"), 400);
        assert_eq!(status(b"\x00\x01\x02"), 400);
        let mut long = b"GET /".to_vec();
        long.resize(MAX_HEAD + 1, b'a');
        assert_eq!(status(&long), 400);
        let wait = b"PUT / HTTP/1.1\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n";
        assert_eq!(parse(wait, 10), Parsed::Partial { expects_continue: true });
    }

    #[test]
    fn a_connection_stays_until_its_client_closes_it() {
        let keeps = |head: &str| match parse(format!("GET / {head}\r\n\r\n").as_bytes(), 0) {
            Parsed::Request { keep_alive, .. } => keep_alive,
            other => panic!("{other:?}"),
        };
        assert!(keeps("HTTP/1.0") && keeps("HTTP/1.0\r\nConnection: keep-alive"));
        assert!(keeps("HTTP/1.1") && !keeps("HTTP/1.1\r\nConnection: Close"));
        assert!(!keeps("HTTP/1.0\r\nConnection: close"));
        let text =
            |keep_alive| String::from_utf8(Response::no_content().encode(keep_alive)).unwrap();
        assert!(text(true).contains("\r\nConnection: keep-alive\r\n"));
        assert!(text(false).contains("\r\nConnection: close\r\n"));
    }

    #[test]
    fn equal_lengths_are_one() {
        let put = b"PUT / HTTP/1.1\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\n{}";
        assert!(matches!(parse(put, 10), Parsed::Request { len, .. } if len == put.len()));
    }

    #[test]
    fn what_is_deprecated_is_said() {
        let text = |response: Response| String::from_utf8(response.encode(true)).unwrap();
        let deprecated = Response { deprecated: true, ..Response::no_content() };
        assert!(text(deprecated).contains("\r\nDeprecation: true\r\n"));
        assert!(!text(Response::no_content()).contains("Deprecation"));
    }

    proptest! {
        #[test]
        fn never_panics(input in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Parsed::Request { len, .. } = parse(&input, 50) {
                prop_assert!(len <= input.len());
            }
        }
    }
}
