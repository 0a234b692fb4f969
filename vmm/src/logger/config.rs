//! How messages are written, as Firecracker's API, options and configuration file say it.

use std::path::PathBuf;
use std::str::FromStr;

use log::LevelFilter;
use serde::{Deserialize, Deserializer, Serialize};

/// What the user asked for: the body of `PUT /logger`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoggerConfig {
    /// File or named pipe; without one, standard output. A file is made if there is none, and
    /// appended to.
    pub log_path: Option<PathBuf>,
    /// How much; without it, `Info`.
    pub level: Option<Level>,
    /// Say the level of each message; without it, as before.
    pub show_level: Option<bool>,
    /// Say the source line of each message; without it, as before.
    pub show_log_origin: Option<bool>,
    /// Only messages of modules whose path begins so; without it, as before.
    pub module: Option<String>,
}

/// How much is written: a level in any case, `Warning` for `Warn`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Level(#[serde(serialize_with = "name")] pub LevelFilter);

/// Not a level.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not a level: one of Off, Error, Warning, Info, Debug and Trace")]
pub struct UnknownLevel(String);

impl FromStr for Level {
    type Err = UnknownLevel;

    fn from_str(text: &str) -> Result<Level, UnknownLevel> {
        let level = if text.eq_ignore_ascii_case("warning") { "warn" } else { text };
        level.parse().map(Level).map_err(|_| UnknownLevel(text.into()))
    }
}

impl<'de> Deserialize<'de> for Level {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Level, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

fn name<S: serde::Serializer>(level: &LevelFilter, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(match level {
        LevelFilter::Off => "Off",
        LevelFilter::Error => "Error",
        LevelFilter::Warn => "Warning",
        LevelFilter::Info => "Info",
        LevelFilter::Debug => "Debug",
        LevelFilter::Trace => "Trace",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_in_any_case() {
        let level = |text: &str| serde_json::from_str::<Level>(&format!("{text:?}"));
        for (text, expected) in [
            ("Warning", LevelFilter::Warn),
            ("WARN", LevelFilter::Warn),
            ("info", LevelFilter::Info),
            ("Off", LevelFilter::Off),
            ("tRACE", LevelFilter::Trace),
        ] {
            let level = level(text).unwrap();
            assert_eq!(level.0, expected);
            let back = serde_json::to_string(&level).unwrap();
            assert_eq!(serde_json::from_str::<Level>(&back).unwrap(), level);
        }
        let refused = level("loud").unwrap_err().to_string();
        assert!(refused.contains("\"loud\" is not a level"), "{refused}");
        assert!(serde_json::from_str::<LoggerConfig>(r#"{"path": "x"}"#).is_err());
    }
}
