//! The function image: a small Debian with Python and the sample functions, as an ext4 file system.
//! mmdebstrap installs the packages; `finish-functions.sh` does the rest inside its new root.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::deb::Apt;
use crate::error::{Error, Result};
use crate::part::{Inputs, Part, with_suffix};
use crate::tool::run;
use crate::tools::{self, Tool};

/// The file of this part.
pub const FILES: [&str; 1] = ["functions.ext4"];

/// What the functions need; the base system comes with mmdebstrap's variant.
const PACKAGES: [&str; 9] = [
    "libfann2",
    "python3",
    "python3-av",
    "python3-chameleon",
    "python3-igraph",
    "python3-minimal",
    "python3-numpy",
    "python3-pil",
    "python3-pyaes",
];

/// Files that neither a function nor an installation script reads. What only the latter read is
/// removed by `finish-functions.sh`.
const EXCLUDED: [&str; 9] = [
    "/usr/share/doc/*",
    "/usr/share/info/*",
    "/usr/share/lintian/*",
    "/usr/share/locale/*",
    "/usr/share/man/*",
    "/usr/include/*",
    "/usr/lib/*.a",
    "/usr/lib/*/dri/*",
    "/usr/lib/*/libLLVM-*",
];

const TOOLS: [Tool; 2] = [("mmdebstrap", "mmdebstrap"), ("mkfs.ext4", "e2fsprogs")];

/// The seed of the checksums in the manifest.
const SEED: &str = "1";

/// Makes the image in `dir` from the functions of the checkout at `root`.
pub fn ensure(dir: &Path, root: &Path, apt: &Path, say: &dyn Fn(&str)) -> Result<Part> {
    let sources = root.join("guest-images/functions");
    let script = root.join("guest-images/finish-functions.sh");
    let mut inputs = Inputs::default();
    inputs.add("maker", include_bytes!("functions.rs"));
    inputs.add_file(root, &script)?;
    for file in files(&sources)? {
        inputs.add_file(root, &file)?;
    }
    Part::ensure(dir, &inputs.finish(), &FILES, |work| {
        tools::ensure(&TOOLS, say)?;
        let image = work.join(FILES[0]);
        fs::write(&image, "").map_err(Error::io("create", &image))?;
        let plain_user = !rustix::process::geteuid().is_root();
        if plain_user {
            // mmdebstrap then works in a user namespace, whose root is another user of this
            // machine: it may fill the file, which stays ours.
            tools::ensure(&[("newuidmap", "uidmap")], say)?;
            set_mode(work, 0o777)?;
            set_mode(&image, 0o666)?;
        }
        say("functions: installing a small Debian (one to three minutes)");
        let list = work.join("sources.list");
        let (codename, from) = {
            let apt = Apt::open(apt, &[])?;
            (apt.codename().to_owned(), apt.sources_file())
        };
        fs::copy(&from, &list).map_err(Error::io("copy", &from))?;
        let log = with_suffix(dir, ".log");
        let mut command = bootstrap(&codename, &list, &script, &sources, work);
        match run(command.arg("--logfile").arg(&log), "mmdebstrap") {
            // Its command line is long, and its last lines are not the telling ones.
            Err(Error::Tool { status, .. }) => Err(Error::Bootstrap { status, log }),
            Err(error) => Err(error),
            Ok(_) => {
                set_mode(&image, 0o644)?;
                set_mode(work, 0o755)?;
                facts(work)
            }
        }
    })
}

/// The command that installs the packages and has the script finish the image.
fn bootstrap(codename: &str, list: &Path, script: &Path, sources: &Path, work: &Path) -> Command {
    let mut command = Command::new("mmdebstrap");
    // The script has made the image when mmdebstrap would clean up, and the root is thrown away.
    command.args(["--variant=minbase", "--format=null", "--skip=cleanup"]);
    command.arg(format!("--include={}", PACKAGES.join(",")));
    command.arg("--aptopt=APT::Install-Recommends \"false\"");
    for path in EXCLUDED {
        command.arg(format!("--dpkgopt=path-exclude={path}"));
    }
    let words = [script, sources, work].map(|path| quoted(&path.display().to_string()));
    command
        .arg(format!("--customize-hook=sh {} \"$1\" {} {} {SEED}", words[0], words[1], words[2]));
    command.args([codename, "/dev/null"]).arg(list);
    command
}

fn set_mode(path: &Path, mode: u32) -> Result<()> {
    let mode = fs::Permissions::from_mode(mode);
    fs::set_permissions(path, mode).map_err(Error::io("set the mode of", path))
}

/// A word for the shell.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// What the script found out: package versions and checksums.
fn facts(work: &Path) -> Result<serde_json::Value> {
    let read = |name: &str| {
        let path = work.join(name);
        fs::read_to_string(&path).map_err(Error::io("read", &path))
    };
    let packages = read("packages")?;
    let packages: BTreeMap<&str, &str> =
        packages.lines().filter_map(|line| line.split_once('\t')).collect();
    let path = work.join("checksums.json");
    let checksums: BTreeMap<String, String> = serde_json::from_str(&read("checksums.json")?)
        .map_err(|error| Error::io("parse", &path)(error.into()))?;
    Ok(serde_json::json!({ "seed": 1, "checksums": checksums, "packages": packages }))
}

/// All files below `folder` but what Python itself leaves there, sorted.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(Error::io("read", folder))? {
        let path = entry.map_err(Error::io("read", folder))?.path();
        if path.is_dir() && !path.ends_with("__pycache__") {
            found.extend(files(&path)?);
        } else if path.is_file() {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_words_for_the_shell() {
        let echo = |word: &str| {
            let script = format!("printf %s {}", quoted(word));
            run(Command::new("sh").arg("-c").arg(script), "dash").unwrap()
        };
        for word in ["/a b/c", "it's", "$HOME `x` \"y\""] {
            assert_eq!(echo(word), word.as_bytes());
        }
    }

    #[test]
    fn all_sources_count_and_caches_do_not() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("functions");
        let files = files(&root).unwrap();
        assert!(files.contains(&root.join("worker.py")));
        assert!(files.contains(&root.join("varve_functions/read_list.py")));
        assert!(!files.iter().any(|file| file.extension().is_some_and(|end| end == "pyc")));
    }
}
