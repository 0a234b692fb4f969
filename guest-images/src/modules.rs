//! A kernel's modules by name: which files to load, in which order, and their bytes.
//! Reads the indices that `depmod` and the kernel's build left; loading is the guest's business.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::unpack::Format;

/// No module of a distribution kernel comes near this size, in bytes.
const MAX_MODULE: u64 = 256 << 20;

/// The modules of one kernel.
#[derive(Debug)]
pub struct Modules {
    dir: PathBuf,
    release: String,
    /// By name: the file below `dir`, and the files on which it depends, all of them.
    files: HashMap<String, (PathBuf, Vec<PathBuf>)>,
    builtin: HashSet<String>,
}

/// One module's file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// The module's name with underscores, as the kernel shows it.
    pub name: String,
    /// Its file, which may be compressed.
    pub path: PathBuf,
}

impl Modules {
    /// Reads `modules.dep` and `modules.builtin` of the folder `lib/modules/<release>`.
    pub fn open(dir: &Path) -> Result<Self> {
        let read = |name: &str| {
            let path = dir.join(name);
            fs::read_to_string(&path).map_err(Error::io("read", &path))
        };
        let release = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut files = HashMap::new();
        for (index, line) in read("modules.dep")?.lines().enumerate() {
            let Some((file, needs)) = line.split_once(':') else {
                let path = dir.join("modules.dep");
                let reason = "there is no `:` after the module".to_owned();
                return Err(Error::BadIndex { path, line: index + 1, reason });
            };
            let needs = needs.split_whitespace().map(PathBuf::from).collect();
            files.insert(module_name(Path::new(file)), (PathBuf::from(file), needs));
        }
        let builtin = read("modules.builtin")?.lines().map(|l| module_name(Path::new(l))).collect();
        Ok(Self { dir: dir.to_owned(), release, files, builtin })
    }

    /// The files to load so that all of `names` are there: each after what it needs, none twice.
    ///
    /// Dashes and underscores are the same in a name. What is built into the kernel needs no file.
    /// A name that is neither is an error.
    pub fn load_order(&self, names: &[&str]) -> Result<Vec<Module>> {
        let mut order = Vec::new();
        let mut seen = HashSet::new();
        for name in names {
            let key = name.replace('-', "_");
            match self.files.get(&key) {
                Some((file, needs)) => {
                    // depmod lists the nearest need first, and each need's own needs after it.
                    for file in needs.iter().rev().chain([file]) {
                        if seen.insert(file) {
                            let path = self.dir.join(file);
                            order.push(Module { name: module_name(file), path });
                        }
                    }
                }
                None if self.builtin.contains(&key) => {}
                None => {
                    let release = self.release.clone();
                    return Err(Error::NoModule { module: (*name).to_owned(), release });
                }
            }
        }
        Ok(order)
    }

    /// Whether the kernel has `name` inside itself.
    pub fn is_builtin(&self, name: &str) -> bool {
        self.builtin.contains(&name.replace('-', "_"))
    }
}

impl Module {
    /// The module itself, decompressed: an ELF file that `finit_module` takes.
    pub fn read(&self) -> Result<Vec<u8>> {
        let bytes = fs::read(&self.path).map_err(Error::io("read", &self.path))?;
        let Some(format) = Format::of(&bytes) else { return Ok(bytes) };
        format.unpack(&bytes, MAX_MODULE).map_err(|source| Error::Unpack {
            path: self.path.clone(),
            format: format.name(),
            source,
        })
    }
}

/// `kernel/net/9p/9pnet-virtio.ko.xz` is `9pnet_virtio`.
fn module_name(file: &Path) -> String {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let stem = name.split_once(".ko").map_or(name.as_ref(), |(stem, _)| stem);
    stem.replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> (tempfile::TempDir, Modules) {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("6.1.0-test");
        fs::create_dir(&dir).unwrap();
        let dep = "kernel/a.ko.xz:\nkernel/b-x.ko: kernel/a.ko.xz\nkernel/c.ko: kernel/b-x.ko kernel/a.ko.xz\n";
        fs::write(dir.join("modules.dep"), dep).unwrap();
        fs::write(dir.join("modules.builtin"), "kernel/fs/ext-four.ko\n").unwrap();
        let modules = Modules::open(&dir).unwrap();
        (root, modules)
    }

    fn names(order: &[Module]) -> Vec<&str> {
        order.iter().map(|module| module.name.as_str()).collect()
    }

    #[test]
    fn needs_come_first_and_once() {
        let (_root, modules) = sample();
        assert_eq!(names(&modules.load_order(&["c", "b-x", "a"]).unwrap()), ["a", "b_x", "c"]);
        assert_eq!(names(&modules.load_order(&["b_x"]).unwrap()), ["a", "b_x"]);
    }

    #[test]
    fn builtin_modules_need_no_file_and_unknown_ones_are_an_error() {
        let (_root, modules) = sample();
        assert!(modules.is_builtin("ext-four"));
        assert!(modules.load_order(&["ext_four"]).unwrap().is_empty());
        let error = modules.load_order(&["nope"]).unwrap_err().to_string();
        assert_eq!(error, "kernel 6.1.0-test has no module `nope`");
    }

    #[test]
    fn a_malformed_index_names_its_line() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("modules.dep"), "a.ko:\nrubbish\n").unwrap();
        fs::write(root.path().join("modules.builtin"), "").unwrap();
        let error = Modules::open(root.path()).unwrap_err();
        assert!(matches!(error, Error::BadIndex { line: 2, .. }), "{error}");
    }

    #[test]
    fn an_uncompressed_module_is_read_as_it_is() {
        let (root, _) = sample();
        let path = root.path().join("x.ko");
        fs::write(&path, b"\x7fELF...").unwrap();
        let module = Module { name: "x".into(), path };
        assert_eq!(module.read().unwrap(), b"\x7fELF...");
    }
}
