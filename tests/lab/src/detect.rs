//! Whether this machine can run guests by itself, or needs the lab.

use std::fmt;
use std::fs;

use serde::Serialize;

/// Forces the answer of [`detect`]: `native` or `lab`.
pub const MODE_VARIABLE: &str = "VARVE_LAB_MODE";

/// Where programs that need KVM are to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// On this machine.
    Native,
    /// In the lab.
    Lab,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Native => "native",
            Self::Lab => "lab",
        })
    }
}

/// The answer, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// Where to run.
    pub mode: Mode,
    /// One clause for people.
    pub reason: String,
}

/// What the answer is made from.
#[derive(Debug)]
pub struct Facts {
    /// The content of `/proc/cpuinfo`.
    pub cpuinfo: String,
    /// Why no VM can be made, or `None` if one was made.
    pub kvm: Option<String>,
    /// The value of [`MODE_VARIABLE`].
    pub forced: Option<String>,
}

/// Looks at this machine.
pub fn detect() -> Verdict {
    decide(&Facts {
        cpuinfo: fs::read_to_string("/proc/cpuinfo").unwrap_or_default(),
        kvm: try_kvm().err(),
        forced: std::env::var(MODE_VARIABLE).ok(),
    })
}

/// Makes a VM and drops it.
fn try_kvm() -> Result<(), String> {
    let kvm =
        kvm_ioctls::Kvm::new().map_err(|error| format!("/dev/kvm can not be used: {error}"))?;
    kvm.create_vm().map(drop).map_err(|error| format!("KVM makes no VM: {error}"))
}

/// The answer for `facts`.
pub fn decide(facts: &Facts) -> Verdict {
    let verdict = |mode, reason: &str| Verdict { mode, reason: reason.to_owned() };
    match facts.forced.as_deref() {
        Some("native") => return verdict(Mode::Native, "VARVE_LAB_MODE says so"),
        Some("lab") => return verdict(Mode::Lab, "VARVE_LAB_MODE says so"),
        _ => {}
    }
    if let Some(reason) = &facts.kvm {
        return verdict(Mode::Lab, reason);
    }
    let flags = facts.cpuinfo.lines().filter_map(|line| {
        let (name, flags) = line.split_once(':')?;
        (name.trim() == "flags").then_some(flags)
    });
    // A paravirtual KVM has /dev/kvm too, but can not run an unmodified guest.
    match flags.flat_map(str::split_whitespace).find(|flag| ["vmx", "svm"].contains(flag)) {
        Some(flag) => verdict(Mode::Native, &format!("KVM works, and the CPU has {flag}")),
        None => verdict(
            Mode::Lab,
            "/dev/kvm is there, but the CPU has neither vmx nor svm: it runs no unmodified guest",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(cpuinfo: &str, kvm: Option<&str>, forced: Option<&str>) -> Mode {
        let (kvm, forced) = (kvm.map(str::to_owned), forced.map(str::to_owned));
        decide(&Facts { cpuinfo: cpuinfo.to_owned(), kvm, forced }).mode
    }

    const INTEL: &str = "processor\t: 0\nflags\t\t: fpu vmx smx\nvmx flags\t: vnmi\n";
    const NONE: &str = "processor\t: 0\nflags\t\t: fpu de svme\nvmx flags\t: vmx\n";

    #[test]
    fn both_a_working_kvm_and_the_flag_are_needed() {
        assert_eq!(mode(INTEL, None, None), Mode::Native);
        assert_eq!(mode(NONE, None, None), Mode::Lab);
        assert_eq!(mode(INTEL, Some("no /dev/kvm"), None), Mode::Lab);
        assert_eq!(mode("", None, None), Mode::Lab);
    }

    #[test]
    fn the_variable_decides_if_it_is_set() {
        assert_eq!(mode(INTEL, None, Some("lab")), Mode::Lab);
        assert_eq!(mode(NONE, Some("no"), Some("native")), Mode::Native);
    }

    #[test]
    fn the_reason_is_told() {
        let facts = Facts { cpuinfo: INTEL.into(), kvm: Some("it burns".into()), forced: None };
        assert_eq!(decide(&facts).reason, "it burns");
    }
}
