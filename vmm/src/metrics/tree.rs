//! Metrics as a tree of JSON numbers: sums, differences, and which of them are counts.
//!
//! A tree is an object of groups; a group is an object of fields; a field is a number or an object
//! of numbers (the shortest, longest and sum of several times).

use serde_json::{Map, Value};

/// An object of a tree.
pub type Tree = Map<String, Value>;

/// Whether a number is what it is now, and not a count of events: Firecracker writes these as they
/// are, the others as what was added since the line before. `path` is from the root.
pub fn is_level(path: &[&str]) -> bool {
    match path {
        ["utc_timestamp_ms"] | ["vmm", "panic_count"] => true,
        ["api_server" | "latencies_us" | "seccomp" | "restore", ..] => true,
        // The deadly ones can only happen once.
        ["signals", name] => *name != "sigpipe",
        [.., last] => matches!(*last, "min_us" | "max_us"),
        [] => false,
    }
}

/// What was added to the counts from `before` to `now`; levels are those of `now`.
pub fn since(now: &Tree, before: &Tree) -> Tree {
    combine(&mut Vec::new(), now, before, u64::saturating_sub)
}

/// The counts of `line` added to those of `before`; levels are those of `line`.
pub fn plus(before: &Tree, line: &Tree) -> Tree {
    let mut sum = combine(&mut Vec::new(), line, before, u64::saturating_add);
    // Devices of an earlier line, and what else it had.
    for (name, group) in before {
        sum.entry(name).or_insert_with(|| group.clone());
    }
    sum
}

fn combine<'t>(
    path: &mut Vec<&'t str>,
    tree: &'t Tree,
    other: &Tree,
    how: fn(u64, u64) -> u64,
) -> Tree {
    let mut result = Tree::new();
    for (name, value) in tree {
        path.push(name);
        let value = match (value, other.get(name)) {
            (Value::Object(tree), Some(Value::Object(other))) => {
                combine(path, tree, other, how).into()
            }
            (Value::Number(n), Some(Value::Number(m))) if !is_level(path) => {
                match (n.as_u64(), m.as_u64()) {
                    (Some(n), Some(m)) => how(n, m).into(),
                    _ => value.clone(),
                }
            }
            _ => value.clone(),
        };
        result.insert(name.clone(), value);
        path.pop();
    }
    result
}

/// The sum of the groups of several devices in the shape of `zero`. Shortest and longest times have
/// no sum and stay 0, as Firecracker leaves them.
pub fn aggregate<'t>(zero: Value, groups: impl Iterator<Item = &'t Value>) -> Value {
    groups.fold(zero, |sum, group| match (sum, group) {
        (Value::Object(sum), Value::Object(group)) => {
            let sum = sum.into_iter().map(|(name, value)| {
                let value = match group.get(&name) {
                    Some(_) if matches!(name.as_str(), "min_us" | "max_us") => value,
                    Some(more) => aggregate(value, std::iter::once(more)),
                    None => value,
                };
                (name, value)
            });
            sum.collect::<Tree>().into()
        }
        (sum, more) => match (sum.as_u64(), more.as_u64()) {
            (Some(n), Some(m)) => n.saturating_add(m).into(),
            _ => sum,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn tree(value: Value) -> Tree {
        value.as_object().unwrap().clone()
    }

    #[test]
    fn differences_and_sums() {
        let a = tree(json!({
            "block_a": { "read_count": 3, "read_agg": { "min_us": 4, "max_us": 9, "sum_us": 20 } },
            "latencies_us": { "pause_vm": 100 },
            "signals": { "sighup": 0, "sigpipe": 1 },
        }));
        let b = tree(json!({
            "block_a": { "read_count": 5, "read_agg": { "min_us": 2, "max_us": 9, "sum_us": 22 } },
            "block_b": { "read_count": 1 },
            "latencies_us": { "pause_vm": 70 },
            "signals": { "sighup": 1, "sigpipe": 3 },
        }));
        let line = since(&b, &a);
        let expected = json!({
            "block_a": { "read_count": 2, "read_agg": { "min_us": 2, "max_us": 9, "sum_us": 2 } },
            "block_b": { "read_count": 1 },
            "latencies_us": { "pause_vm": 70 },
            "signals": { "sighup": 1, "sigpipe": 2 },
        });
        assert_eq!(line, tree(expected));
        assert_eq!(plus(&a, &line), b);
        assert_eq!(plus(&b, &tree(json!({ "vcpu": { "failures": 1 } })))["block_b"], b["block_b"]);
    }

    #[test]
    fn devices_add_up() {
        let group = |n| json!({ "count": n, "agg": { "min_us": n, "max_us": n, "sum_us": n } });
        let sum = aggregate(group(0), [group(2), group(5)].iter());
        assert_eq!(sum, json!({ "count": 7, "agg": { "min_us": 0, "max_us": 0, "sum_us": 7 } }));
    }
}
