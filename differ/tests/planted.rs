//! The tester is tested: each wrong rule is found, and in few steps.
//!
//! A wrong rule is made around the model: it makes another step than it was asked to, or has learnt
//! something else about the machine.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "common/capability.rs"]
mod capability;
mod common;

use std::ops::Range;

use pervma_differ::{Model, Op, OpenFiles, Options, Outcome, Special, Subject, Which, run};
use pervma_linux::{Access, Config, Counts, Errno, Source, VmFlags, Vma, abi::*};

/// The number of the file on a disk, of one in `/sys`, and of a pipe.
const ON_DISK: usize = 7;
const IN_SYS: usize = 10;
const PIPE: usize = 12;
const ZERO: usize = 14;
const FIRST: usize = 0;
/// The file that shared memory is opened as.
const AGAIN: usize = 23;
/// A socket of the kind that cannot be mapped, and one that can.
const SOCKETS: [usize; 2] = [20, 22];

/// Wrong rules that only show where the process has privileges.
const PRIVILEGED: [&str; 3] = [
    "no process may map low",
    "a capability is never dropped",
    "shared memory that is opened is a copy",
];

/// A wrong rule.
struct Planted {
    name: &'static str,
    /// Changes what the model believes of the machine.
    belief: fn(&mut Config),
    /// Does something else than the step; `None` where it does the step.
    step: fn(&mut Model, &Op) -> Option<Outcome>,
}

/// The model with a wrong rule.
struct Wrong {
    model: Model,
    step: fn(&mut Model, &Op) -> Option<Outcome>,
}

impl Subject for Wrong {
    fn adopt(&mut self, special: &Special) {
        self.model.adopt(special);
    }

    fn step(&mut self, op: &Op) -> Outcome {
        (self.step)(&mut self.model, op).unwrap_or_else(|| self.model.step(op))
    }

    fn maps(&self) -> String {
        self.model.maps()
    }

    fn flags(&self) -> Vec<String> {
        self.model.flags()
    }

    fn counts(&self) -> Counts {
        self.model.counts()
    }

    fn config(&self) -> Config {
        self.model.config()
    }

    fn vmas(&self) -> Vec<(Range<usize>, Vma)> {
        self.model.vmas()
    }

    fn ended_child(&self) -> &str {
        self.model.ended_child()
    }
}

fn no_belief(_: &mut Config) {}

fn as_asked(_: &mut Model, _: &Op) -> Option<Outcome> {
    None
}

const fn belief(name: &'static str, belief: fn(&mut Config)) -> Planted {
    Planted { name, belief, step: as_asked }
}

const fn rule(name: &'static str, step: fn(&mut Model, &Op) -> Option<Outcome>) -> Planted {
    Planted { name, belief: no_belief, step }
}

/// `mmap` with other flags.
fn mmap_flags(model: &mut Model, op: &Op, change: impl Fn(u64) -> u64) -> Option<Outcome> {
    let Op::Mmap { addr, len, prot, flags, file, offset } = *op else { return None };
    Some(model.step(&Op::Mmap { addr, len, prot, flags: change(flags), file, offset }))
}

/// `madvise` with this advice does nothing.
fn ignores(op: &Op, ignored: i32) -> Option<Outcome> {
    matches!(op, Op::Madvise { advice, .. } if *advice == ignored).then(|| Outcome::of(Ok(0)))
}

/// The first mapping of the kernel's own pages that lies in a range, in part or whole.
fn special_in(model: &Model, addr: usize, len: usize) -> Option<(Range<usize>, Vma)> {
    let end = addr.checked_add(len)?;
    model.vmas().into_iter().find(|(range, vma)| {
        range.start < end && addr < range.end && matches!(vma.source, Source::Special(_))
    })
}

/// The result of a step that is wrong where the first mapping it meets is the kernel's own.
fn at_special(model: &Model, addr: usize, len: usize, wrong: Outcome) -> Option<Outcome> {
    let (range, _) = special_in(model, addr, len)?;
    range.contains(&addr).then_some(wrong)
}

const PLANTED: &[Planted] = &[
    belief("a failed call changes nothing", |config| config.strict = true),
    belief("no gap is kept below a stack", |config| config.layout.stack_guard_gap = 0),
    belief("huge mappings are placed like small ones", |config| config.huge_pages = false),
    belief("RLIMIT_MEMLOCK does not count", |config| config.may_lock = true),
    belief("any amount of memory can be committed", |config| config.commit_limit = usize::MAX),
    belief("whether anonymous memory has names", |config| config.anon_names = !config.anon_names),
    belief(PRIVILEGED[0], |config| config.may_map_low = false),
    rule("anonymous pages keep nothing from merging", |model, op| {
        let Op::Touch { addr, access: Access::Write } = *op else { return None };
        let vmas = model.vmas();
        let (_, vma) = vmas.iter().find(|(range, _)| range.contains(&addr))?;
        let allowed = vma.flags.has(VmFlags::WRITE);
        allowed.then(|| model.step(&Op::Touch { addr, access: Access::Read }))
    }),
    rule("a fork's child merges as its parent", |_, op| match op {
        Op::Fork { child_goes_on: true } => Some(Outcome::Done),
        _ => None,
    }),
    rule("MAP_FIXED_NOREPLACE replaces", |model, op| {
        mmap_flags(model, op, |flags| match flags & MAP_FIXED_NOREPLACE {
            0 => flags,
            _ => flags & !MAP_FIXED_NOREPLACE | MAP_FIXED,
        })
    }),
    rule("hints are ignored", |model, op| match *op {
        Op::Mmap { len, prot, flags, file, offset, .. }
            if flags & (MAP_FIXED | MAP_FIXED_NOREPLACE) == 0 =>
        {
            Some(model.step(&Op::Mmap { addr: 0, len, prot, flags, file, offset }))
        }
        _ => None,
    }),
    rule("MAP_NORESERVE is forgotten", |model, op| {
        mmap_flags(model, op, |flags| flags & !MAP_NORESERVE)
    }),
    rule("MAP_STACK means nothing", |model, op| mmap_flags(model, op, |flags| flags & !MAP_STACK)),
    rule("MAP_POPULATE means nothing", |model, op| {
        mmap_flags(model, op, |flags| flags & !MAP_POPULATE)
    }),
    rule("MAP_SYNC is refused before anything is unmapped", |_, op| match *op {
        Op::Mmap { prot: PROT_READ, flags, file: Some(ON_DISK), len, .. }
            if flags & (MAP_SYNC | MAP_ANONYMOUS) == MAP_SYNC && len != 0 =>
        {
            Some(Outcome::of(Err(Errno::EOPNOTSUPP)))
        }
        _ => None,
    }),
    rule("files in /sys are refused before anything is unmapped", |model, op| match *op {
        Op::Mmap { addr, len, prot, flags, file: Some(IN_SYS), offset } => {
            Some(model.step(&Op::Mmap { addr, len, prot, flags, file: Some(PIPE), offset }))
        }
        _ => None,
    }),
    rule("sockets are refused before anything is unmapped", |model, op| match *op {
        Op::Mmap { addr, len, prot, flags, file: Some(file), offset } if file == SOCKETS[0] => {
            Some(model.step(&Op::Mmap { addr, len, prot, flags, file: Some(PIPE), offset }))
        }
        _ => None,
    }),
    rule("no socket can be mapped", |model, op| match *op {
        Op::Mmap { addr, len, prot, flags, file: Some(file), offset } if file == SOCKETS[1] => {
            let file = Some(SOCKETS[0]);
            Some(model.step(&Op::Mmap { addr, len, prot, flags, file, offset }))
        }
        _ => None,
    }),
    rule("/dev/zero is a file like others", |model, op| match *op {
        Op::Mmap { addr, len, prot, flags, file: Some(ZERO), offset } => {
            Some(model.step(&Op::Mmap { addr, len, prot, flags, file: Some(FIRST), offset }))
        }
        _ => None,
    }),
    rule("a seal does not hold", |_, op| match op {
        Op::AddSeals { .. } => Some(Outcome::Returned(0)),
        _ => None,
    }),
    rule("a name never changes", |_, op| match op {
        Op::Rename { .. } | Op::Unlink { .. } => Some(Outcome::Returned(0)),
        _ => None,
    }),
    rule("a file is as long as it was", |_, op| match op {
        Op::Truncate { .. } => Some(Outcome::Returned(0)),
        _ => None,
    }),
    rule("a forced write makes no anonymous page", |model, op| match *op {
        Op::Force { addr, access: Access::Write } => {
            Some(model.step(&Op::Force { addr, access: Access::Read }))
        }
        _ => None,
    }),
    rule("a forced write is as any other", |model, op| match *op {
        Op::Force { addr, access: Access::Write } => {
            Some(match model.step(&Op::Touch { addr, access: Access::Write }) {
                Outcome::Touched(Ok(())) => Outcome::Returned(0),
                _ => Outcome::of(Err(Errno::EIO)),
            })
        }
        _ => None,
    }),
    rule("munmap rounds lengths down", |model, op| match *op {
        Op::Munmap { addr, len } if len > PAGE => {
            Some(model.step(&Op::Munmap { addr, len: len & !(PAGE - 1) }))
        }
        _ => None,
    }),
    rule("MREMAP_DONTUNMAP unmaps", |model, op| match *op {
        Op::Mremap { addr, old_len, new_len, flags, new_addr }
            if flags == MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP =>
        {
            let flags = MREMAP_MAYMOVE | MREMAP_FIXED;
            Some(model.step(&Op::Mremap { addr, old_len, new_len, flags, new_addr }))
        }
        _ => None,
    }),
    rule("mremap copies nothing", |_, op| match op {
        Op::Mremap { old_len: 0, .. } => Some(Outcome::of(Err(Errno::EINVAL))),
        _ => None,
    }),
    rule("MADV_DONTFORK is ignored", |_, op| ignores(op, MADV_DONTFORK)),
    rule("MADV_WIPEONFORK is ignored", |_, op| ignores(op, MADV_WIPEONFORK)),
    rule("guard pages are ignored", |_, op| ignores(op, MADV_GUARD_INSTALL)),
    rule("madvise stops at a hole", |model, op| {
        let Op::Madvise { addr, len, .. } = *op else { return None };
        let vmas = model.vmas();
        let end = addr.checked_add(len)?;
        let mut at = addr;
        for (range, _) in vmas.iter().filter(|(range, _)| range.end > addr) {
            if at < range.start && range.start < end {
                return Some(Outcome::of(Err(Errno::ENOMEM)));
            }
            at = range.end;
        }
        None
    }),
    rule("MLOCK_ONFAULT locks at once", |model, op| match *op {
        Op::Mlock2 { addr, len, flags: MLOCK_ONFAULT } => {
            Some(model.step(&Op::Mlock2 { addr, len, flags: 0 }))
        }
        _ => None,
    }),
    rule("nothing is sealed", |_, op| match op {
        Op::Mseal { flags: 0, .. } => Some(Outcome::of(Ok(0))),
        _ => None,
    }),
    rule("MS_INVALIDATE is ignored", |model, op| match *op {
        Op::Msync { addr, len, flags } => {
            Some(model.step(&Op::Msync { addr, len, flags: flags & !MS_INVALIDATE }))
        }
        _ => None,
    }),
    rule("RLIMIT_STACK does not count", |_, op| match op {
        Op::Limit { which: Which::Stack, .. } => Some(Outcome::Done),
        _ => None,
    }),
    rule("RLIMIT_AS does not count", |_, op| match op {
        Op::Limit { which: Which::AddressSpace, .. } => Some(Outcome::Done),
        _ => None,
    }),
    rule(PRIVILEGED[1], |_, op| match op {
        Op::Capability { .. } => Some(Outcome::Returned(0)),
        _ => None,
    }),
    rule("what will be mapped is never locked", |model, op| match *op {
        Op::Mlockall { flags } if flags & MCL_FUTURE != 0 && flags & MCL_CURRENT != 0 => {
            Some(model.step(&Op::Mlockall { flags: flags & !MCL_FUTURE }))
        }
        _ => None,
    }),
    rule(PRIVILEGED[2], |model, op| match *op {
        Op::Mmap { addr, len, prot, flags, file: Some(AGAIN), offset } => {
            Some(model.step(&Op::Mmap { addr, len, prot, flags, file: Some(FIRST), offset }))
        }
        _ => None,
    }),
    rule("the heap stays where it was", |model, op| match *op {
        Op::SetAddress { option, by_map, .. } => {
            let addr = match option {
                PR_SET_MM_BRK => model.config().layout.brk,
                PR_SET_MM_START_BRK => model.config().layout.start_brk,
                _ => return None,
            };
            Some(model.step(&Op::SetAddress { option, addr, by_map }))
        }
        _ => None,
    }),
    rule("a data limit of 0 means no data", |model, op| match *op {
        Op::Limit { which: Which::Data, bytes: 0 } => {
            Some(model.step(&Op::Limit { which: Which::Data, bytes: 1 }))
        }
        _ => None,
    }),
    rule("an address in the last page is no gap", |_, op| match *op {
        Op::Mmap { addr, flags, .. } if addr > usize::MAX - PAGE && flags & MAP_FIXED != 0 => {
            Some(Outcome::of(Err(Errno::ENOMEM)))
        }
        _ => None,
    }),
    rule("a part of the kernel's own pages can be unmapped", |model, op| {
        let Op::Munmap { addr, len } = *op else { return None };
        let (range, _) = special_in(model, addr, len)?;
        let is_part = addr.is_multiple_of(PAGE) && (addr > range.start || addr + len < range.end);
        is_part.then(|| Outcome::of(Ok(0)))
    }),
    rule("a part of the kernel's own pages can be protected", |model, op| {
        let Op::Mprotect { addr, len, .. } = *op else { return None };
        at_special(model, addr, len, Outcome::of(Ok(0)))
    }),
    rule("the kernel's own pages grow", |model, op| match *op {
        Op::Mremap { addr, old_len, new_len, flags: MREMAP_MAYMOVE, .. } if old_len < new_len => {
            at_special(model, addr, old_len, Outcome::of(Err(Errno::ENOMEM)))
        }
        _ => None,
    }),
    rule("the kernel's own pages move and stay", |model, op| match *op {
        Op::Mremap { addr, old_len, flags, .. } if flags & MREMAP_DONTUNMAP != 0 => {
            at_special(model, addr, old_len, Outcome::of(Err(Errno::ENOMEM)))
        }
        _ => None,
    }),
    rule("the kernel's own pages are dumped", |model, op| match *op {
        Op::Madvise { addr, len, advice: MADV_DODUMP } => {
            at_special(model, addr, len, Outcome::of(Ok(0)))
        }
        _ => None,
    }),
    rule("pages of devices are discarded", |model, op| match *op {
        Op::Madvise { addr, len, advice: MADV_DONTNEED | MADV_COLD | MADV_PAGEOUT } => {
            at_special(model, addr, len, Outcome::of(Ok(0)))
        }
        _ => None,
    }),
    rule("a fork commits nothing", |model, op| match op {
        Op::Fork { .. } => {
            model.step(op);
            Some(Outcome::Done)
        }
        _ => None,
    }),
    rule("what is not allowed comes before what is not mapped", |model, op| {
        let outcome = model.step(op);
        let forbidden = matches!(op, Op::Mprotect { .. }) && outcome.errno() == Some(13);
        Some(if forbidden { Outcome::of(Err(Errno::ENOMEM)) } else { outcome })
    }),
];

fn found(planted: &Planted) -> Result<(u64, usize), String> {
    let Some(machine) = common::machine() else { return Ok((0, 0)) };
    let make = |config: &Config, files: &OpenFiles| {
        let mut config = *config;
        (planted.belief)(&mut config);
        Wrong { model: Model::new(&config, files), step: planted.step }
    };
    let report = run(&machine, Options { ops: 100_000, seed: 1 }, make, &mut |_| ()).unwrap();
    match report.divergence {
        None => Err(format!("{}: not found", planted.name)),
        Some(divergence) if divergence.steps.len() > 6 => {
            Err(format!("{}: {} steps: {divergence}", planted.name, divergence.steps.len()))
        }
        Some(divergence) => Ok((report.ops, divergence.steps.len())),
    }
}

/// Returns whether this process has the privileges that a child may keep.
fn has_privileges() -> bool {
    const RAWIO: u32 = 17;
    [RAWIO, capability::CHECKPOINT_RESTORE].into_iter().all(capability::has)
}

#[test]
fn every_wrong_rule_is_found_and_shown_in_few_steps() {
    assert!(PLANTED.len() >= 15);
    let mut failures = Vec::new();
    let privileged = has_privileges();
    for planted in PLANTED {
        if PRIVILEGED.contains(&planted.name) && !privileged {
            println!("NOT RUN: {}: this process has no privileges", planted.name);
            continue;
        }
        match found(planted) {
            Ok((ops, steps)) => println!("{:>7} ops, {steps} steps: {}", ops, planted.name),
            Err(failure) => failures.push(failure),
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
