//! Names of stores.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::device::HOSTS;
use crate::error::SharedError;

/// Where images can be kept.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Uri {
    /// A folder: plain files, in the page cache when they are used.
    File(PathBuf),
    /// A folder in memory (tmpfs) whose pages are bound to a NUMA node.
    Numa {
        /// The node.
        node: u32,
        /// The folder.
        dir: PathBuf,
    },
    /// A folder on a file system that maps its device's memory (`-o dax`).
    Dax(PathBuf),
    /// A device that is mapped as it is.
    Device {
        /// The character device.
        path: PathBuf,
        /// This host's number among those that share it.
        host: usize,
        /// Where this host keeps what is its own: users, locks.
        state: PathBuf,
    },
}

/// Where stores of this host keep what has no place in them.
const STATE: &str = "/var/lib/varve/tiers";
/// Where folders in memory are, unless one is named.
const SHM: &str = "/dev/shm";

impl FromStr for Uri {
    type Err = SharedError;

    fn from_str(text: &str) -> Result<Uri, SharedError> {
        let wrong = |problem: &str| SharedError::Uri { text: text.into(), problem: problem.into() };
        let dir = |path: &str| match path {
            "" => Err(wrong("no folder is named")),
            // What is written down must mean the same from elsewhere.
            path => std::path::absolute(path).map_err(|e| wrong(&e.to_string())),
        };
        let Some((scheme, rest)) = text.split_once(':') else { return Ok(Uri::File(dir(text)?)) };
        match scheme {
            "file" => Ok(Uri::File(dir(rest)?)),
            "dax" => Ok(Uri::Dax(dir(rest)?)),
            "numa" => {
                let (node, path) = rest.split_once(':').unwrap_or((rest, ""));
                let node = node.parse().map_err(|_| wrong("the node is not a number"))?;
                let default = PathBuf::from(SHM).join(format!("varve-node{node}"));
                let dir = if path.is_empty() { default } else { dir(path)? };
                Ok(Uri::Numa { node, dir })
            }
            "devdax" => {
                let mut words = rest.split(',');
                let path = PathBuf::from(words.next().unwrap_or_default());
                let name = path.file_name().ok_or_else(|| wrong("no device is named"))?;
                let (mut host, mut state) = (0, PathBuf::from(STATE).join(name));
                for word in words {
                    match word.split_once('=') {
                        Some(("host", number)) => {
                            let number = number.parse().ok().filter(|&n| n < HOSTS);
                            let problem = format!("hosts have numbers from 0 to {}", HOSTS - 1);
                            host = number.ok_or_else(|| wrong(&problem))?;
                        }
                        Some(("state", path)) => state = dir(path)?,
                        _ => return Err(wrong(&format!("{word:?} is not known"))),
                    }
                }
                Ok(Uri::Device { path, host, state })
            }
            _ => Err(wrong("there is no such kind of store")),
        }
    }
}

impl fmt::Display for Uri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Uri::File(dir) => write!(f, "file:{}", dir.display()),
            Uri::Numa { node, dir } => write!(f, "numa:{node}:{}", dir.display()),
            Uri::Dax(dir) => write!(f, "dax:{}", dir.display()),
            Uri::Device { path, host, state } => {
                write!(f, "devdax:{},host={host},state={}", path.display(), state.display())
            }
        }
    }
}

impl Uri {
    /// The folder in which the store's users are written down.
    pub(crate) fn ledger(&self) -> &Path {
        match self {
            Uri::File(dir) | Uri::Numa { dir, .. } | Uri::Dax(dir) => dir,
            Uri::Device { state, .. } => state,
        }
    }
}

impl Serialize for Uri {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Uri {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Uri, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        for (text, full) in [
            ("/srv/x", "file:/srv/x"),
            ("file:/srv/x", "file:/srv/x"),
            ("numa:1", "numa:1:/dev/shm/varve-node1"),
            ("numa:2:/mnt/t", "numa:2:/mnt/t"),
            ("dax:/mnt/dax/a", "dax:/mnt/dax/a"),
            ("devdax:/dev/dax0.0", "devdax:/dev/dax0.0,host=0,state=/var/lib/varve/tiers/dax0.0"),
            ("devdax:/dev/dax1.0,state=/x,host=3", "devdax:/dev/dax1.0,host=3,state=/x"),
        ] {
            let uri: Uri = text.parse().unwrap();
            assert_eq!(uri.to_string(), full);
            assert_eq!(full.parse::<Uri>().unwrap(), uri);
        }
        assert!("x".parse::<Uri>().unwrap().to_string().starts_with("file:/"));
    }

    #[test]
    fn nonsense_is_refused() {
        for text in [
            "",
            "file:",
            "numa:x",
            "numa:",
            "cxl:0",
            "devdax:",
            "devdax:/dev/x,host=99",
            "devdax:/dev/x,y",
        ] {
            let error = text.parse::<Uri>().unwrap_err().to_string();
            assert!(error.contains("numa:NODE[:DIR]"), "{error}");
        }
    }
}
