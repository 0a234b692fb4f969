//! A part of the guest images: a folder of files that are made together from stated inputs, and
//! made again only when those change. How a part is made is in its own file.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::aside::{Aside, folder, sync};
use crate::error::{Error, Result};

/// Written last, so that its presence says that a part is complete.
const MARKER: &str = "part.json";

/// What is known of a part, as the manifest shows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Part {
    /// A checksum of everything that the part was made from.
    pub inputs: String,
    /// Its files, by name.
    pub files: BTreeMap<String, Stamp>,
    /// What the maker says of them, such as package versions.
    pub facts: serde_json::Value,
}

/// One file's size and content.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stamp {
    /// Its size in bytes.
    pub bytes: u64,
    /// SHA-256 of its content, in hexadecimal.
    pub sha256: String,
}

impl Part {
    /// The part in `dir`, if one is there, whole, and made from `inputs`.
    pub fn open(dir: &Path, inputs: &str) -> Result<Option<Self>> {
        let path = dir.join(MARKER);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io("read", &path)(error)),
        };
        // A marker that cannot be read is that of another version: the part is made again.
        let Ok(part) = serde_json::from_slice::<Self>(&text) else { return Ok(None) };
        let same_size = |(name, stamp): (&String, &Stamp)| {
            fs::metadata(dir.join(name)).is_ok_and(|meta| meta.len() == stamp.bytes)
        };
        Ok((part.inputs == inputs && part.files.iter().all(same_size)).then_some(part))
    }

    /// The part in `dir`, made by `make` if it is not there or was made from other inputs.
    ///
    /// `make` fills the folder that it is given with the files `names` (what else it leaves there
    /// is removed) and returns facts.
    pub fn ensure(
        dir: &Path,
        inputs: &str,
        names: &[&str],
        make: impl FnOnce(&Path) -> Result<serde_json::Value>,
    ) -> Result<Self> {
        if let Some(part) = Self::open(dir, inputs)? {
            return Ok(part);
        }
        let aside = Aside::begin(dir)?;
        let facts = make(aside.path())?;
        remove_others(aside.path(), names)?;
        let mut files = BTreeMap::new();
        for &name in names {
            files.insert(name.to_owned(), Stamp::of(&aside.path().join(name))?);
        }
        let part = Self { inputs: inputs.to_owned(), files, facts };
        write_json(&aside.path().join(MARKER), &part)?;
        aside.commit()?;
        Ok(part)
    }
}

impl Stamp {
    /// Measures a file, whose content is on the disk when this returns.
    pub fn of(path: &Path) -> Result<Self> {
        let measure = || -> io::Result<Self> {
            let mut file = File::open(path)?;
            file.sync_all()?;
            let (mut hasher, mut bytes) = (Sha256::new(), 0);
            let mut buffer = vec![0; 1 << 20];
            loop {
                match file.read(&mut buffer)? {
                    0 => return Ok(Self { bytes, sha256: hex(hasher) }),
                    count => {
                        hasher.update(&buffer[..count]);
                        bytes += count as u64;
                    }
                }
            }
        };
        measure().map_err(Error::io("read", path))
    }
}

/// Collects what a part is made from into one checksum.
#[derive(Clone, Debug, Default)]
pub struct Inputs(Sha256);

impl Inputs {
    /// Adds bytes under a name.
    pub fn add(&mut self, name: &str, bytes: &[u8]) {
        for field in [name.as_bytes(), bytes] {
            self.0.update((field.len() as u64).to_le_bytes());
            self.0.update(field);
        }
    }

    /// Adds a file's content under its path below `root`.
    pub fn add_file(&mut self, root: &Path, path: &Path) -> Result<()> {
        let bytes = fs::read(path).map_err(Error::io("read", path))?;
        self.add(&path.strip_prefix(root).unwrap_or(path).to_string_lossy(), &bytes);
        Ok(())
    }

    /// The checksum of all that was added, in this order.
    pub fn finish(self) -> String {
        hex(self.0)
    }
}

/// Writes a value as JSON, for people to read, aside and renamed; durable when this returns.
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let aside = with_suffix(path, ".new");
    let write = || -> io::Result<()> {
        let mut text = serde_json::to_vec_pretty(value)?;
        text.push(b'\n');
        fs::write(&aside, text)?;
        File::open(&aside)?.sync_all()?;
        fs::rename(&aside, path)
    };
    write().map_err(Error::io("write", path))?;
    sync(folder(path))
}

/// `path` with `suffix` after its last component.
pub fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Shows a part's file under its public name: the same file, not a copy.
pub fn publish(file: &Path, name: &Path) -> Result<()> {
    let aside = with_suffix(name, ".new");
    let _ = fs::remove_file(&aside);
    fs::hard_link(file, &aside).map_err(Error::io("link", file))?;
    // A rename of one name over another of the same file does nothing, and would leave both.
    fs::rename(&aside, name).map_err(Error::io("rename", &aside))?;
    let _ = fs::remove_file(&aside);
    sync(folder(name))
}

fn remove_others(dir: &Path, names: &[&str]) -> Result<()> {
    for entry in fs::read_dir(dir).map_err(Error::io("read", dir))? {
        let path = entry.map_err(Error::io("read", dir))?.path();
        let keep = path.file_name().is_some_and(|own| names.iter().any(|&name| own == name));
        if !keep {
            let removed =
                if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            removed.map_err(Error::io("remove", &path))?;
        }
    }
    Ok(())
}

fn hex(hasher: Sha256) -> String {
    hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[test]
    fn a_part_is_made_again_only_when_its_inputs_change_or_a_file_is_cut() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("part");
        let made = Cell::new(0);
        let ensure = |inputs: &str| {
            let make = |dir: &Path| {
                made.set(made.get() + 1);
                fs::write(dir.join("file"), "abc").unwrap();
                fs::create_dir_all(dir.join("left/over")).unwrap();
                Ok(serde_json::json!({"made": made.get()}))
            };
            Part::ensure(&dir, inputs, &["file"], make).unwrap()
        };
        let part = ensure("one");
        assert_eq!(part.files["file"].bytes, 3);
        // sha256 of "abc", from FIPS 180-2.
        assert!(part.files["file"].sha256.starts_with("ba7816bf8f01cfea"));
        assert!(!dir.join("left").exists());
        assert_eq!(ensure("one"), part);
        assert_eq!(made.get(), 1);
        ensure("two");
        assert_eq!(made.get(), 2);
        fs::write(dir.join("file"), "ab").unwrap();
        ensure("two");
        assert_eq!(made.get(), 3);
    }

    #[test]
    fn a_part_that_cannot_be_made_leaves_the_old_one() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("part");
        let make = |dir: &Path| {
            fs::write(dir.join("file"), "old").unwrap();
            Ok(serde_json::Value::Null)
        };
        Part::ensure(&dir, "one", &["file"], make).unwrap();
        // The maker forgot the file.
        let error =
            Part::ensure(&dir, "two", &["file"], |_| Ok(serde_json::Value::Null)).unwrap_err();
        assert!(error.to_string().contains("file"), "{error}");
        assert_eq!(fs::read_to_string(dir.join("file")).unwrap(), "old");
        assert!(Part::open(&dir, "one").unwrap().is_some());
    }

    #[test]
    fn publishing_twice_leaves_one_name() {
        let dir = tempfile::tempdir().unwrap();
        let (file, name) = (dir.path().join("file"), dir.path().join("name"));
        for text in ["one", "two"] {
            let _ = fs::remove_file(&file);
            fs::write(&file, text).unwrap();
            publish(&file, &name).unwrap();
            publish(&file, &name).unwrap();
            assert_eq!(fs::read_to_string(&name).unwrap(), text);
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn inputs_are_told_apart() {
        let inputs = |pairs: &[(&str, &str)]| {
            let mut inputs = Inputs::default();
            pairs.iter().for_each(|(name, bytes)| inputs.add(name, bytes.as_bytes()));
            inputs.finish()
        };
        assert_eq!(inputs(&[("a", "b")]), inputs(&[("a", "b")]));
        assert_ne!(inputs(&[("a", "bc")]), inputs(&[("ab", "c")]));
        assert_ne!(inputs(&[("a", ""), ("b", "")]), inputs(&[("b", ""), ("a", "")]));
    }
}
