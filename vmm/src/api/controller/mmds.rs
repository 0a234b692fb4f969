//! The metadata service's document, as the host sees it.

use serde_json::{Value, json};

use super::{Monitor, Outcome, Response};

pub fn get(monitor: &Monitor) -> Outcome {
    Ok(Response::ok(&match monitor.mmds().document() {
        Value::Null => json!({}),
        document => document,
    }))
}

pub fn put(monitor: &Monitor, document: Value) -> Outcome {
    monitor.mmds().put(document)?;
    Ok(Response::no_content())
}

pub fn patch(monitor: &Monitor, patch: &Value) -> Outcome {
    monitor.mmds().patch(patch)?;
    Ok(Response::no_content())
}
