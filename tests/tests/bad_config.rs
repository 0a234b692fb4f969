//! Configurations that cannot be: each is refused with one line that names the field, before
//! anything is opened. Needs no KVM.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;

use varve_tests::command::run;

/// `varve run` with a kernel that is never opened: the whole message.
fn error(args: &[&str]) -> String {
    let end = run(["run", "--kernel", "/no/such/kernel"].iter().chain(args));
    assert_eq!((end.code, end.console.as_str()), (Some(1), ""), "{args:?}: {end:?}");
    one_line(&end.stderr)
}

/// A value that the command line's own rules refuse.
fn usage_error(args: &[&str]) -> String {
    let end = run(["run", "--kernel", "/no/such/kernel"].iter().chain(args));
    assert_eq!((end.code, end.console.as_str()), (Some(2), ""), "{args:?}: {end:?}");
    let first = end.stderr.lines().next().unwrap();
    first.strip_prefix("error: ").unwrap_or_else(|| panic!("{:?}", end.stderr)).to_owned()
}

fn one_line(stderr: &str) -> String {
    let line = stderr.strip_suffix('\n').unwrap();
    assert!(!line.contains('\n'), "more than one line: {line}");
    line.strip_prefix("varve: error: ").unwrap().to_owned()
}

/// The message about a configuration file, without its path.
fn file_error(content: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vm.json");
    fs::write(&path, content).unwrap();
    let end = run(["run", "--config-file", path.to_str().unwrap()]);
    assert_eq!((end.code, end.console.as_str()), (Some(1), ""), "{content}: {end:?}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    one_line(&end.stderr).replace(&format!("configuration file {path:?}: "), "FILE: ")
}

#[test]
fn memory() {
    assert_eq!(
        error(&["--memory", "100000001"]),
        "memory: 100000001 bytes are not a whole number of 4 KiB pages; 100003840 would be"
    );
    let range = "from 32 to 65536 MiB are possible";
    assert_eq!(error(&["--memory", "16M"]), format!("memory: 16 MiB; {range}"));
    assert_eq!(error(&["--memory", "65G"]), format!("memory: 66560 MiB; {range}"));
    for (size, what) in [
        ("12Q", "\"Q\" is not a unit; K, M and G are"),
        ("lots", "\"lots\" is not a size such as 256M"),
        ("99999999999G", "\"99999999999G\" is more than any machine has"),
    ] {
        let message = format!("invalid value '{size}' for '--memory <SIZE>': {what}");
        assert_eq!(usage_error(&["--memory", size]), message);
    }
}

#[test]
fn vcpus() {
    assert_eq!(error(&["--vcpus", "0"]), "vcpus: 0 vCPUs; from 1 to 32 are possible");
    assert_eq!(error(&["--vcpus", "33"]), "vcpus: 33 vCPUs; from 1 to 32 are possible");
    assert!(usage_error(&["--vcpus", "300"]).starts_with("invalid value '300' for '--vcpus <N>'"));
    assert!(usage_error(&["--vcpus", "two"]).starts_with("invalid value 'two' for '--vcpus <N>'"));
}

#[test]
fn option_values() {
    assert!(error(&["--net", "mac=06:00:ac:10:00:02"]).starts_with("--net: tap=… is missing"));
    assert!(error(&["--net", "tap=a,speed=9"]).starts_with("--net: \"speed\" is not known"));
    assert!(error(&["--net", "tap=a,mac=zz"]).starts_with("--net: \"zz\" is not a MAC"));
    assert!(error(&["--vsock", "uds=v"]).starts_with("--vsock: cid=… is missing"));
    assert!(error(&["--vsock", "cid=me,uds=v"]).starts_with("--vsock: \"me\" is not a CID"));
    assert!(error(&["--balloon", "size=1M,now"]).starts_with("--balloon: \"now\" is not known"));
    assert_eq!(
        error(&["--balloon", "size=300M", "--memory", "256M"]),
        "balloon.amount_mib: 300 MiB are more than the machine's memory of 256 MiB"
    );
    let console = usage_error(&["--console", "printer"]);
    assert!(console.ends_with("--console <WHERE>': one of stdio, file=PATH and off"), "{console}");
}

#[test]
fn two_devices_at_one_place() {
    assert_eq!(error(&["--net", "tap=t", "--net", "tap=t"]), "tap: \"t\" is given twice");

    let dir = tempfile::tempdir().unwrap();
    let (image, link) = (dir.path().join("image"), dir.path().join("link"));
    fs::write(&image, [0; 512]).unwrap();
    std::os::unix::fs::symlink(&image, &link).unwrap();
    let (image, link) = (image.to_str().unwrap(), link.to_str().unwrap());
    let message = error(&["--rootfs", image, "--drive", &format!("{link}:ro")]);
    let same = format!("drives: \"drive0\" and \"rootfs\" are the same image {link:?}");
    assert_eq!(message, format!("{same}; both must be read-only"));
    // Two that only read may share it; so the kernel is what is missing.
    let both = error(&["--drive", &format!("{image}:ro"), "--drive", &format!("{link}:ro")]);
    assert!(!both.contains("drives:"), "{both}");
}

const BOOT: &str = r#""boot-source": {"kernel_image_path": "/no/such/kernel"}"#;

#[test]
fn files_that_do_not_parse() {
    assert!(file_error("").starts_with("FILE: EOF while parsing"));
    assert!(file_error(&format!("{{{BOOT},\n \"drives\": [}}")).ends_with("at line 2 column 13"));
    assert!(file_error("kernel: vmlinux").ends_with("at line 1 column 1"));
    assert!(file_error("{}").starts_with("FILE: missing field `boot-source`"));
    let typed = format!(r#"{{{BOOT}, "vsock": {{"guest_cid": "x", "uds_path": "y"}}}}"#);
    assert!(file_error(&typed).starts_with("FILE: invalid type: string \"x\", expected u32"));
    let end = run(["run", "--config-file", "/no/such.json"]);
    assert_eq!(end.code, Some(1));
    assert!(
        one_line(&end.stderr).starts_with("configuration file \"/no/such.json\": No such file")
    );
}

#[test]
fn fields_that_are_not_known_or_not_possible() {
    let with = |more: &str| file_error(&format!("{{{BOOT}, {more}}}"));
    assert!(with(r#""machine_config": {}"#).starts_with("FILE: unknown field `machine_config`"));
    let typo = with(r#""machine-config": {"vcpu_count": 1, "mem_size_mib": 64, "ram": 1}"#);
    assert!(typo.starts_with("FILE: unknown field `ram`, expected one of `vcpu_count`"), "{typo}");
    let none = with(r#""machine-config": {"vcpu_count": 0, "mem_size_mib": 64}"#);
    assert_eq!(
        none,
        "FILE: Machine config error: The number of vCPUs must be greater than 0, less than 32 and \
         must be 1 or an even number if SMT is enabled."
    );
    let small = with(r#""machine-config": {"vcpu_count": 1, "mem_size_mib": 31}"#);
    assert_eq!(
        small,
        "FILE: Machine config error: The memory size of 31 MiB is not possible: from 32 to 65536 \
         MiB are."
    );
    let drive = |id: &str, path: &str| {
        format!(r#"{{"drive_id": "{id}", "path_on_host": "{path}", "is_root_device": false}}"#)
    };
    let drives = |a, b| with(&format!(r#""drives": [{}, {}]"#, a, b));
    assert_eq!(drives(drive("a", "x"), drive("a", "y")), "drive id: \"a\" is given twice");
    assert!(
        drives(drive("a", "x"), drive("b", "x")).starts_with("drives: \"b\" and \"a\" are the")
    );
}
