//! `mremap`.

use core::ops::Range;

use pervma::Platform;

use crate::abi::*;
use crate::asked::Asked;
use crate::backing::{Backing, Work};
use crate::call::{EVERYTHING, Plan, Scope};
use crate::errno::Errno;
use crate::flags::VmFlags;
use crate::mm::{Change, MergeWith, Mm};
use crate::place::Wanted;
use crate::vma::{Source, Vma};

/// The arguments of `mremap`, with lengths in whole pages.
#[derive(Clone, Copy)]
struct Request {
    addr: usize,
    old_len: usize,
    new_len: usize,
    flags: u64,
    new_addr: usize,
    /// What was decided about a mapping that may move.
    choice: Option<Choice>,
}

/// Where a mapping becomes longer, or is moved to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Choice {
    InPlace,
    To(Result<usize, Errno>),
}

impl Request {
    fn has(self, flags: u64) -> bool {
        self.flags & flags != 0
    }

    /// Whether it is to move, whatever its size.
    fn goes_elsewhere(self) -> bool {
        self.has(MREMAP_FIXED | MREMAP_DONTUNMAP)
    }

    fn delta(self) -> usize {
        self.old_len.abs_diff(self.new_len)
    }

    fn target(self) -> Range<usize> {
        self.new_addr..self.new_addr + self.new_len
    }

    /// What it is about, but for an address that is chosen.
    fn scope(self) -> Scope {
        // Where it cannot move, it can only become longer where it is.
        let reaches =
            if self.has(MREMAP_MAYMOVE) { self.old_len } else { self.old_len.max(self.new_len) };
        // One that leaves mappings empty unlocks them, as a whole.
        let leaves_many = self.has(MREMAP_FIXED) && self.has(MREMAP_DONTUNMAP);
        let source = match self.addr.checked_add(reaches.max(PAGE)) {
            Some(end) if !leaves_many => self.addr..end,
            _ => EVERYTHING,
        };
        let target = if self.has(MREMAP_FIXED) { self.target() } else { 0..0 };
        Scope {
            ranges: [source, target],
            more: pages(self.new_len),
            goes_on: true,
            maps: true,
            multiplies: self.has(MREMAP_FIXED),
            ..Scope::new(0..0)
        }
    }
}

impl<B: Backing, P: Platform> Mm<B, P> {
    /// Makes a mapping longer or shorter, or moves it, and returns its address.
    ///
    /// ```
    /// use pervma_linux::{Config, Mm, NoBacking, abi::*};
    ///
    /// let mm = Mm::new(NoBacking, Config::default());
    /// let addr = mm.mmap(0, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, None, 0)?;
    /// let to = mm.mremap(addr, 4096, 8192, MREMAP_MAYMOVE | MREMAP_FIXED, 0x10_0000)?;
    /// assert_eq!(to, 0x10_0000);
    /// # Ok::<(), pervma_linux::Errno>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Those of the system call. When it fails, what was at the target may be gone, and of several
    /// mappings the first may have been moved.
    #[doc(alias = "do_mremap")]
    pub fn mremap(
        &self,
        addr: usize,
        old_len: usize,
        new_len: usize,
        flags: u64,
        new_addr: usize,
    ) -> Result<usize, Errno> {
        let (old_len, new_len) = (page_align(old_len), page_align(new_len));
        let request = Request { addr, old_len, new_len, flags, new_addr, choice: None };
        check_arguments(request, self.task_size)?;
        if request.has(MREMAP_FIXED) || !request.has(MREMAP_MAYMOVE) {
            self.mremap_in(&request.scope(), request)
        } else if self.is_strict() {
            // Whatever is configured meanwhile: nobody else has what is chosen.
            self.mremap_alone(request)
        } else {
            self.mremap_somewhere(request)
        }
    }

    /// Makes the call with all addresses locked.
    fn mremap_alone(&self, request: Request) -> Result<usize, Errno> {
        self.mremap_in(&Scope { ranges: [EVERYTHING, 0..0], ..request.scope() }, request)
    }

    /// Makes the call in the addresses of `scope`.
    fn mremap_in(&self, scope: &Scope, request: Request) -> Result<usize, Errno> {
        let remapped = self.call(
            scope,
            Plan::Trial,
            |change| change.mremap(request),
            |remapped| {
                self.populate_what_can_be(remapped.to_populate.clone());
                Ok(())
            },
        )?;
        Ok(remapped.addr)
    }

    /// Makes the call, with an address that is chosen among those that no other call has, if it
    /// moves. Who would choose that waits until the mapping is there: the call takes its place in
    /// the order of all by its last edit, when the old address is free as well.
    fn mremap_somewhere(&self, request: Request) -> Result<usize, Errno> {
        let mut scope = request.scope();
        loop {
            let (lock, mut change, alone) = self.lock(&scope)?;
            if alone || change.unlocks_others(request) {
                drop(change);
                drop(lock);
                return self.mremap_alone(request);
            }
            let request = Request { choice: change.choice(request), ..request };
            let target = match request.choice {
                Some(Choice::InPlace) => {
                    request.addr + request.old_len..request.addr + request.new_len
                }
                Some(Choice::To(Ok(to))) => to..to + request.new_len,
                Some(Choice::To(Err(_))) | None => 0..0,
            };
            // What the call has locked already: what it has waited for, what it becomes longer in,
            // or a hole behind a mapping that is too short.
            let [source, awaited] = &scope.ranges;
            let is_in_source = source.start < target.end && target.start < source.end;
            let is_locked = is_in_source || *awaited == target;
            let grows = request.choice == Some(Choice::InPlace);
            if !B::IDLE && grows && !is_locked && change.is_in_use_at(&target) {
                scope.ranges[0].end = target.end;
                continue;
            }
            let asked = if B::IDLE {
                Asked::default()
            } else {
                change.try_out(&change.snapshot(&scope.ranges)?, |trial| trial.mremap(request))?.0
            };
            let wanted = if is_locked { 0..0 } else { target.clone() };
            let Some(_target) = self.ranges.try_lock(wanted) else {
                // Others that wait for the same come later.
                scope.ranges[1] = target;
                continue;
            };
            let target = if is_in_source { 0..0 } else { target };
            let [source, _] = scope.ranges;
            let scope = Scope { ranges: [source, target], ..scope };
            let remapped =
                self.finish(&scope, &lock, change, &asked, |change| change.mremap(request))?;
            self.populate_what_can_be(remapped.to_populate);
            return Ok(remapped.addr);
        }
    }
}

/// What the call has led to.
struct Remapped {
    addr: usize,
    /// New pages that are to be present.
    to_populate: Range<usize>,
}

fn check_arguments(request: Request, task_size: usize) -> Result<(), Errno> {
    let Request { addr, old_len, new_len, flags, new_addr, .. } = request;
    let known = MREMAP_FIXED | MREMAP_MAYMOVE | MREMAP_DONTUNMAP;
    if flags & !known != 0 || off_page(addr) || new_len == 0 || new_len > task_size {
        return Err(Errno::EINVAL);
    }
    if !request.goes_elsewhere() {
        return Ok(());
    }
    let overlap = addr.wrapping_add(old_len) > new_addr && new_addr.wrapping_add(new_len) > addr;
    if new_addr > task_size - new_len
        || off_page(new_addr)
        || flags & MREMAP_MAYMOVE == 0
        || (flags & MREMAP_DONTUNMAP != 0 && old_len != new_len)
        || overlap
    {
        return Err(Errno::EINVAL);
    }
    Ok(())
}

impl<P: Platform> Change<'_, P> {
    fn mremap(&mut self, request: Request) -> Result<Remapped, Errno> {
        // Whatever is there, and once only, however many mappings are moved.
        let most = self.state.config.max_map_count.saturating_sub(3);
        if request.goes_elsewhere() && self.map_count() + 2 >= most {
            return Err(Errno::ENOMEM);
        }
        if request.has(MREMAP_FIXED) && request.old_len == request.new_len {
            let addr = self.move_all(request)?;
            return Ok(Remapped { addr, to_populate: 0..0 });
        }
        let (whole, vma) = self.source(request)?;
        self.check_source(request, &whole, &vma)?;
        let to = if request.goes_elsewhere() {
            self.remap_to(request)?
        } else if request.new_len < request.old_len {
            self.munmap(request.addr + request.new_len, request.delta())?;
            request.addr
        } else if request.new_len == request.old_len {
            request.addr
        } else {
            self.expand(request)?
        };
        let is_populated = vma.flags.has(VmFlags::LOCKED) && request.new_len > request.old_len;
        let to_populate =
            if is_populated { to + request.old_len..to + request.new_len } else { 0..0 };
        Ok(Remapped { addr: to, to_populate })
    }

    /// Whether a mapping that may move can become longer in its place, and else where it goes; none
    /// if it does neither.
    fn choice(&self, request: Request) -> Option<Choice> {
        self.holding(request.addr)?;
        let (hint, grows) = if request.has(MREMAP_DONTUNMAP) {
            (request.new_addr, false)
        } else {
            (0, request.new_len > request.old_len)
        };
        if !grows && !request.goes_elsewhere() {
            return None;
        }
        Some(match self.extension(request) {
            Some(_) => Choice::InPlace,
            None => Choice::To(self.choose_target(request, hint)),
        })
    }

    fn source(&self, request: Request) -> Result<(Range<usize>, Vma), Errno> {
        let (whole, vma) = self.holding(request.addr).ok_or(Errno::EFAULT)?;
        Ok((whole, vma.clone()))
    }

    /// Moves all VMAs of a range to a fixed place, and keeps the holes between them.
    #[doc(alias("remap_move", "vma_multi_allowed"))]
    fn move_all(&mut self, request: Request) -> Result<usize, Errno> {
        let end = request.addr.wrapping_add(request.old_len);
        let (mut at, mut target, mut last_end) = (request.addr, request.new_addr, None);
        while let Some((whole, vma)) = self.first_in(&(at..end)) {
            let gap = match last_end {
                None if request.addr < whole.start => return Err(Errno::EFAULT),
                None => 0,
                Some(last_end) => whole.start - last_end,
            };
            let vma = vma.clone();
            // A file that has its own way of choosing addresses may not obey.
            let alone = last_end.is_none() && end <= whole.end;
            if matches!(vma.source, Source::Zero(_)) && !alone {
                return Err(Errno::EFAULT);
            }
            let addr = whole.start.max(at);
            let len = whole.end.min(end) - addr;
            let new_addr = target + gap;
            let one = Request { addr, old_len: len, new_len: len, new_addr, ..request };
            self.check_source(one, &whole, &vma)?;
            target = self.remap_to(one)? + len;
            (at, last_end) = (addr + len, Some(whole.end));
        }
        if last_end.is_some() { Ok(request.new_addr) } else { Err(Errno::EFAULT) }
    }

    /// Whether the VMA can be made longer or moved as requested.
    #[doc(alias = "check_prep_vma")]
    fn check_source(&self, request: Request, whole: &Range<usize>, vma: &Vma) -> Result<(), Errno> {
        let Request { addr, old_len, new_len, .. } = request;
        if vma.flags.has(VmFlags::SEALED) {
            return Err(Errno::EPERM);
        }
        if new_len <= old_len && !request.goes_elsewhere() {
            return Ok(());
        }
        if old_len == 0 && !vma.flags.any(VmFlags::SHARED | VmFlags::MAYSHARE) {
            return Err(Errno::EINVAL);
        }
        let keeps_size = vma.flags.any(VmFlags::DONTEXPAND | VmFlags::PFNMAP);
        if keeps_size && request.has(MREMAP_DONTUNMAP) {
            return Err(Errno::EINVAL);
        }
        // When it becomes shorter, what is unmapped may reach beyond it.
        let kept = old_len.min(new_len);
        if kept > whole.end - addr {
            return Err(Errno::EFAULT);
        }
        if new_len <= old_len {
            return Ok(());
        }
        if vma.page_after(addr - whole.start).checked_add(pages(new_len) as u64).is_none() {
            return Err(Errno::EINVAL);
        }
        if keeps_size {
            return Err(Errno::EFAULT);
        }
        if !self.may_lock(vma.flags, request.delta()) {
            return Err(Errno::EAGAIN);
        }
        if !self.may_expand(vma.flags, pages(request.delta())) {
            return Err(Errno::ENOMEM);
        }
        Ok(())
    }

    /// Moves to the address that was asked for.
    #[doc(alias = "mremap_to")]
    fn remap_to(&mut self, mut request: Request) -> Result<usize, Errno> {
        let delta = request.delta();
        if request.has(MREMAP_FIXED) {
            self.munmap(request.new_addr, request.new_len)?;
            // An old length that wraps around hides that the source was there.
            self.source(request)?;
        }
        if request.new_len < request.old_len {
            self.munmap(request.addr + request.new_len, delta)?;
            request.old_len = request.new_len;
        }
        if request.has(MREMAP_DONTUNMAP) {
            let (_, vma) = self.source(request)?;
            if !self.may_expand(vma.flags, pages(request.old_len)) {
                return Err(Errno::ENOMEM);
            }
        }
        let to = self.choose_target(request, request.new_addr)?;
        self.move_one(Request { new_addr: to, ..request }, delta)
    }

    /// What is free behind a mapping, if that is where it can become longer.
    #[doc(alias = "vma_expandable")]
    fn extension(&self, request: Request) -> Option<Range<usize>> {
        let (whole, _) = self.holding(request.addr)?;
        let at_end = whole.end - request.addr == request.old_len;
        if !at_end || request.goes_elsewhere() {
            return None;
        }
        let end = whole.end.checked_add(request.delta())?;
        let fits = end <= self.state.config.layout.task_size
            && self.first_in(&(whole.end..end)).is_none()
            && self.check_fixed(whole.start..end).is_ok();
        fits.then_some(whole.end..end)
    }

    /// Makes it longer where it is, or else moves it.
    #[doc(alias = "expand_vma")]
    fn expand(&mut self, request: Request) -> Result<usize, Errno> {
        let (whole, vma) = self.source(request)?;
        let delta = request.delta();
        let stays = !matches!(request.choice, Some(Choice::To(_)));
        if let Some(extension) = self.extension(request).filter(|_| stays) {
            if vma.flags.has(VmFlags::ACCOUNT) {
                self.may_commit(pages(delta))?;
            }
            if vma.flags.any(VmFlags::SPECIAL) {
                // It would merge with what is added.
                return Err(Errno::ENOMEM);
            }
            self.map(extension, vma.from(whole.end - whole.start), MergeWith::Swallowing)?;
            self.count_new(vma.flags, delta);
            return Ok(request.addr);
        }
        if !request.has(MREMAP_MAYMOVE) {
            return Err(Errno::ENOMEM);
        }
        let to = self.choose_target(request, 0)?;
        self.move_one(Request { new_addr: to, ..request }, delta)
    }

    #[doc(alias = "vrm_set_new_addr")]
    fn choose_target(&self, request: Request, hint: usize) -> Result<usize, Errno> {
        if let Some(Choice::To(chosen)) = request.choice {
            return chosen;
        }
        let (whole, vma) = self.source(request)?;
        let fixed = if request.has(MREMAP_FIXED) { MAP_FIXED } else { 0 };
        let shared = if vma.flags.has(VmFlags::MAYSHARE) { MAP_SHARED } else { 0 };
        self.choose(Wanted {
            hint,
            len: request.new_len,
            flags: fixed | shared,
            source: &vma.source,
            page_offset: vma.page_after(request.addr - whole.start),
        })
    }

    /// Moves a part of one VMA to an address at which nothing is.
    #[doc(alias = "move_vma")]
    fn move_one(&mut self, request: Request, delta: usize) -> Result<usize, Errno> {
        if self.map_count() >= self.state.config.max_map_count.saturating_sub(3) {
            return Err(Errno::ENOMEM);
        }
        let (whole, vma) = self.source(request)?;
        if vma.is_whole() && whole != (request.addr..request.addr + request.old_len) {
            return Err(Errno::EINVAL);
        }
        let stays = request.has(MREMAP_DONTUNMAP);
        // From here on no page may become present at the source: it would be lost.
        drop(self.edit.write(request.addr).map_err(|_| Errno::ENOMEM)?);
        if vma.flags.has(VmFlags::ACCOUNT) {
            self.may_commit(pages(if stays { request.new_len } else { delta }))?;
        }
        let mut copy = vma.from(request.addr - whole.start);
        if copy.is_anonymous() && copy.anon.is_none() {
            // It has no anonymous pages whose offsets would have to be kept.
            copy.page_offset = pages(request.new_addr) as u64;
        }
        let new = self.map(request.target(), copy, MergeWith::Both)?;
        self.count_new(vma.flags, request.new_len);
        let source = request.addr..request.addr + request.old_len;
        self.ask(|| Work::Relocate { from: source.clone(), to: request.new_addr })?;
        if stays {
            self.leave_empty(&source, &new)?;
        } else if !source.is_empty() {
            let removal = self.check_removal(&source)?;
            self.remove(source, removal)?;
        }
        Ok(request.new_addr)
    }

    /// Whether it leaves a VMA unlocked of which it moves a part: the other pages are what other
    /// calls may be about.
    fn unlocks_others(&self, request: Request) -> bool {
        let source = request.addr..request.addr.saturating_add(request.old_len);
        request.has(MREMAP_DONTUNMAP)
            && self
                .holding(request.addr)
                .is_some_and(|(whole, vma)| vma.flags.any(VmFlags::LOCKED_MASK) && whole != source)
    }

    /// Changes what stays of a VMA whose pages were moved away: it is not locked any more, and if
    /// all of it was moved, it has no anonymous pages.
    #[doc(alias = "dontunmap_complete")]
    fn leave_empty(&mut self, source: &Range<usize>, new: &Range<usize>) -> Result<(), Errno> {
        let merged = new.contains(&source.start);
        let mut vma = self.edit.write(source.start).map_err(|_| Errno::ENOMEM)?;
        vma.flags &= !VmFlags::LOCKED_MASK;
        if !merged && vma.range() == *source {
            vma.anon = None;
        }
        Ok(())
    }
}
