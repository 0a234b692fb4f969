//! Runs `varve` for what it prints.

use std::ffi::OsStr;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde::de::DeserializeOwned;
use varve_tests::images::varve;

/// Runs `varve` with `args` to its end: its standard output, and the milliseconds that it took.
pub fn output<A: AsRef<OsStr>>(args: impl IntoIterator<Item = A>) -> Result<(String, f64)> {
    let mut command = Command::new(varve());
    command.args(args);
    let start = Instant::now();
    let output = command.output().with_context(|| format!("cannot start {command:?}"))?;
    let took = start.elapsed().as_secs_f64() * 1e3;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{command:?} failed, {}: {}", output.status, said.trim());
    }
    let text = String::from_utf8(output.stdout).with_context(|| format!("{command:?}: no text"))?;
    Ok((text, took))
}

/// The same of a command that prints JSON.
pub fn json<'a, T>(args: impl IntoIterator<Item = &'a OsStr>) -> Result<(T, f64)>
where
    T: DeserializeOwned,
{
    let (text, took) = output(args)?;
    let value = serde_json::from_str(&text)
        .with_context(|| format!("varve printed what the demo does not understand: {text}"))?;
    Ok((value, took))
}

/// An array of arguments from references to whatever can be one: text, paths.
macro_rules! words {
    ($($word:expr),+) => { [$(AsRef::<std::ffi::OsStr>::as_ref($word)),+] };
}
pub(crate) use words;
