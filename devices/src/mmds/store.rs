//! The document: a JSON value that is replaced, patched and read by path.

use serde_json::{Map, Value};

/// Why the document is not changed or read. The texts are Firecracker's.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum StoreError {
    /// It would be longer than it may be.
    #[error("The MMDS patch request doesn't fit.")]
    TooLong,
    /// A patch, and there is no document.
    #[error("The MMDS data store is not initialized.")]
    NotInitialized,
    /// There is nothing at the path.
    #[error("The MMDS resource does not exist.")]
    NotFound,
    /// Plain text has no form for this type of value.
    #[error("Cannot retrieve value. The value has an unsupported type.")]
    Unsupported,
}

/// How a value is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// As JSON.
    Json,
    /// As EC2's service writes it: a string as it is, an object as a list of its names.
    Imds,
}

#[derive(Debug)]
pub struct Store {
    document: Option<Value>,
    limit: usize,
}

impl Store {
    pub fn new(limit: usize) -> Store {
        Store { document: None, limit }
    }

    pub fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
    }

    pub fn put(&mut self, document: Value) -> Result<(), StoreError> {
        if document.to_string().len() > self.limit {
            return Err(StoreError::TooLong);
        }
        self.document = Some(document);
        Ok(())
    }

    pub fn patch(&mut self, patch: &Value) -> Result<(), StoreError> {
        let mut document = self.document.clone().ok_or(StoreError::NotInitialized)?;
        merge(&mut document, patch);
        self.put(document)
    }

    pub fn document(&self) -> &Value {
        self.document.as_ref().unwrap_or(&Value::Null)
    }

    /// The value at `path`, which is a JSON pointer (RFC 6901) with a final slash or without one, and
    /// with as many slashes for one as the guest likes.
    pub fn read(&self, path: &str, format: Format) -> Result<String, StoreError> {
        let mut pointer = String::with_capacity(path.len());
        for c in path.chars() {
            if c != '/' || !pointer.ends_with('/') {
                pointer.push(c);
            }
        }
        let pointer = pointer.strip_suffix('/').unwrap_or(&pointer);
        let value = self.document().pointer(pointer).ok_or(StoreError::NotFound)?;
        match (format, value) {
            (Format::Json, value) => Ok(value.to_string()),
            (Format::Imds, Value::String(text)) => Ok(text.clone()),
            (Format::Imds, Value::Object(members)) => Ok(names(members)),
            (Format::Imds, _) => Err(StoreError::Unsupported),
        }
    }
}

/// One name a line; those of objects end with a slash.
fn names(members: &Map<String, Value>) -> String {
    let line = |(name, value): (&String, &Value)| match value {
        Value::Object(_) => format!("{name}/"),
        _ => name.clone(),
    };
    members.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// RFC 7396, 2. Both values came through a parser that bounds their depth, and so does this.
fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(members) = target else { return };
    for (name, value) in patch {
        match value {
            Value::Null => drop(members.remove(name)),
            value => merge(members.entry(name.as_str()).or_insert(Value::Null), value),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn store(document: Value) -> Store {
        let mut store = Store::new(51_200);
        store.put(document).unwrap();
        store
    }

    #[test]
    fn patches_follow_the_rfc() {
        // RFC 7396, appendix A: document, patch, result.
        let cases = [
            (json!({"a":"b"}), json!({"a":"c"}), json!({"a":"c"})),
            (json!({"a":"b"}), json!({"b":"c"}), json!({"a":"b","b":"c"})),
            (json!({"a":"b"}), json!({"a":null}), json!({})),
            (json!({"a":"b","b":"c"}), json!({"a":null}), json!({"b":"c"})),
            (json!({"a":["b"]}), json!({"a":"c"}), json!({"a":"c"})),
            (json!({"a":"c"}), json!({"a":["b"]}), json!({"a":["b"]})),
            (json!({"a":{"b":"c"}}), json!({"a":{"b":"d","c":null}}), json!({"a":{"b":"d"}})),
            (json!({"a":[{"b":"c"}]}), json!({"a":[1]}), json!({"a":[1]})),
            (json!(["a", "b"]), json!(["c", "d"]), json!(["c", "d"])),
            (json!({"a":"b"}), json!(["c"]), json!(["c"])),
            (json!({"a":"foo"}), json!(null), json!(null)),
            (json!({"a":"foo"}), json!("bar"), json!("bar")),
            (json!({"e":null}), json!({"a":1}), json!({"e":null,"a":1})),
            (json!([1, 2]), json!({"a":"b","c":null}), json!({"a":"b"})),
            (json!({}), json!({"a":{"bb":{"ccc":null}}}), json!({"a":{"bb":{}}})),
        ];
        for (document, patch, expected) in cases {
            let mut store = store(document.clone());
            store.patch(&patch).unwrap();
            assert_eq!(store.document(), &expected, "{document} and {patch}");
        }
    }

    #[test]
    fn a_document_that_does_not_fit_changes_nothing() {
        let mut store = Store::new(20);
        assert_eq!(store.patch(&json!({})), Err(StoreError::NotInitialized));
        assert_eq!(store.document(), &Value::Null);
        store.put(json!({"a":"0123456789ab"})).unwrap();
        assert_eq!(store.patch(&json!({"a":"0123456789abc"})), Err(StoreError::TooLong));
        assert_eq!(store.put(json!({"a":"0123456789abc"})), Err(StoreError::TooLong));
        assert_eq!(store.document(), &json!({"a":"0123456789ab"}));
    }

    #[test]
    fn paths_and_formats() {
        let store = store(json!({
            "name": {"first": "John", "a/b": "slash"}, "age": 43, "phones": ["+1", {"x": {}}],
            "none": null, "deep": {"er": {"est": {}}, "leaf": true},
        }));
        let (json, imds) = (Format::Json, Format::Imds);
        let found = |path, format| store.read(path, format).unwrap();
        assert_eq!(found("/name/first", json), r#""John""#);
        assert_eq!(found("/name/first", imds), "John");
        assert_eq!(found("//name///first//", imds), "John");
        assert_eq!(found("/name/a~1b", imds), "slash");
        assert_eq!(found("/deep", imds), "er/\nleaf");
        assert_eq!(found("/deep/er/est/", imds), "");
        assert_eq!(found("/phones/0/", imds), "+1");
        assert_eq!(found("/phones", json), r#"["+1",{"x":{}}]"#);
        assert_eq!(found("/none", json), "null");
        assert_eq!(found("/", imds), "age\ndeep/\nname/\nnone\nphones");
        for path in ["/age", "/none", "/phones", "/deep/leaf"] {
            assert_eq!(store.read(path, imds), Err(StoreError::Unsupported), "{path}");
        }
        for path in ["/no", "/name/first/x", "/phones/2", "/phones/-", "/phones/00", "name"] {
            assert_eq!(store.read(path, json), Err(StoreError::NotFound), "{path}");
        }
    }

    proptest! {
        #[test]
        fn any_path_is_read(path in "[a/~01\\-é]{0,12}") {
            let store = store(json!({"a": {"0": ["1", {"é": "x"}]}}));
            for format in [Format::Json, Format::Imds] {
                let _ = store.read(&path, format);
            }
        }
    }
}
