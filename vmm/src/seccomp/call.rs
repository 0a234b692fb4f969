//! One line of a list: a system call, and what its arguments must be; and how lists become a filter.
//!
//! A filter is searched by halves, and shares its ways out. As seccompiler makes them, a chain of all calls,
//! filters have three times as many instructions, and that a kernel translates them to machine code took
//! a quarter of the time in which a process of varve starts.

use std::collections::BTreeMap;

use libc::c_long;
use seccompiler::{BpfProgram, sock_filter};

/// `AUDIT_ARCH_X86_64` of linux/audit.h.
const X86_64: u32 = 0xc000_003e;
/// Where `seccomp_data` (linux/seccomp.h) has a call's number and its architecture.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
/// Values that are compared before there is a way out: conditional jumps reach 255 instructions.
const VALUES: usize = 200;

/// A system call that is allowed.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    number: c_long,
    when: When,
}

/// What an argument must be. Arguments count from 0; the lower 32 bits are looked at, which is all
/// that the kernel takes of those in the lists.
#[derive(Clone, Copy, Debug)]
enum When {
    Always,
    /// One of these.
    Is(u8, &'static [u32]),
    /// These bits of it have this value.
    Bits(u8, u32, u32),
}

impl Call {
    /// Allowed with any arguments.
    pub const fn any(number: c_long) -> Call {
        Call { number, when: When::Always }
    }

    /// Allowed where the argument is one of `values`.
    pub const fn only(number: c_long, argument: u8, values: &'static [u32]) -> Call {
        Call { number, when: When::Is(argument, values) }
    }

    /// Allowed where the argument has none of these bits.
    pub const fn without(number: c_long, argument: u8, bits: u32) -> Call {
        Call { number, when: When::Bits(argument, bits, 0) }
    }

    /// Allowed where the argument has all of these bits.
    pub const fn with(number: c_long, argument: u8, bits: u32) -> Call {
        Call { number, when: When::Bits(argument, bits, bits) }
    }
}

/// What becomes of the calls of a run of numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Verdict {
    Refused,
    Allowed,
    /// Allowed where any of this holds.
    Depends(BpfProgram),
}

/// The filter that allows what any of `lists` allows, answers `otherwise` (`SECCOMP_RET_…`) to all else,
/// and ends a process that calls as another architecture.
///
/// The kernel walks a new filter with each call's number (`seccomp_cache_prepare` in its
/// kernel/seccomp.c), 450 times, so a number is searched for by halves.
pub fn allow(lists: &[&[Call]], otherwise: u32) -> BpfProgram {
    let mut head = vec![load(ARCHITECTURE), jump(libc::BPF_JEQ, X86_64, 1, 0)];
    head.extend([answer(libc::SECCOMP_RET_KILL_PROCESS), load(NUMBER)]);
    [head, search(&verdicts(lists), otherwise)].concat()
}

/// `program`, after these calls are made to fail with `error`.
pub fn refuse(calls: &[c_long], error: i32, program: &BpfProgram) -> BpfProgram {
    let failure = libc::SECCOMP_RET_ERRNO | error.unsigned_abs();
    let refusals = calls
        .iter()
        .flat_map(|&number| [jump(libc::BPF_JEQ, number as u32, 0, 1), answer(failure)]);
    std::iter::once(load(NUMBER)).chain(refusals).chain(program.iter().cloned()).collect()
}

/// Verdicts on all numbers, each from the number that it is with up to the next. Those of x32, which have
/// bit 30 set, are behind the last.
fn verdicts(lists: &[&[Call]]) -> Vec<(u32, Verdict)> {
    let mut calls: BTreeMap<u32, Vec<When>> = BTreeMap::new();
    for call in lists.iter().copied().flatten() {
        calls.entry(call.number as u32).or_default().push(call.when);
    }
    let mut verdicts = vec![(0, Verdict::Refused)];
    for (number, whens) in calls {
        let always = whens.iter().any(|when| matches!(when, When::Always));
        let verdict = if always { Verdict::Allowed } else { Verdict::Depends(any_of(&whens)) };
        // From its own number on; what follows is refused unless more is said.
        for (from, verdict) in [(number, verdict), (number + 1, Verdict::Refused)] {
            verdicts.pop_if(|(last, _)| *last == from);
            if verdicts.last().is_none_or(|(_, last)| *last != verdict) {
                verdicts.push((from, verdict));
            }
        }
    }
    verdicts
}

/// Allows a call where one of these holds, and goes on behind itself otherwise.
fn any_of(whens: &[When]) -> BpfProgram {
    let mut program = BpfProgram::new();
    for when in whens {
        match *when {
            When::Always => {}
            When::Is(argument, values) => {
                program.push(load_argument(argument));
                for values in values.chunks(VALUES) {
                    // The way out stands behind the last, and the way on jumps over it.
                    let left = (1..=values.len()).rev();
                    let compare =
                        |(value, left): (&u32, usize)| jump(libc::BPF_JEQ, *value, left as u8, 0);
                    program.extend(values.iter().zip(left).map(compare));
                    program.extend([skip(1), answer(libc::SECCOMP_RET_ALLOW)]);
                }
            }
            When::Bits(argument, bits, value) => {
                let and = line(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, 0, 0, bits);
                program.extend([load_argument(argument), and, jump(libc::BPF_JEQ, value, 0, 1)]);
                program.push(answer(libc::SECCOMP_RET_ALLOW));
            }
        }
    }
    program
}

/// Goes to the last verdict whose number is not above the one that is loaded.
fn search(verdicts: &[(u32, Verdict)], otherwise: u32) -> BpfProgram {
    let (lower, upper) = verdicts.split_at(verdicts.len() / 2);
    match upper {
        [] => BpfProgram::new(),
        [(_, verdict)] if lower.is_empty() => match verdict {
            Verdict::Refused => vec![answer(otherwise)],
            Verdict::Allowed => vec![answer(libc::SECCOMP_RET_ALLOW)],
            Verdict::Depends(program) => [&program[..], &[answer(otherwise)]].concat(),
        },
        [(first, _), ..] => {
            let (lower, upper) = (search(lower, otherwise), search(upper, otherwise));
            let head = match u8::try_from(lower.len()) {
                Ok(near) => vec![jump(libc::BPF_JGE, *first, near, 0)],
                Err(_) => vec![jump(libc::BPF_JGE, *first, 0, 1), skip(lower.len() as u32)],
            };
            [head, lower, upper].concat()
        }
    }
}

fn load(offset: u32) -> sock_filter {
    line(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, offset)
}

/// The lower half of an argument: six of 64 bits begin at byte 16.
fn load_argument(argument: u8) -> sock_filter {
    load(16 + 8 * u32::from(argument))
}

/// Compares what is loaded with `value`, and skips so many instructions if that holds, or does not.
fn jump(compare: u32, value: u32, holds: u8, fails: u8) -> sock_filter {
    line(libc::BPF_JMP | compare | libc::BPF_K, holds, fails, value)
}

fn skip(instructions: u32) -> sock_filter {
    line(libc::BPF_JMP | libc::BPF_JA, 0, 0, instructions)
}

fn answer(answer: u32) -> sock_filter {
    line(libc::BPF_RET | libc::BPF_K, 0, 0, answer)
}

fn line(code: u32, jt: u8, jf: u8, k: u32) -> sock_filter {
    sock_filter { code: code as u16, jt, jf, k }
}

#[cfg(test)]
#[path = "call_tests.rs"]
mod tests;
