//! Top-level modules depend downward only: a module uses modules on lines below its own.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Modules of `varve-memory-tiers`, top first.
const MEMORY_TIERS: &[&str] =
    &["pager offload", "record restore", "fault", "source", "error", "plan", "ram"];

/// Modules of `varve-vmm`, top first.
const VMM: &[&str] = &[
    "cli",
    "api",
    "monitor",
    "snapshot signals",
    "machine",
    "boot console device_set",
    "error",
    "config vcpu kvm lost io_thread",
    "observe seccomp async_faults stage2",
    "arch metrics instance",
    "logger signal_handlers console_output",
    "sink terminal special_files",
    "stdio output end faults reclaim heap words",
];

/// Source files of a folder and the folders in it, without test files.
fn files(folder: &Path, found: &mut Vec<std::path::PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs")
            && !path.file_stem().unwrap().to_str().unwrap().ends_with("tests")
        {
            found.push(path);
        }
    }
}

/// The code of a file without comments and without the tests at its end.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap();
    let text = text.split("#[cfg(test)]\nmod tests").next().unwrap();
    text.lines().map(|line| line.split("//").next().unwrap()).collect::<Vec<_>>().join("\n")
}

/// The top-level names that `crate::` paths of some code begin with.
fn used(code: &str) -> Vec<String> {
    let name = |text: &str| {
        text.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
    };
    let mut names = Vec::new();
    for rest in code.split("crate::").skip(1) {
        match rest.strip_prefix('{') {
            None => names.push(name(rest)),
            Some(group) => {
                let (mut depth, mut starts) = (0, true);
                for (at, c) in group.char_indices() {
                    match c {
                        '{' => depth += 1,
                        '}' if depth == 0 => break,
                        '}' => depth -= 1,
                        ',' if depth == 0 => starts = true,
                        c if starts && !c.is_whitespace() => {
                            names.push(name(&group[at..]));
                            starts = false;
                        }
                        _ => {}
                    }
                }
            }
        }
    }
    names
}

fn check(source: &Path, layers: &[&str]) -> usize {
    let mut level = BTreeMap::new();
    for (at, names) in layers.iter().enumerate() {
        names.split(' ').for_each(|name| assert_eq!(level.insert(name, at), None, "{name}: twice"));
    }
    let mut found = Vec::new();
    files(source, &mut found);
    let (mut arrows, mut wrong) = (0, Vec::new());
    for path in &found {
        let inside = path.strip_prefix(source).unwrap();
        let first = inside.iter().next().unwrap().to_str().unwrap();
        let module = first.trim_end_matches(".rs");
        if ["lib", "main", "testing"].contains(&module) {
            continue;
        }
        let Some(own) = level.get(module) else {
            wrong.push(format!("{}: module {module:?} is in no layer", path.display()));
            continue;
        };
        for name in used(&code(path)).iter().filter(|name| *name != module) {
            arrows += 1;
            match level.get(name.as_str()) {
                Some(other) if other > own => {}
                Some(_) => {
                    wrong.push(format!("{}: uses {name}, which is not below", path.display()))
                }
                None => wrong.push(format!(
                    "{}: uses crate::{name}: name the module that it is defined in",
                    path.display()
                )),
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    arrows
}

#[test]
fn modules_depend_downward() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    assert!(check(&root.join("memory-tiers/src"), MEMORY_TIERS) > 100);
    assert!(check(&root.join("vmm/src"), VMM) > 200);
}

#[test]
fn arrows_are_found_in_each_form() {
    let code = "use crate::a::{B, c::D};\nuse crate::{e::F, g::{H, i}, j};\nlet x = crate::k::l();";
    assert_eq!(used(code), ["a", "e", "g", "j", "k"]);
}

#[test]
fn an_arrow_upward_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("low.rs"), "use crate::high::Thing;\n").unwrap();
    fs::write(dir.path().join("high.rs"), "use crate::low::Other;\n").unwrap();
    let folder = dir.path().to_owned();
    let wrong = std::panic::catch_unwind(|| check(&folder, &["high", "low"])).unwrap_err();
    let text = wrong.downcast_ref::<String>().unwrap();
    assert!(text.contains("low.rs: uses high") && !text.contains("high.rs"), "{text}");
}
