//! Finding fewer steps that lead to a difference.

use std::io;
use std::ops::Range;

use pervma_linux::{Config, VmFlags, Vma, abi};

use crate::child::{CODE, Privileges};
use crate::exceptions::{self, Place};
use crate::files::{OpenFiles, Opened};
use crate::machine::Machine;
use crate::model::Subject;
use crate::op::Op;
use crate::outcome::Outcome;
use crate::replay::Found;
use crate::scene::Scene;
use crate::session::{Difference, Session};

/// How many of the last steps may be kept behind a scene that was mapped at once.
const KEPT: usize = 4;

/// Leaves out steps as long as something differs after the others, whatever it is.
pub(crate) struct Shrinker<'a, F> {
    /// The machine to compare on.
    pub machine: &'a Machine,
    /// What the process may do.
    pub privileges: Privileges,
    /// Makes the model that differs.
    pub make: &'a F,
    /// Called with the number of steps each time that there are fewer.
    pub watch: &'a mut dyn FnMut(usize),
}

impl<S: Subject, F: Fn(&Config, &OpenFiles) -> S> Shrinker<'_, F> {
    /// Leaves out steps; asks for fixed addresses, and leaves out again; then maps at once what the
    /// first steps have led to, and leaves out again.
    pub(crate) fn shrink(&mut self, found: Found) -> io::Result<Found> {
        let shortest = self.leave_out(found)?;
        let shortest = self.fix_addresses(shortest)?;
        let shortest = self.lower_limits(shortest)?;
        for kept in 1..=KEPT.min(shortest.1.len()) {
            let (first, last) = shortest.1.split_at(shortest.1.len() - kept);
            let mapped = self.restate(first)?;
            let others = first.iter().filter(|op| op.changes_no_mapping());
            let others: Vec<Op> = others.cloned().collect();
            // What is mapped before a file or a limit changes may differ from what is mapped after.
            for first in [[&mapped, &others], [&others, &mapped]] {
                let mut steps = [first[0], first[1], last].concat();
                if let Some((made, difference)) = self.replay(&steps)? {
                    steps.truncate(made);
                    let restated = self.leave_out((difference, steps))?;
                    if restated.1.len() < shortest.1.len() {
                        return self.shrink(restated);
                    }
                }
            }
        }
        Ok(shortest)
    }

    /// Leaves out first large parts, then smaller ones, down to single steps.
    fn leave_out(&mut self, (mut difference, mut steps): Found) -> io::Result<Found> {
        let mut part = steps.len().div_ceil(2);
        loop {
            let (mut start, mut shorter) = (0, false);
            while start < steps.len() {
                let end = (start + part).min(steps.len());
                let mut rest = steps.clone();
                rest.drain(start..end);
                match self.replay(&rest)? {
                    Some((made, found)) => {
                        rest.truncate(made);
                        (steps, difference, shorter) = (rest, found, true);
                        (self.watch)(steps.len());
                    }
                    None => start = end,
                }
            }
            if part <= 1 && !shorter {
                return Ok((difference, steps));
            }
            part = part.div_ceil(2);
        }
    }

    /// Asks for the addresses that the kernel has chosen, and leaves out what they depended on.
    fn fix_addresses(&mut self, found: Found) -> io::Result<Found> {
        let mut session = Session::begin(self.machine, self.privileges, self.make)?;
        let mut steps = found.1.clone();
        let Some((_, first)) = steps.split_last_mut() else { return Ok(found) };
        for op in first {
            let Outcome::Returned(result) = session.step(op)?.0 else { continue };
            let Ok(chosen) = usize::try_from(result) else { continue };
            match op {
                Op::Mmap { addr, flags, .. } if *flags & abi::MAP_FIXED_NOREPLACE == 0 => {
                    (*addr, *flags) = (chosen, *flags | abi::MAP_FIXED);
                }
                Op::Mremap { addr, flags, new_addr, .. } if *addr != chosen => {
                    (*new_addr, *flags) = (chosen, *flags | abi::MREMAP_FIXED);
                }
                _ => {}
            }
        }
        match self.replay(&steps)? {
            Some((made, difference)) => {
                steps.truncate(made);
                self.leave_out((difference, steps))
            }
            None => Ok(found),
        }
    }

    /// Sets limits to 0 where something differs then, too, and leaves out what was mapped to reach
    /// them.
    fn lower_limits(&mut self, (mut difference, mut steps): Found) -> io::Result<Found> {
        for at in 0..steps.len() {
            let Some(&Op::Limit { which, bytes: 1.. }) = steps.get(at) else { continue };
            let mut lower = steps.clone();
            lower[at] = Op::Limit { which, bytes: 0 };
            if let Some((made, found)) = self.replay(&lower)? {
                lower.truncate(made);
                (difference, steps) = self.leave_out((found, lower))?;
            }
        }
        Ok((difference, steps))
    }

    /// Makes steps from a new process on, as long as none is excluded: without those before it one
    /// may be.
    fn replay(&self, steps: &[Op]) -> io::Result<Option<(usize, Difference)>> {
        let mut session = Session::begin(self.machine, self.privileges, self.make)?;
        let initial = session.initial().clone();
        let place = Place { machine: self.machine, initial: &initial };
        for (made, op) in steps.iter().enumerate() {
            if exceptions::of(op, &Scene::of(session.subject()), &place).is_some() {
                return Ok(None);
            }
            if let (_, Some(difference)) = session.step(op)? {
                return Ok(Some((made + 1, difference)));
            }
        }
        let difference = session.compare_slow()?;
        Ok(difference.map(|difference| (steps.len(), difference)))
    }

    /// The calls that map at once what the steps lead to.
    fn restate(&self, steps: &[Op]) -> io::Result<Vec<Op>> {
        let mut session = Session::begin(self.machine, self.privileges, self.make)?;
        for op in steps {
            session.step(op)?;
        }
        let vmas = session.subject().vmas();
        let others = vmas.iter().filter(|(range, _)| range.start != CODE);
        Ok(others.map(|(range, vma)| mapped(range, vma, session.files())).collect())
    }
}

/// The call that maps such a mapping.
fn mapped(range: &Range<usize>, vma: &Vma, files: &OpenFiles) -> Op {
    let shared = if vma.flags.has(VmFlags::SHARED) { abi::MAP_SHARED } else { abi::MAP_PRIVATE };
    let same = |opened: &Opened| {
        let position =
            |known: &Option<_>| known.as_deref().is_some_and(|k| std::ptr::eq(k, opened));
        files.iter().position(position)
    };
    let opened = Opened::of(vma);
    let file = opened.and_then(same);
    let anonymous = if opened.is_some() { 0 } else { abi::MAP_ANONYMOUS };
    let mut flags = shared | anonymous | abi::MAP_FIXED;
    let mut prot = abi::PROT_NONE;
    for (flag, bit) in [
        (VmFlags::GROWSDOWN, abi::MAP_GROWSDOWN),
        (VmFlags::NORESERVE, abi::MAP_NORESERVE),
        (VmFlags::NOHUGEPAGE, abi::MAP_STACK),
        (VmFlags::LOCKED, abi::MAP_LOCKED),
    ] {
        flags |= if vma.flags.has(flag) { bit } else { 0 };
    }
    for (flag, bit) in [
        (VmFlags::READ, abi::PROT_READ),
        (VmFlags::WRITE, abi::PROT_WRITE),
        (VmFlags::EXEC, abi::PROT_EXEC),
    ] {
        prot |= if vma.flags.has(flag) { bit } else { 0 };
    }
    let offset = if file.is_some() { vma.page_offset * abi::PAGE as u64 } else { 0 };
    let len = range.end - range.start;
    Op::Mmap { addr: range.start, len, prot, flags, file, offset }
}
