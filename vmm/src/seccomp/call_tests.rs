//! Filters as the kernel would run them: every call ends where the lists say.

use proptest::prelude::*;

use super::super::lists;
use super::*;

/// Behind all numbers that x86-64 has.
const NUMBERS: u32 = 600;
/// The number of the process that filters are made for.
const PID: u32 = 77;
const TRAP: u32 = libc::SECCOMP_RET_TRAP;
const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
/// All lists together: those of the main thread of a process that does everything.
const ALL: [&[Call]; 14] = [
    lists::VCPU,
    lists::MEMORY,
    lists::CLIENT,
    lists::DRIVE,
    lists::MAIN,
    lists::MAKES,
    lists::STARTS,
    lists::COMMON,
    lists::DEBUG,
    lists::MUSL,
    lists::API,
    lists::OFFLOADS,
    lists::SAVES,
    lists::POOL,
];

/// Runs `program` on a call; the answer, and how many instructions that took.
fn run(program: &BpfProgram, architecture: u32, number: u32, arguments: [u64; 6]) -> (u32, usize) {
    let halves = arguments.into_iter().flat_map(|a| [a as u32, (a >> 32) as u32]);
    // The address of the instruction stands between.
    let data: Vec<u32> = [number, architecture, 0, 0].into_iter().chain(halves).collect();
    let (mut loaded, mut at) = (0, 0);
    for steps in 1.. {
        let line = &program[at];
        let code = u32::from(line.code);
        let jump = |holds: bool| usize::from(if holds { line.jt } else { line.jf });
        at += 1;
        match code {
            0x20 => loaded = data[line.k as usize / 4],
            0x54 => loaded &= line.k,
            0x05 => at += line.k as usize,
            0x15 => at += jump(loaded == line.k),
            0x35 => at += jump(loaded >= line.k),
            0x06 => return (line.k, steps),
            other => panic!("no instruction is expected to be {other:#x}"),
        }
    }
    unreachable!()
}

/// What the lists say, read line by line.
fn allowed(lists: &[&[Call]], number: u32, arguments: [u64; 6]) -> bool {
    let low = |argument: u8| arguments[usize::from(argument)] as u32;
    let holds = |rule: &Rule| match *rule {
        Rule::Always => true,
        Rule::Is(argument, values) => values.contains(&low(argument)),
        Rule::Bits(argument, bits, value) => low(argument) & bits == value,
        Rule::Own(argument) => low(argument) == PID,
        Rule::Null(argument) => arguments[usize::from(argument)] == 0,
    };
    let mut calls = lists.iter().copied().flatten().filter(|call| call.number as u32 == number);
    calls.any(|call| call.rules.iter().all(holds))
}

/// Arguments of which all of a call's rules hold.
fn fits(call: &Call) -> [u64; 6] {
    let mut arguments = [u64::from(u32::MAX); 6];
    for rule in call.rules {
        let (argument, value) = match rule {
            Rule::Always => continue,
            Rule::Is(argument, values) => (argument, values.first().copied().unwrap_or_default()),
            Rule::Bits(argument, _, value) => (argument, value),
            Rule::Own(argument) => (argument, PID),
            Rule::Null(argument) => (argument, 0),
        };
        arguments[usize::from(argument)] = value.into();
    }
    arguments
}

/// Values that the lists name, and others.
fn values() -> Vec<u64> {
    let rules = ALL.iter().copied().flatten().flat_map(|call| call.rules);
    let named = rules.flat_map(|rule| match rule {
        Rule::Always | Rule::Null(_) => vec![],
        Rule::Own(_) => vec![PID],
        Rule::Is(_, values) => values.to_vec(),
        Rule::Bits(_, bits, value) => vec![bits, value],
    });
    let mut values: Vec<u64> = named.map(u64::from).collect();
    values.extend([0, 1, u64::from(u32::MAX)]);
    values.sort_unstable();
    values.dedup();
    values
}

#[test]
fn each_number_ends_where_its_list_says() {
    let program = allow(&ALL, PID, TRAP);
    let mut longest = 0;
    for number in 0..NUMBERS {
        let (answer, steps) = run(&program, X86_64, number, [0; 6]);
        longest = longest.max(steps);
        let expected = if allowed(&ALL, number, [0; 6]) { ALLOW } else { TRAP };
        assert_eq!(answer, expected, "{number}");
        // Another architecture's numbers mean other calls.
        let of = |architecture, number| run(&program, architecture, number, [0; 6]).0;
        assert_eq!(of(0x4000_0003, number), libc::SECCOMP_RET_KILL_PROCESS);
        // Those of x32 have bit 30 set.
        assert_eq!(of(X86_64, number | 1 << 30), TRAP);
    }
    assert_eq!(run(&program, X86_64, u32::MAX, [0; 6]).0, TRAP);
    println!("{} instructions, {longest} for a call at most", program.len());
    assert!(program.len() < 700, "{}", program.len());
    assert!(longest < 160, "{longest}");
}

#[test]
fn each_argument_is_looked_at() {
    let program = allow(&ALL, PID, TRAP);
    let values = values();
    for call in ALL.iter().copied().flatten() {
        let number = call.number as u32;
        for rule in call.rules {
            let (Rule::Is(argument, _)
            | Rule::Bits(argument, ..)
            | Rule::Own(argument)
            | Rule::Null(argument)) = rule
            else {
                continue;
            };
            for &value in &values {
                // The upper half is looked at in pointers alone, as by the kernel.
                for value in [value, value | 7 << 32] {
                    let mut arguments = fits(call);
                    arguments[usize::from(argument)] = value;
                    let expected = if allowed(&ALL, number, arguments) { ALLOW } else { TRAP };
                    let (answer, _) = run(&program, X86_64, number, arguments);
                    assert_eq!(answer, expected, "{number} {arguments:x?}");
                }
            }
        }
    }
}

#[test]
fn what_is_refused_fails_and_all_else_is_asked_of_the_filter() {
    let lists: [&[Call]; 1] = [&[Call::any(libc::SYS_read), Call::any(libc::SYS_clone3)]];
    let program = refuse(&[libc::SYS_clone3], libc::ENOSYS, &allow(&lists, PID, TRAP));
    let of = |number: c_long| run(&program, X86_64, u32::try_from(number).unwrap(), [0; 6]).0;
    assert_eq!(of(libc::SYS_clone3), libc::SECCOMP_RET_ERRNO | libc::ENOSYS.unsigned_abs());
    assert_eq!(of(libc::SYS_read), ALLOW);
    assert_eq!(of(libc::SYS_write), TRAP);
}

/// Arguments: small numbers, this process's, and pointers.
fn value() -> impl Strategy<Value = u64> {
    prop_oneof![0u64..1400, Just(0), Just(PID.into()), (1u64..3).prop_map(|upper| upper << 32)]
}

/// More than one run of comparisons, some twice.
static MANY: [u32; 450] = {
    let (mut values, mut at) = ([0; 450], 0);
    while at < values.len() {
        values[at] = (at as u32 % 440) * 3;
        at += 1;
    }
    values
};

fn call() -> impl Strategy<Value = Call> {
    let argument = || 0u8..3;
    let rule = prop_oneof![
        Just(Rule::Always),
        (argument(), 0usize..=450).prop_map(|(a, many)| Rule::Is(a, &MANY[..many])),
        (argument(), 0u32..16, 0u32..16).prop_map(|(a, bits, value)| Rule::Bits(a, bits, value)),
        argument().prop_map(Rule::Own),
        argument().prop_map(Rule::Null),
    ];
    (0i64..40, prop::array::uniform3(rule)).prop_map(|(number, rules)| Call { number, rules })
}

proptest! {
    #[test]
    fn any_lists_are_kept(
        lists in prop::collection::vec(prop::collection::vec(call(), 0..12), 0..4),
        calls in prop::collection::vec((0u32..42, prop::array::uniform3(value())), 0..200),
    ) {
        let lists: Vec<&[Call]> = lists.iter().map(Vec::as_slice).collect();
        let program = allow(&lists, PID, TRAP);
        for (number, [a, b, c]) in calls {
            let arguments = [a, b, c, 0, 0, 0];
            let expected = if allowed(&lists, number, arguments) { ALLOW } else { TRAP };
            prop_assert_eq!(run(&program, X86_64, number, arguments).0, expected);
        }
    }
}

#[test]
fn threads_beside_the_main_one_write_no_files() {
    use super::super::{Tasks, Thread};
    let tasks = Tasks { pool: false, ..Tasks::ALL };
    for thread in [Thread::Vcpu, Thread::Drive, Thread::Memory, Thread::Client] {
        let program = allow(&thread.lists(tasks), PID, TRAP);
        let answer = |number: c_long, flags: i32| {
            let arguments = [0, 0, u64::from(flags.unsigned_abs()), 0, 0, 0];
            run(&program, X86_64, u32::try_from(number).unwrap(), arguments).0
        };
        let unnamed = libc::O_TMPFILE | libc::O_RDWR;
        for flags in [libc::O_WRONLY, libc::O_RDWR, libc::O_CREAT, libc::O_TRUNC, unnamed] {
            let answer = answer(libc::SYS_openat, libc::O_CLOEXEC | flags);
            assert_eq!(answer, TRAP, "{thread:?} {flags:#o}");
        }
        let reads = matches!(thread, Thread::Memory | Thread::Client);
        let expected = if reads { ALLOW } else { TRAP };
        assert_eq!(answer(libc::SYS_openat, libc::O_CLOEXEC), expected, "{thread:?}");
        for number in [libc::SYS_creat, libc::SYS_openat2, libc::SYS_rename, libc::SYS_unlink] {
            assert_eq!(answer(number, 0), TRAP, "{thread:?} {number}");
        }
    }
}
