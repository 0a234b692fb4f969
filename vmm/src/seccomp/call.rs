//! One line of a list: a system call, and what its arguments must be; and how lists become a filter.

use std::collections::BTreeMap;

use libc::c_long;
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch,
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

/// The filter that allows what any of `lists` allows, and does `otherwise` for all else.
pub fn allow(lists: &[&[Call]], otherwise: SeccompAction) -> Result<BpfProgram, BackendError> {
    build(lists, otherwise, SeccompAction::Allow)
}

/// The filter that has these calls fail with `error`, and allows all else.
pub fn refuse(calls: &[Call], error: i32) -> Result<BpfProgram, BackendError> {
    build(&[calls], SeccompAction::Allow, SeccompAction::Errno(error.unsigned_abs()))
}

fn build(
    lists: &[&[Call]],
    otherwise: SeccompAction,
    then: SeccompAction,
) -> Result<BpfProgram, BackendError> {
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
    SeccompFilter::new(rules, otherwise, then, TargetArch::x86_64)?.try_into()
}
