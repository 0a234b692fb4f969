//! What each request of a guest gets: methods, paths, tokens and formats to status codes and texts,
//! which are those of Firecracker's MMDS.

use std::sync::Arc;

use super::http::{Request, Response};
use super::store::{Format, StoreError};
use super::{Mmds, MmdsConfig, Version};

const TOKEN_PATH: &str = "/latest/api/token";
/// Names by which programs written for this service, or for EC2's, send their token.
const TOKEN: [&str; 2] = ["x-metadata-token", "x-aws-ec2-metadata-token"];
/// And how long they want it to live.
const TTL: [&str; 2] = ["x-metadata-token-ttl-seconds", "x-aws-ec2-metadata-token-ttl-seconds"];
/// A proxy sends this; a token is for the guest's own programs.
const FORWARDED: [&str; 1] = ["x-forwarded-for"];

/// The service as one network interface offers it.
#[derive(Clone, Debug)]
pub struct Service {
    mmds: Arc<Mmds>,
    version: Version,
    imds_compat: bool,
}

impl Service {
    /// The service on the interfaces of `config`.
    pub fn new(mmds: Arc<Mmds>, config: &MmdsConfig) -> Service {
        Service { mmds, version: config.version, imds_compat: config.imds_compat }
    }

    /// Answers one request.
    pub fn respond(&self, request: &Request) -> Response {
        if request.path.is_empty() {
            return Response::text(400, "Invalid URI.");
        }
        match request.method {
            "GET" => self.get(request),
            "PUT" => self.put(request),
            _ => Response {
                headers: vec![("Allow".into(), "GET, PUT".into())],
                ..Response::text(405, "Not allowed HTTP method.")
            },
        }
    }

    fn get(&self, request: &Request) -> Response {
        // The first version counts what the second would refuse.
        if let Err(refusal) = self.check_token(request)
            && self.version == Version::V2
        {
            return refusal;
        }
        let json = request.accepts_json() && !self.imds_compat;
        let format = if json { Format::Json } else { Format::Imds };
        match self.mmds.store().read(request.path, format) {
            Ok(body) => Response { json, ..Response::text(200, body) },
            Err(StoreError::NotFound) => not_found(request),
            Err(e) => Response::text(501, e),
        }
    }

    fn check_token(&self, request: &Request) -> Result<(), Response> {
        let Some((_, token)) = request.header(&TOKEN) else {
            self.mmds.metrics.rx_no_token.inc();
            return Err(Response::text(
                401,
                "No MMDS token provided. Use `X-metadata-token` or `X-aws-ec2-metadata-token` \
                 header to specify the session token.",
            ));
        };
        if !self.mmds.tokens.accepts(token, self.mmds.now()) {
            self.mmds.metrics.rx_invalid_token.inc();
            return Err(Response::text(401, "MMDS token not valid."));
        }
        Ok(())
    }

    /// Gives a token, whatever the version, so that a guest can change over to the second.
    fn put(&self, request: &Request) -> Response {
        if let Some((name, _)) = request.header(&FORWARDED) {
            let problem = format!("Invalid header. Reason: Unsupported header name. Key: {name}");
            return Response::text(400, problem);
        }
        if !is_token_path(request.path) {
            return not_found(request);
        }
        let Some((name, value)) = request.header(&TTL) else {
            return Response::text(
                400,
                "Token time to live value not found. Use `X-metadata-token-ttl-seconds` or \
                 `X-aws-ec2-metadata-token-ttl-seconds` header to specify the token's lifetime.",
            );
        };
        let Ok(ttl_s) = value.parse::<u32>() else {
            let problem =
                format!("Invalid header. Reason: Invalid value. Key:{name}; Value:{value}");
            return Response::text(400, problem);
        };
        match self.mmds.tokens.issue(ttl_s, self.mmds.now()) {
            Ok(token) => Response {
                headers: vec![(name.into(), ttl_s.to_string())],
                ..Response::text(200, token)
            },
            Err(e) => Response::text(400, e),
        }
    }
}

fn not_found(request: &Request) -> Response {
    Response::text(404, format!("Resource not found: {}.", request.path))
}

/// With as many slashes for one as the guest likes.
fn is_token_path(path: &str) -> bool {
    let names = |path: &'static str| path.split('/').filter(|name| !name.is_empty());
    !path.ends_with('/') && path.split('/').filter(|name| !name.is_empty()).eq(names(TOKEN_PATH))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::mmds::http::answer;

    fn service(version: &str, imds_compat: bool) -> Service {
        let config = json!({
            "version": version, "network_interfaces": ["eth0"], "imds_compat": imds_compat,
        });
        let mmds = Arc::new(Mmds::new(51_200, Arc::default()).unwrap());
        mmds.put(json!({"latest": {"id": "i-7"}, "age": 43})).unwrap();
        Service::new(mmds, &serde_json::from_value(config).unwrap())
    }

    /// Status code, headers and body.
    fn ask(service: &Service, head: &str) -> (u16, String, String) {
        let input = format!("{}\r\n\r\n", head.replace('\n', "\r\n"));
        let answered = answer(input.as_bytes(), |request| service.respond(request)).unwrap();
        let text = String::from_utf8(answered.output).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        (head[9..12].parse().unwrap(), head.into(), body.into())
    }

    fn status_and_body(service: &Service, head: &str) -> (u16, String) {
        let (status, _, body) = ask(service, head);
        (status, body)
    }

    #[test]
    fn the_first_version_needs_no_token() {
        let v1 = service("V1", false);
        let get = |head| status_and_body(&v1, head);
        let id = || (200, "i-7".to_owned());
        assert_eq!(get("GET /latest/id HTTP/1.1"), id());
        assert_eq!(get("GET http://169.254.169.254/latest//id/ HTTP/1.0"), id());
        assert_eq!(get("GET /latest/id HTTP/1.1\nX-metadata-token: wrong"), id());
        assert_eq!(get("GET /latest HTTP/1.1\nAccept: application/json").1, r#"{"id":"i-7"}"#);
        assert_eq!(get("GET / HTTP/1.1").1, "age\nlatest/");
        assert_eq!(get("GET /x HTTP/1.1"), (404, "Resource not found: /x.".into()));
        let unsupported = "Cannot retrieve value. The value has an unsupported type.";
        assert_eq!(get("GET /age HTTP/1.1"), (501, unsupported.into()));
        assert_eq!(get("GET http:// HTTP/1.1"), (400, "Invalid URI.".into()));
        for method in ["POST", "PATCH", "DELETE", "HEAD"] {
            let (status, head, body) = ask(&v1, &format!("{method} / HTTP/1.1"));
            assert_eq!((status, &*body), (405, "Not allowed HTTP method."));
            assert!(head.contains("\r\nAllow: GET, PUT"), "{head}");
        }
        let (status, head, _) = ask(&v1, "GET /latest HTTP/1.1\nAccept: application/json");
        assert!(status == 200 && head.contains("Content-Type: application/json"), "{head}");
    }

    #[test]
    fn the_second_version_needs_a_token() {
        let v2 = service("V2", false);
        let (status, body) = status_and_body(&v2, "GET /latest/id HTTP/1.1");
        assert!(status == 401 && body.starts_with("No MMDS token provided. Use"), "{body}");
        for (token, ttl) in TOKEN.into_iter().zip(TTL) {
            let put = format!("PUT /latest/api/token HTTP/1.1\n{}: 60", ttl.to_uppercase());
            let (status, head, given) = ask(&v2, &put);
            assert!(status == 200 && head.contains(&format!("{}: 60", ttl.to_uppercase())));
            let get =
                |token: String| status_and_body(&v2, &format!("GET /latest/id HTTP/1.1\n{token}"));
            assert_eq!(get(format!("{token}: {given}")), (200, "i-7".into()));
            let wrong = get(format!("{token}: {}", given.replace('0', "1").replace('a', "b")));
            assert_eq!(wrong, (401, "MMDS token not valid.".into()));
            assert_eq!(get(format!("{token}: \u{e9}")).0, 401);
        }
        let other = service("V2", false);
        let given = ask(&other, &format!("PUT /latest/api/token HTTP/1.1\n{}: 60", TTL[0])).2;
        let get = format!("GET /latest/id HTTP/1.1\n{}: {given}", TOKEN[0]);
        assert_eq!(status_and_body(&v2, &get).0, 401, "another machine's");
    }

    #[test]
    fn tokens_are_refused_as_firecracker_does() {
        for service in [service("V1", false), service("V2", false)] {
            let put = |rest: &str| status_and_body(&service, &format!("PUT /{rest}"));
            let path = "latest/api/token HTTP/1.1";
            let forwarded = put(&format!("{path}\nX-Forwarded-For: a\n{}: 60", TTL[0]));
            let text = "Invalid header. Reason: Unsupported header name. Key: X-Forwarded-For";
            assert_eq!(forwarded, (400, text.into()));
            let (status, body) = put(path);
            assert!(status == 400 && body.starts_with("Token time to live value not found. Use"));
            let text = "Invalid header. Reason: Invalid value. Key:X-Metadata-Token-TTL-Seconds; Value:ten";
            let odd = put(&format!("{path}\nX-Metadata-Token-TTL-Seconds: ten"));
            assert_eq!(odd, (400, text.into()));
            for ttl in ["0", "21601", "4294967295"] {
                let text = format!(
                    "Invalid time to live value provided for token: {ttl}. Please provide a value \
                     between 1 and 21600."
                );
                assert_eq!(put(&format!("{path}\n{}: {ttl}", TTL[1])), (400, text));
            }
            assert_eq!(put("token HTTP/1.1"), (404, "Resource not found: /token.".into()));
            assert_eq!(put(&format!("//latest//api/token HTTP/1.1\n{}: 1", TTL[0])).0, 200);
        }
    }

    #[test]
    fn compatible_with_ec2s_service() {
        let compat = service("V1", true);
        let (status, head, body) = ask(&compat, "GET /latest HTTP/1.1\nAccept: application/json");
        assert_eq!((status, &*body), (200, "id"));
        assert!(head.contains("Content-Type: text/plain"), "{head}");
    }
}
