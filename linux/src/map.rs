//! `mmap`.

use alloc::sync::Arc;
use core::ops::Range;

use pervma::{Platform, RangeLock};

use crate::abi::*;
use crate::asked::Asked;
use crate::backing::{Backing, Work};
use crate::call::{EVERYTHING, Plan, Scope, wider};
use crate::errno::Errno;
use crate::file::{File, FileFacts, MapOperation};
use crate::flags::VmFlags;
use crate::mm::{Change, MergeWith, Mm};
use crate::place::Wanted;
use crate::state::State;
use crate::unmap::Removal;
use crate::vma::{Source, Vma};

/// The flags that `MAP_SHARED` and `MAP_PRIVATE` know. They ignore others.
const LEGACY_FLAGS: u64 = MAP_SHARED
    | MAP_PRIVATE
    | MAP_FIXED
    | MAP_ANONYMOUS
    | MAP_DENYWRITE
    | MAP_EXECUTABLE
    | MAP_GROWSDOWN
    | MAP_LOCKED
    | MAP_NORESERVE
    | MAP_POPULATE
    | MAP_NONBLOCK
    | MAP_STACK
    | MAP_HUGETLB
    | MAP_32BIT
    | MAP_ABOVE4G
    | 21 << 26
    | 30 << 26;

/// The arguments of `mmap`.
#[derive(Clone, Copy)]
struct Request<'a> {
    hint: usize,
    len: usize,
    prot: u64,
    flags: u64,
    file: Option<(&'a Arc<dyn File>, FileFacts)>,
    page_offset: u64,
}

impl<B: Backing, P: Platform> Mm<B, P> {
    /// Maps a file, or memory with `MAP_ANONYMOUS`, and returns the address. `offset` is in bytes.
    ///
    /// ```
    /// use pervma_linux::{Config, File, FileFacts, Mm, NoBacking, OpenFile, abi::*};
    /// use std::sync::Arc;
    ///
    /// let mm = Mm::new(NoBacking, Config::default());
    /// let file: Arc<dyn File> = Arc::new(OpenFile::new("/bin/true", FileFacts::new()));
    /// let first = mm.mmap(0, 4096, PROT_READ, MAP_PRIVATE, Some(&file), 0)?;
    /// // Top-down: the next one goes below.
    /// let second = mm.mmap(0, 4096, PROT_READ, MAP_PRIVATE, Some(&file), 0)?;
    /// assert_eq!(second, first - 4096);
    /// # Ok::<(), pervma_linux::Errno>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Those of the system call. With `MAP_FIXED`, what was mapped there may be gone when it fails.
    #[doc(alias("do_mmap", "mmap_region"))]
    pub fn mmap(
        &self,
        addr: usize,
        len: usize,
        prot: u64,
        flags: u64,
        file: Option<&Arc<dyn File>>,
        offset: u64,
    ) -> Result<usize, Errno> {
        if !offset.is_multiple_of(PAGE as u64) {
            return Err(Errno::EINVAL);
        }
        let file = if flags & MAP_ANONYMOUS != 0 { None } else { file };
        if flags & MAP_ANONYMOUS == 0 && file.is_none() {
            return Err(Errno::EBADF);
        }
        if flags & MAP_HUGETLB != 0 {
            return Err(Errno::EINVAL);
        }
        let page_offset = offset / PAGE as u64;
        let file = file.map(|file| (file, file.facts()));
        let request = Request { hint: addr, len, prot, flags, file, page_offset };
        if flags & (MAP_FIXED | MAP_FIXED_NOREPLACE) != 0 {
            return self.mmap_at(addr, request);
        }
        if self.is_strict() {
            return self.mmap_in(&request.scope(EVERYTHING), request);
        }
        self.mmap_somewhere(request)
    }

    /// Maps at the address that was asked for.
    fn mmap_at(&self, addr: usize, request: Request<'_>) -> Result<usize, Errno> {
        let end = addr.saturating_add(page_align(request.len));
        self.mmap_in(&request.scope(addr..end), request)
    }

    /// Maps in the addresses of `scope`.
    fn mmap_in(&self, scope: &Scope, request: Request<'_>) -> Result<usize, Errno> {
        let look = |change: &mut Change<'_, P>| change.look_at_mmap(request);
        let call = |change: &mut Change<'_, P>| {
            let placed = change.place(request)?;
            change.map_over(placed)
        };
        let mapped = self.call(scope, Plan::Look(&look), call, |mapped| {
            self.populate_new(mapped);
            Ok(())
        });
        mapped.map(|mapped| mapped.range.start)
    }

    /// Maps at an address that is chosen among those that no other call has. Who had to wait for
    /// what it would choose keeps the lock of it: others that wait for the same come later.
    fn mmap_somewhere(&self, request: Request<'_>) -> Result<usize, Errno> {
        let (mut own, mut tries): (Option<(Range<usize>, RangeLock<'_, P>)>, _) = (None, 3);
        loop {
            let at = own.as_ref().map_or(0..0, |(range, _)| range.clone());
            let mut change = self.change_at(&[at.clone(), 0..0])?;
            let placed = change.place(request)?;
            let range = placed.range.clone();
            let mut is_free = at == range;
            if !is_free {
                own = None;
                is_free = self.ranges.is_empty() || self.are_free(&[range.clone(), 0..0]);
                if is_free && placed.is_populated {
                    own = self.ranges.try_lock(range.clone()).map(|lock| (range.clone(), lock));
                    is_free = own.is_some();
                }
            }
            if !self.ranges.is_empty() {
                if self.is_near_limit(&change, &request.scope(range.clone())) {
                    drop(change);
                    drop(own);
                    return self.mmap_in(&request.scope(EVERYTHING), request);
                }
                // Its neighbours may be what somebody waits for readers of.
                if !is_free || at != range && change.is_excluded_at(&range) {
                    drop(change);
                    own = Some(self.with_range(own, range)?);
                    continue;
                }
            }
            let wider = wider(&[range.clone(), 0..0]);
            if !B::IDLE && tries != 0 && change.have_readers(&wider) {
                tries -= 1;
                drop(change);
                own = Some(self.with_range(own, range)?);
                self.core.wait_for_readers(&wider)?;
                continue;
            }
            let mapped = change.map_over(placed)?;
            drop(change);
            self.populate_new(&mapped);
            return Ok(mapped.range.start);
        }
    }

    /// The lock of a range that is the call's own, if it has one already, or else a new one.
    fn with_range<'m>(
        &'m self,
        own: Option<(Range<usize>, RangeLock<'m, P>)>,
        range: Range<usize>,
    ) -> Result<(Range<usize>, RangeLock<'m, P>), Errno> {
        match own {
            Some(own) => Ok(own),
            None => self.lock_range(range.clone()).map(|lock| (range, lock)),
        }
    }

    fn populate_new(&self, mapped: &Mapped) {
        if mapped.is_populated {
            self.populate_what_can_be(mapped.range.clone());
        }
    }
}

/// Where a mapping goes, and what it is.
struct Placed {
    range: Range<usize>,
    vma: Vma,
    operation: MapOperation,
    /// Whether its pages are to be present.
    is_populated: bool,
}

/// A mapping that was made.
struct Mapped {
    range: Range<usize>,
    /// Whether its pages are to be present.
    is_populated: bool,
}

impl Request<'_> {
    fn scope(self, range: Range<usize>) -> Scope {
        let (more, locks) = (pages(page_align(self.len)), self.flags & MAP_LOCKED != 0);
        let goes_on = locks || self.flags & MAP_POPULATE != 0;
        Scope { more, locks, goes_on, maps: true, ..Scope::new(range) }
    }
}

impl<P: Platform> Change<'_, P> {
    /// What the backing will be asked for, if no limit is near.
    fn look_at_mmap(&mut self, request: Request<'_>) -> Result<Asked, Errno> {
        let mut asked = Asked::default();
        if let Ok(Placed { range, vma, .. }) = self.place(request)
            && let Ok(removal) = self.removal(&range)
            && removal.total != 0
            && self.may_replace(removal, &vma, pages(range.end - range.start)).is_ok()
        {
            asked.push(Work::Unmap(range))?;
        }
        Ok(asked)
    }

    /// Where a mapping goes, with the checks that come before anything is removed there.
    fn place(&mut self, request: Request<'_>) -> Result<Placed, Errno> {
        let Request { prot, file, .. } = request;
        let mut flags = request.flags;
        if request.len == 0 {
            return Err(Errno::EINVAL);
        }
        if flags & MAP_FIXED_NOREPLACE != 0 {
            flags |= MAP_FIXED;
        }
        let hint = match request.hint {
            hint if flags & MAP_FIXED != 0 => hint,
            hint => self.round_hint(hint),
        };
        let len = page_align(request.len);
        if len == 0 {
            return Err(Errno::ENOMEM);
        }
        if request.page_offset.checked_add(pages(len) as u64).is_none() {
            return Err(Errno::EOVERFLOW);
        }
        if self.map_count() > self.state.config.max_map_count {
            return Err(Errno::ENOMEM);
        }
        let mut vm_flags = VmFlags::of_prot(prot) | VmFlags::MAYALL | self.state.config.future;
        let by_flag = [
            (MAP_GROWSDOWN, VmFlags::GROWSDOWN),
            (MAP_LOCKED, VmFlags::LOCKED),
            (MAP_SYNC, VmFlags::SYNC),
            (MAP_STACK, VmFlags::NOHUGEPAGE),
        ];
        for (bit, flag) in by_flag {
            if flags & bit != 0 && (flag != VmFlags::NOHUGEPAGE || self.state.config.huge_pages) {
                vm_flags |= flag;
            }
        }
        let source = match file {
            Some((file, facts)) if facts.operation == MapOperation::Zero => {
                Source::Zero(Arc::clone(file))
            }
            Some((file, _)) => Source::File(Arc::clone(file)),
            // Whatever the type is. One that is not known is refused later.
            None if flags & MAP_SHARED != 0 => State::object_to_number(len),
            None => Source::Anonymous,
        };
        let wanted = Wanted { hint, len, flags, source: &source, page_offset: request.page_offset };
        let addr = self.choose(wanted)?;
        let range = addr..addr + len;
        if flags & MAP_FIXED_NOREPLACE != 0 && self.first_in(&range).is_some() {
            return Err(Errno::EEXIST);
        }
        if flags & MAP_LOCKED != 0 && !self.can_lock() {
            return Err(Errno::EPERM);
        }
        if !self.may_lock(vm_flags, len) {
            return Err(Errno::EAGAIN);
        }
        let page_offset = match file {
            Some((_, facts)) => {
                check_file(&facts, prot, &mut flags, &mut vm_flags, len, request.page_offset)?;
                request.page_offset
            }
            None => check_anonymous(flags, &mut vm_flags, addr)?,
        };
        if flags & MAP_NORESERVE != 0 {
            vm_flags |= VmFlags::NORESERVE;
        }
        let vma = Vma { flags: vm_flags, page_offset, source, anon: None, name: None };
        let operation = file.map_or(MapOperation::Accepts, |(_, facts)| facts.operation);
        let populates = flags & (MAP_POPULATE | MAP_NONBLOCK) == MAP_POPULATE;
        let is_populated = populates || vm_flags.has(VmFlags::LOCKED);
        Ok(Placed { range, vma, operation, is_populated })
    }

    /// Takes a hint below the lowest address that is chosen for a hint to that address.
    #[doc(alias = "round_hint_to_min")]
    fn round_hint(&self, hint: usize) -> usize {
        let hint = hint & !(PAGE - 1);
        let lowest = self.state.config.lowest_choice;
        if hint != 0 && hint < lowest { page_align(lowest) } else { hint }
    }

    /// Whether limits allow so many pages of `vma` in the place of what is removed.
    fn may_replace(&self, removal: Removal, vma: &Vma, pages: usize) -> Result<(), Errno> {
        if !self.may_expand(vma.flags, pages.wrapping_sub(removal.total)) {
            return Err(Errno::ENOMEM);
        }
        let more = pages.saturating_sub(removal.accounted);
        if is_accounted(vma) { self.may_commit(more) } else { Ok(()) }
    }

    /// Maps over whatever is there. Once that is removed, a failure leaves a hole.
    #[doc(alias = "__mmap_region")]
    fn map_over(&mut self, placed: Placed) -> Result<Mapped, Errno> {
        let Placed { range, mut vma, operation, is_populated } = placed;
        let len = range.end - range.start;
        let removal = self.check_removal(&range)?;
        if let Err(error) = self.may_replace(removal, &vma, pages(len)) {
            self.split_unlimited(range.start)?;
            self.split_unlimited(range.end)?;
            return Err(error);
        }
        if is_accounted(&vma) {
            vma.flags |= VmFlags::ACCOUNT;
        }
        self.remove(range.clone(), removal)?;
        operation.ask(vma.flags)?;
        if operation == MapOperation::Tcp {
            vma.flags &= !(VmFlags::MAYWRITE | VmFlags::MAYEXEC);
            vma.flags |= VmFlags::MIXEDMAP;
        }
        if matches!(vma.source, Source::Zero(_)) && vma.flags.has(VmFlags::SHARED) {
            vma.source = State::object_to_number(len);
        }
        if let Source::SharedAnonymous(object) = &mut vma.source {
            self.state.number_new(object);
        }
        if matches!(vma.source, Source::SharedAnonymous(_)) && !vma.flags.has(VmFlags::NORESERVE) {
            self.may_commit(pages(len))?;
        }
        let mut flags = vma.flags;
        let is_stacked = matches!(&vma.source, Source::File(file) if file.facts().stacked);
        let merge_with = if is_stacked { MergeWith::Neither } else { MergeWith::Both };
        self.map(range.clone(), vma, merge_with)?;
        if flags.has(VmFlags::LOCKED) && flags.any(VmFlags::DROPPABLE | VmFlags::SPECIAL) {
            // Linux notices only here that such memory cannot be locked, so it has not merged.
            flags &= !VmFlags::LOCKED_MASK;
            let mut vma = self.edit.write(range.start).map_err(|_| Errno::ENOMEM)?;
            vma.flags &= !VmFlags::LOCKED_MASK;
        }
        self.count_new(flags, len);
        Ok(Mapped { range, is_populated })
    }
}

/// Whether the memory is committed when it is mapped: private, writable, and not `MAP_NORESERVE`.
#[doc(alias = "accountable_mapping")]
fn is_accounted(vma: &Vma) -> bool {
    vma.flags & (VmFlags::NORESERVE | VmFlags::SHARED | VmFlags::WRITE) == VmFlags::WRITE
}

fn check_file(
    file: &FileFacts,
    prot: u64,
    flags: &mut u64,
    vm_flags: &mut VmFlags,
    len: usize,
    page_offset: u64,
) -> Result<(), Errno> {
    let last = file.max_bytes.checked_sub(len as u64).ok_or(Errno::EOVERFLOW)?;
    if page_offset > last / PAGE as u64 {
        return Err(Errno::EOVERFLOW);
    }
    match *flags & MAP_TYPE {
        kind @ (MAP_SHARED | MAP_SHARED_VALIDATE) => {
            let sync = if file.knows_sync { MAP_SYNC } else { 0 };
            if kind == MAP_SHARED {
                *flags &= LEGACY_FLAGS;
            } else if *flags & !(LEGACY_FLAGS | MAP_SHARED_VALIDATE | sync) != 0 {
                return Err(Errno::EOPNOTSUPP);
            }
            if prot & PROT_WRITE != 0 && !file.writable {
                return Err(Errno::EACCES);
            }
            if file.append_only && file.writable {
                return Err(Errno::EACCES);
            }
            *vm_flags |= VmFlags::SHARED | VmFlags::MAYSHARE;
            if !file.writable {
                *vm_flags &= !(VmFlags::MAYWRITE | VmFlags::SHARED);
            }
        }
        MAP_PRIVATE => {}
        _ => return Err(Errno::EINVAL),
    }
    if !file.readable {
        return Err(Errno::EACCES);
    }
    if file.noexec {
        if vm_flags.has(VmFlags::EXEC) {
            return Err(Errno::EPERM);
        }
        *vm_flags &= !VmFlags::MAYEXEC;
    }
    if file.operation == MapOperation::Absent {
        return Err(Errno::ENODEV);
    }
    if vm_flags.has(VmFlags::GROWSDOWN) {
        return Err(Errno::EINVAL);
    }
    if (file.seal_write || file.seal_future_write) && vm_flags.has(VmFlags::SHARED) {
        if vm_flags.has(VmFlags::WRITE) {
            return Err(Errno::EPERM);
        }
        *vm_flags &= !VmFlags::MAYWRITE;
    }
    Ok(())
}

/// Returns the page offset, which in private anonymous memory is that of its address.
fn check_anonymous(flags: u64, vm_flags: &mut VmFlags, addr: usize) -> Result<u64, Errno> {
    match flags & MAP_TYPE {
        MAP_SHARED if vm_flags.has(VmFlags::GROWSDOWN) => Err(Errno::EINVAL),
        MAP_SHARED => {
            *vm_flags |= VmFlags::SHARED | VmFlags::MAYSHARE;
            Ok(0)
        }
        MAP_DROPPABLE => {
            if flags & MAP_LOCKED != 0 || vm_flags.has(VmFlags::GROWSDOWN) {
                return Err(Errno::EINVAL);
            }
            *vm_flags |=
                VmFlags::DROPPABLE | VmFlags::NORESERVE | VmFlags::WIPEONFORK | VmFlags::DONTDUMP;
            Ok(pages(addr) as u64)
        }
        MAP_PRIVATE => Ok(pages(addr) as u64),
        _ => Err(Errno::EINVAL),
    }
}
