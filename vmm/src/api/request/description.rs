//! The description of the API (OpenAPI 3.0) as tests use it: operations, and bodies that it allows and
//! forbids. Knows nothing else of this crate: end-to-end tests include this file too.

use serde_json::{Map, Value, json};

/// One operation of the description.
pub struct Operation<'d> {
    /// Its method, in capitals.
    pub method: String,
    /// Its path.
    pub path: &'d str,
    /// All that is said of it.
    pub says: &'d Value,
}

/// The description.
pub struct Description(Value);

impl Description {
    /// Reads its text.
    pub fn parse(text: &str) -> Description {
        Description(serde_json::from_str(text).unwrap())
    }

    /// All operations.
    pub fn operations(&self) -> impl Iterator<Item = Operation<'_>> {
        let paths = self.0["paths"].as_object().unwrap();
        paths.iter().flat_map(|(path, operations)| {
            operations.as_object().unwrap().iter().map(move |(method, says)| Operation {
                method: method.to_uppercase(),
                path,
                says,
            })
        })
    }

    /// A schema, with its name followed.
    fn schema<'d>(&'d self, schema: &'d Value) -> &'d Value {
        match schema["$ref"].as_str() {
            Some(name) => {
                let name = name.strip_prefix("#/components/schemas/").unwrap();
                self.schema(&self.0["components"]["schemas"][name])
            }
            None => schema,
        }
    }

    /// A value that a schema allows, with the fields that it wants.
    pub fn example(&self, schema: &Value) -> Value {
        let schema = self.schema(schema);
        if let Some(example) = schema.get("example") {
            return example.clone();
        }
        match schema["type"].as_str() {
            Some("array") => json!([self.example(&schema["items"])]),
            Some("object") => {
                let wanted = required(schema).into_iter();
                let field = |name: &str| (name.into(), self.example(&schema["properties"][name]));
                Value::Object(wanted.map(field).collect())
            }
            _ => panic!("no example of {schema}"),
        }
    }

    /// Values that a schema allows: each of its words, each of its fields alone.
    pub fn examples(&self, schema: &Value) -> Vec<Value> {
        let schema = self.schema(schema);
        let mut all = vec![self.example(schema)];
        for more in ["enum", "x-varve-examples"] {
            all.extend(schema[more].as_array().into_iter().flatten().cloned());
        }
        // What a tied field may be depends on the others.
        for (name, field) in properties(schema).filter(|(_, f)| f["x-varve-tied"] != true) {
            for value in self.examples(field) {
                let mut object = self.example(schema);
                if let Some(other) = self.schema(field)["x-varve-excludes"].as_str() {
                    object.as_object_mut().unwrap().remove(other);
                }
                object[name] = value;
                all.push(object);
            }
            if field["nullable"] == true && !required(schema).contains(&name.as_str()) {
                let mut object = self.example(schema);
                // Some other field must be left where one of several is wanted.
                if object.get(name).is_none() {
                    object[name] = Value::Null;
                    all.push(object);
                }
            }
        }
        if schema["type"] == "array" {
            all.extend(self.examples(&schema["items"]).into_iter().map(|item| json!([item])));
        }
        all
    }

    /// Whether a value has something that varve has not.
    #[allow(dead_code, reason = "the end-to-end tests use it")]
    pub fn has_unsupported(&self, schema: &Value, value: &Value) -> bool {
        let schema = self.schema(schema);
        let listed = schema["x-varve-unsupported"].as_array();
        listed.is_some_and(|all| all.contains(value))
            || properties(schema).any(|(name, field)| self.has_unsupported(field, &value[name]))
    }

    /// Values that it does not allow: a field missing, one too many, one of another type.
    pub fn counterexamples(&self, schema: &Value) -> Vec<Value> {
        let schema = self.schema(schema);
        let mut all = match schema["type"].as_str().unwrap() {
            "string" => vec![json!(17), json!({})],
            "integer" => vec![json!("x"), json!(-1), json!(1.5)],
            "boolean" => vec![json!("true"), json!(1)],
            _ => vec![json!(17), json!("x")],
        };
        if schema.get("enum").is_some() {
            all.push(json!("SomethingElse"));
        }
        if schema["type"] == "object" && schema["additionalProperties"] == false {
            let mut object = self.example(schema);
            object["something_else"] = json!(1);
            all.push(object);
        }
        for name in required(schema) {
            let mut object = self.example(schema);
            object.as_object_mut().unwrap().remove(name);
            all.push(object);
        }
        for (name, field) in properties(schema) {
            for value in self.counterexamples(field) {
                let mut object = self.example(schema);
                object[name] = value;
                all.push(object);
            }
        }
        if schema["type"] == "array" {
            let items = self.counterexamples(&schema["items"]);
            all.extend(items.into_iter().map(|item| json!([item])));
        }
        all
    }
}

fn required(schema: &Value) -> Vec<&str> {
    schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

fn properties(schema: &Value) -> impl Iterator<Item = (&String, &Value)> {
    schema["properties"].as_object().into_iter().flat_map(Map::iter)
}

impl Operation<'_> {
    /// The schema of its body.
    pub fn body(&self) -> Option<&Value> {
        self.says["requestBody"].get("content").map(|c| &c["application/json"]["schema"])
    }

    /// Its path, on what the body names.
    pub fn target(&self, body: Option<&Value>) -> String {
        let name = |field: &str| body.and_then(|b| b[field].as_str()).unwrap_or("some").to_owned();
        self.path
            .replace("{drive_id}", &name("drive_id"))
            .replace("{iface_id}", &name("iface_id"))
            .replace("{id}", "some")
    }

    /// What it is, for messages.
    pub fn shown(&self) -> String {
        format!("{} {}", self.method, self.path)
    }

    /// Whether varve has it not.
    pub fn is_unsupported(&self) -> bool {
        self.says["x-varve-unsupported"] == true
    }

    /// `always`, `before-start` or `after-start`.
    pub fn when(&self) -> &str {
        self.says["x-varve-when"].as_str().unwrap()
    }
}
