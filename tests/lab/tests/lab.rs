//! The lab as its users see it: `varve-lab` is run, and each promise of `docs/lab.md` is checked.
//!
//! These tests start QEMU. They run with the feature `lab-tests`; without it they are reported as
//! ignored.

mod common;

use std::fs;
use std::time::{Duration, Instant};

use common::{Lab, text};
use varve_lab::place::Place;

#[test]
#[cfg_attr(not(feature = "lab-tests"), ignore = "skipped: needs the feature lab-tests")]
fn streams_and_the_exit_code_are_those_of_the_command() {
    let output = Lab::run(&[]).sh("echo to out; echo to err >&2; exit 7");
    assert_eq!(output.status.code(), Some(7));
    assert_eq!(text(&output.stdout), "to out\n");
    assert!(text(&output.stderr).contains("to err\n"), "{output:?}");
    assert_eq!(Lab::run(&[]).command(&["no-such-command"]).status.code(), Some(127));
}

#[test]
#[cfg_attr(not(feature = "lab-tests"), ignore = "skipped: needs the feature lab-tests")]
fn environment_folder_and_files_are_those_of_the_caller() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().canonicalize().unwrap();
    fs::write(dir.join("file"), "from outside\n").unwrap();
    let odd = "it's `odd` \"$HOME\"\n\\";
    let lab = Lab::run(&[]).folder(&dir).variable("ODD", odd);
    let output = lab.sh("pwd; cat file; printenv ODD LAB; umask");
    let expected = format!("{}\nfrom outside\n{odd}\n1\n0022\n", dir.display());
    assert_eq!(text(&output.stdout), expected);
}

#[test]
#[cfg_attr(not(feature = "lab-tests"), ignore = "skipped: needs the feature lab-tests")]
fn a_program_that_was_just_built_runs() {
    let this = std::env::current_exe().unwrap();
    let output = Lab::run(&[]).command(&[this.to_str().unwrap(), "--list"]);
    assert!(output.status.success(), "{output:?}");
    assert!(text(&output.stdout).contains("a_program_that_was_just_built_runs: test"));
}

#[test]
#[cfg_attr(not(feature = "lab-tests"), ignore = "skipped: needs the feature lab-tests")]
fn standard_input_goes_in_whole() {
    let lines: String = (0..200_000).map(|number| format!("{number}\n")).collect();
    let output = Lab::run(&["--stdin"]).input(lines.as_bytes()).sh("wc -lc");
    let words: Vec<String> = text(&output.stdout).split_whitespace().map(str::to_owned).collect();
    assert_eq!(words, ["200000".to_owned(), lines.len().to_string()]);
    // Without the option the command has nothing to read.
    assert_eq!(text(&Lab::run(&[]).input(b"x").sh("wc -c").stdout), "0\n");
}

#[test]
#[cfg_attr(not(feature = "lab-tests"), ignore = "skipped: needs the feature lab-tests")]
fn much_output_comes_out_whole() {
    let output = Lab::run(&[]).sh("seq 1000000");
    assert!(output.status.success());
    let expected: String = (1..=1_000_000).map(|number| format!("{number}\n")).collect();
    assert!(output.stdout == expected.as_bytes(), "{} bytes came", output.stdout.len());
}

#[test]
#[cfg_attr(not(feature = "lab-tests"), ignore = "skipped: needs the feature lab-tests")]
fn the_time_limit_ends_it_with_124() {
    let begin = Instant::now();
    let output = Lab::run(&["--timeout", "6"]).command(&["sleep", "600"]);
    assert_eq!(output.status.code(), Some(124));
    assert!(text(&output.stderr).contains("time limit"), "{output:?}");
    assert!(begin.elapsed() < Duration::from_secs(60));
}

#[test]
#[cfg_attr(not(feature = "lab-tests"), ignore = "skipped: needs the feature lab-tests")]
fn files_vanish_except_where_they_are_written_through() {
    let through = tempfile::tempdir().unwrap();
    let apart = tempfile::tempdir().unwrap();
    let (through, apart) = (through.path(), apart.path());
    let script = format!(
        "echo kept >{0}/a, && echo gone >{1}/b && cat {0}/a, {1}/b",
        through.display(),
        apart.display()
    );
    let output = Lab::run(&["--rw", through.to_str().unwrap()]).sh(&script);
    assert_eq!(text(&output.stdout), "kept\ngone\n", "{output:?}");
    assert_eq!(fs::read_to_string(through.join("a,")).unwrap(), "kept\n");
    assert!(!apart.join("b").exists());
}

#[test]
#[cfg_attr(not(feature = "lab-tests"), ignore = "skipped: needs the feature lab-tests")]
fn kvm_boots_a_linux_kernel() {
    let kernel = Lab::dir().join("kernel/vmlinux");
    let guest = format!(
        "qemu-system-x86_64 -accel kvm -cpu host -M pc -m 256 -nodefaults -display none \
         -no-reboot -serial stdio -kernel {} -append 'console=ttyS0 panic=-1 no-kvmapf'",
        kernel.display()
    );
    let output = Lab::run(&["--timeout", "200"]).sh(&guest);
    let console = text(&output.stdout);
    assert!(console.contains("Hypervisor detected: KVM"), "{output:?}");
    assert!(console.contains("Unable to mount root fs"), "{output:?}");
    let output = Lab::run(&[]).sh("cat /sys/module/kvm_amd/parameters/npt; ls /dev/net/tun; \
                                   modprobe null_blk && ls /dev/nullb0");
    assert_eq!(text(&output.stdout), "Y\n/dev/net/tun\n/dev/nullb0\n", "{output:?}");
}

#[test]
#[cfg_attr(not(feature = "lab-tests"), ignore = "skipped: needs the feature lab-tests")]
fn the_dax_device_is_mounted_and_maps_directly() {
    let script = "grep \" $LAB_DAX \" /proc/mounts; grep -c 'Persistent Memory' /proc/iomem; \
                  head -c 50000000 /dev/zero >$LAB_DAX/f && stat -c %s $LAB_DAX/f; \
                  awk '/MemTotal/ {print ($2 > 900000)}' /proc/meminfo";
    let output = Lab::run(&["--mem", "1024", "--dax", "256"]).sh(script);
    let lines: Vec<String> = text(&output.stdout).lines().map(str::to_owned).collect();
    assert!(lines[0].starts_with("/dev/pmem0 /mnt/dax ext4 ") && lines[0].contains("dax=always"));
    assert_eq!(lines[1..], ["1", "50000000", "1"], "{output:?}");
}

#[test]
#[cfg_attr(not(feature = "lab-tests"), ignore = "skipped: needs the feature lab-tests")]
fn the_second_node_has_memory_no_cpu_and_a_latency() {
    let script = "cd /sys/devices/system/node/node$LAB_CXL_NODE; cat cpulist; \
                  awk '{print ($4 > 500000)}' meminfo | head -n 1; \
                  cat access0/initiators/read_latency ../node0/cpulist";
    let output = Lab::run(&["--mem", "1024", "--cxl", "512"]).sh(script);
    assert_eq!(text(&output.stdout), "\n1\n250\n0\n", "{output:?}");
}

#[test]
#[cfg_attr(not(feature = "lab-tests"), ignore = "skipped: needs the feature lab-tests")]
fn the_rdma_device_transfers() {
    // GID 1 is that of the address.
    let script = "rdma link; ping='ibv_rc_pingpong -d rxe0 -g 1 -s 4096 -n 100 -e'; \
                  $ping >/dev/null & sleep 1; $ping 10.78.0.1 && wait $!";
    let output = Lab::run(&["--rdma"]).sh(script);
    let said = text(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    assert!(said.contains("link rxe0/1 state ACTIVE") && said.contains("netdev lab0"), "{said}");
    assert!(said.contains("100 iters in"), "{said}");
}

#[test]
#[cfg_attr(not(feature = "lab-tests"), ignore = "skipped: needs the feature lab-tests")]
fn two_labs_reach_each_other() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    // The listener serves one round and ends; so does its lab.
    let ping = "timeout 120 ibv_rc_pingpong -d rxe0 -g 1 -s 4096 -n 100 -e";
    let listen = Lab::run(&["--rdma", "--net", &format!("listen={port}")]).start(ping);
    let script = format!(
        "/run/lab/busybox ping -c 60 -A 10.77.0.1 >/dev/null || exit 9; \
         for try in $(seq 60); do {ping} 10.77.0.1 && exit; sleep 1; done; exit 1"
    );
    let output = Lab::run(&["--rdma", "--net", &format!("connect={port}")]).sh(&script);
    assert!(output.status.success(), "{output:?}");
    assert!(text(&output.stdout).contains("100 iters in"), "{output:?}");
    assert!(listen.wait_with_output().unwrap().status.success());
}

#[test]
#[cfg_attr(not(feature = "lab-tests"), ignore = "skipped: needs the feature lab-tests")]
fn instruction_counting_hides_the_string_instructions() {
    let output = Lab::run(&["--icount"]).sh("grep -owE 'svm|erms|fsrm|cx16' /proc/cpuinfo");
    assert_eq!(text(&output.stdout), "svm\n", "{output:?}");
}

/// What two CPUs do beside each other takes as long as one of them takes for it, by instructions.
#[test]
#[cfg_attr(not(feature = "lab-tests"), ignore = "skipped: needs the feature lab-tests")]
fn cpus_that_count_instructions_run_beside_each_other() {
    if !Place::find().unwrap().built_qemu().exists() {
        return varve_skip::skip!("qemu", "tests/lab/qemu/build was not run");
    }
    let script = "work() { i=0; while [ $i -lt 20000 ]; do i=$((i + 1)); done; }
        ms() { date +%s%3N; }
        work; a=$(ms); work; b=$(ms); work & work; wait; c=$(ms); work & work & work & work; wait; d=$(ms)
        echo $((b - a)) $((c - b)) $((d - c))";
    let output = Lab::run(&["--icount", "--cpus", "2"]).sh(script);
    let said = text(&output.stdout);
    let times: Vec<f64> = said.split_whitespace().map(|word| word.parse().unwrap()).collect();
    let [one, two, four] = times[..] else { panic!("{output:?}") };
    assert!(one > 50.0, "too short to tell: {said}");
    for (times, many) in [(1.0, two), (2.0, four)] {
        assert!((times * 0.9..times * 1.25).contains(&(many / one)), "{said}");
    }
}

#[test]
#[cfg_attr(not(feature = "lab-tests"), ignore = "skipped: needs the feature lab-tests")]
fn a_crash_of_the_emulated_host_is_125_with_its_last_words() {
    let output = Lab::run(&[]).sh("echo c >/proc/sysrq-trigger; sleep 60");
    assert_eq!(output.status.code(), Some(125));
    assert!(text(&output.stderr).contains("Kernel panic"), "{output:?}");
}

#[test]
#[cfg_attr(not(feature = "lab-tests"), ignore = "skipped: needs the feature lab-tests")]
fn a_hung_emulated_host_is_noticed() {
    let mut run = Lab::run(&["--hang-after", "3"]).start("echo up; sleep 600");
    common::wait_for_line(&mut run, "up");
    let qemu = common::only_child(run.id());
    rustix::process::kill_process(qemu, rustix::process::Signal::STOP).unwrap();
    let begin = Instant::now();
    let output = run.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(125));
    assert!(text(&output.stderr).contains("the lab hangs"), "{output:?}");
    assert!(begin.elapsed() < Duration::from_secs(30));
    assert!(common::is_gone(qemu));
}

#[test]
#[cfg_attr(not(feature = "lab-tests"), ignore = "skipped: needs the feature lab-tests")]
fn a_killed_run_takes_the_emulated_host_with_it() {
    let mut run = Lab::run(&[]).start("echo up; sleep 600");
    common::wait_for_line(&mut run, "up");
    let qemu = common::only_child(run.id());
    run.kill().unwrap();
    run.wait().unwrap();
    let begin = Instant::now();
    while !common::is_gone(qemu) {
        assert!(begin.elapsed() < Duration::from_secs(10), "QEMU outlives its lab");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
#[cfg_attr(not(feature = "lab-tests"), ignore = "skipped: needs the feature lab-tests")]
fn a_damaged_saved_lab_is_replaced() {
    let copy = tempfile::tempdir().unwrap();
    for name in ["kernel", "busybox"] {
        std::os::unix::fs::symlink(Lab::dir().join(name), copy.path().join(name)).unwrap();
    }
    let run = || Lab::run(&["--mem", "512"]).at(copy.path()).sh("echo fine");
    assert_eq!(text(&run().stdout), "fine\n");
    let saved = fs::read_dir(copy.path().join("snap")).unwrap().map(|entry| entry.unwrap().path());
    let saved = saved.filter(|path| path.extension().is_some()).collect::<Vec<_>>();
    assert_eq!(saved.len(), 1, "{saved:?}");
    fs::write(&saved[0], vec![7; 1 << 20]).unwrap();
    let output = run();
    assert_eq!(text(&output.stdout), "fine\n", "{output:?}");
    assert!(text(&output.stderr).contains("does not start"), "{output:?}");
    assert!(!saved[0].exists());
}

#[test]
#[cfg_attr(not(feature = "lab-tests"), ignore = "skipped: needs the feature lab-tests")]
fn exec_runs_where_it_is_told() {
    let native = Lab::exec().variable("VARVE_LAB_MODE", "native").sh("echo ${LAB-none}; exit 3");
    assert_eq!((text(&native.stdout), native.status.code()), ("none\n".to_owned(), Some(3)));
    let lab = Lab::exec().variable("VARVE_LAB_MODE", "lab").variable("VARVE_LAB_OPTS", "--mem 512");
    let lab = lab.sh("echo $LAB; awk '/MemTotal/ {print ($2 < 520000)}' /proc/meminfo; exit 4");
    assert_eq!((text(&lab.stdout), lab.status.code()), ("1\n1\n".to_owned(), Some(4)));
}

#[test]
fn a_lab_that_is_not_prepared_says_how() {
    let empty = tempfile::tempdir().unwrap();
    let output = Lab::unprepared(&["run", "--", "true"], empty.path());
    assert_eq!(output.status.code(), Some(125));
    assert!(text(&output.stderr).contains("varve-lab setup"), "{output:?}");
}

#[test]
fn wrong_options_are_125() {
    let empty = tempfile::tempdir().unwrap();
    for options in [&["run", "--mem", "1", "--", "true"][..], &["run"], &["run", "--nonsense", "x"]]
    {
        let output = Lab::unprepared(options, empty.path());
        assert_eq!(output.status.code(), Some(125), "{options:?}: {output:?}");
        assert!(output.stdout.is_empty() && !output.stderr.is_empty());
    }
}

#[test]
fn detect_answers_in_both_forms() {
    let empty = tempfile::tempdir().unwrap();
    let words = Lab::unprepared(&["detect"], empty.path());
    let mode = text(&words.stdout).trim().to_owned();
    assert!(["native", "lab"].contains(&mode.as_str()), "{words:?}");
    assert!(!words.stderr.is_empty());
    let json = Lab::unprepared(&["detect", "--json"], empty.path());
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json["mode"], mode.as_str());
}
