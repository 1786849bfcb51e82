//! Making up what to do next: so that it often succeeds, and that merging, cutting and ranges over
//! several mappings are common.

use std::ops::Range;

use pervma_linux::{Access, Counts, Limits, VmFlags, Vma, abi::*};

use crate::child::{Born, CAP_SYS_ADMIN, CODE};
use crate::files;
use crate::op::{Op, Which};
use crate::random::Random;

/// Fixed mappings go here.
const WINDOW: Range<usize> = 0x1000_0000_0000..0x1000_0000_0000 + 40 * PAGE;
/// Mappings of half of all memory go here.
const HALVES: usize = 0x2000_0000_0000;
/// Files, of which the last one is not open.
const FILES: usize = 9;
/// The one that may be on a disk.
const ON_DISK: usize = 7;
/// A length that cannot be had.
const GIANT: usize = 1 << 46;

/// Makes steps up.
#[derive(Debug)]
pub struct Generator {
    random: Random,
    born: Born,
    /// The most pages that one call may promise.
    commit_limit: usize,
}

/// What there is to do something with.
#[derive(Debug, Default)]
pub struct Scene {
    /// The mappings.
    pub vmas: Vec<(Range<usize>, Vma)>,
    /// What is counted.
    pub counts: Counts,
}

impl Generator {
    /// The same seed makes the same steps up, on the same scenes.
    #[must_use]
    pub fn new(seed: u64, born: Born, commit_limit: usize) -> Self {
        Self { random: Random::new(seed), born, commit_limit }
    }

    /// The next step.
    pub fn next(&mut self, scene: &mut Scene) -> Op {
        type Make = fn(&mut Generator, &Scene) -> Op;
        const STEPS: &[(usize, Make)] = &[
            (240, Generator::mmap),
            (80, Generator::munmap),
            (140, Generator::mprotect),
            (110, Generator::mremap),
            (130, Generator::madvise),
            (50, Generator::lock),
            (6, Generator::lock_all),
            (30, Generator::brk),
            (4, Generator::seal),
            (150, Generator::touch),
            (14, Generator::fork),
            (16, Generator::msync),
            (12, Generator::mincore),
            (10, Generator::limit),
            (4, Generator::rarities),
        ];
        // The page of instructions is nobody's to change.
        scene.vmas.retain(|(range, _)| range.start != CODE);
        let make = self.random.weighted(STEPS);
        make(self, scene)
    }

    fn pages(&mut self, most: usize) -> usize {
        (1 + self.random.below(most)) * PAGE
    }

    /// A page that something may well happen at.
    fn spot(&mut self, scene: &Scene) -> usize {
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

    /// A range that is mapped, often over several mappings; sometimes with a hole, or odd.
    fn range(&mut self, scene: &Scene) -> (usize, usize) {
        let addr = if self.random.one_in(8) { self.spot(scene) } else { self.mapped(scene) };
        let after = scene.vmas.partition_point(|(range, _)| range.end <= addr);
        // Not over the page of instructions.
        let next = scene.vmas.get(after).filter(|_| addr > CODE);
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
            0 => (addr + self.random.below(PAGE), len),
            1 => (addr, len - self.random.below(PAGE)),
            2 if addr > CODE => {
                (addr, self.random.pick(&[0, usize::MAX, GIANT, usize::MAX - PAGE + 1]))
            }
            _ => (addr, len),
        }
    }

    fn prot(&mut self) -> u64 {
        let sane = [
            (45, PROT_READ | PROT_WRITE),
            (22, PROT_READ),
            (14, PROT_NONE),
            (8, PROT_READ | PROT_EXEC),
            (5, PROT_READ | PROT_WRITE | PROT_EXEC),
            (4, PROT_WRITE),
            (2, PROT_EXEC),
        ];
        self.random.weighted(&sane)
    }

    fn mmap(&mut self, scene: &Scene) -> Op {
        let kind = self.random.weighted(&[
            (62, MAP_PRIVATE | MAP_ANONYMOUS),
            (8, MAP_SHARED | MAP_ANONYMOUS),
            (14, MAP_PRIVATE),
            (10, MAP_SHARED),
            (3, MAP_DROPPABLE | MAP_ANONYMOUS),
            (2, MAP_SHARED_VALIDATE),
            (1, MAP_SHARED_VALIDATE | MAP_ANONYMOUS),
        ]);
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
            (100, MAP_ABOVE4G),
            (100, MAP_NONBLOCK),
            (100, MAP_DENYWRITE),
            (60, MAP_SYNC),
            (300, 1 << 40),
        ] {
            if self.random.one_in(rarity) {
                flags |= flag;
            }
        }
        if self.random.one_in(40) && (!self.born.randomized || addr != 0) {
            flags |= MAP_32BIT;
        }
        let mut prot = self.prot();
        let mut len = self.pages(5);
        let file = (kind & MAP_ANONYMOUS == 0).then(|| match self.random.below(40) {
            0..=16 => 0,
            17..=26 => 1,
            27..=30 => ON_DISK,
            other => other % FILES,
        });
        let most = if file == Some(1) { files::LARGE } else { files::PAGES };
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
        match self.random.below(150) {
            0 => addr += self.random.below(PAGE),
            1 => offset += self.random.below(PAGE),
            2 => len -= self.random.below(PAGE),
            3 => len = self.random.pick(&[0, usize::MAX, self.born.layout.task_size + PAGE]),
            4..=7 if flags & (MAP_POPULATE | MAP_LOCKED) == 0 => {
                len = HUGE * (1 + self.random.below(2));
            }
            8 if self.commit_limit != usize::MAX && kind == MAP_PRIVATE | MAP_ANONYMOUS => {
                (len, prot) = (GIANT, PROT_WRITE);
                flags &= !MAP_NORESERVE;
            }
            9 => addr = self.born.layout.task_size - self.pages(3),
            10 => addr = self.pages(2) - PAGE,
            11 => offset = usize::MAX & !(PAGE - 1),
            12 => addr = self.born.layout.start_brk + self.pages(12),
            // An address in the last page is taken for an error.
            13 => addr = usize::MAX - self.random.below(PAGE),
            // Two of these may merge, and are more then than can be promised.
            14..=17 if self.commit_limit != usize::MAX && kind == MAP_PRIVATE | MAP_ANONYMOUS => {
                len = self.commit_limit / 8 * 5 * PAGE;
                addr = HALVES + self.random.below(2) * len;
                (prot, flags) = (PROT_READ | PROT_WRITE, kind | MAP_FIXED);
            }
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
            let key = self.random.pick(&[-1, -1, 0, 1]);
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
            (1, 8),
        ]);
        let equal = flags & MREMAP_DONTUNMAP != 0 && !self.random.one_in(20);
        let new_addr = match self.random.below(30) {
            0 => 0,
            1 => self.spot(scene) + 1,
            _ => self.spot(scene),
        };
        let new_len = if equal { old_len } else { new_len };
        // Not over the page of instructions.
        let over = new_addr <= CODE && new_len > CODE - new_addr;
        let new_addr = if over { WINDOW.start } else { new_addr };
        Op::Mremap { addr, old_len, new_len, flags, new_addr }
    }

    fn madvise(&mut self, scene: &Scene) -> Op {
        let (addr, len) = self.range(scene);
        let mut advice = self.random.weighted(&[
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
            (1, 7),
        ]);
        let largest = scene.vmas.iter().map(|(range, _)| range.end - range.start).max();
        let largest = largest.unwrap_or(0);
        let harmful = match advice {
            // Where huge pages are is not in the map.
            MADV_HUGEPAGE | MADV_COLLAPSE => largest >= HUGE / 2,
            // Half of all memory is only promised.
            MADV_POPULATE_READ | MADV_POPULATE_WRITE | MADV_GUARD_INSTALL => largest >= 64 * HUGE,
            MADV_HWPOISON | MADV_SOFT_OFFLINE => self.born.has(CAP_SYS_ADMIN),
            _ => false,
        };
        if harmful {
            advice = MADV_NOHUGEPAGE;
        }
        Op::Madvise { addr, len, advice }
    }

    fn lock(&mut self, scene: &Scene) -> Op {
        let (addr, len) = self.range(scene);
        match self.random.below(10) {
            0..=2 => Op::Mlock { addr, len },
            3 | 4 => {
                let flags = self.random.weighted(&[(20, MLOCK_ONFAULT), (5, 0), (1, 2)]);
                Op::Mlock2 { addr, len, flags }
            }
            _ => Op::Munlock { addr, len },
        }
    }

    fn lock_all(&mut self, _scene: &Scene) -> Op {
        let flags = self.random.pick(&[
            MCL_CURRENT,
            MCL_FUTURE,
            MCL_CURRENT | MCL_FUTURE,
            MCL_CURRENT | MCL_ONFAULT,
            MCL_FUTURE | MCL_ONFAULT,
            MCL_ONFAULT,
            0,
        ]);
        if self.random.one_in(3) { Op::Mlockall { flags } } else { Op::Munlockall }
    }

    fn brk(&mut self, _scene: &Scene) -> Op {
        let start = self.born.layout.start_brk;
        let addr = match self.random.below(30) {
            0 => 0,
            1 => start - self.pages(3),
            2 => start + GIANT,
            _ => start + self.random.below(14 * PAGE),
        };
        Op::Brk { addr }
    }

    fn seal(&mut self, scene: &Scene) -> Op {
        let (addr, len) = self.range(scene);
        Op::Mseal { addr, len, flags: u64::from(self.random.one_in(20)) }
    }

    fn touch(&mut self, scene: &Scene) -> Op {
        let stacks: Vec<usize> = scene
            .vmas
            .iter()
            .filter(|(_, vma)| vma.flags.has(VmFlags::GROWSDOWN))
            .map(|(range, _)| range.start)
            .collect();
        let addr = match self.random.below(12) {
            0 if !stacks.is_empty() => self.random.pick(&stacks).saturating_sub(self.pages(4)),
            0 | 1 => self.spot(scene),
            _ => self.mapped(scene),
        };
        let access =
            self.random.weighted(&[(8, Access::Read), (12, Access::Write), (1, Access::Execute)]);
        let within = self.random.below(PAGE);
        // An instruction is not to reach into the next page.
        let within = if access == Access::Execute { within & !0xf } else { within };
        Op::Touch { addr: addr + within, access }
    }

    fn fork(&mut self, _scene: &Scene) -> Op {
        Op::Fork { child_goes_on: self.random.one_in(2) }
    }

    fn msync(&mut self, scene: &Scene) -> Op {
        let (addr, len) = self.range(scene);
        let flags = self.random.pick(&[MS_ASYNC, MS_SYNC, MS_SYNC | MS_INVALIDATE, 0, 5, 8]);
        Op::Msync { addr, len, flags }
    }

    fn mincore(&mut self, scene: &Scene) -> Op {
        let (addr, len) = self.range(scene);
        // One that writes over all of memory is of no use.
        let len = len.min(GIANT);
        Op::Mincore { addr, len, vector: self.mapped(scene) + self.random.below(PAGE) }
    }

    fn limit(&mut self, scene: &Scene) -> Op {
        let Limits { address_space, data, data_max, locked, stack } = self.born.limits;
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
            // None at all is a special case.
            Which::Data => (scene.counts.data * self.random.below(8).min(1), data),
            Which::DataMax => (scene.counts.data, data_max),
            Which::Locked => (scene.counts.locked * self.random.below(2), locked),
            Which::Stack => (0, stack),
        };
        let more = if now == 0 && self.random.one_in(2) { 0 } else { more };
        let bytes = if free { most } else { (((now + more) * PAGE) as u64).min(most) };
        Op::Limit { which, bytes }
    }

    fn rarities(&mut self, scene: &Scene) -> Op {
        let (addr, len) = self.range(scene);
        Op::Unname { addr, len }
    }
}
