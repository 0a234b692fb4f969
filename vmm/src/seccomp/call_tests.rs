//! Filters as the kernel would run them: every call's number ends where its list says.

use super::*;

/// `AUDIT_ARCH_X86_64` of <linux/audit.h>.
const X86_64: u32 = 0xc000_003e;
/// Behind all numbers that x86-64 has.
const NUMBERS: u32 = 600;

/// Runs `program` on a call with all arguments 0; the answer, and how many instructions that took.
fn run(program: &BpfProgram, architecture: u32, number: u32) -> (u32, usize) {
    let (mut loaded, mut at) = (0, 0);
    for steps in 1.. {
        let line = &program[at];
        let code = u32::from(line.code);
        let jump = |holds: bool| usize::from(if holds { line.jt } else { line.jf });
        at += 1;
        match code {
            0x20 => loaded = [number, architecture].get(line.k as usize / 4).copied().unwrap_or(0),
            0x54 => loaded &= line.k,
            0x05 => at += line.k as usize,
            0x15 => at += jump(loaded == line.k),
            0x35 => at += jump(loaded >= line.k),
            0x25 => at += jump(loaded > line.k),
            0x06 => return (line.k, steps),
            other => panic!("no instruction is expected to be {other:#x}"),
        }
    }
    unreachable!()
}

#[test]
fn each_number_ends_where_its_list_says() {
    let lists: [&[Call]; 2] = [super::super::lists::VCPU, super::super::lists::COMMON];
    let known = rules(&lists).unwrap();
    let program = allow(&lists, SeccompAction::Trap).unwrap();
    let mut longest = 0;
    for number in 0..NUMBERS {
        let (answer, steps) = run(&program, X86_64, number);
        longest = longest.max(steps);
        match known.get(&c_long::from(number)) {
            Some(conditions) if conditions.is_empty() => {
                assert_eq!(answer, libc::SECCOMP_RET_ALLOW, "{number}");
            }
            // Some values of the arguments are allowed.
            Some(_) => {}
            None => assert_eq!(answer, libc::SECCOMP_RET_TRAP, "{number}"),
        }
        // Another architecture's numbers mean other calls.
        assert_eq!(run(&program, 0x4000_0003, number).0, libc::SECCOMP_RET_KILL_PROCESS);
        // Those of x32 have bit 30 set.
        assert_eq!(run(&program, X86_64, number | 1 << 30).0, libc::SECCOMP_RET_TRAP);
    }
    println!("{longest} instructions at most");
    assert!(longest < 100, "{longest}");
}

#[test]
fn what_is_refused_fails_and_all_else_is_asked_of_the_filter() {
    let lists: [&[Call]; 1] = [&[Call::any(libc::SYS_read), Call::any(libc::SYS_clone3)]];
    let program = allow(&lists, SeccompAction::Trap).unwrap();
    let program = refuse(&[libc::SYS_clone3], libc::ENOSYS, &program);
    let of = |number: c_long| run(&program, X86_64, u32::try_from(number).unwrap()).0;
    assert_eq!(of(libc::SYS_clone3), libc::SECCOMP_RET_ERRNO | libc::ENOSYS.unsigned_abs());
    assert_eq!(of(libc::SYS_read), libc::SECCOMP_RET_ALLOW);
    assert_eq!(of(libc::SYS_write), libc::SECCOMP_RET_TRAP);
}
