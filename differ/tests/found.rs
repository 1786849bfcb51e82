//! Steps after which the model and the kernel once differed, as `pervma differ` printed them.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use pervma_differ::{Model, Op, replay};
use pervma_linux::Access;

fn same(steps: &[Op]) {
    let Some(machine) = common::machine() else { return };
    if let Some((made, difference)) = replay(&machine, &Model::new, steps).unwrap() {
        panic!("after {made} steps: {difference}");
    }
}

#[test]
fn a_hint_below_the_lowest_address_is_one_to_it() {
    let (addr, len) = (0x1000, 0x1000);
    same(&[Op::Mmap { addr, len, prot: 3, flags: 0x22, file: None, offset: 0 }]);
}

#[test]
fn a_part_of_a_mapping_moves_within_it() {
    same(&[
        Op::Mmap {
            addr: 0x1000_0001_0000,
            len: 0x20_0000,
            prot: 3,
            flags: 0x32,
            file: None,
            offset: 0,
        },
        Op::Mremap {
            addr: 0x1000_0016_f000,
            old_len: 0x2000,
            new_len: 0x2000,
            flags: 7,
            new_addr: 0x1000_0003_c000,
        },
    ]);
}

#[test]
fn a_page_that_is_not_there_is_fetched_before_it_is_known_that_it_must_not_be_executed() {
    let (addr, len) = (0x1000_0000_0000, 0x10_0000);
    same(&[
        Op::Mmap { addr, len, prot: 3, flags: 0x12, file: Some(1), offset: 0 },
        Op::Touch { addr, access: Access::Execute },
        Op::Touch { addr: addr + len - 1, access: Access::Execute },
    ]);
}

#[test]
fn a_flag_that_shared_mappings_ignore_is_still_seen() {
    let (addr, len) = (0x1000_0000_4000, 0x4000);
    same(&[Op::Mmap { addr, len, prot: 5, flags: 0x18_0021, file: None, offset: 0 }]);
}

#[test]
fn droppable_memory_is_not_locked_after_it_was_to_be() {
    let (addr, len) = (0x1000_0000_0000, 0x2000);
    let map = |addr| Op::Mmap { addr, len, prot: 1, flags: 0x38, file: None, offset: 0 };
    same(&[map(addr), Op::Mlockall { flags: 2 }, map(addr + len), map(addr + 2 * len)]);
}

#[test]
fn guard_pages_mark_the_mapping_and_the_mark_keeps_nothing_from_merging() {
    let (addr, len) = (0x1000_0000_0000, 0x4000);
    let map = |addr| Op::Mmap { addr, len, prot: 3, flags: 0x32, file: None, offset: 0 };
    same(&[
        map(addr),
        Op::Madvise { addr, len: 0x1000, advice: 102 },
        map(addr + len),
        Op::Mprotect { addr: addr + 0x3000, len: 0x1000, prot: 1 },
        Op::Mprotect { addr: addr + 0x3000, len: 0x1000, prot: 3 },
    ]);
}

#[test]
fn a_guard_page_makes_nothing_ones_own() {
    same(&[
        Op::Mmap {
            addr: 0x1000_0000_2000,
            len: 0x3000,
            prot: 3,
            flags: 0x12,
            file: Some(0),
            offset: 0xa000,
        },
        Op::Madvise { addr: 0x1000_0000_2000, len: 0x2000, advice: 102 },
        Op::Mlock2 { addr: 0x1000_0000_2000, len: 0x1000, flags: 0 },
        Op::Fork { child_goes_on: true },
        Op::Mprotect { addr: 0x1000_0000_2000, len: 0x6000, prot: 0 },
    ]);
}

#[test]
fn a_wiped_child_has_no_guard_pages() {
    same(&[
        Op::Mmap {
            addr: 0x1000_0002_0000,
            len: 0x40_0000,
            prot: 3,
            flags: 0x38,
            file: None,
            offset: 0x1000,
        },
        Op::Madvise { addr: 0x1000_0020_b000, len: 0x21_5000, advice: 102 },
        Op::Fork { child_goes_on: true },
        Op::Mlock2 { addr: 0x1000_0037_0000, len: 0xb_0000, flags: 0 },
    ]);
}

#[test]
fn a_guarded_mapping_that_grows_stays_marked() {
    let map = |addr, len| Op::Mmap { addr, len, prot: 3, flags: 0x38, file: None, offset: 0 };
    same(&[
        map(0x1000_0001_c000, 0x4000),
        Op::Madvise { addr: 0x1000_0001_d000, len: 0x3000, advice: 102 },
        map(0x1000_0001_9000, 0x5000),
    ]);
}

#[test]
fn an_old_length_that_wraps_round_unmaps_the_source() {
    let (addr, new_addr) = (0x1000_0000_7000, 0x1000_0000_6000);
    let old_len = usize::MAX - 0xfff;
    same(&[
        Op::Mmap {
            addr: new_addr,
            len: 0x5000,
            prot: 1,
            flags: 0x12,
            file: Some(6),
            offset: 0xb000,
        },
        Op::Mremap { addr, old_len, new_len: 0x3000, flags: 3, new_addr },
    ]);
}

#[test]
fn the_heap_does_not_merge_with_what_lies_below_it() {
    let Some(machine) = common::machine() else { return };
    let start_brk = std::cell::Cell::new(0);
    let make = |config: &pervma_linux::Config, files: &[_]| {
        start_brk.set(config.layout.start_brk);
        Model::new(config, files)
    };
    replay(&machine, &make, &[]).unwrap();
    // Where addresses are random the heap may be elsewhere the next time, and this shows nothing.
    let heap = start_brk.get();
    same(&[
        Op::Mmap { addr: heap - 0x1000, len: 0x1000, prot: 3, flags: 0x22, file: None, offset: 0 },
        Op::Brk { addr: heap + 0x4000 },
        Op::Brk { addr: heap + 0x5000 },
    ]);
}
