//! What a loss of power would do, by the order of the calls.

use std::collections::HashSet;
use std::path::Path;

use varve_snapshot::{ASIDE_PREFIX, TEMP_PREFIX};

/// Removals that a loss of power may undo: nobody looks at these files then, or the next process
/// removes them again.
const MAY_COME_BACK: [&str; 6] =
    [TEMP_PREFIX, ASIDE_PREFIX, ".img", "memory-", "state-", "/objects/"];

/// Checks the log of a run that came to its end: each file below `dir` was synced before it got its name,
/// and its folder after that.
pub fn check(name: &str, log: &str, dir: &Path) {
    let mut synced: HashSet<&str> = HashSet::new();
    let mut open: Vec<(&str, &str)> = Vec::new();
    for line in log.lines().filter(|line| line.ends_with("= 0")) {
        let call = line.split_once(' ').map_or("", |(_, rest)| rest.trim_start());
        let (call, args) = call.split_once('(').unwrap_or_default();
        match call {
            "fsync" | "fdatasync" => {
                let path = args.split_once('<').and_then(|(_, rest)| rest.split_once('>'));
                let path = path.map_or("", |(path, _)| path);
                synced.insert(path);
                open.retain(|(folder, _)| *folder != path);
            }
            "link" | "linkat" => synced.extend(paths(args).last()),
            "rename" | "renameat" | "renameat2" => {
                let [from, to] = paths(args)[..] else { panic!("{name}: {line}") };
                let fresh = file_name(from).starts_with(TEMP_PREFIX);
                assert!(!fresh || synced.contains(from), "{name}: {from} is not synced: {log}");
                open.push((folder(to), line));
            }
            "unlink" | "unlinkat" | "rmdir" => {
                let [path] = paths(args)[..] else { panic!("{name}: {line}") };
                if !may_come_back(Path::new(path)) {
                    open.push((folder(path), line));
                }
            }
            "mkdir" | "mkdirat" => {
                let [path] = paths(args)[..] else { panic!("{name}: {line}") };
                open.push((folder(path), line));
            }
            _ => {}
        }
    }
    open.retain(|(folder, _)| Path::new(folder).starts_with(dir));
    assert!(open.is_empty(), "{name}: no sync of the folder follows: {open:#?} in {log}");
}

/// Whether the removal of a file need not last.
pub fn may_come_back(path: &Path) -> bool {
    let path = path.to_string_lossy();
    MAY_COME_BACK.iter().any(|part| path.contains(part))
}

fn paths(args: &str) -> Vec<&str> {
    args.split('"').skip(1).step_by(2).collect()
}

fn file_name(path: &str) -> &str {
    path.rsplit_once('/').map_or(path, |(_, name)| name)
}

fn folder(path: &str) -> &str {
    path.rsplit_once('/').map_or(".", |(folder, _)| folder)
}
