//! Generating steps. Most of them are such that they succeed, and that merges, splits and ranges
//! over several mappings are common. Some have any arguments at all.
//!
//! The steps that are excluded are those of [`exceptions`], and no others. What no step can be:
//!
//! - *Calls that are not modelled*, and flags and files that drivers know: the list in
//!   [`pervma_linux`] has the reasons. A caller who makes them is told so there.
//! - *Two calls at once.* A sequence has one order, and the kernel's of two threads is not known;
//!   `linux/tests/threads.rs` and `handler.rs` have threads, and look for what holds in any order.
//! - *Mappings of before the first step*, but for the kernel's own pages: the process unmaps its
//!   own. A model can begin anew later, with all that is mapped then.
//! - *Looks at contents.* The map does not have them; the backing's part is in
//!   `linux/tests/backing.rs`.
//! - *Other processes* that look, write or charge memory, but for the steps on files and the forced
//!   accesses: what they do to a map is one of these.
//! - *Settings of the machine* that change (`vm.max_map_count` and the like): all its processes
//!   have them. `linux/tests/configure.rs` has the rules.
//! - *Options of `prctl(PR_SET_MM)`* that set something else than addresses.
//! - *Memory that runs out.* It would be the machine's: `linux/tests/unchecked.rs`.

use std::collections::BTreeMap;
use std::ops::Range;

use pervma_linux::{Access, Limits, Source, VmFlags, abi::*};

use crate::child::CODE;
use crate::exceptions::{self, Place};
use crate::files;
use crate::op::{Capability, NAMES, Op, Which};
use crate::random::Random;
use crate::scene::Scene;

/// The addresses of most fixed mappings.
const WINDOW: Range<usize> = 0x1000_0000_0000..0x1000_0000_0000 + 40 * PAGE;
/// The address of mappings of half of all memory.
const HALVES: usize = 0x2000_0000_0000;
/// A length that is too large to be mapped.
const GIANT: usize = 1 << 46;

/// Generates steps.
#[derive(Debug)]
pub(crate) struct Generator<'a> {
    random: Random,
    place: Place<'a>,
}

impl<'a> Generator<'a> {
    /// The same seed generates the same steps for the same scenes.
    #[must_use]
    pub(crate) fn new(seed: u64, place: Place<'a>) -> Self {
        Self { random: Random::new(seed), place }
    }

    /// The next step. Steps that are excluded are counted by the name of their exception.
    pub(crate) fn next(
        &mut self,
        scene: &mut Scene,
        excluded: &mut BTreeMap<&'static str, u64>,
    ) -> Op {
        loop {
            let op = self.anything(scene);
            match exceptions::of(&op, scene, &self.place) {
                Some(exception) => *excluded.entry(exception.name).or_default() += 1,
                None => {
                    match op {
                        Op::Mlockall { flags } if flags & MCL_FUTURE != 0 => scene.locks_new = true,
                        Op::Munlockall => scene.locks_new = false,
                        _ => {}
                    }
                    return op;
                }
            }
        }
    }

    fn anything(&mut self, scene: &Scene) -> Op {
        type Make = fn(&mut Generator<'_>, &Scene) -> Op;
        const STEPS: &[(usize, Make)] = &[
            (240, |generator, scene| generator.mmap(scene)),
            (80, |generator, scene| generator.munmap(scene)),
            (140, |generator, scene| generator.mprotect(scene)),
            (110, |generator, scene| generator.mremap(scene)),
            (130, |generator, scene| generator.madvise(scene)),
            (50, |generator, scene| generator.lock(scene)),
            (6, |generator, _| generator.lock_all()),
            (30, |generator, _| generator.brk()),
            (4, |generator, scene| generator.seal(scene)),
            (150, |generator, scene| generator.touch(scene)),
            (30, |generator, scene| generator.force(scene)),
            (14, |generator, _| generator.fork()),
            (16, |generator, scene| generator.msync(scene)),
            (12, |generator, scene| generator.mincore(scene)),
            (10, |generator, scene| generator.limit(scene)),
            (4, |generator, scene| generator.name(scene)),
            (6, |generator, _| generator.capability()),
            (3, |_, _| Op::Adopt),
            (8, |generator, scene| generator.open(scene)),
            (12, |generator, scene| generator.address(scene)),
            (10, |generator, _| generator.file_step()),
        ];
        let make = self.random.weighted(STEPS);
        make(self, scene)
    }

    fn pages(&mut self, most: usize) -> usize {
        (1 + self.random.below(most)) * PAGE
    }

    /// A number that is near a limit of the address space, or any.
    fn extreme(&mut self) -> usize {
        let layout = self.place.initial.layout;
        let edge = self.random.pick(&[
            0,
            self.place.initial.lowest_choice,
            self.place.initial.mmap_min_addr,
            CODE,
            layout.start_brk,
            layout.mmap_legacy_base,
            layout.mmap_base,
            layout.start_stack & !(PAGE - 1),
            layout.task_size,
            1 << 31,
            1 << 32,
            GIANT,
            1 << 47,
            usize::MAX - (usize::MAX >> 17),
            0xffff_ffff_ff60_0000,
        ]);
        let number = match self.random.below(8) {
            0 => self.random.word(),
            1 => 1 << self.random.below(64),
            2 => edge,
            3 => usize::MAX,
            _ => edge.wrapping_add(self.pages(4)).wrapping_sub(self.pages(4)),
        };
        if self.random.one_in(8) { number.wrapping_add(self.random.below(PAGE)) } else { number }
    }

    /// A page at or near a mapping, or a free one of the window.
    fn spot(&mut self, scene: &Scene) -> usize {
        if self.random.one_in(100) {
            return self.extreme();
        }
        let in_window = WINDOW.start + self.random.below(WINDOW.len() / PAGE) * PAGE;
        if scene.vmas.is_empty() || self.random.one_in(4) {
            return in_window;
        }
        let range = scene.vmas[self.random.below(scene.vmas.len())].0.clone();
        let length = (range.end - range.start) / PAGE;
        match self.random.below(8) {
            0..=2 => range.start,
            3 | 4 => range.end,
            5 => range.start + self.random.below(length) * PAGE,
            6 => range.end - PAGE,
            _ => range.start.saturating_sub(self.pages(3)),
        }
    }

    /// A page that is mapped, if one is.
    fn mapped(&mut self, scene: &Scene) -> usize {
        if scene.vmas.is_empty() {
            return WINDOW.start;
        }
        let range = scene.vmas[self.random.below(scene.vmas.len())].0.clone();
        if self.random.one_in(2) {
            range.start
        } else {
            range.start + self.random.below((range.end - range.start) / PAGE) * PAGE
        }
    }

    /// A range that is mapped, often over several mappings, sometimes with a hole or not aligned.
    fn range(&mut self, scene: &Scene) -> (usize, usize) {
        let addr = if self.random.one_in(8) { self.spot(scene) } else { self.mapped(scene) };
        let after = scene.vmas.partition_point(|(range, _)| range.end <= addr);
        let next = scene.vmas.get(after);
        let whole = next.map(|(range, _)| range.end.saturating_sub(addr));
        let mut end = addr;
        for (range, _) in scene.vmas[after..].iter().take(1 + self.random.below(4)) {
            if range.start <= end {
                end = range.end;
            }
        }
        let len = match self.random.below(20) {
            0..=8 => self.pages(3).min(whole.unwrap_or(PAGE).max(PAGE)),
            9..=13 => whole.unwrap_or(PAGE).max(PAGE),
            14..=17 => (end - addr).max(PAGE),
            _ => self.pages(6),
        };
        match self.random.below(80) {
            0 => (addr.wrapping_add(self.random.below(PAGE)), len),
            1 => (addr, len - self.random.below(PAGE)),
            2 => (addr, self.random.pick(&[0, usize::MAX, GIANT, usize::MAX - PAGE + 1])),
            3 if self.random.one_in(2) => (addr, self.extreme()),
            _ => (addr, len),
        }
    }

    fn prot(&mut self) -> u64 {
        let sane = self.random.weighted(&[
            (45, PROT_READ | PROT_WRITE),
            (22, PROT_READ),
            (14, PROT_NONE),
            (8, PROT_READ | PROT_EXEC),
            (5, PROT_READ | PROT_WRITE | PROT_EXEC),
            (4, PROT_WRITE),
            (2, PROT_EXEC),
            (1, PROT_WRITE | PROT_EXEC),
        ]);
        if self.random.one_in(60) { sane | self.bit() } else { sane }
    }

    /// 64 bits, each of which is set once in four times.
    fn few_bits(&mut self) -> u64 {
        self.random.next() & self.random.next()
    }

    /// One bit of 64.
    fn bit(&mut self) -> u64 {
        1 << self.random.below(64)
    }

    /// A number below `flags`, or any.
    fn int(&mut self, flags: usize) -> i32 {
        if self.random.one_in(10) {
            // The lower half of a word.
            self.random.next() as i32
        } else {
            i32::try_from(self.random.below(flags)).unwrap_or(0)
        }
    }

    fn file(&mut self) -> usize {
        match self.random.below(40) {
            0..=11 => files::FIRST,
            12..=16 => files::SECOND,
            17..=21 => files::ON_DISK,
            22..=24 => files::ZERO,
            25..=27 => files::AGAIN,
            // The last number is that of no file.
            _ => self.random.below(files::COUNT + 1),
        }
    }

    fn mmap(&mut self, scene: &Scene) -> Op {
        let kind = self.random.weighted(&[
            (62, MAP_PRIVATE | MAP_ANONYMOUS),
            (8, MAP_SHARED | MAP_ANONYMOUS),
            (14, MAP_PRIVATE),
            (10, MAP_SHARED),
            (3, MAP_DROPPABLE | MAP_ANONYMOUS),
            (2, MAP_SHARED_VALIDATE),
        ]);
        let kind = match self.random.below(60) {
            0 => self.random.next() & (MAP_TYPE | MAP_ANONYMOUS),
            _ => kind,
        };
        let place =
            self.random.weighted(&[(30, 0), (15, 0), (42, MAP_FIXED), (10, MAP_FIXED_NOREPLACE)]);
        let mut addr = if place == 0 && self.random.one_in(2) { 0 } else { self.spot(scene) };
        let mut flags = kind | place;
        for (rarity, flag) in [
            (25, MAP_GROWSDOWN),
            (40, MAP_STACK),
            (20, MAP_NORESERVE),
            (14, MAP_POPULATE),
            (40, MAP_LOCKED),
            (40, MAP_SYNC),
            (40, MAP_32BIT),
            (100, MAP_ABOVE4G),
            (100, MAP_NONBLOCK),
            (200, MAP_HUGETLB),
        ] {
            if self.random.one_in(rarity) {
                flags |= flag;
            }
        }
        if self.random.one_in(25) {
            flags |= self.bit();
        }
        let kind = if self.random.one_in(30) {
            // Any flags together.
            flags = self.few_bits() & !MAP_TYPE | self.random.next() & MAP_TYPE;
            flags
        } else {
            kind
        };
        let mut prot = self.prot();
        let mut len = self.pages(5);
        let file = (kind & MAP_ANONYMOUS == 0).then(|| self.file());
        let most = if file == Some(files::SECOND) { files::LARGE } else { files::PAGES };
        let most = if self.random.one_in(2) { most } else { files::PAGES };
        let mut offset = self.random.below(most) * PAGE;
        if file.is_some() && self.random.one_in(2) {
            // What continues a neighbour may merge with it.
            if let Some((range, vma)) = scene.vmas.iter().find(|(range, _)| range.end == addr) {
                let pages = (range.end - range.start) / PAGE;
                offset = usize::try_from(vma.page_offset).unwrap_or(0) % GIANT + pages;
                offset = (offset % (2 * files::PAGES)) * PAGE;
            }
        }
        // Half of all memory can be committed once only.
        let limited = self.place.machine.commit_limit != usize::MAX;
        match self.random.below(150) {
            0 => addr = addr.wrapping_add(self.random.below(PAGE)),
            1 => offset += self.random.below(PAGE),
            2 => len -= self.random.below(PAGE),
            3 => {
                len = self.random.pick(&[0, usize::MAX, self.place.initial.layout.task_size + PAGE])
            }
            4..=7 => len = HUGE * (1 + self.random.below(2)),
            8 => (len, prot) = (GIANT, PROT_WRITE),
            9 => addr = self.place.initial.layout.task_size - self.pages(3),
            10 => addr = self.pages(2) - PAGE,
            11 => offset = self.extreme(),
            12 => addr = self.place.initial.layout.start_brk + self.pages(12),
            // An address in the last page is taken for an error.
            13 => addr = usize::MAX - self.random.below(PAGE),
            // Two of these may merge, and are more then than can be committed.
            14..=17 if limited && kind == MAP_PRIVATE | MAP_ANONYMOUS => {
                len = self.place.machine.commit_limit / 8 * 5 * PAGE;
                addr = HALVES + self.random.below(2) * len;
                (prot, flags) = (PROT_READ | PROT_WRITE, kind | MAP_FIXED);
            }
            18 => len = self.extreme(),
            19 => addr = self.extreme(),
            // Such a mapping is named after the stack.
            20 => addr = self.place.initial.layout.start_stack & !(PAGE - 1),
            _ => {}
        }
        Op::Mmap { addr, len, prot, flags, file, offset: offset as u64 }
    }

    fn munmap(&mut self, scene: &Scene) -> Op {
        let (addr, len) = self.range(scene);
        Op::Munmap { addr, len }
    }

    fn mprotect(&mut self, scene: &Scene) -> Op {
        let (addr, len) = self.range(scene);
        let mut prot = self.prot();
        match self.random.below(120) {
            0 => prot |= PROT_SEM,
            1 | 2 => prot |= PROT_GROWSDOWN,
            3 => prot |= PROT_GROWSUP,
            4 => prot |= 0x10,
            _ => {}
        }
        if self.random.one_in(40) {
            let key = self.random.pick(&[-1, -1, 0, 1, 15, 16, i32::MIN]);
            return Op::PkeyMprotect { addr, len, prot, key };
        }
        Op::Mprotect { addr, len, prot }
    }

    fn mremap(&mut self, scene: &Scene) -> Op {
        let (addr, mut old_len) = self.range(scene);
        if let Some((range, _)) = scene.vmas.iter().find(|(range, _)| range.contains(&addr)) {
            let rest = range.end.saturating_sub(addr);
            match self.random.below(10) {
                0..=4 => old_len = rest,
                5..=7 => old_len = old_len.min(rest),
                _ => {}
            }
        }
        if self.random.one_in(25) {
            old_len = 0;
        }
        let new_len = match self.random.below(10) {
            0..=3 => old_len,
            4..=7 => old_len.wrapping_add(self.pages(4)),
            8 => self.pages(3),
            _ => old_len.saturating_sub(self.pages(2)),
        };
        let flags = self.random.weighted(&[
            (45, MREMAP_MAYMOVE),
            (14, 0),
            (28, MREMAP_MAYMOVE | MREMAP_FIXED),
            (8, MREMAP_MAYMOVE | MREMAP_DONTUNMAP),
            (6, MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP),
            (1, MREMAP_FIXED),
        ]);
        let flags = if self.random.one_in(60) { flags ^ self.bit() } else { flags };
        let equal = flags & MREMAP_DONTUNMAP != 0 && !self.random.one_in(20);
        let new_len = if equal { old_len } else { new_len };
        let new_len = if self.random.one_in(100) { self.extreme() } else { new_len };
        let new_addr = match self.random.below(30) {
            0 => 0,
            1 => self.spot(scene).wrapping_add(1),
            _ => self.spot(scene),
        };
        Op::Mremap { addr, old_len, new_len, flags, new_addr }
    }

    fn madvise(&mut self, scene: &Scene) -> Op {
        let (addr, len) = self.range(scene);
        let advice = self.random.weighted(&[
            (5, MADV_NORMAL),
            (6, MADV_RANDOM),
            (6, MADV_SEQUENTIAL),
            (3, MADV_WILLNEED),
            (7, MADV_DONTNEED),
            (3, MADV_FREE),
            (3, MADV_REMOVE),
            (5, MADV_DONTFORK),
            (5, MADV_DOFORK),
            (4, MADV_MERGEABLE),
            (3, MADV_UNMERGEABLE),
            (4, MADV_HUGEPAGE),
            (5, MADV_NOHUGEPAGE),
            (5, MADV_DONTDUMP),
            (5, MADV_DODUMP),
            (5, MADV_WIPEONFORK),
            (5, MADV_KEEPONFORK),
            (2, MADV_COLD),
            (2, MADV_PAGEOUT),
            (4, MADV_POPULATE_READ),
            (5, MADV_POPULATE_WRITE),
            (2, MADV_DONTNEED_LOCKED),
            (1, MADV_COLLAPSE),
            (4, MADV_GUARD_INSTALL),
            (3, MADV_GUARD_REMOVE),
            (1, MADV_HWPOISON),
            (1, MADV_SOFT_OFFLINE),
        ]);
        let advice = if self.random.one_in(60) { self.int(110) } else { advice };
        Op::Madvise { addr, len, advice }
    }

    fn lock(&mut self, scene: &Scene) -> Op {
        let (addr, len) = self.range(scene);
        match self.random.below(10) {
            0..=2 => Op::Mlock { addr, len },
            3 | 4 => {
                let flags = self.random.weighted(&[(20, MLOCK_ONFAULT), (5, 0)]);
                let flags = if self.random.one_in(20) { self.int(8) } else { flags };
                Op::Mlock2 { addr, len, flags }
            }
            _ => Op::Munlock { addr, len },
        }
    }

    fn lock_all(&mut self) -> Op {
        let flags = self.random.pick(&[
            MCL_CURRENT,
            MCL_FUTURE,
            MCL_CURRENT | MCL_FUTURE,
            MCL_CURRENT | MCL_ONFAULT,
            MCL_FUTURE | MCL_ONFAULT,
        ]);
        let flags = if self.random.one_in(4) { self.int(16) } else { flags };
        if self.random.one_in(3) { Op::Mlockall { flags } } else { Op::Munlockall }
    }

    fn brk(&mut self) -> Op {
        let start = self.place.initial.layout.start_brk;
        let addr = match self.random.below(30) {
            0 => 0,
            1 => start - self.pages(3),
            2 => start + GIANT,
            3 => self.extreme(),
            _ => start + self.random.below(14 * PAGE),
        };
        Op::Brk { addr }
    }

    fn seal(&mut self, scene: &Scene) -> Op {
        let (addr, len) = self.range(scene);
        let flags = if self.random.one_in(20) { self.random.next() } else { 0 };
        Op::Mseal { addr, len, flags }
    }

    /// The address of a byte to touch.
    fn byte(&mut self, scene: &Scene) -> usize {
        let stacks: Vec<usize> = scene
            .vmas
            .iter()
            .filter(|(_, vma)| vma.flags.has(VmFlags::GROWSDOWN))
            .map(|(range, _)| range.start)
            .collect();
        let page = match self.random.below(12) {
            0 if !stacks.is_empty() => self.random.pick(&stacks).saturating_sub(self.pages(4)),
            0 | 1 => self.spot(scene),
            _ => self.mapped(scene),
        };
        page.wrapping_add(self.random.below(PAGE))
    }

    fn touch(&mut self, scene: &Scene) -> Op {
        let access =
            self.random.weighted(&[(8, Access::Read), (12, Access::Write), (1, Access::Execute)]);
        Op::Touch { addr: self.byte(scene), access }
    }

    fn force(&mut self, scene: &Scene) -> Op {
        let access = self.random.weighted(&[(1, Access::Read), (2, Access::Write)]);
        Op::Force { addr: self.byte(scene), access }
    }

    fn fork(&mut self) -> Op {
        Op::Fork { child_goes_on: self.random.one_in(2) }
    }

    fn msync(&mut self, scene: &Scene) -> Op {
        let (addr, len) = self.range(scene);
        let flags = self.random.pick(&[MS_ASYNC, MS_SYNC, MS_SYNC | MS_INVALIDATE, 0]);
        let flags = if self.random.one_in(3) { self.int(16) } else { flags };
        Op::Msync { addr, len, flags }
    }

    fn mincore(&mut self, scene: &Scene) -> Op {
        let (addr, len) = self.range(scene);
        Op::Mincore { addr, len, vector: self.byte(scene) }
    }

    fn limit(&mut self, scene: &Scene) -> Op {
        let Limits { address_space, data, data_max, locked, stack } = self.place.initial.limits;
        let which = self.random.weighted(&[
            (12, Which::AddressSpace),
            (12, Which::Data),
            (1, Which::DataMax),
            (12, Which::Locked),
            (12, Which::Stack),
        ]);
        let free = self.random.one_in(2);
        let more = self.random.below(12);
        let (now, most) = match which {
            Which::AddressSpace => (scene.counts.total, address_space),
            // A limit of 0 is a special case.
            Which::Data => (scene.counts.data * self.random.below(8).min(1), data),
            Which::DataMax => (scene.counts.data, data_max),
            Which::Locked => (scene.counts.locked * self.random.below(2), locked),
            Which::Stack => (0, stack),
        };
        let more = if now == 0 && self.random.one_in(2) { 0 } else { more };
        let bytes = match self.random.below(20) {
            0 => self.random.next(),
            _ if free => most,
            _ => (((now + more) * PAGE) as u64).min(most),
        };
        Op::Limit { which, bytes }
    }

    fn name(&mut self, scene: &Scene) -> Op {
        let (addr, len) = self.range(scene);
        let name = self.random.below(NAMES.len() + 1).checked_sub(1);
        Op::Name { addr, len, name }
    }

    fn capability(&mut self) -> Op {
        let which = self.random.pick(&[Capability::Lock, Capability::RawIo, Capability::Resource]);
        Op::Capability { which, has: !self.random.one_in(3) }
    }

    /// An address of the program's parts. Its heap stays near where it was, mostly.
    fn address(&mut self, scene: &Scene) -> Op {
        let start = self.place.initial.layout.start_brk;
        let option = self.random.weighted(&[
            (6, PR_SET_MM_START_BRK),
            (8, PR_SET_MM_BRK),
            (4, PR_SET_MM_START_STACK),
            (2, PR_SET_MM_START_DATA),
            (2, PR_SET_MM_END_DATA),
            (1, PR_SET_MM_START_CODE),
            (1, PR_SET_MM_END_CODE),
            (1, PR_SET_MM_ARG_START),
            (1, PR_SET_MM_ARG_END),
            (1, PR_SET_MM_ENV_START),
            (1, PR_SET_MM_ENV_END),
        ]);
        let heap = matches!(option, PR_SET_MM_START_BRK | PR_SET_MM_BRK);
        let option = match self.int(20) {
            // These set something else, or all.
            12..=15 => option,
            any if self.random.one_in(40) => any,
            _ => option,
        };
        let addr = match self.random.below(20) {
            0 => self.extreme(),
            1 => self.byte(scene),
            _ if !heap => self.spot(scene),
            2..=7 if option == PR_SET_MM_START_BRK => start,
            _ => start + self.random.below(14 * PAGE),
        };
        // By itself an address is set only by those who have a capability.
        Op::SetAddress { option, addr, by_map: !self.random.one_in(4) }
    }

    /// Opens shared anonymous memory, if there is some.
    fn open(&mut self, scene: &Scene) -> Op {
        let shared = scene.vmas.iter().filter(|(_, vma)| {
            let is_object = matches!(vma.source, Source::SharedAnonymous(_));
            is_object || matches!(vma.source, Source::File(_)) && self.random.one_in(8)
        });
        let shared: Vec<usize> = shared.map(|(range, _)| range.start).collect();
        let at = if shared.is_empty() { self.spot(scene) } else { self.random.pick(&shared) };
        Op::Open { at }
    }

    /// A change of a file.
    fn file_step(&mut self) -> Op {
        let file = self.file();
        match self.random.below(10) {
            0..=3 => {
                let pages = if file == files::SECOND { files::LARGE } else { files::PAGES };
                Op::Truncate { file, pages: self.random.below(2 * pages) }
            }
            4 | 5 => {
                let seals = self.random.pick(&[libc::F_SEAL_WRITE, libc::F_SEAL_FUTURE_WRITE]);
                Op::AddSeals { file, seals }
            }
            6..=8 => Op::Rename { file: files::ON_DISK, name: self.random.below(6) },
            _ if self.random.one_in(4) => Op::Unlink { file: files::ON_DISK },
            _ => Op::Rename { file, name: self.random.below(6) },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Arc;

    use pervma_linux::{File, FileFacts, OpenFile, Vma};

    use super::*;
    use crate::child::{CAP_CHECKPOINT_RESTORE, InitialState};
    use crate::machine::Machine;

    /// Steps for a scene of a few mappings, without a process.
    fn generated(steps: usize) -> (Vec<Op>, BTreeMap<&'static str, u64>) {
        let machine = Machine::here().unwrap();
        let initial = InitialState::unborn().with(CAP_CHECKPOINT_RESTORE);
        let mut generator = Generator::new(3, Place { machine: &machine, initial: &initial });
        let file: Arc<dyn File> = Arc::new(OpenFile::new("file", FileFacts::new()));
        let vma = |flags, source| Vma { flags, page_offset: 0, source, anon: None, name: None };
        let read = VmFlags::READ | VmFlags::MAYALL;
        let mut scene = Scene {
            vmas: vec![(CODE..CODE + PAGE, vma(read | VmFlags::EXEC, Source::Anonymous))],
            limits: Limits { data_max: u64::MAX, ..Limits::default() },
            ..Scene::default()
        };
        // As many as there usually are.
        let sources = [Source::Anonymous, Source::File(file)];
        for (start, source) in
            (WINDOW.start..).step_by(4 * PAGE).zip(sources.iter().cycle()).take(10)
        {
            scene.vmas.push((start..start + 3 * PAGE, vma(read, source.clone())));
        }
        let mut excluded = BTreeMap::new();
        let steps = (0..steps).map(|_| generator.next(&mut scene, &mut excluded)).collect();
        (steps, excluded)
    }

    #[test]
    fn every_flag_of_mmap_meets_every_type_and_every_file() {
        let (mut by_type, mut by_file, mut both) =
            (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        for op in generated(1_600_000).0 {
            let Op::Mmap { flags, file, .. } = op else { continue };
            let (kind, anonymous) = (flags & MAP_TYPE, flags & MAP_ANONYMOUS != 0);
            for bit in (0..64).filter(|bit| flags >> bit & 1 != 0) {
                by_type.insert((kind, anonymous, bit));
                by_file.insert((file, bit));
            }
            both.insert((kind, file));
        }
        let named: Vec<u32> = (0..64).filter(|bit| MAP_TYPE >> bit & 1 == 0).collect();
        for bit in named.iter().copied().filter(|bit| 1 << bit != MAP_ANONYMOUS) {
            for kind in 0..16 {
                for anonymous in [false, true] {
                    assert!(by_type.contains(&(kind, anonymous, bit)), "{kind} {anonymous} {bit}");
                }
            }
            for file in 0..=files::COUNT {
                assert!(by_file.contains(&(Some(file), bit)), "{file} {bit}");
            }
        }
        let pairs = (0..16).flat_map(|kind| (0..=files::COUNT).map(move |file| (kind, Some(file))));
        pairs.for_each(|pair| assert!(both.contains(&pair), "{pair:?}"));
    }

    #[test]
    fn every_flag_of_the_other_calls_is_generated() {
        let mut seen = BTreeSet::new();
        for op in generated(800_000).0 {
            let flags = match op {
                Op::Mmap { prot, .. } | Op::Mprotect { prot, .. } => prot,
                Op::Mremap { flags, .. } | Op::Mseal { flags, .. } => flags,
                Op::Madvise { advice, .. } => u64::from(advice.cast_unsigned()),
                Op::Mlock2 { flags, .. } | Op::Mlockall { flags } | Op::Msync { flags, .. } => {
                    u64::from(flags.cast_unsigned())
                }
                Op::PkeyMprotect { key, .. } => u64::from(key.cast_unsigned()),
                Op::SetAddress { option, .. } => u64::from(option.cast_unsigned()),
                Op::AddSeals { file, seals } => {
                    (file as u64) << 32 | u64::from(seals.unsigned_abs())
                }
                Op::Truncate { file, .. } | Op::Rename { file, .. } => file as u64,
                _ => 0,
            };
            let few = matches!(op, Op::Madvise { .. }) && flags < 110;
            if few || matches!(op, Op::AddSeals { .. } | Op::Truncate { .. } | Op::Rename { .. }) {
                seen.insert((op.name(), flags));
            } else {
                let bits = (0..64).filter(|bit| flags >> bit & 1 != 0);
                seen.extend(bits.map(|bit| (op.name(), 1000 + bit)));
                seen.insert((op.name(), u64::MAX));
            }
        }
        let must = |name, number| assert!(seen.contains(&(name, number)), "{name} {number}");
        for bit in 0..64 {
            for name in ["mmap", "mprotect", "mremap", "mseal"] {
                must(name, 1000 + bit);
            }
        }
        for bit in 0..32 {
            for name in ["mlock2", "mlockall", "msync", "pkey_mprotect", "prctl(SET_MM)"] {
                must(name, 1000 + bit);
            }
        }
        (0..110).for_each(|advice| must("madvise", advice));
        for file in 0..=files::COUNT as u64 {
            must("ftruncate", file);
            must("rename", file);
            must("fcntl", file << 32 | 8);
            must("fcntl", file << 32 | 16);
        }
        let names: BTreeSet<&str> = seen.iter().map(|(name, _)| *name).collect();
        assert_eq!(names.len(), Op::KINDS);
    }

    #[test]
    fn no_step_is_excluded_but_by_an_exception_with_a_name() {
        let (steps, excluded) = generated(200_000);
        assert_eq!(steps.len(), 200_000);
        let known: BTreeSet<&str> =
            exceptions::ALL.iter().map(|exception| exception.name).collect();
        assert_eq!(known.len(), exceptions::ALL.len(), "a name is given twice");
        assert!(excluded.keys().all(|name| known.contains(name)), "{excluded:?}");
        // One step in ten, nearly all because one mapping in ten is the page of instructions.
        assert!(excluded.values().sum::<u64>() < 20_000, "{excluded:?}");
    }
}
