//! Filters of system calls as programs of the kernel's classic BPF (linux/filter.h), such that the
//! kernel has little to do with them.
//!
//! When a filter is installed, the kernel runs it for every system call that there is, to learn
//! which of them it always allows. A program that compares the number with one after the other has
//! it execute hundreds of thousands of instructions, which takes a guest on software KVM seconds. So
//! numbers are looked for by halves, and neighbours with the same answer are one.

use std::collections::BTreeMap;

/// `BPF_MAXINSNS` of linux/bpf_common.h.
const MAX_LENGTH: usize = 4096;

/// `AUDIT_ARCH_X86_64` of linux/audit.h.
const X86_64: u32 = 0xc000_003e;

/// `SECCOMP_RET_*` of linux/seccomp.h.
pub(super) const KILL_PROCESS: u32 = 0x8000_0000;
pub(super) const KILL_THREAD: u32 = 0;
pub(super) const TRAP: u32 = 0x0003_0000;
pub(super) const ERRNO: u32 = 0x0005_0000;
pub(super) const TRACE: u32 = 0x7ff0_0000;
pub(super) const LOG: u32 = 0x7ffc_0000;
pub(super) const ALLOW: u32 = 0x7fff_0000;

/// What is compared with an argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Test {
    Equal(u64),
    NotEqual(u64),
    Less(u64),
    LessOrEqual(u64),
    Greater(u64),
    GreaterOrEqual(u64),
    /// The bits of the mask have this value.
    Masked {
        mask: u64,
        value: u64,
    },
}

/// A condition on an argument, which is one of six.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Condition {
    pub(super) argument: u8,
    pub(super) test: Test,
}

/// What is done if all of these conditions hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) action: u32,
    pub(super) conditions: Vec<Condition>,
}

/// What is done with each system call; of answers that hold, the strictest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Table {
    /// With all that are not listed, and those of which no answer holds.
    pub(super) default: u32,
    pub(super) calls: BTreeMap<u32, Vec<Answer>>,
}

/// The program has more instructions than the kernel takes.
#[derive(Debug, thiserror::Error)]
#[error("Seccomp profile: its program has {0} instructions, and the kernel takes {MAX_LENGTH}")]
pub(crate) struct TooLong(usize);

// Codes of instructions: BPF_LD | BPF_W | BPF_ABS and so on.
const LOAD: u16 = 0x20;
const JUMP: u16 = 0x05;
const IF_EQUAL: u16 = 0x15;
const IF_GREATER: u16 = 0x25;
const IF_GREATER_OR_EQUAL: u16 = 0x35;
const AND: u16 = 0x54;
const RETURN: u16 = 0x06;

// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

fn instruction(code: u16, yes: u8, no: u8, k: u32) -> u64 {
    u64::from(code) << 48 | u64::from(yes) << 40 | u64::from(no) << 32 | u64::from(k)
}

fn plain(code: u16, k: u32) -> u64 {
    instruction(code, 0, 0, k)
}

impl Table {
    /// The program; no call of another architecture gets through it.
    pub(super) fn program(&self) -> Result<Vec<u64>, TooLong> {
        let mut program = vec![
            plain(LOAD, ARCHITECTURE),
            instruction(IF_EQUAL, 1, 0, X86_64),
            plain(RETURN, KILL_PROCESS),
            plain(LOAD, NUMBER),
        ];
        program.extend(search(&self.ranges()));
        match program.len() {
            ..=MAX_LENGTH => Ok(program),
            length => Err(TooLong(length)),
        }
    }

    /// What answers the numbers from each first one on, until the next.
    fn ranges(&self) -> Vec<(u32, Vec<u64>)> {
        let default = vec![plain(RETURN, self.default)];
        let mut ranges = vec![(0, default.clone())];
        let mut add = |first: u32, code: Vec<u64>| match ranges.last_mut() {
            Some(last) if last.0 == first => last.1 = code,
            Some(last) if last.1 == code => {}
            _ => ranges.push((first, code)),
        };
        for (number, answers) in &self.calls {
            add(*number, self.answer(answers));
            if let Some(next) = number.checked_add(1) {
                add(next, default.clone());
            }
        }
        // A range that was overwritten may be as the one before it now.
        ranges.dedup_by(|next, last| next.1 == last.1);
        ranges
    }

    /// The code for one call: the strictest answer first.
    fn answer(&self, answers: &[Answer]) -> Vec<u64> {
        let mut answers: Vec<&Answer> = answers.iter().collect();
        answers.sort_by_key(|answer| strictness(answer.action));
        let mut code = Vec::new();
        for answer in answers {
            let mut rule = vec![plain(RETURN, answer.action)];
            for condition in answer.conditions.iter().rev() {
                let mut test = condition.code(rule.len());
                test.append(&mut rule);
                rule = test;
            }
            code.extend(rule);
            if answer.conditions.is_empty() {
                // Nothing behind it is reached.
                return code;
            }
        }
        code.push(plain(RETURN, self.default));
        code
    }
}

/// In the order in which the kernel takes them, the strictest first.
fn strictness(action: u32) -> i32 {
    (action & 0xffff_0000).cast_signed()
}

/// Code that finds the range of the number in the accumulator.
fn search(ranges: &[(u32, Vec<u64>)]) -> Vec<u64> {
    let (low, high) = ranges.split_at(ranges.len() / 2);
    let first = match (low, high) {
        ([], [(_, code)]) => return code.clone(),
        (_, [(first, _), ..]) => *first,
        (_, []) => return Vec::new(),
    };
    let (low, high) = (search(low), search(high));
    let mut code = match u8::try_from(low.len()) {
        Ok(length) => vec![instruction(IF_GREATER_OR_EQUAL, length, 0, first)],
        Err(_) => {
            // Too far for a conditional jump. No program of this length is taken in the end.
            let length = u32::try_from(low.len()).unwrap_or(u32::MAX);
            vec![
                instruction(IF_GREATER_OR_EQUAL, 0, 1, first),
                plain(JUMP, length),
            ]
        }
    };
    code.extend(low);
    code.extend(high);
    code
}

impl Condition {
    /// Code that goes on behind itself if the condition holds, and else leaves out `rest`
    /// instructions more. The halves of an argument are compared one after the other.
    fn code(&self, rest: usize) -> Vec<u64> {
        // At most six conditions of six instructions each follow.
        let fail = |distance: u8| {
            let rest = u8::try_from(rest).unwrap_or(u8::MAX);
            rest.saturating_add(distance)
        };
        let low_at = ARGUMENTS + 8 * u32::from(self.argument);
        let (low, high) = (plain(LOAD, low_at), plain(LOAD, low_at + 4));
        let half = |value: u64| {
            let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
            let low = u32::from_le_bytes([a, b, c, d]);
            (u32::from_le_bytes([e, f, g, h]), low)
        };
        // Greater, or equal with `last` true of the lower half.
        let above = |value: u64, last: u16| {
            let (h, l) = half(value);
            vec![
                high,
                instruction(IF_GREATER, 3, 0, h),
                instruction(IF_EQUAL, 0, fail(2), h),
                low,
                instruction(last, 0, fail(0), l),
            ]
        };
        // Not that.
        let below = |value: u64, last: u16| {
            let (h, l) = half(value);
            vec![
                high,
                instruction(IF_GREATER, fail(3), 0, h),
                instruction(IF_EQUAL, 0, 2, h),
                low,
                instruction(last, fail(0), 0, l),
            ]
        };
        match self.test {
            Test::Equal(value) => {
                let (h, l) = half(value);
                vec![
                    high,
                    instruction(IF_EQUAL, 0, fail(2), h),
                    low,
                    instruction(IF_EQUAL, 0, fail(0), l),
                ]
            }
            Test::NotEqual(value) => {
                let (h, l) = half(value);
                vec![
                    high,
                    instruction(IF_EQUAL, 0, 2, h),
                    low,
                    instruction(IF_EQUAL, fail(0), 0, l),
                ]
            }
            Test::Greater(value) => above(value, IF_GREATER),
            Test::GreaterOrEqual(value) => above(value, IF_GREATER_OR_EQUAL),
            Test::Less(value) => below(value, IF_GREATER_OR_EQUAL),
            Test::LessOrEqual(value) => below(value, IF_GREATER),
            Test::Masked { mask, value } => {
                let ((mh, ml), (h, l)) = (half(mask), half(value & mask));
                vec![
                    high,
                    plain(AND, mh),
                    instruction(IF_EQUAL, 0, fail(3), h),
                    low,
                    plain(AND, ml),
                    instruction(IF_EQUAL, 0, fail(0), l),
                ]
            }
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// What a program answers, and how many instructions that takes.
    pub(in crate::seccomp) fn run(
        program: &[u64],
        arch: u32,
        number: u32,
        args: [u64; 6],
    ) -> (u32, usize) {
        let mut data = vec![number, arch, 0, 0];
        for argument in args {
            data.extend(
                [argument & 0xffff_ffff, argument >> 32].map(|half| u32::try_from(half).unwrap()),
            );
        }
        let (mut at, mut accumulator) = (0, 0u32);
        for steps in 1.. {
            let [c1, c0, yes, no, k3, k2, k1, k0] = program[at].to_be_bytes();
            let k = u32::from_be_bytes([k3, k2, k1, k0]);
            let jump = |holds: bool| usize::from(if holds { yes } else { no });
            at += 1;
            match u16::from_be_bytes([c1, c0]) {
                LOAD => accumulator = data[k as usize / 4],
                AND => accumulator &= k,
                JUMP => at += k as usize,
                IF_EQUAL => at += jump(accumulator == k),
                IF_GREATER => at += jump(accumulator > k),
                IF_GREATER_OR_EQUAL => at += jump(accumulator >= k),
                RETURN => return (k, steps),
                other => panic!("{other:x}"),
            }
        }
        unreachable!()
    }

    fn always(action: u32) -> Vec<Answer> {
        vec![Answer {
            action,
            conditions: Vec::new(),
        }]
    }

    fn answer(table: &Table, number: u32, args: [u64; 6]) -> u32 {
        run(&table.program().unwrap(), X86_64, number, args).0
    }

    #[test]
    fn every_number_has_its_answer_after_a_few_steps() {
        let listed = |number: &u32| !number.is_multiple_of(7) && number % 13 != 5 && *number < 450;
        let table = Table {
            default: ERRNO | 1,
            calls: (0..500)
                .filter(listed)
                .map(|n| (n, always(ALLOW)))
                .collect(),
        };
        let program = table.program().unwrap();
        for number in (0..600).chain([0x4000_0000, u32::MAX]) {
            let (action, steps) = run(&program, X86_64, number, [0; 6]);
            let expected = if listed(&number) { ALLOW } else { ERRNO | 1 };
            assert_eq!(action, expected, "{number}");
            assert!(steps < 20, "{number} takes {steps}");
        }
        assert_eq!(run(&program, 0x4000_0003, 1, [0; 6]).0, KILL_PROCESS);
    }

    #[test]
    fn neighbours_are_one_range() {
        let table = Table {
            default: KILL_THREAD,
            calls: (3..400).map(|n| (n, always(ALLOW))).collect(),
        };
        assert!(table.program().unwrap().len() < 12);
        let same = Table {
            default: ALLOW,
            calls: table.calls,
        };
        assert_eq!(same.program().unwrap().len(), 5);
    }

    #[test]
    fn arguments_are_compared_in_all_their_bits() {
        let values = [
            0,
            1,
            4,
            5,
            6,
            0xffff_ffff,
            0x1_0000_0000,
            0x5_0000_0004,
            0x5_0000_0005,
            0x5_0000_0006,
            0x6_0000_0000,
            u64::MAX,
        ];
        for value in values {
            for argument in values {
                let tests = [
                    (Test::Equal(value), argument == value),
                    (Test::NotEqual(value), argument != value),
                    (Test::Less(value), argument < value),
                    (Test::LessOrEqual(value), argument <= value),
                    (Test::Greater(value), argument > value),
                    (Test::GreaterOrEqual(value), argument >= value),
                    (
                        Test::Masked {
                            mask: 0xf_0000_000f,
                            value,
                        },
                        argument & 0xf_0000_000f == value & 0xf_0000_000f,
                    ),
                ];
                for (test, holds) in tests {
                    let condition = |at| Condition { argument: at, test };
                    let table = Table {
                        default: ALLOW,
                        calls: BTreeMap::from([(
                            9,
                            vec![Answer {
                                action: LOG,
                                conditions: vec![condition(2), condition(5)],
                            }],
                        )]),
                    };
                    let expected = if holds { LOG } else { ALLOW };
                    let args = [7, 7, argument, 7, 7, argument];
                    assert_eq!(answer(&table, 9, args), expected, "{argument:x} {test:x?}");
                    assert_eq!(answer(&table, 8, args), ALLOW);
                }
            }
        }
    }

    #[test]
    fn the_strictest_answer_that_holds_counts() {
        let when = |action, value| Answer {
            action,
            conditions: vec![Condition {
                argument: 0,
                test: Test::Equal(value),
            }],
        };
        let mut answers = vec![when(LOG, 1), when(ERRNO | 5, 1), when(KILL_PROCESS, 2)];
        answers.extend(always(TRACE));
        let table = Table {
            default: KILL_THREAD,
            calls: BTreeMap::from([(9, answers)]),
        };
        let of = |value| answer(&table, 9, [value, 0, 0, 0, 0, 0]);
        assert_eq!([of(1), of(2), of(3)], [ERRNO | 5, KILL_PROCESS, TRACE]);
    }

    #[test]
    fn far_jumps_are_jumps_and_there_is_an_end_to_length() {
        let long = |answers: u64, calls: u32| Table {
            default: KILL_THREAD,
            calls: (0..calls)
                .map(|number| {
                    let each = (0..answers).map(|value| Answer {
                        action: ERRNO | u32::try_from(value).unwrap(),
                        conditions: vec![Condition {
                            argument: 0,
                            test: Test::Equal(value + 1000 * u64::from(number)),
                        }],
                    });
                    (number, each.collect())
                })
                .collect(),
        };
        let table = long(100, 4);
        for number in 0..4 {
            let args = [1000 * u64::from(number) + 77, 0, 0, 0, 0, 0];
            assert_eq!(answer(&table, number, args), ERRNO | 77);
            assert_eq!(
                answer(&table, number, [5; 6]),
                if number == 0 { ERRNO | 5 } else { 0 }
            );
        }
        assert!(long(100, 20).program().is_err());
    }
}
