//! Body of `PUT /trace`, varve's own: what becomes of a recording that `PUT /snapshot/load` began.

use serde::Deserialize;
use serde::de::Error;

/// What a request asks of the recording.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Body")]
pub enum TraceRequest {
    /// An invocation of this name begins.
    Mark(String),
    /// The recording ends, and its trace is written.
    Save,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    action: Verb,
    label: Option<String>,
}

#[derive(Deserialize)]
enum Verb {
    Mark,
    Save,
}

impl TryFrom<Body> for TraceRequest {
    type Error = serde_json::Error;

    fn try_from(body: Body) -> Result<TraceRequest, serde_json::Error> {
        match (body.action, body.label) {
            (Verb::Mark, Some(label)) if !label.is_empty() => Ok(TraceRequest::Mark(label)),
            (Verb::Mark, _) => Err(serde_json::Error::missing_field("label")),
            (Verb::Save, None) => Ok(TraceRequest::Save),
            (Verb::Save, Some(_)) => {
                Err(serde_json::Error::custom("label: only Mark has one; Save ends the recording"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies() {
        let parse = |text| serde_json::from_str::<TraceRequest>(text).map_err(|e| e.to_string());
        let mark = parse(r#"{"action": "Mark", "label": "json 7"}"#);
        assert_eq!(mark, Ok(TraceRequest::Mark("json 7".into())));
        assert_eq!(parse(r#"{"action": "Save"}"#), Ok(TraceRequest::Save));
        assert_eq!(parse(r#"{"action": "Mark"}"#), Err("missing field `label`".into()));
        assert!(parse(r#"{"action": "Mark", "label": ""}"#).is_err());
        assert!(parse(r#"{"action": "Save", "label": "x"}"#).is_err());
        assert!(parse(r#"{"action": "Stop"}"#).is_err());
    }
}
