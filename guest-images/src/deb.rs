//! Fetching and unpacking Debian packages without installing them. What is in them is for others.
//!
//! The mirror is that of the machine's own apt configuration. Package lists and packages are kept
//! in a folder of the caller's, so that neither root nor a fresh `apt-get update` is needed and
//! the machine's own apt is left as it is.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use crate::aside::{Lock, sync};
use crate::error::{Error, Result};
use crate::tool::{run, run_text};

/// Package lists older than this are fetched again.
const LISTS_LIFE: Duration = Duration::from_secs(24 * 60 * 60);

/// Debian's own keys, as the package `debian-archive-keyring` installs them.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// A private apt: its own sources, lists and cache in one folder. One process holds it at a time.
#[derive(Debug)]
pub struct Apt {
    dir: PathBuf,
    suites: Vec<String>,
    codename: String,
    _lock: Lock,
}

/// One line of the machine's apt configuration: where a component of a suite is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Source {
    uri: String,
    suite: String,
}

impl Apt {
    /// Opens the private apt in `dir` and fetches package lists when they are missing or old.
    ///
    /// Its suites are those of the machine's Debian sources (release, updates, security), and
    /// `extra`, such as `["bookworm-backports"]`. Waits for another process that uses `dir`.
    pub fn open(dir: &Path, extra: &[&str]) -> Result<Self> {
        let lock = Lock::take(&dir.join("lock"))?;
        let dir = fs::canonicalize(dir).map_err(Error::io("find", dir))?;
        let codename = codename()?;
        let sources = add_suites(machine_sources(&codename)?, &codename, extra)?;
        let suites = sources.iter().map(|source| source.suite.clone()).collect();
        let apt = Self { dir, suites, codename, _lock: lock };
        apt.refresh(&sources_list(&sources, Path::new(KEYRING).exists()))?;
        Ok(apt)
    }

    /// The machine's Debian release, such as `bookworm`.
    pub fn codename(&self) -> &str {
        &self.codename
    }

    /// The sources that this apt uses, a file in the form of `sources.list`.
    pub fn sources_file(&self) -> PathBuf {
        self.dir.join("sources.list")
    }

    /// The packages on which `package` (a name, or `name/suite`) depends directly.
    pub fn depends(&self, package: &str) -> Result<Vec<String>> {
        let text = self.query("apt-cache", &["depends", "--important", package], package)?;
        Ok(text
            .lines()
            .filter_map(|line| line.trim_start().strip_prefix("Depends: "))
            .map(|name| name.trim().to_owned())
            .collect())
    }

    /// The newest version of `package` (a name, or `name/suite`) that can be had.
    pub fn version(&self, package: &str) -> Result<String> {
        let text = self.query("apt-cache", &["show", "--no-all-versions", package], package)?;
        text.lines()
            .find_map(|line| line.strip_prefix("Version: "))
            .map(str::to_owned)
            .ok_or_else(|| self.no_package(package))
    }

    /// Fetches `packages` alone, and returns the files in the same order.
    pub fn download(&self, packages: &[&str]) -> Result<Vec<PathBuf>> {
        self.insist(|| packages.iter().map(|package| self.download_one(package)).collect())
    }

    /// Fetches `packages` and all they depend on (not what they recommend), as for an empty
    /// machine, and returns the files sorted by name. The order is not one of installation.
    pub fn download_with_dependencies(&self, packages: &[&str]) -> Result<Vec<PathBuf>> {
        self.insist(|| self.download_closure(packages))
    }

    fn download_closure(&self, packages: &[&str]) -> Result<Vec<PathBuf>> {
        let install = |how: &str| -> Result<String> {
            let mut command = self.command("apt-get");
            command
                .args(["install", "--yes", "--quiet", "--no-install-recommends", how])
                .arg("-o")
                .arg(format!("Dir::State::status={}", self.dir.join("empty").display()))
                .args(packages);
            run_text(&mut command, "apt")
        };
        // The plan names versions, and older ones may be in the cache beside them.
        let plan = install("--simulate")?;
        let wanted = parse_plan(&plan);
        install("--download-only")?;
        let archives = self.archives();
        let mut files = Vec::new();
        for entry in fs::read_dir(&archives).map_err(Error::io("read", &archives))? {
            let path = entry.map_err(Error::io("read", &archives))?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.extension().is_some_and(|end| end == "deb")
                && name.rsplit_once('_').is_some_and(|(package, _)| wanted.contains(package))
            {
                files.push(path);
            }
        }
        files.sort();
        if files.len() < wanted.len() {
            return Err(self.no_package(&packages.join(" ")));
        }
        Ok(files)
    }

    /// Runs `fetch`, and once more with new lists if it fails: mirrors drop superseded packages, so
    /// that neither a version nor a package that older lists name need be there any more.
    ///
    /// # Errors
    ///
    /// What the second run of `fetch` says, or that the lists cannot be fetched.
    pub fn insist<T>(&self, fetch: impl Fn() -> Result<T>) -> Result<T> {
        match fetch() {
            Err(Error::Tool { .. } | Error::NoPackage { .. }) => {
                self.update()?;
                fetch()
            }
            other => other,
        }
    }

    fn download_one(&self, package: &str) -> Result<PathBuf> {
        let line = self.query("apt-get", &["download", "--print-uris", package], package)?;
        // 'address' file-name size checksum
        let mut words = line.split_whitespace();
        let (name, size) = match (words.nth(1), words.next()) {
            (Some(name), Some(size)) if !name.contains('/') => (name, size.parse::<u64>().ok()),
            _ => return Err(self.no_package(package)),
        };
        let file = self.dir.join("debs").join(name);
        if fs::metadata(&file).is_ok_and(|meta| Some(meta.len()) == size) {
            return Ok(file);
        }
        let fetch = self.dir.join("fetch");
        let debs = self.dir.join("debs");
        for dir in [&fetch, &debs] {
            fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
        }
        run(self.command("apt-get").args(["download", package]).current_dir(&fetch), "apt")?;
        let fetched = fetch.join(name);
        // A later run takes what has the right length for whole.
        sync(&fetched)?;
        fs::rename(&fetched, &file).map_err(Error::io("rename", &fetched))?;
        Ok(file)
    }

    /// Runs an apt query whose failure means that there is no such package.
    fn query(&self, program: &str, args: &[&str], package: &str) -> Result<String> {
        match run_text(self.command(program).args(args), "apt") {
            Err(Error::Tool { .. }) => Err(self.no_package(package)),
            other => other,
        }
    }

    fn no_package(&self, package: &str) -> Error {
        Error::NoPackage { package: package.to_owned(), suites: self.suites.join(", ") }
    }

    fn archives(&self) -> PathBuf {
        self.dir.join("cache/archives")
    }

    /// Writes the sources and fetches the lists, unless that was done lately for the same sources.
    fn refresh(&self, sources: &str) -> Result<()> {
        let stamp = self.dir.join("updated");
        let fresh = fs::metadata(&stamp)
            .and_then(|meta| meta.modified())
            .is_ok_and(|at| SystemTime::now().duration_since(at).is_ok_and(|age| age < LISTS_LIFE));
        if fresh && fs::read_to_string(&stamp).is_ok_and(|of| of == sources) {
            return Ok(());
        }
        for dir in [self.dir.join("lists/partial"), self.archives().join("partial")] {
            fs::create_dir_all(&dir).map_err(Error::io("create", &dir))?;
        }
        for (name, text) in [("sources.list", sources), ("empty", "")] {
            let path = self.dir.join(name);
            fs::write(&path, text).map_err(Error::io("write", &path))?;
        }
        self.update()?;
        fs::write(&stamp, sources).map_err(Error::io("write", &stamp))
    }

    fn update(&self) -> Result<()> {
        run(self.command("apt-get").args(["--quiet", "update"]), "apt").map(drop)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        for (name, value) in [
            ("Dir::Etc::sourcelist", "sources.list"),
            ("Dir::Etc::sourceparts", "no-parts"),
            ("Dir::State::lists", "lists"),
            ("Dir::Cache", "cache"),
        ] {
            command.arg("-o").arg(format!("{name}={}", self.dir.join(value).display()));
        }
        // The lists are ours: apt's own user could not write them. The lock is ours as well.
        command.args(["-o", "APT::Sandbox::User=root", "-o", "Debug::NoLocking=true"]);
        command.args(["-o", "APT::Update::Error-Mode=any"]);
        command
    }
}

/// Unpacks the files of a package into `into`, which is made; runs none of its scripts.
pub fn extract(deb: &Path, into: &Path) -> Result<()> {
    fs::create_dir_all(into).map_err(Error::io("create", into))?;
    run(Command::new("dpkg-deb").arg("--extract").arg(deb).arg(into), "dpkg").map(drop)
}

/// The release name of this machine's Debian.
fn codename() -> Result<String> {
    let path = Path::new("/etc/os-release");
    let text = fs::read_to_string(path).map_err(Error::io("read", path))?;
    parse_codename(&text)
}

fn parse_codename(os_release: &str) -> Result<String> {
    let field = |name: &str| {
        os_release
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
            .map(|value| value.trim_matches('"').to_owned())
    };
    match (field("ID").as_deref(), field("VERSION_CODENAME")) {
        (Some("debian"), Some(codename)) => Ok(codename),
        (found, _) => Err(Error::NotDebian { found: found.unwrap_or("unknown").to_owned() }),
    }
}

/// The packages that `apt-get install --simulate` would install, as their files' names begin.
fn parse_plan(plan: &str) -> BTreeSet<String> {
    let lines = plan.lines().filter_map(|line| line.strip_prefix("Inst "));
    // Inst name (version suites [architecture])
    lines
        .filter_map(|line| {
            let (name, rest) = line.split_once(" (")?;
            let name = name.split([':', ' ']).next()?;
            let version = rest.split_whitespace().next()?;
            Some(format!("{name}_{}", version.replace(':', "%3a")))
        })
        .collect()
}

/// The machine's sources of Debian's `main`.
fn machine_sources(codename: &str) -> Result<Vec<Source>> {
    let mut command = Command::new("apt-get");
    // As configured: a machine that was never updated has no release files to tell more, and a
    // plain user may not read those that are there.
    command.args(["indextargets", "--no-release-info", "--format"]);
    command.args(["$(REPO_URI) $(RELEASE) $(COMPONENT)", "Created-By: Packages"]);
    let sources = parse_sources(&run_text(&mut command, "apt")?, codename);
    if sources.is_empty() {
        return Err(Error::NoMirror { codename: codename.to_owned() });
    }
    Ok(sources)
}

/// Lines of `address suite component`.
fn parse_sources(text: &str, codename: &str) -> Vec<Source> {
    let sources: BTreeSet<Source> = text
        .lines()
        .filter_map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let &[uri, suite, "main"] = words.as_slice() else { return None };
            // A source may name the release by its role.
            let (release, kind) = suite.split_once('-').unwrap_or((suite, ""));
            let ours = [codename, "stable", "oldstable", "testing"].contains(&release);
            let name = match kind {
                "" => codename.to_owned(),
                "updates" | "security" => format!("{codename}-{kind}"),
                _ => return None,
            };
            ours.then(|| Source { uri: uri.to_owned(), suite: name })
        })
        .collect();
    sources.into_iter().collect()
}

/// Adds suites from the mirror that has the release itself.
fn add_suites(mut sources: Vec<Source>, codename: &str, extra: &[&str]) -> Result<Vec<Source>> {
    let mirror = sources.iter().find(|source| source.suite == codename);
    let Some(uri) = mirror.map(|source| source.uri.clone()) else {
        return Err(Error::NoMirror { codename: codename.to_owned() });
    };
    for suite in extra {
        if !sources.iter().any(|source| source.suite == *suite) {
            sources.push(Source { uri: uri.clone(), suite: (*suite).to_owned() });
        }
    }
    Ok(sources)
}

fn sources_list(sources: &[Source], keyring: bool) -> String {
    let signed = if keyring { format!("[signed-by={KEYRING}] ") } else { String::new() };
    sources
        .iter()
        .map(|source| format!("deb {signed}{} {} main\n", source.uri, source.suite))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TARGETS: &str = "http://mirror.test/debian/ bookworm main
http://mirror.test/debian/ bookworm main
http://mirror.test/debian/ bookworm-updates main
http://mirror.test/debian/ bookworm-backports main
http://mirror.test/security/ bookworm-security main
http://mirror.test/debian/ bookworm contrib
http://other.test/node nodistro main
";

    #[test]
    fn only_main_of_this_release_is_taken() {
        let suites: Vec<String> =
            parse_sources(TARGETS, "bookworm").into_iter().map(|source| source.suite).collect();
        assert_eq!(suites, ["bookworm", "bookworm-updates", "bookworm-security"]);
        assert!(parse_sources(TARGETS, "trixie").is_empty());
    }

    #[test]
    fn a_role_is_read_as_the_installed_release() {
        let text = "http://m.test/debian/ stable main\nhttp://m.test/debian/ stable-updates main\n";
        let suites: Vec<String> =
            parse_sources(text, "bookworm").into_iter().map(|source| source.suite).collect();
        assert_eq!(suites, ["bookworm", "bookworm-updates"]);
    }

    #[test]
    fn a_plan_names_files() {
        let plan = "NOTE: This is only a simulation!\n\
            Inst libc6 (2.36-9+deb12u14 Debian:12.15/oldstable [amd64]) []\n\
            Inst busybox-static (1:1.35.0-4 Debian:12.15/oldstable [amd64])\n\
            Conf libc6 (2.36-9+deb12u14 Debian:12.15/oldstable [amd64])\n";
        let names: Vec<String> = parse_plan(plan).into_iter().collect();
        assert_eq!(names, ["busybox-static_1%3a1.35.0-4", "libc6_2.36-9+deb12u14"]);
    }

    #[test]
    fn extra_suites_come_from_the_release_mirror() {
        let sources = parse_sources(TARGETS, "bookworm");
        let sources = add_suites(sources, "bookworm", &["bookworm-backports"]).unwrap();
        let list = sources_list(&sources, false);
        assert!(
            list.ends_with("deb http://mirror.test/debian/ bookworm-backports main\n"),
            "{list}"
        );
        assert!(add_suites(vec![], "bookworm", &[]).is_err());
    }

    #[test]
    fn only_debian_is_accepted() {
        let text = "ID=debian\nVERSION_CODENAME=trixie\n";
        assert_eq!(parse_codename(text).unwrap(), "trixie");
        let text = "ID=\"fedora\"\nVERSION_CODENAME=\"\"\n";
        assert!(
            matches!(parse_codename(text), Err(Error::NotDebian { found }) if found == "fedora")
        );
    }
}
