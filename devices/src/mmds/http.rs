//! HTTP as far as a guest needs it: a request out of the front of a connection's input, an answer
//! into its output.

use std::fmt::Write;

/// Longest request, with its body, in bytes.
pub const MAX_REQUEST: usize = 8 << 10;
const MAX_HEADERS: usize = 64;

/// The head of a request. Bodies mean nothing here and are passed over.
#[derive(Debug)]
pub struct Request<'a> {
    /// As it was sent.
    pub method: &'a str,
    /// Absolute path; empty if the target has none.
    pub path: &'a str,
    headers: &'a [httparse::Header<'a>],
}

impl Request<'_> {
    /// The first header that has one of these names: the name as it was sent, and its value.
    /// What is no text stands as an empty value.
    pub fn header(&self, names: &[&str]) -> Option<(&str, &str)> {
        let named = |header: &&httparse::Header| {
            names.iter().any(|name| header.name.eq_ignore_ascii_case(name))
        };
        let header = self.headers.iter().find(named)?;
        Some((header.name, std::str::from_utf8(header.value).unwrap_or_default().trim()))
    }

    /// Whether the client wants JSON.
    pub fn accepts_json(&self) -> bool {
        let json = |range: &str| {
            let kind = range.split(';').next().unwrap_or_default().trim();
            kind.eq_ignore_ascii_case("application/json")
        };
        self.header(&["accept"]).is_some_and(|(_, value)| value.split(',').any(json))
    }
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// Status code.
    pub status: u16,
    /// Whether the body is JSON, and not plain text.
    pub json: bool,
    /// The body.
    pub body: String,
    /// More headers, with their values.
    pub headers: Vec<(String, String)>,
}

impl Response {
    /// Plain text.
    pub fn text(status: u16, body: impl ToString) -> Response {
        Response { status, json: false, body: body.to_string(), headers: Vec::new() }
    }

    fn encode(&self, version: u8, keep_alive: bool) -> Vec<u8> {
        let reason = match self.status {
            200 => "OK",
            400 => "Bad Request",
            401 => "Unauthorized",
            404 => "Not Found",
            405 => "Method Not Allowed",
            413 => "Payload Too Large",
            501 => "Not Implemented",
            _ => "Internal Server Error",
        };
        let connection = if keep_alive { "keep-alive" } else { "close" };
        let kind = if self.json { "application/json" } else { "text/plain" };
        let mut text = format!(
            "HTTP/1.{version} {} {reason}\r\nServer: varve MMDS\r\nConnection: {connection}\r\n\
             Content-Type: {kind}\r\nContent-Length: {}\r\n",
            self.status,
            self.body.len()
        );
        for (name, value) in &self.headers {
            let _ = write!(text, "{name}: {value}\r\n");
        }
        text.push_str("\r\n");
        text.push_str(&self.body);
        text.into_bytes()
    }
}

/// What was at the front of a connection's input.
#[derive(Debug, PartialEq, Eq)]
pub struct Answered {
    /// Bytes of input that it took.
    pub taken: usize,
    /// The answer as it goes out.
    pub output: Vec<u8>,
    /// Nothing more will be answered.
    pub close: bool,
}

/// Answers the request at the front of `input` by `respond`; `None` if it is not whole yet.
pub fn answer(input: &[u8], respond: impl FnOnce(&Request) -> Response) -> Option<Answered> {
    let refuse = |status, text: &str| {
        let output = Response::text(status, text).encode(1, false);
        Some(Answered { taken: input.len(), output, close: true })
    };
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut head = httparse::Request::new(&mut headers);
    let head_len = match head.parse(input) {
        Ok(httparse::Status::Complete(len)) => len,
        Ok(httparse::Status::Partial) if input.len() < MAX_REQUEST => return None,
        Ok(httparse::Status::Partial) => return refuse(413, "Request is too long."),
        Err(_) => return refuse(400, "Invalid request."),
    };
    let (Some(method), Some(target), Some(version)) = (head.method, head.path, head.version) else {
        return refuse(400, "Invalid request.");
    };
    let request = Request { method, path: absolute_path(target), headers: head.headers };
    if request.header(&["transfer-encoding"]).is_some() {
        return refuse(501, "Transfer-Encoding is not supported.");
    }
    let body_len = match content_length(request.headers) {
        Ok(len) if len <= MAX_REQUEST - head_len.min(MAX_REQUEST) => len,
        Ok(_) => return refuse(413, "Request is too long."),
        Err(problem) => return refuse(400, problem),
    };
    let taken = head_len + body_len;
    if input.len() < taken {
        return None;
    }
    let keep_alive = match request.header(&["connection"]) {
        Some((_, value)) if value.eq_ignore_ascii_case("close") => false,
        Some((_, value)) if value.eq_ignore_ascii_case("keep-alive") => true,
        _ => version == 1,
    };
    let output = respond(&request).encode(version, keep_alive);
    Some(Answered { taken, output, close: !keep_alive })
}

/// Bytes of a request's body: the value of its `Content-Length` headers, or 0 without one.
///
/// # Errors
///
/// If a value is not a decimal number, or two headers differ: the client and a proxy in between would not
/// agree where the next request begins (RFC 9112, 6.3).
pub fn content_length(headers: &[httparse::Header]) -> Result<usize, &'static str> {
    let mut length = None;
    for header in headers.iter().filter(|h| h.name.eq_ignore_ascii_case("content-length")) {
        let digits = std::str::from_utf8(header.value).unwrap_or_default().trim();
        // Rust's parser would take a sign, too.
        let digits = Some(digits).filter(|text| text.bytes().all(|b| b.is_ascii_digit()));
        let value = digits.and_then(|text| text.parse::<usize>().ok());
        let value = value.ok_or("Invalid Content-Length.")?;
        if length.replace(value).is_some_and(|before| before != value) {
            return Err("Different Content-Length headers.");
        }
    }
    Ok(length.unwrap_or(0))
}

/// The path of a request's target, which is a path or an URI with a scheme and a host.
fn absolute_path(target: &str) -> &str {
    match target.strip_prefix("http://") {
        Some(rest) => rest.find('/').map_or("", |at| &rest[at..]),
        None if target.starts_with('/') => target,
        None => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn path(request: &Request) -> Response {
        Response::text(200, format!("{} {}", request.method, request.path))
    }

    fn text(answered: &Answered) -> &str {
        std::str::from_utf8(&answered.output).unwrap()
    }

    #[test]
    fn requests_in_pieces_and_in_a_row() {
        let first = b"PUT /a HTTP/1.1\r\nContent-Length: 3\r\n\r\nxyz".to_vec();
        let both = [&first[..], b"GET http://169.254.169.254/b HTTP/1.0\r\n\r\n"].concat();
        for cut in 0..first.len() {
            assert_eq!(answer(&both[..cut], path), None, "{cut}");
        }
        let answered = answer(&both, path).unwrap();
        assert_eq!((answered.taken, answered.close), (first.len(), false));
        assert!(text(&answered).ends_with("Content-Length: 6\r\n\r\nPUT /a"));
        let answered = answer(&both[first.len()..], path).unwrap();
        assert_eq!((answered.taken, answered.close), (both.len() - first.len(), true));
        assert!(text(&answered).starts_with("HTTP/1.0 200 OK\r\n"));
        assert!(text(&answered).ends_with("\r\n\r\nGET /b"));
    }

    #[test]
    fn connections_stay_as_long_as_asked() {
        let closes = |head: &str| {
            answer(format!("GET / HTTP/1.{head}\r\n\r\n").as_bytes(), path).unwrap().close
        };
        assert!(!closes("1") && closes("0"));
        assert!(closes("1\r\nConnection: Close") && !closes("0\r\nconnection: keep-alive"));
    }

    #[test]
    fn what_is_no_request_ends_the_connection() {
        let long = format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(2 * MAX_REQUEST));
        let cases = [
            (&b"\x16\x03\x01"[..], "400"),
            (b"GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", "400"),
            (b"GET / HTTP/1.1\r\nContent-Length: +1\r\n\r\n", "400"),
            (b"GET / HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n", "400"),
            (b"GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", "400"),
            (b"GET / HTTP/1.1\r\nContent-Length: 8192\r\n\r\n", "413"),
            (b"GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", "501"),
            (&long.as_bytes()[..MAX_REQUEST], "413"),
        ];
        for (input, status) in cases {
            let answered = answer(input, path).unwrap();
            assert!(text(&answered)[9..].starts_with(status), "{answered:?}");
            assert!(answered.close && answered.taken == input.len());
        }
    }

    #[test]
    fn what_the_client_accepts() {
        let json = |value: &str| {
            let head = format!("GET / HTTP/1.1\r\nAccept: {value}\r\n\r\n");
            let mut found = None;
            answer(head.as_bytes(), |request| {
                found = Some(request.accepts_json());
                path(request)
            });
            found.unwrap()
        };
        assert!(json("application/json") && json("text/html, Application/JSON;q=0.9"));
        assert!(!json("plain/text") && !json("*/*") && !json("application/jsonx"));
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered_or_wait(
            start in "(GET|PUT|[A-Z]{0,9}) (http://)?[/a]{0,9}( HTTP/1.[01])?(\r\n[A-Z-]{1,20}: [0-9]{0,20}){0,3}",
            rest in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            let input = [start.as_bytes(), b"\r\n\r\n", &rest].concat();
            for input in [&input[..], &rest] {
                if let Some(answered) = answer(input, path) {
                    prop_assert!(answered.taken <= input.len() && answered.taken > 0);
                }
            }
        }
    }
}
