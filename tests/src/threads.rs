//! Threads of a running `varve`, as the host's kernel shows them: for the messages of tests that fail.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

/// KVM's folder of debugfs. Each machine has a folder there, named by process id and descriptor.
const KVM: &str = "/sys/kernel/debug/kvm";

/// Name, state, wait channel, system call and kernel stack of each thread of a process, and KVM's counters
/// of its machines. Files that cannot be read are left out.
pub fn of(pid: u32) -> String {
    let mut text = String::new();
    for task in entries(&PathBuf::from(format!("/proc/{pid}/task"))) {
        thread(&task, &mut text);
    }
    let prefix = format!("{pid}-");
    for machine in entries(Path::new(KVM)) {
        if name(&machine).starts_with(&prefix) {
            counters(&machine, &mut text);
        }
    }
    text
}

fn thread(task: &Path, text: &mut String) {
    let status = read(&task.join("status"));
    let of = |key: &str| {
        let value = status.lines().find_map(|line| line.strip_prefix(key));
        value.unwrap_or("?").trim().to_owned()
    };
    let (title, state) = (of("Name:"), of("State:"));
    let (wchan, call) = (read(&task.join("wchan")), read(&task.join("syscall")));
    let id = name(task);
    let _ = writeln!(text, "{id} {title}: {state}, wchan {wchan}, system call {}", call.trim());
    for frame in read(&task.join("stack")).lines() {
        let _ = writeln!(text, "    {frame}");
    }
}

/// Counters of a machine, then those of each vCPU. Counters that are zero are left out.
fn counters(machine: &Path, text: &mut String) {
    let vcpus = entries(machine).into_iter().filter(|path| path.is_dir());
    for folder in [machine.to_owned()].into_iter().chain(vcpus) {
        let _ = write!(text, "kvm {}:", name(&folder));
        for file in entries(&folder).iter().filter(|path| path.is_file()) {
            let value = read(file);
            let value = value.trim();
            // Histograms have several lines.
            if !matches!(value, "" | "0") && !value.contains('\n') {
                let _ = write!(text, " {}={value}", name(file));
            }
        }
        text.push('\n');
    }
}

/// Entries of a folder, in order; none if it cannot be read.
fn entries(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn read(path: &Path) -> String {
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}
