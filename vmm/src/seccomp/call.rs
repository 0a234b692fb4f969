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

/// Rules that a call can have.
const RULES: usize = 3;

/// A system call that is allowed where all of its rules hold.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    number: c_long,
    rules: [Rule; RULES],
}

/// What an argument must be. Arguments count from 0; the lower 32 bits are looked at, which is all
/// that the kernel takes of those in the lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rule {
    Always,
    /// One of these.
    Is(u8, &'static [u32]),
    /// These bits of it have this value.
    Bits(u8, u32, u32),
    /// The number of this process.
    Own(u8),
    /// A pointer that is null: all 64 bits are looked at.
    Null(u8),
}

impl Call {
    /// Allowed with any arguments.
    pub const fn any(number: c_long) -> Call {
        Call { number, rules: [Rule::Always; RULES] }
    }

    /// Allowed where the argument is one of `values`.
    pub const fn only(number: c_long, argument: u8, values: &'static [u32]) -> Call {
        Call::any(number).and_only(argument, values)
    }

    /// Allowed where the argument has none of these bits.
    pub const fn without(number: c_long, argument: u8, bits: u32) -> Call {
        Call::any(number).and_without(argument, bits)
    }

    /// Allowed where the argument is the number of this process, as it sees itself.
    pub const fn on_itself(number: c_long, argument: u8) -> Call {
        Call::any(number).and(Rule::Own(argument))
    }

    /// The same, where this argument is one of `values`, too.
    pub const fn and_only(self, argument: u8, values: &'static [u32]) -> Call {
        self.and(Rule::Is(argument, values))
    }

    /// The same, where this argument has none of these bits, too.
    pub const fn and_without(self, argument: u8, bits: u32) -> Call {
        self.and(Rule::Bits(argument, bits, 0))
    }

    /// The same, where this argument is a null pointer.
    pub const fn and_null(self, argument: u8) -> Call {
        self.and(Rule::Null(argument))
    }

    /// With one more rule, in the first free place. More rules than there are places do not compile.
    const fn and(mut self, rule: Rule) -> Call {
        let mut place = 0;
        while !matches!(self.rules[place], Rule::Always) {
            place += 1;
        }
        self.rules[place] = rule;
        self
    }

    /// Its number.
    #[cfg(test)]
    pub fn number(&self) -> c_long {
        self.number
    }

    /// Whether no argument of it is looked at.
    pub fn is_unchecked(&self) -> bool {
        self.rules == [Rule::Always; RULES]
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

/// The filter that allows what any of `lists` allows to the process with the number `pid`, answers
/// `otherwise` (`SECCOMP_RET_…`) to all else, and ends a process that calls as another architecture.
///
/// The kernel walks a new filter with each call's number (`seccomp_cache_prepare` in its
/// kernel/seccomp.c), 450 times, so a number is searched for by halves.
pub fn allow(lists: &[&[Call]], pid: u32, otherwise: u32) -> BpfProgram {
    let mut head = vec![load(ARCHITECTURE), jump(libc::BPF_JEQ, X86_64, 1, 0)];
    head.extend([answer(libc::SECCOMP_RET_KILL_PROCESS), load(NUMBER)]);
    [head, search(&verdicts(lists, pid), otherwise)].concat()
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
fn verdicts(lists: &[&[Call]], pid: u32) -> Vec<(u32, Verdict)> {
    let mut calls: BTreeMap<u32, Vec<&Call>> = BTreeMap::new();
    for call in lists.iter().copied().flatten() {
        let of_number = calls.entry(call.number as u32).or_default();
        // Several lists have the same line: one is enough.
        if of_number.iter().all(|other| other.rules != call.rules) {
            of_number.push(call);
        }
    }
    let mut verdicts = vec![(0, Verdict::Refused)];
    for (number, calls) in calls {
        let always = calls.iter().any(|call| call.is_unchecked());
        let verdict = if always { Verdict::Allowed } else { Verdict::Depends(any_of(&calls, pid)) };
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

/// Allows what any of these allows, and goes on behind itself otherwise.
fn any_of(calls: &[&Call], pid: u32) -> BpfProgram {
    calls.iter().flat_map(|call| all_of(&call.rules, pid)).collect()
}

/// Allows a call where all of these hold, and goes on behind itself otherwise.
fn all_of(rules: &[Rule], pid: u32) -> BpfProgram {
    // From the last one to the first: each jumps over those behind it if it does not hold.
    rules.iter().rev().fold(vec![answer(libc::SECCOMP_RET_ALLOW)], |rest, rule| {
        [holds(rule, pid, rest.len() as u32), rest].concat()
    })
}

/// Goes on behind itself if a rule holds, and skips so many instructions more if not.
fn holds(rule: &Rule, pid: u32, rest: u32) -> BpfProgram {
    match *rule {
        Rule::Always => BpfProgram::new(),
        Rule::Is(argument, values) => {
            [vec![load_argument(argument)], one_of(values, rest)].concat()
        }
        Rule::Bits(argument, bits, value) => {
            let and = line(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, 0, 0, bits);
            vec![load_argument(argument), and, jump(libc::BPF_JEQ, value, 1, 0), skip(rest)]
        }
        Rule::Own(argument) => {
            vec![load_argument(argument), jump(libc::BPF_JEQ, pid, 1, 0), skip(rest)]
        }
        Rule::Null(argument) => vec![
            load_argument(argument),
            jump(libc::BPF_JEQ, 0, 1, 0),
            skip(rest + 3),
            load(upper_half(argument)),
            jump(libc::BPF_JEQ, 0, 1, 0),
            skip(rest),
        ],
    }
}

/// The same for one of these values being loaded.
fn one_of(values: &[u32], rest: u32) -> BpfProgram {
    let mut chunks = values.chunks(VALUES).rev();
    let compare = |values: &[u32]| -> BpfProgram {
        // All jump behind the instruction that follows the last.
        let left = (1..=values.len()).rev();
        let jumps = values.iter().zip(left);
        jumps.map(|(value, left)| jump(libc::BPF_JEQ, *value, left as u8, 0)).collect()
    };
    let last = [compare(chunks.next().unwrap_or_default()), vec![skip(rest)]].concat();
    chunks.fold(last, |behind, values| {
        let over = skip(behind.len() as u32);
        [compare(values), vec![skip(1), over], behind].concat()
    })
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

fn upper_half(argument: u8) -> u32 {
    20 + 8 * u32::from(argument)
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
