//! Tools that the machine must have: root gets missing ones installed, others are told how.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::{Error, Result};
use crate::tool::run;

/// A tool and the Debian package that has it.
pub type Tool = (&'static str, &'static str);

/// Makes sure that all of `tools` can be run; `say` is told before packages are installed.
pub fn ensure(tools: &[Tool], say: &dyn Fn(&str)) -> Result<()> {
    let missing: Vec<Tool> = tools.iter().filter(|tool| find(tool.0).is_none()).copied().collect();
    if missing.is_empty() {
        return Ok(());
    }
    let packages: Vec<&str> = missing.iter().map(|tool| tool.1).collect();
    if !rustix::process::geteuid().is_root() {
        let names: Vec<String> = missing.iter().map(|tool| format!("`{}`", tool.0)).collect();
        let verb = if names.len() == 1 { "is" } else { "are" };
        return Err(Error::MissingTools {
            tools: format!("{} {verb}", names.join(", ")),
            packages: packages.join(" "),
        });
    }
    say(&format!("installing {}", packages.join(" ")));
    run(Command::new("apt-get").args(["--quiet", "update"]), "apt")?;
    let mut install = Command::new("apt-get");
    install.args(["--quiet", "--yes", "--no-install-recommends", "install"]).args(packages);
    run(install.env("DEBIAN_FRONTEND", "noninteractive"), "apt").map(drop)
}

/// Where a tool is; also looks where only root's `PATH` does.
pub fn find(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/sbin", "/usr/bin"].map(PathBuf::from);
    env::split_paths(&path)
        .chain(system)
        .map(|folder| folder.join(name))
        .find(|file| executable(file))
}

fn executable(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    file.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tools_are_found_by_name() {
        assert!(find("sh").is_some());
        assert!(find("no-such-tool-anywhere").is_none());
    }

    #[test]
    fn nothing_is_installed_when_nothing_is_missing() {
        ensure(&[("sh", "dash")], &|text| panic!("said {text:?}")).unwrap();
    }
}
