//! What a run tells the emulated host: a settings file for its init, and the command as a shell
//! script. Both go over the control port, padded to whole blocks.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Result, bail};

use crate::machine::{DAX_PATH, DEVDAX_PATH, Machine, RDMA_ADDRESS};
use crate::qemu::share_tag;

/// The init reads whole blocks of this size, in bytes.
const BLOCK: usize = 4096;
/// Linux takes no longer argument or environment string (`MAX_ARG_STRLEN`), in bytes.
const LONGEST: usize = 128 << 10;

/// Not handed on: what belongs to this process's shell, or to descriptors of this machine.
const DROPPED: [&str; 6] = ["_", "SHLVL", "LAB", "MAKEFLAGS", "MFLAGS", "CARGO_MAKEFLAGS"];

/// What is to be run in the lab.
#[derive(Clone, Debug)]
pub struct Job {
    /// The program and its arguments.
    pub command: Vec<OsString>,
    /// Its folder.
    pub folder: PathBuf,
    /// Its environment.
    pub environment: Vec<(OsString, OsString)>,
    /// Whether standard input is passed on.
    pub stdin: bool,
}

impl Job {
    /// `command` in this process's folder and environment.
    pub fn here(command: Vec<OsString>, stdin: bool) -> Result<Self> {
        let Ok(folder) = std::env::current_dir() else {
            bail!("the current folder is gone");
        };
        Ok(Self { command, folder, environment: std::env::vars_os().collect(), stdin })
    }

    /// The bytes to send over the control port of `machine`, whose kernel's modules are below
    /// the folder `modules`.
    pub fn message(&self, machine: &Machine, modules: &Path) -> Result<Vec<u8>> {
        let settings = blocks(self.settings(machine, modules));
        let command = blocks(self.script(machine)?);
        let counts = format!("{} {}\n", settings.len() / BLOCK, command.len() / BLOCK);
        Ok([counts.into_bytes(), settings, command].concat())
    }

    fn settings(&self, machine: &Machine, modules: &Path) -> Vec<u8> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        // The guest sets a whole second, and gets there a little later.
        let seconds = (now + Duration::from_millis(500)).as_secs();
        let mut text =
            format!("NOW={seconds}\nSEED={}-{}\n", now.as_nanos(), std::process::id()).into_bytes();
        let mut set = |name: &str, value: &OsStr| {
            text.extend_from_slice(name.as_bytes());
            text.push(b'=');
            text.extend_from_slice(&quoted(value));
            text.push(b'\n');
        };
        set("MODULES", modules.as_os_str());
        set("INPUT", OsStr::new(if self.stdin { "1" } else { "" }));
        set("DAX", OsStr::new(if machine.dax.is_some() { DAX_PATH } else { "" }));
        let devdax = machine.persistent().and_then(|[_, devdax]| devdax);
        let devdax = devdax.map_or(String::new(), |(start, _)| format!("{:#x}", start << 20));
        set("DEVDAX", OsStr::new(&devdax));
        set("RDMA", OsStr::new(if machine.rdma { RDMA_ADDRESS } else { "" }));
        set("NET", OsStr::new(machine.net.map_or("", |net| net.address())));
        set("ICOUNT", OsStr::new(if machine.icount { "1" } else { "" }));
        text.extend_from_slice(b"shares() {\n  :\n");
        for (index, folder) in machine.rw.iter().enumerate() {
            text.extend_from_slice(format!("  share {} ", share_tag(index)).as_bytes());
            text.extend_from_slice(&quoted(folder.as_os_str()));
            text.push(b'\n');
        }
        text.extend_from_slice(b"}\n");
        text
    }

    fn script(&self, machine: &Machine) -> Result<Vec<u8>> {
        let Some(program) = self.command.first() else {
            bail!("there is no command to run");
        };
        if program.as_bytes().contains(&b'=') {
            bail!("the name of the command has a `=`, which env(1) would take for a variable");
        }
        let mut text = b"cd ".to_vec();
        text.extend_from_slice(&quoted(self.folder.as_os_str()));
        text.extend_from_slice(b" || exit 125\nexec env -i LAB=1");
        if machine.dax.is_some() {
            text.extend_from_slice(format!(" LAB_DAX={DAX_PATH}").as_bytes());
        }
        if machine.devdax.is_some() {
            text.extend_from_slice(format!(" LAB_DEVDAX={DEVDAX_PATH}").as_bytes());
        }
        if machine.cxl.is_some() {
            text.extend_from_slice(b" LAB_CXL_NODE=1");
        }
        if machine.icount {
            text.extend_from_slice(b" LAB_ICOUNT=1");
        }
        let kept = |name: &OsStr| !DROPPED.iter().any(|dropped| OsStr::new(dropped) == name);
        for (name, value) in self.environment.iter().filter(|(name, _)| kept(name)) {
            let mut variable = name.clone();
            variable.push("=");
            variable.push(value);
            push(&mut text, &variable)?;
        }
        for word in &self.command {
            push(&mut text, word)?;
        }
        text.push(b'\n');
        Ok(text)
    }
}

fn push(text: &mut Vec<u8>, word: &OsStr) -> Result<()> {
    if word.len() >= LONGEST {
        bail!("an argument or environment variable of {} bytes is too long", word.len());
    }
    text.push(b' ');
    text.extend_from_slice(&quoted(word));
    Ok(())
}

/// `word` as a shell takes it for one word, whatever its bytes are.
fn quoted(word: &OsStr) -> Vec<u8> {
    let mut text = b"'".to_vec();
    for &byte in OsString::from(word).into_vec().iter() {
        match byte {
            b'\'' => text.extend_from_slice(b"'\\''"),
            byte => text.push(byte),
        }
    }
    text.push(b'\'');
    text
}

/// Pads with newlines, which say nothing in a script.
fn blocks(mut text: Vec<u8>) -> Vec<u8> {
    text.resize(text.len().next_multiple_of(BLOCK), b'\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn job(command: &[&str], environment: &[(&str, &str)]) -> Job {
        Job {
            command: command.iter().map(OsString::from).collect(),
            folder: "/".into(),
            environment: environment.iter().map(|(n, v)| (n.into(), v.into())).collect(),
            stdin: false,
        }
    }

    fn machine(rw: &[&str]) -> Machine {
        use clap::Parser;
        #[derive(Parser)]
        struct Options {
            #[command(flatten)]
            machine: Machine,
        }
        let rw = rw.iter().flat_map(|dir| ["--rw", dir]);
        Options::parse_from(["test"].into_iter().chain(rw)).machine
    }

    #[test]
    fn a_shell_runs_the_script_as_it_was_meant() {
        let odd = "it's \"$HOME\" `x` \\ \n end";
        let job =
            job(&["printenv", "ODD", "A-B", "LAB"], &[("ODD", odd), ("A-B", "2"), ("_", "x")]);
        let script = job.script(&machine(&[])).unwrap();
        let script = String::from_utf8(blocks(script)).unwrap();
        let output = Command::new("sh").arg("-c").arg(script).output().unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), format!("{odd}\n2\n1\n"));
    }

    #[test]
    fn the_command_can_tell_that_its_clock_counts_instructions() {
        let script = |icount| {
            let machine = Machine { icount, ..machine(&[]) };
            blocks(job(&["true"], &[]).script(&machine).unwrap())
        };
        let says = |text: &[u8]| text.windows(14).any(|word| word == b" LAB_ICOUNT=1 ");
        assert!(!says(&script(false)) && says(&script(true)));
    }

    #[test]
    fn settings_are_a_script_that_names_the_shares() {
        let job = job(&["true"], &[]);
        let settings = job.settings(&machine(&["/a b", "/c"]), Path::new("/lab/it's/modules"));
        let mut script = settings;
        script.extend_from_slice(b"share() { echo \"$1 $2\"; }\nshares\necho \"$MODULES|$DAX|\"\n");
        let output =
            Command::new("sh").arg("-c").arg(String::from_utf8(script).unwrap()).output().unwrap();
        let expected = "rw0 /a b\nrw1 /c\n/lab/it's/modules||\n";
        assert_eq!(String::from_utf8(output.stdout).unwrap(), expected);
    }

    #[test]
    fn the_message_is_whole_blocks_after_their_counts() {
        let message = job(&["true"], &[]).message(&machine(&[]), Path::new("/m")).unwrap();
        let line = message.iter().position(|&byte| byte == b'\n').unwrap();
        assert_eq!(&message[..line], b"1 1");
        assert_eq!(message.len() - line - 1, 2 * BLOCK);
    }

    #[test]
    fn what_can_not_be_run_is_refused() {
        assert!(job(&[], &[]).script(&machine(&[])).is_err());
        assert!(job(&["a=b"], &[]).script(&machine(&[])).is_err());
        let long = "x".repeat(LONGEST);
        assert!(job(&["true", &long], &[]).script(&machine(&[])).is_err());
    }
}
