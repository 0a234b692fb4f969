//! The description of the API beside the code says what requests are understood: the same routes, at
//! the same times, with the same fields and words. What is answered is for the end-to-end tests.

use std::collections::BTreeSet;

use serde_json::Value;

use super::description::{Description, Operation};
use super::{Action, ROUTES, RequestError, When, parse};
use crate::api::http::{Method, Request};

const DESCRIPTION: &str = include_str!("../openapi.json");

impl Operation<'_> {
    /// The action that it asks for with a body.
    fn ask(&self, body: Option<&Value>) -> Result<Action, RequestError> {
        let method = match self.method.as_str() {
            "GET" => Method::Get,
            "PUT" => Method::Put,
            "PATCH" => Method::Patch,
            other => panic!("{} has a method {other}", self.path),
        };
        let path = self.target(body);
        let body = body.map(Value::to_string).unwrap_or_default().into_bytes();
        parse(&Request { method, path, body })
    }
}

#[test]
fn the_routes_are_those_that_are_described() {
    let description = Description::parse(DESCRIPTION);
    let described: BTreeSet<_> =
        description.operations().map(|o| (o.method, o.path.to_owned())).collect();
    let routes: BTreeSet<_> =
        ROUTES.iter().map(|r| (r.method.name().to_owned(), r.path.to_owned())).collect();
    assert_eq!(routes, described);
}

#[test]
fn what_is_described_is_understood_when_it_says() {
    let description = Description::parse(DESCRIPTION);
    let mut wrong = Vec::new();
    for operation in description.operations() {
        let bodies = match operation.body() {
            Some(schema) => description.examples(schema).into_iter().map(Some).collect(),
            None => vec![None],
        };
        for body in bodies {
            let action = operation.ask(body.as_ref());
            let when = match operation.when() {
                "before-start" => When::BeforeStart,
                "after-start" => When::AfterStart,
                _ => When::Always,
            };
            let right = action.as_ref().is_ok_and(|action| {
                // Which of the actions it is decides.
                (action.when() == when || operation.path == "/actions")
                    && matches!(action, Action::Unsupported(_)) == operation.is_unsupported()
            });
            if !right {
                wrong.push(format!("{} {body:?}: {action:?}", operation.shown()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn what_is_not_described_is_refused() {
    let description = Description::parse(DESCRIPTION);
    let mut wrong = Vec::new();
    for operation in description.operations() {
        let Some(schema) = operation.body() else { continue };
        // Metadata is any JSON.
        if operation.is_unsupported() || operation.path == "/mmds" {
            continue;
        }
        if operation.says["requestBody"]["required"] == true && operation.ask(None).is_ok() {
            wrong.push(format!("{} without a body", operation.shown()));
        }
        for body in description.counterexamples(schema) {
            if let Ok(action) = operation.ask(Some(&body)) {
                wrong.push(format!("{} {body}: {action:?}", operation.shown()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
