//! Limits on what the monitor may use, which it cannot raise.

use rustix::process::{Resource, Rlimit, setrlimit};

/// Descriptors that may be open where `--resource-limit` does not say, as in Firecracker.
const DESCRIPTORS: u64 = 2048;

/// What `--resource-limit` asks for.
#[derive(Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the longest file that may be written; none: unlimited.
    file_size: Option<u64>,
    /// One more than the highest descriptor.
    descriptors: u64,
}

impl Limits {
    /// Reads `RESOURCE=VALUE` arguments; of one resource the last counts.
    pub fn parse(arguments: &[String]) -> Result<Limits, String> {
        let mut limits = Limits { file_size: None, descriptors: DESCRIPTORS };
        for argument in arguments {
            let bad = |what: &str| format!("--resource-limit {argument:?}: {what}");
            let (resource, value) =
                argument.split_once('=').ok_or_else(|| bad("write RESOURCE=VALUE"))?;
            let value = value.parse().map_err(|_| bad("its value is not a number"))?;
            match resource {
                "fsize" => limits.file_size = Some(value),
                "no-file" => limits.descriptors = value,
                _ => return Err(bad("the resources are fsize and no-file")),
            }
        }
        Ok(limits)
    }

    /// Sets them for this process.
    pub fn install(&self) -> rustix::io::Result<()> {
        let set = |resource, value| {
            setrlimit(resource, Rlimit { current: Some(value), maximum: Some(value) })
        };
        if let Some(bytes) = self.file_size {
            set(Resource::Fsize, bytes)?;
        }
        set(Resource::Nofile, self.descriptors)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_parsed() {
        let parse = |texts: &[&str]| {
            Limits::parse(&texts.iter().map(|t| (*t).to_owned()).collect::<Vec<_>>())
        };
        assert_eq!(parse(&[]), Ok(Limits { file_size: None, descriptors: 2048 }));
        let both = parse(&["fsize=5", "no-file=6"]);
        assert_eq!(both, Ok(Limits { file_size: Some(5), descriptors: 6 }));
        for bad in ["fsize", "fsize=", "fsize=-1", "no-file=1k", "cpu=1"] {
            assert!(parse(&[bad]).unwrap_err().contains(bad));
        }
    }
}
