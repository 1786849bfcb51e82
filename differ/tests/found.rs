//! Steps after which the model and the kernel once differed, as `pervma differ` printed them.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "common/capability.rs"]
mod capability;
mod common;

use pervma_differ::{Capability, Model, Op, OpenFiles, Privileges, Which, replay};
use pervma_linux::{Access, abi};

fn same(steps: &[Op]) {
    same_as(Privileges::None, steps);
}

/// The same in a process that keeps its privileges, if this one has any.
fn same_with_privileges(steps: &[Op]) {
    same_as(Privileges::Kept, steps);
}

fn same_as(privileges: Privileges, steps: &[Op]) {
    let Some(machine) = common::machine() else { return };
    if let Some((made, difference)) = replay(&machine, privileges, &Model::new, steps).unwrap() {
        panic!("after {made} steps: {difference}");
    }
}

/// Whether the process can have a capability; if it cannot, says that something has not run.
fn may_have(number: u32, name: &str) -> bool {
    let has = capability::has(number);
    if !has {
        println!("NOT RUN: this process has no {name}");
    }
    has
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
fn a_guard_page_makes_no_anonymous_page() {
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
    let make = |config: &pervma_linux::Config, files: &OpenFiles| {
        start_brk.set(config.layout.start_brk);
        Model::new(config, files)
    };
    replay(&machine, Privileges::None, &make, &[]).unwrap();
    // Where addresses are random the heap may be elsewhere the next time, and this shows nothing.
    let heap = start_brk.get();
    same(&[
        Op::Mmap { addr: heap - 0x1000, len: 0x1000, prot: 3, flags: 0x22, file: None, offset: 0 },
        Op::Brk { addr: heap + 0x4000 },
        Op::Brk { addr: heap + 0x5000 },
    ]);
}

const fn mmap(addr: usize, len: usize, prot: u64, flags: u64) -> Op {
    Op::Mmap { addr, len, prot, flags, file: None, offset: 0 }
}

#[test]
fn a_fork_commits_each_mapping_again() {
    let Some(machine) = common::machine() else { return };
    if machine.commit_limit == usize::MAX {
        println!("NOT RUN: any amount of memory can be committed");
        return;
    }
    let (addr, half) = (0x2000_0000_0000, machine.commit_limit / 8 * 5 * 0x1000);
    let both = Op::Madvise { addr, len: 2 * half, advice: 10 };
    let fork = Op::Fork { child_goes_on: true };
    same(&[mmap(addr, half, 3, 0x32), mmap(addr + half, half, 3, 0x32), fork.clone(), both, fork]);
}

#[test]
fn a_data_limit_of_0_is_the_hard_limit_but_for_the_heap() {
    let data = |bytes| Op::Limit { which: Which::Data, bytes };
    let most = Op::Limit { which: Which::DataMax, bytes: 0x6000 };
    let addr = 0x1000_0000_0000;
    let map = |page: usize| mmap(addr + page * 0x1000, 0x2000, 3, 0x32);
    let heap = Op::Brk { addr: 0x5555_5580_2000 };
    let full = [map(4), map(8), map(12), map(16)];
    same(&[data(0), map(0), heap.clone(), data(1), map(2), most, data(0), heap]);
    same(&[&[data(0), Op::Limit { which: Which::DataMax, bytes: 0x6000 }], &full[..]].concat());
    same(&[&[data(0x6fff)], &full[..], &[data(u64::MAX), map(20)]].concat());
}

#[test]
fn an_address_in_the_last_page_is_taken_for_an_error() {
    for below in [1_usize, 2, 9, 12, 22, 75, 132, 4095] {
        let addr = 0_usize.wrapping_sub(below);
        let file = Op::Mmap { addr, len: 0x1000, prot: 1, flags: 0x12, file: Some(0), offset: 0 };
        same(&[
            mmap(addr, 0x1000, 3, 0x32),
            mmap(addr, 0x1000, 3, 0x10_0022),
            mmap(addr, 0x1000, 3, 0x22),
            mmap(addr, 0x1000, 3, 0x31),
            file,
        ]);
    }
    same(&[mmap(usize::MAX - 0xfff, 0x1000, 3, 0x32), mmap(usize::MAX, 0, 3, 0x32)]);
}

#[test]
fn memory_fails_only_for_the_privileged_and_where_the_kernel_knows_it() {
    let (addr, len) = (0x1000_0000_0000, 0x2000);
    let damage = |addr, advice| Op::Madvise { addr, len: 0x1000, advice };
    let Some(machine) = common::machine() else { return };
    if machine.memory_failure {
        // The process may be one that can still do it.
        same(&[damage(addr + 1, 100), damage(addr + 1, 101)]);
    } else {
        same(&[mmap(addr, len, 3, 0x32), damage(addr, 100), damage(addr, 101)]);
    }
}

#[test]
fn what_is_no_address_cannot_be_executed() {
    for addr in [0x8000_0000_0000, 0xffff_7fff_ffff_fff0, 1 << 63, 0x7fff_ffff_f000] {
        same(&[Op::Touch { addr, access: Access::Execute }]);
    }
}

/// A file on a disk, where the machine has one that is known; the kernel refuses `MAP_SYNC` for it.
const ON_DISK: Option<usize> = Some(7);

#[test]
fn a_file_that_is_not_dax_refuses_map_sync_when_what_was_there_is_gone() {
    let addr = 0x1000_0000_0000;
    let over = |kind: u64, more: u64, prot, file| Op::Mmap {
        addr: addr + 0x1000,
        len: 0x1000,
        prot,
        flags: kind | 0x10 | more,
        file,
        offset: 0,
    };
    for file in [ON_DISK, Some(0), Some(4)] {
        for kind in 0..16 {
            for more in [0, 0x8_0000, 0x8_8000, 0x20_0000, 0x28_0000] {
                for prot in [1, 3] {
                    let lower = mmap(addr, 0x3000, 1, 0x32);
                    same(&[lower, over(kind, more, prot, file), mmap(addr, 0x1000, 3, 0x32)]);
                }
            }
        }
    }
}

#[test]
fn what_cannot_be_mapped_is_refused_when_it_is_asked_and_by_the_first_error() {
    let addr = 0x1000_0000_0000;
    // In /sys, in /proc, a pipe; a directory, a device, events, sockets of three kinds.
    for file in (10..=12).chain(17..=22) {
        let mut steps = Vec::new();
        for kind in [0, 1, 2, 3, 8] {
            for more in [0, 0x100, 0x2000, 0x8000, 0x8_0000] {
                for (prot, page) in [(0, 0), (1, 0), (1, u64::MAX >> 13), (2, 1), (3, 0), (5, 0)] {
                    let over = Op::Mmap {
                        addr: addr + 0x1000,
                        len: 0x1000,
                        prot,
                        flags: kind | 0x10 | more,
                        file: Some(file),
                        offset: page << 12,
                    };
                    steps.extend([mmap(addr, 0x3000, 1, 0x32), over, mmap(addr, 0x1000, 3, 0x32)]);
                }
            }
        }
        same(&steps);
    }
}

#[test]
fn a_mapped_tcp_socket_is_a_drivers_memory() {
    const TCP: usize = 22;
    let addr = 0x1000_0000_0000;
    for (kind, prot) in [(1, 0), (1, 1), (2, 0), (2, 1)] {
        let map = |page: usize| map_file(addr + page * 0x1000, prot, kind, TCP, page as u64);
        let madvise = |advice| Op::Madvise { addr, len: 0x2000, advice };
        // It does not merge, and cannot be locked or written.
        same(&[map(0), map(1), Op::Munmap { addr, len: 0x1000 }, map(0)]);
        same(&[map(0), Op::Mlock { addr, len: 0x1000 }, Op::Mlockall { flags: 3 }, map(1)]);
        for prot in 0..8 {
            same(&[map(0), Op::Mprotect { addr, len: 0x1000, prot }]);
        }
        for access in [Access::Read, Access::Write, Access::Execute] {
            same(&[map(0), Op::Touch { addr, access }, Op::Force { addr, access }]);
        }
        for advice in (0..=25).chain(102..=103) {
            same(&[map(0), map(1), madvise(advice), Op::Fork { child_goes_on: true }]);
        }
        for flags in [1, 2, 4] {
            same(&[map(0), Op::Msync { addr, len: 0x1000, flags }]);
        }
        // It does not become longer where it is, not even where it might move.
        for flags in [0, 1] {
            let (old_len, new_len, new_addr) = (0x1000, 0x2000, 0);
            same(&[map(0), Op::Mremap { addr, old_len, new_len, flags, new_addr }]);
        }
        for (flags, new_len) in [(1, 0x1000), (1, 0x3000), (3, 0x2000), (5, 0x2000), (7, 0x2000)] {
            let (old_len, new_addr) = (0x2000, addr + 0x8000);
            same(&[map(0), map(1), Op::Mremap { addr, old_len, new_len, flags, new_addr }]);
            let old_len = if new_len == 0x3000 { 0 } else { 0x1000 };
            same(&[map(0), Op::Mremap { addr, old_len, new_len: 0x1000, flags, new_addr }]);
        }
        same(&[map(0), Op::Name { addr, len: 0x1000, name: Some(0) }]);
        same(&[map(0), Op::Mseal { addr, len: 0x1000, flags: 0 }, madvise(4), map(0)]);
    }
}

#[test]
fn what_is_private_of_dev_zero_is_anonymous_and_has_a_file() {
    const ZERO: usize = 14;
    let addr = 0x1000_0000_0000;
    let map = |page: usize, prot, kind: u64, file, offset: u64| {
        map_file(addr + page * 0x1000, prot, kind | 0x10, file, offset)
    };
    let madvise = |advice| Op::Madvise { addr, len: 0x1000, advice };
    let move_to =
        |len, new_addr| Op::Mremap { addr, old_len: len, new_len: len, flags: 3, new_addr };
    for file in [ZERO, ZERO + 1] {
        for kind in [1, 2, 3] {
            for prot in [1, 3] {
                // Neighbours that continue each other, or do not.
                let mapped = [map(0, prot, kind, file, 7), map(1, prot, kind, file, 8)];
                same(&[&mapped[..], &[map(2, prot, kind, file, 8)]].concat());
                let write = Op::Touch { addr: addr + 9, access: Access::Write };
                same(&[&mapped[..], &[write.clone(), map(2, prot, kind, file, 9)]].concat());
                // MADV_FREE, MADV_REMOVE, MADV_WIPEONFORK, MADV_GUARD_INSTALL, MADV_WILLNEED.
                for advice in [8, 9, 18, 102, 3] {
                    let seal = Op::Mseal { addr, len: 0x1000, flags: 0 };
                    same(&[mapped[0].clone(), madvise(advice), madvise(4)]);
                    same(&[mapped[0].clone(), seal, madvise(advice)]);
                }
                let name = Op::Name { addr, len: 0x1000, name: Some(0) };
                let protect = Op::Mprotect { addr, len: 0x1000, prot: 3 };
                same(&[mapped[0].clone(), name, protect]);
                // Its page offset is that of the address, unless it has pages.
                let moved = move_to(0x1000, addr + 0x8000);
                same(&[mapped[0].clone(), moved.clone()]);
                same(&[mapped[0].clone(), write, moved, Op::Fork { child_goes_on: true }]);
                // It moves by itself only.
                let all = [map(0, prot, kind, file, 0), mmap(addr + 0x1000, 0x1000, 1, 0x32)];
                same(&[&all[..], &[move_to(0x2000, addr + 0x8000)]].concat());
                let all = [mmap(addr, 0x1000, 1, 0x32), map(1, prot, kind, file, 0)];
                same(&[&all[..], &[move_to(0x2000, addr + 0x8000)]].concat());
            }
        }
    }
    // Large ones fit huge pages.
    for offset in [0, 1] {
        same(&[Op::Mmap { addr: 0, len: 3 << 20, prot: 3, flags: 2, file: Some(ZERO), offset }]);
    }
}

#[test]
fn eight_tebibytes_are_counted_as_an_int_when_they_are_locked() {
    let addr = 0x1000_0000_0000;
    same_with_privileges(&[
        mmap(addr, 9 << 40, 1, 0x4032),
        Op::Mlock2 { addr, len: 9 << 40, flags: 1 },
        Op::Munlock { addr: addr + 0x1000, len: 8 << 40 },
    ]);
}

/// A file in memory that is open several times, and one that has a name.
const OPEN_TWICE: [usize; 2] = [0, 6];
const NAMED: usize = 7;

fn map_file(addr: usize, prot: u64, flags: u64, file: usize, page: u64) -> Op {
    let offset = page * 0x1000;
    Op::Mmap { addr, len: 0x1000, prot, flags: flags | 0x10, file: Some(file), offset }
}

#[test]
fn what_is_known_of_a_file_changes_and_it_stays_the_same_file() {
    let addr = 0x1000_0000_0000;
    let [one, other] = OPEN_TWICE;
    // Of one open file, before and after: one mapping. Of another one of the same file: two.
    same(&[
        map_file(addr, 1, 2, NAMED, 0),
        Op::Rename { file: NAMED, name: 1 },
        map_file(addr + 0x1000, 1, 2, NAMED, 1),
        Op::Rename { file: NAMED, name: 2 },
        Op::Unlink { file: NAMED },
        Op::Unlink { file: NAMED },
        map_file(addr + 0x2000, 1, 2, NAMED, 2),
    ]);
    same(&[
        map_file(addr, 1, 2, one, 0),
        Op::AddSeals { file: other, seals: 16 },
        map_file(addr + 0x1000, 1, 2, one, 1),
        map_file(addr + 0x2000, 1, 2, other, 2),
        map_file(addr + 0x3000, 3, 1, one, 3),
        map_file(addr + 0x3000, 1, 1, other, 3),
        Op::Mprotect { addr: addr + 0x3000, len: 0x1000, prot: 3 },
    ]);
}

#[test]
fn writing_is_not_sealed_while_something_may_write() {
    let addr = 0x1000_0000_0000;
    let [one, other] = OPEN_TWICE;
    let seal = Op::AddSeals { file: other, seals: 8 };
    same(&[
        map_file(addr, 1, 1, one, 0),
        seal.clone(),
        Op::Munmap { addr, len: 0x1000 },
        seal.clone(),
        seal.clone(),
        map_file(addr, 3, 1, one, 0),
        map_file(addr, 3, 2, one, 0),
    ]);
    // Mapped by the open file that cannot write: that may never.
    same(&[map_file(addr, 1, 1, 4, 0), seal, map_file(addr, 3, 1, one, 0)]);
}

#[test]
fn what_is_behind_the_end_of_a_file_comes_and_goes() {
    let addr = 0x1000_0000_0000;
    for kind in [1, 2] {
        let touch = |page: usize, access| Op::Touch { addr: addr + page * 0x1000, access };
        same(&[
            Op::Mmap { addr, len: 0x5000, prot: 3, flags: 0x10 | kind, file: Some(0), offset: 0 },
            touch(3, Access::Write),
            Op::Truncate { file: 0, pages: 3 },
            touch(2, Access::Read),
            touch(3, Access::Read),
            Op::Mlock { addr, len: 0x5000 },
            Op::Truncate { file: 0, pages: 4 },
            touch(3, Access::Read),
            touch(4, Access::Write),
        ]);
    }
}

#[test]
fn no_hole_is_made_beyond_the_largest_file_nor_in_a_sealed_one() {
    let (addr, len) = (0x1000_0000_0000, 1 << 45);
    let map = |file| Op::Mmap { addr, len, prot: 3, flags: 0x11, file: Some(file), offset: 0 };
    let remove = |at: usize| Op::Madvise { addr: addr + at, len: 0x1000, advice: 9 };
    let last = 0xffff_fffe * 0x1000;
    same(&[map(NAMED), remove(last), remove(last + 0x1000), remove(len - 0x1000)]);
    let seal = Op::AddSeals { file: 0, seals: 16 };
    same(&[map(0), remove(len - 0x1000), seal, remove(0)]);
}

#[test]
fn a_debugger_writes_what_is_private_and_reads_what_is_mapped() {
    let addr = 0x1000_0000_0000;
    for prot in 0..8 {
        for flags in [0x1, 0x2, 0x21, 0x22, 0x28, 0x102 | 0x20] {
            for file in [0, 4, NAMED, 8] {
                let force = |access| Op::Force { addr: addr + 0x1004, access };
                // Whether there are anonymous pages shows when neighbours merge.
                same(&[
                    Op::Mmap {
                        addr,
                        len: 0x3000,
                        prot,
                        flags: 0x10 | flags,
                        file: Some(file),
                        offset: 0,
                    },
                    Op::Mprotect { addr: addr + 0x1000, len: 0x1000, prot: prot ^ 4 },
                    force(Access::Read),
                    force(Access::Write),
                    Op::Mprotect { addr: addr + 0x1000, len: 0x1000, prot: 3 },
                    Op::Mremap {
                        addr: addr + 0x1000,
                        old_len: 0x1000,
                        new_len: 0x1000,
                        flags: 3,
                        new_addr: addr + 0x8000,
                    },
                    Op::Fork { child_goes_on: true },
                    force(Access::Read),
                    Op::Force { addr: addr - 0x1004, access: Access::Write },
                    Op::Mprotect { addr, len: 0x9000, prot: 1 },
                ]);
            }
        }
    }
}

#[test]
fn what_was_locked_with_a_capability_stays_locked_without_it() {
    if !may_have(14, "CAP_IPC_LOCK") {
        return;
    }
    let addr = 0x1000_0000_0000;
    let lock = |has| Op::Capability { which: Capability::Lock, has };
    let none = Op::Limit { which: Which::Locked, bytes: 0 };
    let map = |page: usize| mmap(addr + page * 0x1000, 0x1000, 3, 0x32);
    same_with_privileges(&[
        none,
        map(0),
        map(8),
        Op::Mlock { addr, len: 0x1000 },
        Op::Mlockall { flags: 2 },
        lock(false),
        // Neither locked anew, nor made longer, nor mapped: all would lock more.
        Op::Mlock { addr: addr + 0x8000, len: 0x1000 },
        Op::Mremap { addr, old_len: 0x1000, new_len: 0x2000, flags: 1, new_addr: 0 },
        map(2),
        Op::Mlockall { flags: 1 },
        Op::Munlock { addr, len: 0x1000 },
        lock(true),
        map(2),
        Op::Mlock { addr, len: 0x1000 },
        Op::Fork { child_goes_on: true },
        Op::Mlock { addr, len: 0x1000 },
        lock(false),
        Op::Munlockall,
        map(3),
    ]);
}

#[test]
fn a_process_that_is_taken_over_has_said_before_what_is_locked_and_counted() {
    let addr = 0x1000_0000_0000;
    let map = |page: usize| mmap(addr + page * 0x1000, 0x1000, 3, 0x32);
    for flags in [1, 2, 3, 5, 6, 7] {
        same_with_privileges(&[
            map(0),
            Op::Mlockall { flags },
            map(1),
            Op::Adopt,
            map(2),
            Op::Brk { addr: HEAP + 0x1000 },
            Op::Capability { which: Capability::Lock, has: false },
            Op::Limit { which: Which::Locked, bytes: 0 },
            Op::Adopt,
            map(3),
            Op::Munlockall,
            Op::Adopt,
            map(4),
        ]);
    }
    // What is moved and stays is counted twice.
    let (old_len, new_len, new_addr) = (0x3000, 0x3000, 0);
    let locked = |bytes| Op::Limit { which: Which::Locked, bytes };
    same(&[
        mmap(addr, 0x3000, 3, 0x32),
        Op::Mlock { addr, len: 0x3000 },
        Op::Mremap { addr, old_len, new_len, flags: 5, new_addr },
        Op::Munmap { addr, len: 0x1000 },
        Op::Adopt,
        locked(0x7000),
        mmap(addr + 0x8000, 0x2000, 3, 0x2032),
        mmap(addr + 0x8000, 0x1000, 3, 0x2032),
    ]);
    // The owners of anonymous pages, and shared memory.
    let write = |page: usize| Op::Touch { addr: addr + page * 0x1000, access: Access::Write };
    same(&[
        map(0),
        map(2),
        write(0),
        write(2),
        mmap(addr + 0x8000, 0x2000, 3, 0x31),
        Op::Adopt,
        map(1),
        write(1),
        mmap(addr + 0xa000, 0x2000, 3, 0x31),
        Op::Fork { child_goes_on: true },
        Op::Adopt,
        map(3),
        Op::Munmap { addr: addr + 0x9000, len: 0x2000 },
        Op::Adopt,
        mmap(addr + 0x9000, 0x2000, 3, 0x31),
    ]);
}

#[test]
fn what_was_mapped_low_stays_and_is_not_mapped_again_without_the_capability() {
    if !may_have(17, "CAP_SYS_RAWIO") {
        return;
    }
    let low = |has| Op::Capability { which: Capability::RawIo, has };
    let grow = Op::Mremap { addr: 0, old_len: 0x1000, new_len: 0x1000, flags: 3, new_addr: 0 };
    same_with_privileges(&[
        mmap(0, 0x1000, 3, 0x32),
        low(false),
        Op::Mprotect { addr: 0, len: 0x1000, prot: 1 },
        mmap(0, 0x1000, 3, 0x32),
        Op::Touch { addr: 1, access: Access::Read },
        // It cannot become longer where it is, so it would be moved.
        Op::Mremap { addr: 0, old_len: 0x1000, new_len: 0x2000, flags: 0, new_addr: 0 },
        Op::Mremap { addr: 0, old_len: 0x1000, new_len: 0x1000, flags: 3, new_addr: 1 << 40 },
        Op::Mremap { addr: 1 << 40, old_len: 0x1000, new_len: 0x1000, flags: 3, new_addr: 0 },
        grow,
        low(true),
        Op::Mremap { addr: 1 << 40, old_len: 0x1000, new_len: 0x1000, flags: 3, new_addr: 0 },
    ]);
}

/// The start of the heap of a process in which no address is random.
const HEAP: usize = 0x5555_5580_0000;

#[test]
fn the_heap_is_where_a_process_says_that_it_is() {
    let (start, end) = (6, 7);
    let set = |option, addr| Op::SetAddress { option, addr, by_map: true };
    let brk = |addr| Op::Brk { addr };
    // It begins elsewhere, on what is mapped there; what lies in between goes when it shrinks.
    for heap in [0x1000_0000_0000, HEAP] {
        for prot in [1, 3] {
            same(&[
                mmap(heap, 0x3000, prot, 0x32),
                mmap(heap + 0x5000, 0x1000, prot, 0x32),
                set(start, heap),
                set(end, heap + 0x6000),
                set(start, heap),
                brk(heap + 0x8000),
                Op::Touch { addr: heap + 0x7000, access: Access::Write },
                brk(heap + 0x2000),
                set(end, heap + 0x1008),
                set(start, heap + 0x1010),
                set(start, heap + 0x1001),
                brk(heap + 0x1000),
                brk(heap + 0x1001),
                brk(heap + 0x4000),
            ]);
        }
    }
    // Each address alone: too low, too high, before or behind its other end, below nothing.
    for option in (0..=11).chain([16, -1, i32::MIN]) {
        for addr in [0, 0xfff, 0x1000, 0xffff, 0x1_0000, HEAP, 0x7fff_ffff_efff, 0x7fff_ffff_f000] {
            let resource = Op::Capability { which: Capability::Resource, has: false };
            let stack = mmap(0x7fff_ffff_d000, 0x2000, 3, 0x32);
            for by_map in [option < 12 && option > 0, false] {
                let set = Op::SetAddress { option, addr, by_map };
                same(&[set.clone(), stack.clone(), set.clone(), brk(HEAP + 0x2000)]);
                same(&[resource.clone(), set]);
            }
        }
    }
}

#[test]
fn the_data_limit_counts_the_data_that_a_process_says_it_has() {
    let set = |option, addr| Op::SetAddress { option, addr, by_map: true };
    let limit = |bytes| Op::Limit { which: Which::Data, bytes };
    same(&[
        set(4, 0x6000_0000_3000),
        set(3, 0x6000_0000_0000),
        limit(0x8000),
        Op::Brk { addr: HEAP + 0x4000 },
        Op::Brk { addr: HEAP + 0x5001 },
        set(7, HEAP + 0x6000),
        set(4, 0x6000_0000_5000),
        set(3, 0x6000_0000_1000),
        set(7, HEAP + 0x6000),
    ]);
}

#[test]
fn shared_memory_that_is_opened_and_mapped_again_is_the_same_in_another_file() {
    /// The number of the file that was opened.
    const AGAIN: usize = 23;
    if !may_have(capability::CHECKPOINT_RESTORE, "CAP_CHECKPOINT_RESTORE") {
        return;
    }
    let addr = 0x1000_0000_0000;
    let open = Op::Open { at: addr };
    let again =
        |page: usize, prot, kind, offset| map_file(addr + page * 0x1000, prot, kind, AGAIN, offset);
    let touch = |page: usize, access| Op::Touch { addr: addr + page * 0x1000, access };
    let shared = mmap(addr, 0x3000, 3, 0x31);
    let shared_as = |file| Op::Mmap { addr, len: 0x3000, prot: 3, flags: 0x11, file, offset: 0 };
    for first in [shared.clone(), shared_as(Some(14)), shared_as(Some(0)), shared_as(Some(2))] {
        let first = &first;
        let same = |steps: &[Op]| same(&[std::slice::from_ref(first), steps].concat());
        // Before it is open; where it continues the memory; beside itself; as private memory.
        same(&[again(3, 3, 1, 3), open.clone(), again(3, 3, 1, 3), again(4, 3, 1, 4)]);
        same(&[open.clone(), again(3, 3, 2, 3), touch(3, Access::Read), touch(2, Access::Write)]);
        same(&[open.clone(), again(4, 1, 1, 0), open.clone(), again(5, 1, 1, 1)]);
        // It stays open when nothing of it is mapped.
        same(&[open.clone(), Op::Munmap { addr, len: 0x3000 }, again(0, 3, 1, 2)]);
        // It becomes shorter, and longer, for all that map it.
        for pages in [0, 1, 4] {
            let truncate = Op::Truncate { file: AGAIN, pages };
            let steps = [open.clone(), again(8, 3, 1, 0), again(9, 3, 2, 1), truncate];
            let touched = [0, 1, 2, 8, 9].map(|page| touch(page, Access::Write));
            same(&[&steps[..], &touched, &[again(3, 3, 1, 3), touch(3, Access::Read)]].concat());
            let force = Op::Force { addr: addr + 0x1000, access: Access::Write };
            let fork = Op::Fork { child_goes_on: true };
            same(
                &[&steps[..], &[fork, touch(0, Access::Read), force, Op::Adopt], &touched].concat(),
            );
        }
        for seals in [8, 16] {
            let seal = Op::AddSeals { file: AGAIN, seals };
            same(&[open.clone(), seal.clone(), again(8, 3, 1, 0), seal, again(9, 3, 1, 0)]);
        }
        let remove = Op::Madvise { addr: addr + 0x8000, len: 0x1000, advice: 9 };
        let name = Op::Rename { file: AGAIN, name: 1 };
        same(&[open.clone(), again(8, 3, 1, 1), remove, name]);
        // As `mremap` does that, without opening anything.
        let (old_len, new_len, new_addr) = (0, 0x2000, addr + 0x3000);
        same(&[
            Op::Mremap { addr: addr + 0x1000, old_len, new_len, flags: 3, new_addr },
            Op::Munmap { addr, len: 0x2000 },
            Op::Mremap { addr: new_addr, old_len, new_len, flags: 3, new_addr: addr },
            open.clone(),
            again(5, 3, 1, 3),
        ]);
    }
    // What has no inode is not opened.
    same(&[mmap(addr, 0x1000, 3, 0x32), open.clone(), again(3, 3, 1, 0)]);
    // What is made later is other memory.
    same(&[
        shared.clone(),
        open,
        Op::Munmap { addr, len: 0x3000 },
        Op::Adopt,
        shared,
        again(8, 3, 1, 0),
        Op::Adopt,
        again(9, 3, 1, 1),
    ]);
}

/// The last address but one for the heap, rounded up, is the lowest of all: nothing is unmapped for
/// it.
#[test]
fn a_heap_that_ends_above_all_addresses() {
    let addr = 0x1000_0000_0000;
    same(&[
        Op::Mmap { addr, len: 0x2000, prot: 0x3, flags: 0x32, file: None, offset: 0 },
        Op::Madvise { addr, len: 0x1000, advice: 102 },
        Op::Brk { addr: usize::MAX },
        Op::Touch { addr, access: Access::Read },
    ]);
}

/// The tester's own fault: what it maps and unmaps at the lowest address took a guard page with it.
#[test]
fn a_guard_page_at_the_lowest_address_is_taken_over() {
    let at = 0x7fff_f7ff_6000;
    same_with_privileges(&[
        Op::Mmap { addr: 0, len: 0x5000, prot: 0x3, flags: 0x32, file: None, offset: 0 },
        Op::Mmap { addr: at, len: 0x5000, prot: 0x3, flags: 0x31, file: None, offset: 0 },
        Op::Touch { addr: at, access: Access::Write },
        Op::Madvise { addr: 0, len: 0x3000, advice: 102 },
        Op::Adopt,
        Op::Touch { addr: 0x48d, access: Access::Read },
    ]);
}

/// A shared mapping of `/dev/zero` opened for reading is private memory, and moves as shared.
#[test]
fn a_shared_mapping_of_zeros_that_are_only_read_moves_to_no_huge_page() {
    let (at, len, file) = (0x7fff_7800_0000, 0x80_1000, Some(15));
    for flags in [abi::MAP_SHARED, abi::MAP_PRIVATE] {
        let flags = flags | abi::MAP_FIXED;
        same(&[
            Op::Mmap { addr: at, len, prot: 1, flags, file, offset: 0x1000 },
            // In the way of growing where it is.
            Op::Mmap { addr: at + len, len: 0x1000, prot: 0, flags: 0x32, file: None, offset: 0 },
            Op::Mremap { addr: at, old_len: len, new_len: len + 0x2000, flags: 1, new_addr: 0 },
        ]);
    }
}

/// One step of each kind, as `pervma differ` prints it. The test is that it compiles.
#[rustfmt::skip]
fn one_of_each() -> Vec<Op> {
    vec![
        Op::Mmap { addr: 0x100000000000, len: 0x3000, prot: 0x3, flags: 0x12, file: Some(0), offset: 0x1000 },
        Op::Mprotect { addr: 0x100000000000, len: 0x1000, prot: 0x1 },
        Op::PkeyMprotect { addr: 0x100000000000, len: 0x1000, prot: 0x3, key: -1 },
        Op::Madvise { addr: 0x100000001000, len: 0x1000, advice: 10 },
        Op::Mlock { addr: 0x100000000000, len: 0x1000 },
        Op::Mlock2 { addr: 0x100000001000, len: 0x1000, flags: 1 },
        Op::Munlock { addr: 0x100000000000, len: 0x2000 },
        Op::Mlockall { flags: 2 },
        Op::Munlockall,
        Op::Brk { addr: 0x555555801000 },
        Op::Msync { addr: 0x100000000000, len: 0x1000, flags: 4 },
        Op::Mincore { addr: 0x100000000000, len: 0x1000, vector: 0x100000000005 },
        Op::Name { addr: 0x100000000000, len: 0x1000, name: Some(0) },
        Op::Touch { addr: 0x100000000001, access: Access::Write },
        Op::Force { addr: 0x100000000001, access: Access::Read },
        Op::Limit { which: Which::AddressSpace, bytes: 0xffffffffffffffff },
        Op::Limit { which: Which::Data, bytes: 0x10000 },
        Op::Limit { which: Which::DataMax, bytes: 0x100000 },
        Op::Limit { which: Which::Locked, bytes: 0x0 },
        Op::Limit { which: Which::Stack, bytes: 0x8000 },
        Op::Capability { which: Capability::Lock, has: false },
        Op::SetAddress { option: 7, addr: 0x555555802000, by_map: true },
        Op::Adopt,
        Op::Open { at: 0x100000000000 },
        Op::AddSeals { file: 13, seals: 16 },
        Op::Truncate { file: 0, pages: 3 },
        Op::Rename { file: 7, name: 1 },
        Op::Unlink { file: 7 },
        Op::Fork { child_goes_on: true },
        Op::Mremap { addr: 0x100000000000, old_len: 0x1000, new_len: 0x1000, flags: 0x3, new_addr: 0x100000009000 },
        Op::Mseal { addr: 0x100000009000, len: 0x1000, flags: 0 },
        Op::Munmap { addr: 0x100000009000, len: 0x1000 },
        Op::Mmap { addr: 0x0, len: 0x1000, prot: 0x0, flags: 0x22, file: None, offset: 0x0 },
    ]
}

#[test]
fn every_kind_of_step_can_be_pasted() {
    let mut steps = one_of_each();
    let source = include_str!("found.rs");
    for step in &steps {
        assert!(source.contains(&format!("        {step},\n")), "{step}");
    }
    let mut names: Vec<&str> = steps.iter().map(Op::name).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), Op::KINDS, "{names:?}");
    if !may_have(capability::CHECKPOINT_RESTORE, "CAP_CHECKPOINT_RESTORE") {
        steps.retain(|step| !matches!(step, Op::Open { .. }));
    }
    same(&steps);
}
