//! One line of a list: a system call, and what its arguments must be; and how lists become a filter.

use std::collections::BTreeMap;

use libc::c_long;
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch, sock_filter,
};

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

    fn rules(&self) -> Result<Vec<SeccompRule>, BackendError> {
        let rule = |argument, op, value: u32| {
            let length = SeccompCmpArgLen::Dword;
            let condition = SeccompCondition::new(argument, length, op, value.into())?;
            SeccompRule::new(vec![condition])
        };
        match self.when {
            When::Always => Ok(Vec::new()),
            When::Is(argument, values) => {
                values.iter().map(|&value| rule(argument, SeccompCmpOp::Eq, value)).collect()
            }
            When::Bits(argument, bits, value) => {
                Ok(vec![rule(argument, SeccompCmpOp::MaskedEq(bits.into()), value)?])
            }
        }
    }
}

/// System calls of one part of a filter.
const PART: usize = 8;

/// The filter that allows what any of `lists` allows, and does `otherwise` for all else.
///
/// The kernel walks a new filter with each call's number (`seccomp_cache_prepare` in its
/// kernel/seccomp.c), 450 times; with a chain of all calls that is a good part of a process's start. So the
/// numbers are parted, and a search by halves leads to the right part.
pub fn allow(lists: &[&[Call]], otherwise: SeccompAction) -> Result<BpfProgram, BackendError> {
    let rules: Vec<_> = rules(lists)?.into_iter().collect();
    let parts = rules.chunks(PART).map(|part| {
        let (otherwise, rules) = (otherwise.clone(), part.iter().cloned().collect());
        let filter =
            SeccompFilter::new(rules, otherwise, SeccompAction::Allow, TargetArch::x86_64)?;
        let first = part.first().map_or(0, |(number, _)| *number as u32);
        Ok((first, filter.try_into()?))
    });
    let parts = parts.collect::<Result<Vec<(u32, BpfProgram)>, BackendError>>()?;
    Ok([vec![load_number()], search(&parts)].concat())
}

/// `program`, after these calls are made to fail with `error`.
pub fn refuse(calls: &[c_long], error: i32, program: &BpfProgram) -> BpfProgram {
    let answer = libc::SECCOMP_RET_ERRNO | error.unsigned_abs();
    let refusals = calls.iter().flat_map(|&number| {
        let equal = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
        [line(equal, 0, 1, number as u32), line(libc::BPF_RET | libc::BPF_K, 0, 0, answer)]
    });
    std::iter::once(load_number()).chain(refusals).chain(program.iter().cloned()).collect()
}

/// What the lists allow, by number.
fn rules(lists: &[&[Call]]) -> Result<BTreeMap<c_long, Vec<SeccompRule>>, BackendError> {
    let mut rules: BTreeMap<c_long, Vec<SeccompRule>> = BTreeMap::new();
    for call in lists.iter().copied().flatten() {
        let new = call.rules()?;
        // To seccompiler, no rules are no conditions: that beats any.
        match rules.get_mut(&call.number) {
            Some(known) if known.is_empty() || new.is_empty() => known.clear(),
            Some(known) => known.extend(new),
            None => drop(rules.insert(call.number, new)),
        }
    }
    Ok(rules)
}

/// Goes to the last part whose first number is not above the one that is loaded. Each part is a filter
/// of its own, which begins with the check of the architecture.
fn search(parts: &[(u32, BpfProgram)]) -> BpfProgram {
    let (lower, upper) = parts.split_at(parts.len() / 2);
    match upper {
        [] => BpfProgram::new(),
        [(_, program)] if lower.is_empty() => program.clone(),
        [(first, _), ..] => {
            let (lower, upper) = (search(lower), search(upper));
            let at_least = libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K;
            let skip = libc::BPF_JMP | libc::BPF_JA;
            // Conditional jumps reach 255 lines only.
            let head = vec![line(at_least, 0, 1, *first), line(skip, 0, 0, lower.len() as u32)];
            [head, lower, upper].concat()
        }
    }
}

/// The number of the call: the first field of `seccomp_data`.
fn load_number() -> sock_filter {
    line(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0)
}

fn line(code: u32, jt: u8, jf: u8, k: u32) -> sock_filter {
    sock_filter { code: code as u16, jt, jf, k }
}

#[cfg(test)]
#[path = "call_tests.rs"]
mod tests;
