//! Control groups: one for the machine, below its parent's, with the values that were asked for.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Result, bail};

/// Where version 2's groups are, in [`Hierarchies::find`].
const UNIFIED: &str = "version 2";

/// `--cgroup FILE=VALUE`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    controller: String,
    file: String,
    value: String,
}

impl FromStr for Setting {
    type Err = String;

    fn from_str(text: &str) -> Result<Setting, String> {
        let bad = || "write CONTROLLER.PROPERTY=VALUE, as cpu.shares=10".to_owned();
        let (file, value) = text.split_once('=').ok_or_else(bad)?;
        let (controller, property) = file.split_once('.').ok_or_else(bad)?;
        let name = |c: char| c.is_ascii_alphanumeric() || "_.".contains(c);
        if [controller, property, value].contains(&"") || !file.chars().all(name) {
            return Err(bad());
        }
        Ok(Setting { controller: controller.into(), file: file.into(), value: value.into() })
    }
}

/// Where control groups are mounted.
#[derive(Debug)]
pub struct Hierarchies {
    version: u8,
    /// Folder and options of each.
    mounts: Vec<(PathBuf, String)>,
}

impl Hierarchies {
    /// Looks for them in the text of /proc/mounts (proc(5)).
    pub fn parse(mounts: &str, version: u8) -> Hierarchies {
        let kind = if version == 2 { "cgroup2" } else { "cgroup" };
        let mounts = mounts.lines().filter_map(|line| {
            let mut fields = line.split(' ').skip(1);
            let (folder, found, options) = (fields.next()?, fields.next()?, fields.next()?);
            (found == kind).then(|| (folder.into(), options.into()))
        });
        Hierarchies { version, mounts: mounts.collect() }
    }

    fn find(&self, controller: &str) -> Result<&Path> {
        let has = |(_, options): &&(PathBuf, String)| {
            self.version == 2 || options.split(',').any(|option| option == controller)
        };
        let Some((folder, _)) = self.mounts.iter().find(has) else {
            bail!(
                "--cgroup-version {}: no control groups of {controller} are mounted; see \
                 /proc/mounts",
                self.version
            );
        };
        Ok(folder)
    }

    /// Makes the group `parent`/`id` wherever a setting belongs, writes the settings, and moves
    /// process `pid` there. Without settings the process stays where it is.
    pub fn apply(&self, settings: &[Setting], parent: &Path, id: &str, pid: u32) -> Result<()> {
        let mut groups = Vec::new();
        for setting in settings {
            let root = self.find(&setting.controller)?;
            let group = root.join(parent).join(id);
            make(&group)?;
            match self.version {
                2 => enable(root, &group, &setting.controller)?,
                _ => inherit(root, &group, &setting.file)?,
            }
            write(&group.join(&setting.file), &setting.value)?;
            if !groups.contains(&group) {
                groups.push(group);
            }
        }
        groups.iter().try_for_each(|group| self.enter(group, pid))
    }

    /// Moves process `pid` to the group `parent` of version 2, if there is such a group. A group that
    /// passes controllers on to others may hold no process itself: then the process goes to the
    /// group `parent`/`id`, whose limits are those of `parent`. Does nothing with version 1.
    pub fn join(&self, parent: &Path, id: &str, pid: u32) -> Result<()> {
        let Some(group) = self.find(UNIFIED).ok().filter(|_| self.version == 2) else {
            return Ok(());
        };
        let group = group.join(parent);
        if !group.exists() {
            return Ok(());
        }
        match fs::write(group.join("cgroup.procs"), pid.to_string()) {
            Err(e) if e.kind() == io::ErrorKind::ResourceBusy => {
                let own = group.join(id);
                make(&own)?;
                self.enter(&own, pid)
            }
            done => done.with_context(|| {
                format!("--parent-cgroup: cannot move process {pid} to {}", group.display())
            }),
        }
    }

    fn enter(&self, group: &Path, pid: u32) -> Result<()> {
        let list = if self.version == 2 { "cgroup.procs" } else { "tasks" };
        write(&group.join(list), &pid.to_string())
    }
}

fn make(group: &Path) -> Result<()> {
    fs::create_dir_all(group).with_context(|| format!("--cgroup: cannot make {}", group.display()))
}

fn write(file: &Path, value: &str) -> Result<()> {
    fs::write(file, value)
        .with_context(|| format!("--cgroup: cannot write {value:?} to {}", file.display()))
}

/// The folders between `root` and `group`, `root` first, `group` left out.
fn above<'a>(root: &'a Path, group: &'a Path) -> Vec<&'a Path> {
    let mut folders: Vec<_> =
        group.ancestors().skip(1).take_while(|folder| folder.starts_with(root)).collect();
    folders.reverse();
    folders
}

/// Version 2 has a controller's files in a group if all groups above pass the controller on.
fn enable(root: &Path, group: &Path, controller: &str) -> Result<()> {
    let has = fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
    if !has.split_whitespace().any(|name| name == controller) {
        // Files of the core, such as cgroup.max.depth, are everywhere.
        return match controller {
            "cgroup" => Ok(()),
            _ => bail!("--cgroup: this host has no controller {controller:?} ({})", has.trim()),
        };
    }
    for folder in above(root, group) {
        write(&folder.join("cgroup.subtree_control"), &format!("+{controller}"))?;
    }
    Ok(())
}

/// Version 1 has files, those of cpuset, that start empty, and that may not be written while those
/// above are empty: they take over what stands above.
fn inherit(root: &Path, group: &Path, file: &str) -> Result<()> {
    let mut last = String::new();
    for folder in above(root, group).into_iter().chain([group]) {
        let path = folder.join(file);
        let value = fs::read_to_string(&path)
            .with_context(|| format!("--cgroup: this host has no such file: {}", path.display()))?;
        if value.trim().is_empty() && !last.is_empty() {
            write(&path, &last)?;
        } else {
            last = value.lines().next().unwrap_or_default().into();
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
proc /proc proc rw,nosuid 0 0
cgroup2 /sys/fs/cgroup/unified cgroup2 rw,nsdelegate 0 0
cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,nosuid,cpu,cpuacct 0 0
cgroup /sys/fs/cgroup/cpuset cgroup rw,cpuset 0 0
";

    #[test]
    fn hierarchies_are_found() {
        let one = Hierarchies::parse(MOUNTS, 1);
        assert_eq!(one.find("cpuacct").unwrap(), Path::new("/sys/fs/cgroup/cpu,cpuacct"));
        assert_eq!(one.find("cpuset").unwrap(), Path::new("/sys/fs/cgroup/cpuset"));
        assert!(one.find("memory").unwrap_err().to_string().contains("memory"));
        let two = Hierarchies::parse(MOUNTS, 2);
        assert_eq!(two.find("memory").unwrap(), Path::new("/sys/fs/cgroup/unified"));
        assert!(Hierarchies::parse("", 2).find("cpu").is_err());
    }

    /// A folder that looks like a hierarchy, whose files are ordinary ones.
    fn hierarchy(version: u8, files: &[(&str, &str)]) -> (tempfile::TempDir, Hierarchies) {
        let dir = tempfile::tempdir().unwrap();
        for (file, content) in files {
            let path = dir.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        let mounts = vec![(dir.path().to_owned(), "rw,cpuset".to_owned())];
        (dir, Hierarchies { version, mounts })
    }

    #[test]
    fn version_1_takes_over_from_above() {
        let files = [
            ("cpuset.cpus", "0-3\n"),
            ("varve/cpuset.cpus", "\n"),
            ("varve/vm/cpuset.cpus", ""),
            ("cpuset.mems", "0\n"),
            ("varve/cpuset.mems", "0\n"),
            ("varve/vm/cpuset.mems", "0\n"),
        ];
        let (dir, groups) = hierarchy(1, &files);
        let settings = ["cpuset.cpus=1", "cpuset.mems=0"].map(|s| s.parse().unwrap());
        groups.apply(&settings, Path::new("varve"), "vm", 77).unwrap();
        let read = |file: &str| fs::read_to_string(dir.path().join(file)).unwrap();
        assert_eq!(read("varve/cpuset.cpus"), "0-3");
        assert_eq!(read("varve/vm/cpuset.cpus"), "1");
        assert_eq!(read("varve/vm/tasks"), "77");
        let missing = ["cpuset.nothing=1".parse().unwrap()];
        let error = groups.apply(&missing, Path::new("varve"), "vm", 77).unwrap_err();
        assert!(error.to_string().contains("cpuset.nothing"), "{error}");
    }

    #[test]
    fn version_2_passes_controllers_on() {
        let (dir, groups) = hierarchy(2, &[("cgroup.controllers", "cpu memory\n")]);
        let setting = ["memory.max=5".parse().unwrap()];
        groups.apply(&setting, Path::new("a/b"), "vm", 78).unwrap();
        let read = |file: &str| fs::read_to_string(dir.path().join(file)).unwrap();
        for folder in ["", "a/", "a/b/"] {
            assert_eq!(read(&format!("{folder}cgroup.subtree_control")), "+memory");
        }
        assert!(!dir.path().join("a/b/vm/cgroup.subtree_control").exists());
        assert_eq!(
            (read("a/b/vm/memory.max"), read("a/b/vm/cgroup.procs")),
            ("5".into(), "78".into())
        );
        let other = ["io.weight=5".parse().unwrap()];
        assert!(groups.apply(&other, Path::new("a"), "vm", 78).is_err());
        groups.apply(&[], Path::new("a"), "vm", 79).unwrap();
        assert!(!dir.path().join("a/cgroup.procs").exists(), "nobody asked for it");
        groups.join(Path::new("a"), "vm", 79).unwrap();
        assert_eq!(read("a/cgroup.procs"), "79");
        groups.join(Path::new("none"), "vm", 79).unwrap();
    }

    #[test]
    fn settings_are_parsed() {
        let setting: Setting = "io.max=8:0 rbps=1".parse().unwrap();
        assert_eq!((setting.controller, setting.file.as_str()), ("io".into(), "io.max"));
        assert_eq!(setting.value, "8:0 rbps=1");
        for bad in ["", "cpu", "cpu.shares", "cpu.shares=", "=1", "cpu=1", ".x=1", "a/b.c=1"] {
            assert!(bad.parse::<Setting>().is_err(), "{bad:?}");
        }
    }
}
