//! Each call on each part of each of the kernel's own mappings does the same on both sides, in a
//! process of its own.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::ops::Range;

use pervma_differ::{Model, Op, Privileges, replay, special};
use pervma_linux::{Access, abi::*};

/// Where nothing is.
const ELSEWHERE: usize = 0x1000_0000_0000;

/// The calls on a range.
fn calls(part: &Range<usize>) -> Vec<Op> {
    let (addr, len) = (part.start, part.end - part.start);
    let fixed = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;
    let mut calls = vec![
        Op::Munmap { addr, len },
        Op::Mmap { addr, len, prot: PROT_READ, flags: fixed, file: None, offset: 0 },
        Op::Mlock { addr, len },
        Op::Mlock2 { addr, len, flags: MLOCK_ONFAULT },
        Op::Munlock { addr, len },
        Op::Mseal { addr, len, flags: 0 },
        Op::Msync { addr, len, flags: MS_SYNC | MS_INVALIDATE },
        Op::Mincore { addr, len, vector: ELSEWHERE },
        Op::Name { addr, len, name: Some(0) },
    ];
    calls.extend((0..8).map(|prot| Op::Mprotect { addr, len, prot }));
    calls.extend((0..=25).chain(100..=103).map(|advice| Op::Madvise { addr, len, advice }));
    for flags in [
        0,
        MREMAP_MAYMOVE,
        MREMAP_MAYMOVE | MREMAP_FIXED,
        MREMAP_MAYMOVE | MREMAP_DONTUNMAP,
        MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP,
    ] {
        for new_len in [len - PAGE, len, len + PAGE] {
            calls.push(Op::Mremap { addr, old_len: len, new_len, flags, new_addr: ELSEWHERE });
        }
        calls.push(Op::Mremap { addr, old_len: 0, new_len: len, flags, new_addr: ELSEWHERE });
    }
    for access in [Access::Read, Access::Write] {
        calls.push(Op::Touch { addr, access });
        calls.push(Op::Force { addr, access });
    }
    calls
}

#[test]
fn each_call_on_each_part_does_the_same() {
    let Some(machine) = common::machine() else { return };
    let same = |steps: &[Op]| {
        if let Some((made, difference)) =
            replay(&machine, Privileges::None, &Model::new, steps).unwrap()
        {
            panic!("after {made} of {steps:?}: {difference}");
        }
    };
    let all = special(&machine).unwrap();
    assert!(!all.is_empty());
    for range in all.into_iter().map(|special| special.range) {
        let Range { start, end } = range;
        let parts = [start..start + PAGE, range, end - PAGE..end, end - PAGE..end + PAGE];
        for op in parts.iter().flat_map(calls) {
            same(&[op]);
        }
    }
}

#[test]
fn what_is_locked_or_forked_does_the_same() {
    let Some(machine) = common::machine() else { return };
    for special in special(&machine).unwrap() {
        let Range { start: addr, end } = special.range;
        let (len, all) = (end - addr, PROT_READ | PROT_WRITE | PROT_EXEC);
        let steps = [
            Op::Mlockall { flags: MCL_CURRENT | MCL_FUTURE },
            Op::Mprotect { addr, len, prot: all },
            Op::Touch { addr, access: Access::Write },
            Op::Force { addr, access: Access::Write },
            Op::Fork { child_goes_on: false },
            Op::Munlockall,
            Op::Mremap {
                addr,
                old_len: len,
                new_len: len,
                flags: MREMAP_MAYMOVE | MREMAP_FIXED,
                new_addr: ELSEWHERE,
            },
            Op::Fork { child_goes_on: true },
            Op::Touch { addr: ELSEWHERE, access: Access::Read },
            Op::Munmap { addr: ELSEWHERE, len },
        ];
        let found = replay(&machine, Privileges::None, &Model::new, &steps).unwrap();
        if let Some((made, difference)) = found {
            panic!("after {made} of {steps:?}: {difference}");
        }
    }
}
