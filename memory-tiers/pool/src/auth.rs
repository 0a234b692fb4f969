//! Who may talk to a node: tenants with a shared key each. How both sides prove that they have it is
//! `sealed`'s.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};
use varve_snapshot::Digest;

use crate::error::PoolError;

/// Longest file of keys.
const MAX_FILE: u64 = 16 << 20;

/// A random number that is used once.
pub type Nonce = [u8; 32];
/// Name of a tenant: 1 to 64 of `a-z`, `0-9`, `-` and `_`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Tenant(String);

impl TryFrom<String> for Tenant {
    type Error = String;

    fn try_from(name: String) -> Result<Tenant, String> {
        let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_';
        if name.is_empty() || name.len() > 64 || !name.bytes().all(fits) {
            return Err(format!("{name:?} is not a tenant: 1 to 64 of a-z, 0-9, - and _"));
        }
        Ok(Tenant(name))
    }
}

impl From<Tenant> for String {
    fn from(tenant: Tenant) -> String {
        tenant.0
    }
}

impl fmt::Display for Tenant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A tenant's key.
#[derive(Clone)]
pub struct Key([u8; 32]);

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(…)")
    }
}

impl Key {
    /// A key of 64 hexadecimal digits.
    pub fn from_hex(text: &str) -> Option<Key> {
        Digest::from_hex(text).map(|d| Key(d.0))
    }

    /// Its bytes.
    pub(crate) fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// Keys by tenant, from a file of lines `tenant 64-hex-digits`; `#` begins a comment.
#[derive(Clone, Debug, Default)]
pub struct Keys(BTreeMap<Tenant, Key>);

impl Keys {
    /// Reads a regular file, which nobody but its owner may be able to read or write.
    ///
    /// # Errors
    ///
    /// It cannot be read, others have access to it, or it has no keys.
    pub fn read(path: &Path) -> Result<Keys, PoolError> {
        let file = |problem: &str| PoolError::File { path: path.into(), problem: problem.into() };
        // What is read is what was looked at; a pipe without a writer is not waited for.
        let flags = OFlags::NONBLOCK.bits().cast_signed();
        let open = OpenOptions::new().read(true).custom_flags(flags).open(path);
        let open = open.map_err(PoolError::io("open", path))?;
        let metadata = open.metadata().map_err(PoolError::io("look at", path))?;
        if !metadata.is_file() {
            return Err(file("not a regular file; write the keys into one"));
        }
        if metadata.mode() & 0o077 != 0 {
            let problem =
                "others than its owner may read or write these keys; chmod 600 cures that";
            return Err(file(problem));
        }
        let mut text = String::new();
        let read = open.take(MAX_FILE + 1).read_to_string(&mut text);
        read.map_err(PoolError::io("read", path))?;
        if text.len() as u64 > MAX_FILE {
            return Err(file("it is longer than 16 MiB; write one line for each tenant"));
        }
        Keys::parse(&text).map_err(|problem| file(&problem))
    }

    /// Parses a file's text.
    pub fn parse(text: &str) -> Result<Keys, String> {
        let mut keys = BTreeMap::new();
        for (line, number) in text.lines().zip(1..) {
            let line = line.split('#').next().unwrap_or_default().trim();
            if line.is_empty() {
                continue;
            }
            let bad = |what: String| format!("line {number}: {what}");
            let mut words = line.split_whitespace();
            let (Some(name), Some(key), None) = (words.next(), words.next(), words.next()) else {
                return Err(bad("write a tenant and its key of 64 hexadecimal digits".into()));
            };
            let tenant = Tenant::try_from(name.to_owned()).map_err(bad)?;
            let key = Key::from_hex(key)
                .ok_or_else(|| bad(format!("the key of {tenant} is not 64 hexadecimal digits")))?;
            if keys.insert(tenant, key).is_some() {
                return Err(bad(format!("{name} has a key already")));
            }
        }
        if keys.is_empty() {
            return Err(
                "there is no key in it: write lines of a tenant and 64 hexadecimal digits \
                        (openssl rand -hex 32)"
                    .into(),
            );
        }
        Ok(Keys(keys))
    }

    /// The key of a tenant.
    pub fn get(&self, tenant: &Tenant) -> Option<&Key> {
        self.0.get(tenant)
    }

    /// All tenants.
    pub fn tenants(&self) -> impl Iterator<Item = &Tenant> {
        self.0.keys()
    }

    /// The tenant that is meant and its key, from the file at `path`: the one of that name, or the only
    /// one.
    pub fn choose(path: &Path, name: Option<&Tenant>) -> Result<(Tenant, Key), PoolError> {
        let all = Keys::read(path)?;
        let found = match name {
            Some(name) => all.get(name).map(|key| (name, key)),
            None => all.only(),
        };
        let found = found.map(|(tenant, key)| (tenant.clone(), key.clone()));
        found.ok_or_else(|| {
            let problem = match name {
                Some(name) => format!("it has no key of tenant {name}"),
                None => "it has keys of several tenants: say which tenant is meant".into(),
            };
            PoolError::File { path: path.into(), problem }
        })
    }

    /// The only tenant of the file, as a client has it.
    pub fn only(&self) -> Option<(&Tenant, &Key)> {
        let mut keys = self.0.iter();
        keys.next().filter(|_| keys.next().is_none())
    }
}

/// A fresh nonce.
pub fn nonce() -> std::io::Result<Nonce> {
    let mut nonce = [0; 32];
    let mut filled = 0;
    while filled < nonce.len() {
        let rest = &mut nonce[filled..];
        filled += rustix::rand::getrandom(rest, rustix::rand::GetRandomFlags::empty())?;
    }
    Ok(nonce)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn key_files() {
        let hex = "5A".repeat(32);
        let keys = Keys::parse(&format!("# pool\nacme {hex} # theirs\n\n")).unwrap();
        assert_eq!(keys.only().unwrap().0.to_string(), "acme");
        for (text, problem) in [
            (String::new(), "no key"),
            (format!("acme {hex}\nacme {hex}"), "line 2: acme has a key"),
            (format!("ac/me {hex}"), "line 1: \"ac/me\""),
            ("acme 12".into(), "64 hexadecimal"),
            ("acme".into(), "write a tenant"),
            (format!("acme {}", "é".repeat(32)), "64 hexadecimal"),
        ] {
            let error = Keys::parse(&text).unwrap_err();
            assert!(error.contains(problem), "{error}");
        }
    }

    #[test]
    fn keys_that_others_can_read_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys");
        fs::write(&path, format!("acme {}", "00".repeat(32))).unwrap();
        let mode = |mode| {
            use std::os::unix::fs::PermissionsExt;
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        };
        mode(0o640);
        assert!(Keys::read(&path).unwrap_err().to_string().contains("chmod 600"));
        mode(0o600);
        Keys::read(&path).unwrap();
        let pipe = dir.path().join("pipe");
        let of_owner = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, of_owner, 0)
            .unwrap();
        assert!(Keys::read(&pipe).unwrap_err().to_string().contains("not a regular file"));
    }
}
