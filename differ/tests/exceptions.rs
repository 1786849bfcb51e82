//! The reasons of the exceptions are true: steps that are excluded make the two sides differ.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::fs;
use std::ptr;

use pervma_differ::{
    Capability, Model, Op, Options, Privileges, Which, exceptions, replay, run, special,
};
use pervma_linux::{Access, Config, Mm, NoBacking, VmFlags, abi::*};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};

/// Where the instructions of the process are.
const CODE: usize = 0x2000_0000;
const ADDR: usize = 0x1000_0000_0000;
const ANONYMOUS: u64 = MAP_PRIVATE | MAP_ANONYMOUS;

/// Returns whether the two sides differ after the steps, or the process cannot make them.
fn differ(steps: &[Op]) -> bool {
    let Some(machine) = common::machine() else { return true };
    !matches!(replay(&machine, Privileges::None, &Model::new, steps), Ok(None))
}

const fn mmap(addr: usize, len: usize, prot: u64, flags: u64) -> Op {
    Op::Mmap { addr, len, prot, flags, file: None, offset: 0 }
}

#[test]
fn without_its_instructions_the_process_makes_no_calls() {
    let spoilt = [
        Op::Munmap { addr: CODE, len: PAGE },
        Op::Mprotect { addr: CODE, len: PAGE, prot: PROT_READ },
        mmap(CODE, PAGE, PROT_READ | PROT_EXEC, ANONYMOUS | MAP_FIXED),
        Op::Madvise { addr: CODE, len: PAGE, advice: MADV_DONTNEED },
        Op::Force { addr: CODE, access: Access::Write },
    ];
    for step in spoilt {
        assert!(differ(&[step.clone(), Op::Mlockall { flags: MCL_FUTURE }]), "{step}");
    }
    // Steps that do not harm them are made.
    assert!(
        !differ(&[
            Op::Madvise { addr: CODE, len: PAGE, advice: MADV_DONTDUMP },
            Op::Mprotect { addr: CODE, len: PAGE, prot: PROT_READ | PROT_WRITE | PROT_EXEC },
            Op::Mseal { addr: CODE, len: PAGE, flags: 0 },
            Op::Munmap { addr: CODE + 1, len: PAGE },
        ]) || common::machine().is_none()
    );
}

#[test]
fn an_instruction_reaches_into_the_next_page() {
    let map = mmap(ADDR, PAGE, PROT_READ | PROT_WRITE | PROT_EXEC, ANONYMOUS | MAP_FIXED);
    let execute = |within| Op::Touch { addr: ADDR + within, access: Access::Execute };
    assert!(differ(&[map.clone(), execute(PAGE - 1)]));
    assert!(!differ(&[map, execute(PAGE - 2)]) || common::machine().is_none());
}

#[test]
fn instructions_of_the_kernels_own_do_something() {
    let Some(machine) = common::machine() else { return };
    let special = special(&machine).unwrap();
    let code = special.iter().find(|special| special.flags.has(VmFlags::EXEC)).unwrap();
    let execute = |addr| Op::Touch { addr, access: Access::Execute };
    assert!(code.range.clone().step_by(8).take(512).any(|addr| differ(&[execute(addr)])));
}

#[test]
fn where_addresses_are_random_low_ones_are_drawn() {
    let filter = SeccompFilter::new(
        [(libc::SYS_personality, vec![])].into(),
        SeccompAction::Allow,
        SeccompAction::Errno(libc::EPERM.cast_unsigned()),
        std::env::consts::ARCH.try_into().unwrap(),
    );
    let program: BpfProgram = filter.unwrap().try_into().unwrap();
    // A filter is the thread's, and its children's.
    let thread = std::thread::spawn(move || {
        seccompiler::apply_filter(&program).unwrap();
        let Some(machine) = common::machine() else { return };
        if fs::read_to_string("/proc/sys/kernel/randomize_va_space").unwrap().trim() == "0" {
            println!("NOT RUN: no address is random on this machine");
            return;
        }
        // There are 8,192 places: in eight tries the two sides draw different ones.
        let low = [mmap(0, PAGE, PROT_READ, ANONYMOUS | MAP_32BIT)];
        assert!((0..8).any(|_| differ(&low)));
        let options = Options { ops: 4000, seed: 3 };
        let report = run(&machine, options, Model::new, &mut |_| ()).unwrap();
        assert!(report.divergence.is_none(), "{}", report.divergence.unwrap());
        assert!(report.excluded["random low address"] > 0);
    });
    thread.join().unwrap();
}

#[test]
fn huge_pages_come_from_a_pool() {
    let Some(machine) = common::machine() else { return };
    if !machine.has_huge_pages(MAP_HUGETLB) {
        println!("NOT RUN: there are no pools of huge pages");
        return;
    }
    assert!(differ(&[mmap(0, HUGE, PROT_READ, ANONYMOUS | MAP_HUGETLB)]));
    // Those of which there is no pool are the same.
    assert!(!differ(&[mmap(0, HUGE, PROT_READ, ANONYMOUS | MAP_HUGETLB | 13 << 26)]));
}

#[test]
fn the_page_of_old_system_calls_is_in_no_map_of_the_model() {
    const VSYSCALL: usize = 0xffff_ffff_ff60_0000;
    if !fs::read_to_string("/proc/self/maps").unwrap().contains("[vsyscall]") {
        println!("NOT RUN: this kernel has no such page");
        return;
    }
    let accesses = [Access::Read, Access::Write, Access::Execute];
    let touched = accesses.map(|access| Op::Touch { addr: VSYSCALL, access });
    let forced = accesses.map(|access| Op::Force { addr: VSYSCALL, access });
    assert!(touched.into_iter().chain(forced).any(|step| differ(&[step])));
}

#[test]
fn a_limit_above_the_hard_one_is_refused() {
    assert!(differ(&[
        Op::Limit { which: Which::DataMax, bytes: 0x10_0000 },
        Op::Limit { which: Which::Data, bytes: 0x20_0000 },
    ]));
}

#[test]
fn a_capability_that_the_process_never_had_is_refused() {
    // It was dropped before the first step.
    assert!(differ(&[Op::Capability { which: Capability::Lock, has: true }]));
    assert!(
        !differ(&[Op::Capability { which: Capability::Lock, has: false }])
            || common::machine().is_none()
    );
}

#[test]
fn what_is_mapped_is_opened_by_those_who_may() {
    // The privilege is dropped for this thread, and the processes that it starts.
    let thread = std::thread::spawn(|| {
        const CHECKPOINT_RESTORE: libc::c_ulong = 40;
        const SYS_ADMIN: libc::c_ulong = 21;
        for capability in [CHECKPOINT_RESTORE, SYS_ADMIN] {
            // It fails without privileges, and then there is none to drop.
            // SAFETY: takes numbers, and changes this thread only.
            unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
        }
        let shared = mmap(ADDR, PAGE, PROT_READ, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED);
        assert!(differ(&[shared, Op::Open { at: ADDR }]));
        let Some(machine) = common::machine() else { return };
        let options = Options { ops: 2000, seed: 3 };
        let report = run(&machine, options, Model::new, &mut |_| ()).unwrap();
        assert!(report.divergence.is_none(), "{}", report.divergence.unwrap());
        assert!(report.excluded["open mapping"] > 0);
    });
    thread.join().unwrap();
}

#[test]
fn each_exception_has_a_reason() {
    for exception in exceptions::ALL {
        assert!(exception.name.len() > 3 && exception.why.len() > 20, "{exception:?}");
    }
}

/// The process has its huge pages switched off, and this is why: a page that is only read becomes
/// the mapping's own where a huge one fits, and what is a mapping's own decides what merges.
#[test]
fn where_huge_pages_are_decides_what_merges() {
    const UPPER: usize = ADDR + 2 * HUGE;
    let enabled = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled");
    if enabled.is_ok_and(|enabled| enabled.contains("[never]")) {
        println!("NOT RUN: there are no huge pages");
        return;
    }
    let merged = |disabled: libc::c_ulong| {
        // SAFETY: changes this process's way of making pages only.
        assert_eq!(unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, disabled, 0, 0, 0) }, 0);
        let at = |addr: usize| ptr::with_exposed_provenance_mut::<u8>(addr);
        let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_FIXED_NOREPLACE);
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | flags;
        for addr in [ADDR, UPPER] {
            // SAFETY: nothing is mapped there.
            let mapped = unsafe { libc::mmap(at(addr).cast(), 2 * HUGE, prot, flags, -1, 0) };
            assert_eq!(mapped.addr(), addr);
            if addr == ADDR {
                // SAFETY: just mapped, and used by no other thread.
                assert_eq!(unsafe { libc::madvise(mapped, 2 * HUGE, MADV_HUGEPAGE) }, 0);
                // SAFETY: as above.
                assert_eq!(unsafe { at(addr).read_volatile() }, 0);
            }
        }
        // SAFETY: as above.
        unsafe { at(UPPER).write_volatile(1) };
        // SAFETY: as above.
        assert_eq!(unsafe { libc::madvise(at(UPPER).cast(), 2 * HUGE, MADV_HUGEPAGE) }, 0);
        let maps = fs::read_to_string("/proc/self/maps").unwrap();
        let merged = maps.contains(&format!("{ADDR:x}-{:x} ", UPPER + 2 * HUGE));
        // SAFETY: as above.
        assert_eq!(unsafe { libc::munmap(at(ADDR).cast(), 4 * HUGE) }, 0);
        merged
    };
    assert_eq!([merged(1), merged(0)], [true, false]);

    let mm = Mm::new(NoBacking, Config::default());
    for addr in [ADDR, UPPER] {
        mm.mmap(addr, 2 * HUGE, PROT_READ | PROT_WRITE, ANONYMOUS | MAP_FIXED, None, 0).unwrap();
        if addr == ADDR {
            mm.madvise(addr, 2 * HUGE, MADV_HUGEPAGE).unwrap();
            mm.fault(addr, Access::Read).unwrap();
        }
    }
    mm.fault(UPPER, Access::Write).unwrap();
    mm.madvise(UPPER, 2 * HUGE, MADV_HUGEPAGE).unwrap();
    assert_eq!(mm.maps().unwrap().lines().count(), 1);
}
