//! The steps that are excluded, and why. The generator leaves out no others.
//!
//! Each exception is a blind spot of the comparison, so each has a reason, and
//! `tests/exceptions.rs` shows that the reason is true. How the process is set up is described in
//! [`crate`].

use std::ops::Range;

use pervma_linux::{Access, Limits, Source, VmFlags, abi::*};

use crate::child::{CAP_CHECKPOINT_RESTORE, CAP_SYS_ADMIN, CODE, InitialState};
use crate::machine::Machine;
use crate::op::{Op, Which};
use crate::scene::Scene;

/// A kind of steps that are excluded.
#[derive(Clone, Copy, Debug)]
pub struct Exception {
    /// The name of the exception.
    pub name: &'static str,
    /// The reason.
    pub why: &'static str,
    applies: fn(&Op, &Scene, &Place<'_>) -> bool,
}

/// The place where steps are made.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// The machine.
    pub machine: &'a Machine,
    /// The state of the process before its first call.
    pub initial: &'a InitialState,
}

/// The most pages that one step may make present.
pub const MOST_PRESENT: usize = 1 << 14;

/// The page that the kernel has in every process.
const VSYSCALL: Range<usize> = 0xffff_ffff_ff60_0000..0xffff_ffff_ff60_1000;

/// All exceptions.
pub const ALL: &[Exception] = &[
    Exception {
        name: "instructions",
        why: "the process makes its system calls with the instructions in this page",
        applies: |op, scene, _| spoils_instructions(op, scene),
    },
    Exception {
        name: "long instruction",
        why: "an instruction, of two bytes here, reaches into the next page from the last byte of one",
        applies: |op, _, _| match *op {
            Op::Touch { addr, access: Access::Execute } => addr % PAGE == PAGE - 1,
            _ => false,
        },
    },
    Exception {
        name: "the kernel's instructions",
        why: "what is fetched from [vdso] are instructions that do something",
        applies: |op, scene, _| match *op {
            Op::Touch { addr, access: Access::Execute } => scene.vmas.iter().any(|(range, vma)| {
                range.contains(&addr) && matches!(vma.source, Source::Special(_))
            }),
            _ => false,
        },
    },
    Exception {
        name: "random low address",
        why: "where addresses are random, the kernel chooses a random one for MAP_32BIT",
        applies: |op, _, place| match *op {
            Op::Mmap { flags, .. } => {
                place.initial.randomized && flags & MAP_32BIT != 0 && flags & MAP_FIXED == 0
            }
            _ => false,
        },
    },
    Exception {
        name: "pool of huge pages",
        why: "what MAP_HUGETLB finds in the machine's pool of huge pages is not in the map",
        applies: |op, _, place| match *op {
            Op::Mmap { flags, .. } => {
                let wanted = MAP_HUGETLB | MAP_ANONYMOUS;
                flags & wanted == wanted && place.machine.has_huge_pages(flags)
            }
            _ => false,
        },
    },
    Exception {
        name: "memory",
        why: "it would take more of the machine's memory than a test may",
        applies: |op, scene, _| most_present(op, scene) > MOST_PRESENT,
    },
    Exception {
        name: "damage",
        why: "the process has CAP_SYS_ADMIN, with which memory of the machine would be damaged",
        applies: |op, _, place| match *op {
            Op::Madvise { advice: MADV_HWPOISON | MADV_SOFT_OFFLINE, .. } => {
                place.initial.has(CAP_SYS_ADMIN)
            }
            _ => false,
        },
    },
    Exception {
        name: "vsyscall",
        why: "the page of old system calls is in every process and in no map of the model",
        applies: |op, _, _| match *op {
            Op::Touch { addr, .. } | Op::Force { addr, .. } => VSYSCALL.contains(&addr),
            _ => false,
        },
    },
    Exception {
        name: "hard limit",
        why: "whether a limit may be set is not decided by what is mapped",
        applies: |op, scene, place| match *op {
            Op::Limit { which, bytes } => {
                let Limits { address_space, locked, stack, .. } = place.initial.hard;
                let hard = match which {
                    Which::AddressSpace => address_space,
                    // It is lowered by steps.
                    Which::Data | Which::DataMax => scene.limits.data_max,
                    Which::Locked => locked,
                    Which::Stack => stack,
                };
                bytes > hard
            }
            _ => false,
        },
    },
    Exception {
        name: "open mapping",
        why: "who may open what is mapped is not decided by what is mapped",
        applies: |op, _, place| {
            let may = [CAP_CHECKPOINT_RESTORE, CAP_SYS_ADMIN].into_iter();
            matches!(op, Op::Open { .. }) && !may.into_iter().any(|one| place.initial.has(one))
        },
    },
    Exception {
        name: "missing capability",
        why: "which capabilities a process may take up is not decided by what is mapped",
        applies: |op, _, place| match *op {
            Op::Capability { which, has } => has && !place.initial.has(which.number()),
            _ => false,
        },
    },
];

/// Returns the first exception that a step is.
pub fn of(op: &Op, scene: &Scene, place: &Place<'_>) -> Option<&'static Exception> {
    ALL.iter().find(|exception| (exception.applies)(op, scene, place))
}

/// Whether the page of instructions would be another one after the step.
fn spoils_instructions(op: &Op, scene: &Scene) -> bool {
    let over = |addr: usize, len: usize| {
        // However the range is rounded.
        addr < CODE + PAGE && addr.saturating_add(len).saturating_add(PAGE) > CODE
    };
    match *op {
        Op::Mmap { addr, len, flags, .. } => {
            flags & (MAP_FIXED | MAP_FIXED_NOREPLACE) == MAP_FIXED && over(addr, len)
        }
        Op::Munmap { addr, len } => over(addr, len),
        Op::Brk { addr } => over(addr, scene.layout.brk.saturating_sub(addr)),
        Op::Mprotect { addr, len, prot } | Op::PkeyMprotect { addr, len, prot, .. } => {
            over(addr, len) && prot & PROT_EXEC == 0
        }
        Op::Mremap { addr, old_len, new_len, flags, new_addr } => {
            over(addr, old_len) || (flags & MREMAP_FIXED != 0 && over(new_addr, new_len))
        }
        Op::Madvise { addr, len, advice } => {
            let spoils = matches!(
                advice,
                MADV_DONTNEED
                    | MADV_DONTNEED_LOCKED
                    | MADV_FREE
                    | MADV_REMOVE
                    | MADV_DONTFORK
                    | MADV_WIPEONFORK
                    | MADV_GUARD_INSTALL
            );
            spoils && over(addr, len)
        }
        Op::Mincore { len, vector, .. } => over(vector, len.div_ceil(PAGE)),
        Op::Touch { addr, access } => access != Access::Read && over(addr, 0),
        Op::Force { addr, access } => access == Access::Write && over(addr, 8),
        _ => false,
    }
}

/// The most pages that the step can make present.
fn most_present(op: &Op, scene: &Scene) -> usize {
    let of = |addr: usize, len: usize, only: VmFlags| {
        let end = addr.saturating_add(len);
        let parts = scene.vmas.iter().filter(|(_, vma)| vma.flags.has(only));
        let bytes =
            parts.map(|(range, _)| range.end.min(end).saturating_sub(range.start.max(addr)));
        bytes.sum::<usize>().div_ceil(PAGE)
    };
    let any = VmFlags::default();
    match *op {
        Op::Mmap { len, flags, .. }
            if flags & (MAP_POPULATE | MAP_LOCKED) != 0 || scene.locks_new =>
        {
            len / PAGE
        }
        Op::Brk { addr } if scene.locks_new => addr.saturating_sub(scene.layout.brk) / PAGE,
        Op::Mremap { addr, old_len, new_len, .. }
            if of(addr, old_len.max(1), VmFlags::LOCKED) > 0 =>
        {
            new_len / PAGE
        }
        Op::Mprotect { addr, len, .. } | Op::PkeyMprotect { addr, len, .. } => {
            of(addr, len, VmFlags::LOCKED)
        }
        Op::Mlock { addr, len } | Op::Mlock2 { addr, len, flags: 0 } => of(addr, len, any),
        // What cannot be locked is made present all the same.
        Op::Mlock2 { addr, len, .. } => of(addr, len, VmFlags::DROPPABLE),
        Op::Mlockall { flags } if flags & MCL_CURRENT != 0 => of(0, usize::MAX, any),
        Op::Madvise {
            addr,
            len,
            advice: MADV_POPULATE_READ | MADV_POPULATE_WRITE | MADV_GUARD_INSTALL,
        } => of(addr, len, any),
        Op::Mincore { len, .. } => len / PAGE / PAGE,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use pervma_linux::{Source, Vma};

    use super::*;

    /// The name of the exception that a step is in a scene with a large mapping.
    fn name_of(
        op: &Op,
        initial: &InitialState,
        more: VmFlags,
        locks_new: bool,
    ) -> Option<&'static str> {
        let machine = Machine::here().unwrap();
        let flags = VmFlags::READ | more;
        let vma = Vma { flags, page_offset: 0, source: Source::Anonymous, anon: None, name: None };
        let vmas = vec![(HALF, vma)];
        let limits = Limits::default();
        let scene = Scene { vmas, limits, locks_new, ..Scene::default() };
        of(op, &scene, &Place { machine: &machine, initial }).map(|exception| exception.name)
    }

    const HALF: Range<usize> = 0x2000_0000_0000..0x2000_0000_0000 + (8 << 30);

    #[test]
    fn what_would_take_much_memory_is_left_out_and_no_more() {
        let initial = InitialState::unborn();
        let Range { start: addr, end } = HALF;
        let (len, page, none) = (end - addr, PAGE, VmFlags::default());
        let mmap = |len, flags| Op::Mmap { addr: 0, len, prot: 1, flags, file: None, offset: 0 };
        let madvise = |len, advice| Op::Madvise { addr, len, advice };
        let mremap = |new_len| Op::Mremap { addr, old_len: page, new_len, flags: 1, new_addr: 0 };
        // The step, what the mapping is beside readable, whether new ones will be, and the verdict.
        for (op, more, locks_new, is_excluded) in [
            (mmap(len, MAP_PRIVATE | MAP_ANONYMOUS), none, false, false),
            (mmap(len, MAP_PRIVATE | MAP_ANONYMOUS), none, true, true),
            (mmap(len, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE), none, false, true),
            (mmap(len, MAP_PRIVATE | MAP_ANONYMOUS | MAP_LOCKED), none, false, true),
            (mmap(2 * HUGE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_LOCKED), none, false, false),
            (madvise(len, MADV_POPULATE_READ), none, false, true),
            (madvise(len, MADV_POPULATE_WRITE), none, false, true),
            (madvise(len, MADV_GUARD_INSTALL), none, false, true),
            (madvise(page, MADV_POPULATE_WRITE), none, false, false),
            (madvise(len, MADV_DONTNEED), none, false, false),
            (Op::Mlock { addr, len }, none, false, true),
            (Op::Mlock { addr, len: page }, none, false, false),
            (Op::Mlock2 { addr, len, flags: 0 }, none, false, true),
            (Op::Mlock2 { addr, len, flags: MLOCK_ONFAULT }, none, false, false),
            (Op::Mlock2 { addr, len, flags: MLOCK_ONFAULT }, VmFlags::DROPPABLE, false, true),
            (Op::Mlockall { flags: MCL_CURRENT }, none, false, true),
            (Op::Mlockall { flags: MCL_FUTURE }, none, false, false),
            (Op::Mprotect { addr, len, prot: 3 }, VmFlags::LOCKED, false, true),
            (Op::Mprotect { addr, len, prot: 3 }, none, false, false),
            (mremap(len), VmFlags::LOCKED, false, true),
            (mremap(len), none, false, false),
            (Op::Brk { addr: usize::MAX }, none, true, true),
            (Op::Brk { addr: usize::MAX }, none, false, false),
            (Op::Mincore { addr, len: 1 << 46, vector: addr }, none, false, true),
            (Op::Mincore { addr, len, vector: addr }, none, false, false),
        ] {
            let name = is_excluded.then_some("memory");
            assert_eq!(name_of(&op, &initial, more, locks_new), name, "{op}");
        }
    }

    #[test]
    fn memory_is_damaged_only_without_the_privilege_to_do_so() {
        let damage = Op::Madvise { addr: 0, len: PAGE, advice: MADV_HWPOISON };
        assert_eq!(name_of(&damage, &InitialState::unborn(), VmFlags::default(), false), None);
        let privileged = InitialState::unborn().with(CAP_SYS_ADMIN);
        assert_eq!(name_of(&damage, &privileged, VmFlags::default(), false), Some("damage"));
    }

    #[test]
    fn an_address_is_drawn_only_where_addresses_are_random() {
        let flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT;
        let low = |flags| Op::Mmap { addr: 0, len: PAGE, prot: 1, flags, file: None, offset: 0 };
        let mut random = InitialState::unborn();
        random.randomized = true;
        assert_eq!(name_of(&low(flags), &InitialState::unborn(), VmFlags::default(), false), None);
        assert_eq!(
            name_of(&low(flags), &random, VmFlags::default(), false),
            Some("random low address")
        );
        assert_eq!(name_of(&low(flags | MAP_FIXED), &random, VmFlags::default(), false), None);
    }
}
