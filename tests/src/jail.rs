//! A jail of varve-jailer, and what is put into it.

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::Vm;
use crate::images::varve;

/// The user and the group that monitors run as; the host has none of these numbers.
pub const OWNER: (u32, u32) = (12_345, 23_456);

/// A jail that nothing runs in yet.
pub struct Jail {
    dir: tempfile::TempDir,
    id: String,
}

/// A file that is mounted into a jail.
pub struct Mounted {
    file: tempfile::NamedTempFile,
    target: PathBuf,
}

impl Mounted {
    /// What it holds.
    ///
    /// # Panics
    ///
    /// If it cannot be read.
    pub fn content(&self) -> Vec<u8> {
        fs::read(self.file.path()).unwrap()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // A jail that still runs has a copy of its own.
        let _ = Command::new("umount").arg("--lazy").arg(&self.target).status();
    }
}

impl Jail {
    /// An empty jail with what varve itself needs: the libraries that it is linked with.
    pub fn new(id: &str) -> Jail {
        let dir = tempfile::Builder::new().prefix("varve-jail").tempdir().unwrap();
        let jail = Jail { dir, id: id.into() };
        let output = Command::new("ldd").arg(varve()).output().expect("libc-bin is needed");
        let text = String::from_utf8(output.stdout).unwrap();
        // A static program has no line with a path.
        for library in text.split_whitespace().filter(|word| word.starts_with('/')) {
            let target = jail.root().join(library.trim_start_matches('/'));
            fs::create_dir_all(target.parent().unwrap()).unwrap();
            fs::copy(library, &target).unwrap();
            fs::set_permissions(&target, fs::Permissions::from_mode(0o755)).unwrap();
        }
        jail
    }

    /// The jail's root folder.
    pub fn root(&self) -> PathBuf {
        self.dir.path().join("varve").join(&self.id).join("root")
    }

    /// Copies a file or a folder of files into the jail, for its user to read and write.
    pub fn place(&self, from: &Path, name: &str) {
        let target = self.root().join(name);
        if from.is_dir() {
            fs::create_dir(&target).unwrap();
            for entry in fs::read_dir(from).unwrap() {
                let entry = entry.unwrap();
                let inside = format!("{name}/{}", entry.file_name().to_str().unwrap());
                self.place(&entry.path(), &inside);
            }
        } else {
            fs::create_dir_all(target.parent().unwrap()).unwrap();
            fs::copy(from, &target).unwrap();
        }
        chown(&target, Some(OWNER.0), Some(OWNER.1)).unwrap();
    }

    /// Copies a file or a folder of files into the jail, for its user to read; they are root's.
    pub fn place_of_root(&self, from: &Path, name: &str) {
        self.place(from, name);
        let target = self.root().join(name);
        let entries = fs::read_dir(&target).into_iter().flatten();
        for path in entries.map(|entry| entry.unwrap().path()).chain([target.clone()]) {
            chown(&path, Some(0), Some(0)).unwrap();
            let mode = if path.is_dir() { 0o755 } else { 0o644 };
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        }
    }

    /// Mounts an empty file of root's, which everyone may write, into the jail: the file, until it is
    /// dropped.
    ///
    /// # Panics
    ///
    /// If it cannot be mounted.
    pub fn mount_file(&self, name: &str) -> Mounted {
        let target = self.root().join(name);
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        File::create(&target).unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::set_permissions(file.path(), fs::Permissions::from_mode(0o666)).unwrap();
        let mut mount = Command::new("mount");
        assert!(mount.arg("--bind").arg(file.path()).arg(&target).status().unwrap().success());
        Mounted { file, target }
    }

    /// The jailer's command, with its options and the monitor's, both separated by blanks. Standard
    /// output is a file of the folder that becomes the machine's.
    pub fn command(&self, options: &str, monitor: &str) -> Command {
        let mut command = Command::new(varve().with_file_name("varve-jailer"));
        command.args(["--id", &self.id, "--exec-file"]).arg(varve());
        command.arg("--uid").arg(OWNER.0.to_string()).arg("--gid").arg(OWNER.1.to_string());
        command.arg("--chroot-base-dir").arg(self.dir.path());
        command.args(options.split_whitespace()).arg("--").args(monitor.split_whitespace());
        command.stdin(Stdio::null());
        command
    }

    /// Starts the monitor. Its sockets are to be `v.sock` and `api.sock` in the jail's root.
    pub fn start(self, mut command: Command) -> Vm {
        command.stdout(File::create(self.dir.path().join("console")).unwrap());
        for socket in ["v.sock", "api.sock"] {
            symlink(self.root().join(socket), self.dir.path().join(socket)).unwrap();
        }
        Vm::spawn(command, self.dir)
    }
}
