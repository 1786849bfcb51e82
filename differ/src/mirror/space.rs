//! One address space, on both sides.

use std::any::Any;
use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use libc::pid_t;
use pervma_linux::{
    Access, Backing, Config, Errno, File, Mm, NotNow, OpenFile, Part, Refusal, Source, StdPlatform,
    VmFlags, Vma, abi,
};

use crate::compare::{self, Objects};
use crate::guards::Guards;
use crate::mirror::ask::{Asked, Shown, file_of};
use crate::mirror::call::UNKNOWN_PERSONALITY;
use crate::mirror::fact::Fact;
use crate::mirror::held::Held;
use crate::mirror::tracee::{Begun, has_64_bits};
use crate::model;
use crate::op::Op;
use crate::outcome::Outcome;
use crate::probe::{Probed, probe};
use crate::session::Difference;

/// The model of an address space.
pub type Mirrored = Mm<Pages, StdPlatform>;

/// Makes a step in another way than it should be made; `None` where it does not. With it the mirror
/// itself is tested.
pub type Rule = fn(&Mirrored, &Op) -> Option<Outcome>;

/// What is known of the pages behind a model: guard pages, and how long files are.
#[derive(Debug, Default)]
pub struct Pages {
    guards: Guards,
    /// The error that the kernel has returned, for what is not decided by the map.
    told: Mutex<Option<Errno>>,
}

impl Pages {
    fn tell(&self, error: Option<Errno>) {
        *self.told.lock().unwrap_or_else(PoisonError::into_inner) = error;
    }

    fn told(&self) -> Result<(), Errno> {
        let told = *self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.map_or(Ok(()), Err)
    }
}

impl Backing for Pages {
    fn fault(&self, part: Part<'_>, _access: Access) -> Result<(), Refusal> {
        let pages = (part.range.end - part.range.start) / abi::PAGE;
        let size = match &part.vma.source {
            Source::SharedAnonymous(object) => object.size / abi::PAGE,
            Source::File(file) => pages_of(&**file),
            _ => usize::MAX,
        };
        let first = usize::try_from(part.page_offset).unwrap_or(usize::MAX);
        // A guard page is met before the file is asked.
        if let Some(addr) = self.guards.first(part.range) {
            Err(Refusal::Guard { addr })
        } else if pages > size.saturating_sub(first) && !part.vma.is_anonymous() {
            Err(Refusal::Bus)
        } else {
            Ok(())
        }
    }

    fn unmap(&self, range: Range<usize>) {
        self.guards.take(range);
    }

    fn relocate(&self, from: Range<usize>, to: usize) {
        self.guards.relocate(from, to);
    }

    fn copy(&self, part: Part<'_>, child: &Self) {
        self.guards.copy(part.range, &child.guards);
    }

    fn advise(&self, part: Part<'_>, advice: i32) -> Result<(), Errno> {
        match advice {
            abi::MADV_GUARD_INSTALL => self.guards.install(part.range),
            abi::MADV_GUARD_REMOVE => _ = self.guards.take(part.range),
            abi::MADV_COLLAPSE | abi::MADV_REMOVE => return self.told(),
            _ => {}
        }
        Ok(())
    }

    fn sync(&self, _part: Part<'_>) -> Result<(), Errno> {
        self.told()
    }
}

/// The length of a file in pages. One that is not held is found by its name.
fn pages_of(file: &dyn File) -> usize {
    let any: &dyn Any = file;
    let held = match any.downcast_ref::<Held>() {
        Some(held) => held.pages(),
        None => std::fs::metadata(file.path())
            .ok()
            .and_then(|about| usize::try_from(about.len()).ok())
            .map(|bytes| bytes.div_ceil(abi::PAGE)),
    };
    held.unwrap_or(usize::MAX)
}

/// A model before a call.
#[derive(Debug)]
struct Before {
    mm: Mirrored,
    /// Where other threads may have written.
    near: Vec<Range<usize>>,
    /// What the call has mapped.
    mapped: Option<Range<usize>>,
    /// What was taken for written when the kernel looked.
    tried: Vec<Vec<usize>>,
    looks: u32,
}

/// An address space of the kernel's and its model.
#[derive(Debug)]
pub(crate) struct Space {
    /// The program that it began with.
    pub(crate) program: String,
    mm: Mirrored,
    asked: Asked,
    objects: Objects,
    /// Whether some addresses are chosen at random.
    randomized: bool,
    rule: Option<Rule>,
    /// The thread whose call is under way.
    pub(crate) turn: Option<pid_t>,
    /// The threads that wait for their turn.
    pub(crate) queue: VecDeque<pid_t>,
    /// Threads that use it.
    pub(crate) users: usize,
    /// Calls that were compared.
    pub(crate) compared: u64,
    /// The model before a call during which other threads may have written.
    before: Option<Before>,
}

impl Space {
    /// The address space of a program that has just begun, in the thread `tid`.
    pub(crate) fn begin(tid: pid_t, machine: &Config, rule: Option<Rule>) -> io::Result<Self> {
        if !has_64_bits(tid)? {
            return Err(io::Error::other("it is a 32-bit program"));
        }
        let personality = file_of(tid, "personality")?;
        let personality = u64::from_str_radix(personality.trim(), 16).unwrap_or(0);
        if personality & UNKNOWN_PERSONALITY != 0 {
            return Err(io::Error::other("its personality is not modelled"));
        }
        let legacy = std::fs::read_to_string("/proc/sys/vm/legacy_va_layout")?;
        if legacy.trim() != "0" {
            return Err(io::Error::other("vm.legacy_va_layout is set"));
        }
        let of = Mm::of_process(tid.cast_unsigned(), Pages::default(), *machine);
        let (shown, _) = of.map_err(io::Error::other)?;
        let mut code = None;
        now(shown.for_each(|range, vma| {
            if matches!(vma.source, Source::Special(_)) && vma.flags.has(VmFlags::EXEC) {
                code = Some(range);
            }
        }))?;
        let code = code.ok_or_else(|| io::Error::other("the program has no [vdso]"))?;
        let mut begun = Begun::new(tid, code)?;
        let probed = probe(&mut begun);
        begun.end()?;
        let Probed { top, lowest_choice, mmap_min_addr, brk, marks_guards } = probed?;
        let mut config = shown.config();
        config.layout.mmap_base = end_of_mapped(&shown, top + abi::PAGE)?;
        config.lowest_choice = lowest_choice;
        config.mmap_min_addr = mmap_min_addr;
        config.layout.brk = brk;
        config.marks_guards = marks_guards;
        let no_random = u64::try_from(libc::ADDR_NO_RANDOMIZE).unwrap_or(0);
        let machine_wide = std::fs::read_to_string("/proc/sys/kernel/randomize_va_space")?;
        let name = std::fs::read_link(format!("/proc/{tid}/exe"))?;
        Ok(Self {
            program: name.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            mm: copy(&shown, config)?,
            asked: Asked::of(tid)?,
            objects: Objects::default(),
            randomized: personality & no_random == 0 && machine_wide.trim() != "0",
            rule,
            turn: None,
            queue: VecDeque::new(),
            users: 1,
            compared: 0,
            before: None,
        })
    }

    /// The address space of a fork's child.
    pub(crate) fn fork(&self, child: pid_t) -> io::Result<Self> {
        Ok(Self {
            program: self.program.clone(),
            mm: self.mm.fork(Pages::default()).map_err(io::Error::other)?,
            asked: Asked::of(child)?,
            objects: self.objects.clone(),
            turn: None,
            queue: VecDeque::new(),
            users: 1,
            compared: 0,
            before: None,
            ..*self
        })
    }

    /// The model.
    pub(crate) fn mm(&self) -> &Mirrored {
        &self.mm
    }

    /// Makes a step on the model.
    pub(crate) fn make(&mut self, op: &Op, file: Option<&Arc<dyn File>>) -> Option<Outcome> {
        let wrong = self.rule.and_then(|rule| rule(&self.mm, op));
        wrong.or_else(|| model::make(&self.mm, op, file))
    }

    /// Makes a call whose error, if it is one, may be about pages or a file.
    pub(crate) fn make_told(
        &mut self,
        op: &Op,
        file: Option<&Arc<dyn File>>,
        kernel: Outcome,
    ) -> Option<Outcome> {
        let error = kernel.errno().and_then(|error| u16::try_from(error).ok());
        self.mm.backing().tell(error.and_then(Errno::new));
        let outcome = self.make(op, file);
        self.mm.backing().tell(None);
        outcome
    }

    /// Asks which privileges a thread has. Returns whether they have changed.
    pub(crate) fn has_privileges(&mut self, tid: pid_t) -> io::Result<bool> {
        let config = self.mm.config().with_privileges_of(tid.cast_unsigned())?;
        let have_changed = config != self.mm.config();
        self.mm.configure(|now| *now = config).map_err(io::Error::other)?;
        Ok(have_changed)
    }

    /// Whether the kernel chooses the address at random.
    pub(crate) fn is_random(&self, flags: u64) -> bool {
        self.randomized && flags & abi::MAP_32BIT != 0 && flags & abi::MAP_FIXED == 0
    }

    /// Takes over what the program's touches have done so far: that stacks have grown, and which of
    /// the mappings in and beside the ranges were written first.
    pub(crate) fn catch_up(
        &mut self,
        ranges: &[Range<usize>],
        facts: &mut impl FnMut(Fact),
    ) -> io::Result<()> {
        for stack in self.stacks()? {
            self.grow(&stack, facts)?;
        }
        for range in ranges {
            let near = range.start.saturating_sub(abi::PAGE)..range.end.saturating_add(abi::PAGE);
            let written = self.written(&near, None, &self.asked)?;
            self.note_written(&written, facts);
        }
        Ok(())
    }

    /// As [`catch_up`](Self::catch_up), after the kernel has made a call that has mapped a range or
    /// none. The neighbours of an address that it has chosen were not known before. And other
    /// threads may have written meanwhile: whether before the kernel looked is not known.
    pub(crate) fn catch_up_late(
        &mut self,
        ranges: &[Range<usize>],
        mapped: Option<&Range<usize>>,
        facts: &mut impl FnMut(Fact),
    ) -> io::Result<()> {
        self.before = None;
        let near = |range: &Range<usize>| {
            range.start.saturating_sub(abi::PAGE)..range.end.saturating_add(abi::PAGE)
        };
        let meanwhile = if self.users > 1 { ranges } else { &[] };
        let near: Vec<_> = meanwhile.iter().chain(mapped).map(near).collect();
        let written = self.written_near(&near, mapped)?;
        let mut may_be = false;
        for range in near.iter().filter(|_| self.users > 1) {
            may_be |= !self.unwritten(range)?.is_empty();
        }
        if may_be {
            let mm = self.copy()?;
            let tried = vec![written.clone()];
            self.before = Some(Before { mm, near, mapped: mapped.cloned(), tried, looks: 0 });
        }
        self.note_written(&written, facts);
        Ok(())
    }

    fn written_near(
        &self,
        near: &[Range<usize>],
        mapped: Option<&Range<usize>>,
    ) -> io::Result<Vec<usize>> {
        let mut written = Vec::new();
        for range in near {
            written.extend(self.written(range, mapped, &self.asked)?);
        }
        written.sort_unstable();
        written.dedup();
        Ok(written)
    }

    /// The mappings in a range that can be written for the first time.
    fn unwritten(&self, range: &Range<usize>) -> io::Result<Vec<Range<usize>>> {
        let mut at = range.start;
        let mut all = Vec::new();
        while let Some((vma_at, vma)) = now(self.mm.lookup_from(at))? {
            if vma_at.start >= range.end {
                break;
            }
            at = vma_at.end;
            let can_be = vma.flags & (VmFlags::WRITE | VmFlags::SHARED) == VmFlags::WRITE
                && vma.anon.is_none()
                && !matches!(vma.source, Source::Special(_))
                && !vma.flags.any(VmFlags::IO | VmFlags::PFNMAP);
            if can_be {
                all.push(vma_at);
            }
        }
        Ok(all)
    }

    /// An address in each mapping that has an anonymous page for the first time, in the address
    /// space of which `asked` is. What is in `except` belongs to another mapping by now.
    fn written(
        &self,
        range: &Range<usize>,
        except: Option<&Range<usize>>,
        asked: &Asked,
    ) -> io::Result<Vec<usize>> {
        let mut all = Vec::new();
        for vma_at in self.unwritten(range)? {
            let parts = match except {
                Some(except) => [
                    vma_at.start..vma_at.end.min(except.start),
                    vma_at.start.max(except.end)..vma_at.end,
                ],
                None => [vma_at.clone(), vma_at.end..vma_at.end],
            };
            for part in parts.iter().filter(|part| !part.is_empty()) {
                if let Some(addr) = asked.first_written(part)? {
                    all.push(addr);
                    break;
                }
            }
        }
        Ok(all)
    }

    fn note_written(&mut self, written: &[usize], facts: &mut impl FnMut(Fact)) {
        for &addr in written {
            facts(Fact::FirstWrite);
            self.make(&Op::Touch { addr, access: Access::Write }, None);
        }
    }

    /// What may grow downwards.
    fn stacks(&self) -> io::Result<Vec<Range<usize>>> {
        let mut stacks = Vec::new();
        now(self.mm.for_each(|range, vma| {
            if vma.flags.has(VmFlags::GROWSDOWN) {
                stacks.push(range);
            }
        }))?;
        Ok(stacks)
    }

    /// Lets a stack grow as far as the kernel's has.
    fn grow(&mut self, range: &Range<usize>, facts: &mut impl FnMut(Fact)) -> io::Result<bool> {
        let shown = self.asked.at(range.end - 1)?;
        let Some(Shown { range: grown, .. }) =
            shown.filter(|shown| shown.range.start < range.start && shown.range.end == range.end)
        else {
            return Ok(false);
        };
        facts(Fact::StackGrowth);
        self.make(&Op::Touch { addr: grown.start, access: Access::Write }, None);
        Ok(true)
    }

    /// Makes the model of a fork's child, of which the parent's model learns what was written.
    pub(crate) fn fork_after(
        &mut self,
        child: pid_t,
        facts: &mut impl FnMut(Fact),
    ) -> io::Result<Self> {
        // The child has not run yet: what it has was written before.
        let asked = Asked::of(child)?;
        let written = self.written(&(0..usize::MAX), None, &asked)?;
        self.note_written(&written, facts);
        self.fork(child)
    }

    /// Takes over one mapping that no call of the model makes, or that it cannot know.
    pub(crate) fn take_over(
        &mut self,
        tid: pid_t,
        addr: usize,
        file: Option<Arc<dyn File>>,
    ) -> io::Result<()> {
        let Some(shown) = self.asked.at(addr)? else { return Ok(()) };
        let Shown { range, offset, device, inode, name } = shown;
        let smaps = file_of(tid, "smaps")?;
        let flags = compare::flags_at(&smaps, range.start).unwrap_or_default();
        let file = file.unwrap_or_else(|| {
            let facts = pervma_linux::FileFacts { device, inode, ..Default::default() };
            Arc::new(OpenFile::new(name, facts))
        });
        let source = Source::File(file);
        let page_offset = offset / abi::PAGE as u64;
        let vma = Vma { flags, page_offset, source, anon: None, name: None };
        let _ = self.mm.munmap(range.start, range.end - range.start);
        self.mm.adopt(range, vma).map_err(io::Error::other)
    }

    /// Unmaps a segment of System V, as far as it is mapped from `addr` on.
    pub(crate) fn detach(&mut self, addr: usize) -> io::Result<()> {
        let Some((_, first)) = now(self.mm.lookup(addr))? else { return Ok(()) };
        let mut parts = Vec::new();
        now(self.mm.for_each(|range, vma| {
            let offset = usize::try_from(vma.page_offset).unwrap_or(0) * abi::PAGE;
            if vma.source == first.source && range.start.checked_sub(addr) == Some(offset) {
                parts.push(range);
            }
        }))?;
        for part in parts {
            let _ = self.mm.munmap(part.start, part.end - part.start);
        }
        Ok(())
    }

    /// Unmaps the mapping at an address.
    pub(crate) fn unmap_at(&mut self, addr: usize) -> io::Result<()> {
        if let Some((range, _)) = now(self.mm.lookup(addr))? {
            let _ = self.mm.munmap(range.start, range.end - range.start);
        }
        Ok(())
    }

    /// Compares the maps.
    pub(crate) fn compare(
        &mut self,
        facts: &mut impl FnMut(Fact),
    ) -> io::Result<Option<Difference>> {
        let kernel = self.asked.maps()?;
        let Some(_) = self.differs(&kernel) else { return Ok(None) };
        if !self.catch_up_with_map(facts)? {
            return Ok(self.differs(&kernel));
        }
        let kernel = self.asked.maps()?;
        Ok(self.differs(&kernel))
    }

    fn differs(&mut self, kernel: &str) -> Option<Difference> {
        let model = self.mm.maps().unwrap_or_else(|error| error.to_string());
        let mut objects = self.objects.clone();
        if objects.same_maps(kernel, &model) {
            self.objects = objects;
            return None;
        }
        let [kernel, model] = compare::apart(kernel, &model);
        Some(Difference { what: "map", kernel, model })
    }

    /// Takes over what is seen when maps are compared: stacks that have grown, and new names of
    /// files. Returns whether there was something.
    fn catch_up_with_map(&mut self, facts: &mut impl FnMut(Fact)) -> io::Result<bool> {
        let mut found = false;
        for stack in self.stacks()? {
            found |= self.grow(&stack, facts)?;
        }
        let mut vmas = Vec::new();
        now(self.mm.for_each(|range, vma| vmas.push((range, vma.clone()))))?;
        for (range, vma) in vmas {
            let (Source::File(file) | Source::Zero(file)) = &vma.source else { continue };
            let Some(shown) = self.asked.at(range.start)? else { continue };
            let known = file.facts();
            let is_same = (shown.device, shown.inode) == (known.device, known.inode);
            if is_same && shown.name != file.path() {
                facts(Fact::FileName);
                found = true;
                let any: &dyn Any = &**file;
                if let Some(held) = any.downcast_ref::<Held>() {
                    held.rename(&shown.name);
                } else if let Some(open) = any.downcast_ref::<OpenFile<StdPlatform>>() {
                    open.rename(shown.name);
                }
            }
        }
        Ok(found)
    }

    /// Where maps differ after a call, makes it again as if other threads had written before the
    /// kernel looked, or after it: with what has not been tried yet. `None` when all was.
    pub(crate) fn make_again(
        &mut self,
        op: &Op,
        file: Option<&Arc<dyn File>>,
        facts: &mut impl FnMut(Fact),
    ) -> io::Result<Option<Outcome>> {
        /// Looks for pages that appear: a fault that is under way has given its mapping an
        /// `anon_vma`, and the page is not there yet.
        const LOOKS: u32 = 20;
        let Some(mut before) = self.before.take() else { return Ok(None) };
        let limits = self.mm.limits();
        self.mm = before.mm;
        self.mm.set_limits(limits);
        // The copy numbers its objects anew.
        self.objects = Objects::default();
        let written = loop {
            let written = match before.looks {
                0 => Vec::new(),
                LOOKS.. => return Ok(None),
                _ => {
                    std::thread::sleep(Duration::from_millis(1));
                    self.written_near(&before.near, before.mapped.as_ref())?
                }
            };
            before.looks += 1;
            if !before.tried.contains(&written) {
                break written;
            }
        };
        before.tried.push(written.clone());
        before.mm = self.copy()?;
        self.before = Some(before);
        self.note_written(&written, facts);
        Ok(self.make(op, file))
    }

    /// Compares flags and counts.
    pub(crate) fn compare_slow(&mut self, tid: pid_t) -> io::Result<Option<Difference>> {
        let kernel = compare::flags_of_smaps(&file_of(tid, "smaps")?);
        let mut model = Vec::new();
        now(self.mm.for_each(|_, vma| model.push(vma.flags.to_string())))?;
        if kernel != model {
            let numbered = |flags: &[String]| -> String {
                let lines = flags.iter().enumerate();
                lines.map(|(number, flags)| format!("{number}: {flags}\n")).collect()
            };
            let [kernel, model] = compare::apart(&numbered(&kernel), &numbered(&model));
            return Ok(Some(Difference { what: "flags", kernel, model }));
        }
        let kernel = compare::counts_of_status(&file_of(tid, "status")?);
        let model = compare::counts_in_kib(self.mm.counts());
        Ok((kernel != model).then(|| Difference {
            what: "counts",
            kernel: format!("{kernel:?}"),
            model: format!("{model:?}"),
        }))
    }

    /// Makes the model anew, as that of the process.
    pub(crate) fn resync(&mut self, tid: pid_t) -> io::Result<()> {
        let mut config = self.mm.config();
        config.layout.brk = self.mm.brk(0);
        let of = Mm::of_process(tid.cast_unsigned(), Pages::default(), config);
        let (shown, _) = of.map_err(io::Error::other)?;
        self.mm = copy(&shown, config)?;
        self.objects = Objects::default();
        Ok(())
    }

    fn copy(&self) -> io::Result<Mirrored> {
        self.copy_as(self.mm.config())
    }

    fn copy_as(&self, mut config: Config) -> io::Result<Mirrored> {
        config.layout.brk = self.mm.brk(0);
        let copied = copy(&self.mm, config)?;
        self.mm.backing().guards.copy(0..usize::MAX, &copied.backing().guards);
        Ok(copied)
    }
}

/// What a model says that no call of its own keeps busy.
fn now<T>(answer: Result<T, NotNow>) -> io::Result<T> {
    answer.map_err(io::Error::other)
}

/// Copies a model mapping by mapping, as a process with another configuration.
fn copy(mm: &Mirrored, config: Config) -> io::Result<Mirrored> {
    let copied = Mm::new(Pages::default(), config);
    let mut result = Ok(());
    now(mm.for_each(|range, vma| {
        if result.is_ok() {
            result = copied.adopt(range, vma.clone());
        }
    }))?;
    result.map_err(io::Error::other)?;
    copied.adopt_counts(mm.counts()).map_err(io::Error::other)?;
    copied.set_limits(mm.limits());
    Ok(copied)
}

/// Where what is mapped at `addr` and behind it without a hole ends; `addr` if nothing is.
fn end_of_mapped(mm: &Mirrored, mut addr: usize) -> io::Result<usize> {
    while let Some((range, _)) = now(mm.lookup(addr))? {
        addr = range.end;
    }
    Ok(addr)
}
