//! Filters as the kernel would run them: every call ends where the lists say.

use proptest::prelude::*;

use super::super::lists;
use super::*;

/// Behind all numbers that x86-64 has.
const NUMBERS: u32 = 600;
const TRAP: u32 = libc::SECCOMP_RET_TRAP;
const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
/// All lists together: the main thread's, with a pool.
const ALL: [&[Call]; 7] = [
    lists::VCPU,
    lists::MEMORY,
    lists::CLIENT,
    lists::MAIN,
    lists::STARTS,
    lists::COMMON,
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
    let calls = lists.iter().copied().flatten().filter(|call| call.number as u32 == number);
    calls.into_iter().any(|call| match call.when {
        When::Always => true,
        When::Is(argument, values) => values.contains(&low(argument)),
        When::Bits(argument, bits, value) => low(argument) & bits == value,
    })
}

/// Values that the lists name, and others.
fn values() -> Vec<u64> {
    let named = ALL.iter().copied().flatten().flat_map(|call| match call.when {
        When::Always => vec![],
        When::Is(_, values) => values.to_vec(),
        When::Bits(_, bits, value) => vec![bits, value],
    });
    let mut values: Vec<u64> = named.map(u64::from).collect();
    values.extend([0, 1, u64::from(u32::MAX)]);
    values.sort_unstable();
    values.dedup();
    values
}

#[test]
fn each_number_ends_where_its_list_says() {
    let program = allow(&ALL, TRAP);
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
    assert!(program.len() < 500, "{}", program.len());
    assert!(longest < 120, "{longest}");
}

#[test]
fn each_argument_is_looked_at() {
    let program = allow(&ALL, TRAP);
    let values = values();
    for call in ALL.iter().copied().flatten() {
        let (When::Is(argument, _) | When::Bits(argument, ..)) = call.when else { continue };
        let number = call.number as u32;
        for &value in &values {
            // The upper half is not looked at, as the kernel does not.
            for value in [value, value | 7 << 32] {
                let mut arguments = [u64::from(u32::MAX); 6];
                arguments[usize::from(argument)] = value;
                let expected = if allowed(&ALL, number, arguments) { ALLOW } else { TRAP };
                let (answer, _) = run(&program, X86_64, number, arguments);
                assert_eq!(answer, expected, "{number} {arguments:x?}");
            }
        }
    }
}

#[test]
fn what_is_refused_fails_and_all_else_is_asked_of_the_filter() {
    let lists: [&[Call]; 1] = [&[Call::any(libc::SYS_read), Call::any(libc::SYS_clone3)]];
    let program = refuse(&[libc::SYS_clone3], libc::ENOSYS, &allow(&lists, TRAP));
    let of = |number: c_long| run(&program, X86_64, u32::try_from(number).unwrap(), [0; 6]).0;
    assert_eq!(of(libc::SYS_clone3), libc::SECCOMP_RET_ERRNO | libc::ENOSYS.unsigned_abs());
    assert_eq!(of(libc::SYS_read), ALLOW);
    assert_eq!(of(libc::SYS_write), TRAP);
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
    let argument = 0u8..3;
    let when = prop_oneof![
        Just(When::Always),
        (argument.clone(), 0usize..=450).prop_map(|(a, many)| When::Is(a, &MANY[..many])),
        (argument, 0u32..16, 0u32..16).prop_map(|(a, bits, value)| When::Bits(a, bits, value)),
    ];
    (0i64..40, when).prop_map(|(number, when)| Call { number, when })
}

proptest! {
    #[test]
    fn any_lists_are_kept(
        lists in prop::collection::vec(prop::collection::vec(call(), 0..12), 0..4),
        calls in prop::collection::vec((0u32..42, prop::array::uniform3(0u64..1400)), 0..200),
    ) {
        let lists: Vec<&[Call]> = lists.iter().map(Vec::as_slice).collect();
        let program = allow(&lists, TRAP);
        for (number, [a, b, c]) in calls {
            let arguments = [a, b, c, 0, 0, 0];
            let expected = if allowed(&lists, number, arguments) { ALLOW } else { TRAP };
            prop_assert_eq!(run(&program, X86_64, number, arguments).0, expected);
        }
    }
}
