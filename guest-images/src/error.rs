//! What can go wrong while guest images are made, as one type for the whole crate.

use std::io;
use std::path::{Path, PathBuf};

/// The result of this crate's operations.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an image, or a part of one, could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file operation failed.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// The operation, as a verb: "read", "create", "rename".
        action: &'static str,
        /// The file or folder it was about.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },

    /// A tool could not be started at all.
    #[error("cannot start `{program}`: is the Debian package `{package}` installed?")]
    Spawn {
        /// The tool.
        program: String,
        /// The package that has it.
        package: &'static str,
        /// What the system said.
        source: io::Error,
    },

    /// A tool ran and failed.
    #[error("`{command}` failed ({status}): {stderr}")]
    Tool {
        /// The whole command line.
        command: String,
        /// How it ended.
        status: std::process::ExitStatus,
        /// The last lines that it wrote to its standard error.
        stderr: String,
    },

    /// The machine is not a Debian system, so it has no Debian mirror to fetch from.
    #[error(
        "this machine is `{found}`, and guest images are made from Debian's packages: run this on Debian 12 or newer"
    )]
    NotDebian {
        /// `ID` of os-release.
        found: String,
    },

    /// apt's configuration names no mirror of the release that is installed.
    #[error(
        "apt has no source with component `main` of Debian {codename}: add one to /etc/apt/sources.list.d"
    )]
    NoMirror {
        /// The release, as os-release names it.
        codename: String,
    },

    /// No configured suite has the package.
    #[error("no package `{package}` in {suites} of the configured Debian mirror")]
    NoPackage {
        /// The package, as it was asked for.
        package: String,
        /// The suites that were searched.
        suites: String,
    },

    /// A kernel image is not what its header says, or has a form that is not known.
    #[error("{} is not a usable kernel image: {reason}", path.display())]
    BadKernel {
        /// The image.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },

    /// A kernel has no module of this name, neither as a file nor built in.
    #[error("kernel {release} has no module `{module}`")]
    NoModule {
        /// The module's name.
        module: String,
        /// The kernel's release.
        release: String,
    },

    /// An index of modules is malformed.
    #[error("{}: line {line}: {reason}", path.display())]
    BadIndex {
        /// The index, such as `modules.dep`.
        path: PathBuf,
        /// Its line, from 1.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },

    /// Tools are missing, and only root can install them.
    #[error("{tools} missing; as root: apt-get install {packages}")]
    MissingTools {
        /// The tools, with a verb: "`a` is", "`a`, `b` are".
        tools: String,
        /// Their packages, as apt-get wants them.
        packages: String,
    },

    /// The function image could not be made.
    #[error("mmdebstrap could not make the function image ({status}); its log is {}", log.display())]
    Bootstrap {
        /// How it ended.
        status: std::process::ExitStatus,
        /// Where it tells why.
        log: PathBuf,
    },

    /// A program of the checkout could not be built.
    #[error("cannot build {what}: `{command}` failed ({status}); see above")]
    Build {
        /// The program.
        what: &'static str,
        /// The command line.
        command: String,
        /// How it ended.
        status: std::process::ExitStatus,
    },

    /// A compressed file could not be unpacked.
    #[error("cannot unpack {} as {format}", path.display())]
    Unpack {
        /// The file.
        path: PathBuf,
        /// The compression that its first bytes announce.
        format: &'static str,
        /// What the decoder said.
        source: io::Error,
    },
}

impl Error {
    /// Makes the closure that turns an [`io::Error`] about `path` into an [`Error`].
    pub fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }
}
