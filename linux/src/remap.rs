//! `mremap`.

use core::ops::Range;

use pervma::Platform;

use crate::abi::*;
use crate::backing::Backing;
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
        let request = Request { addr, old_len, new_len, flags, new_addr };
        check_arguments(request, self.config.layout.task_size)?;
        self.change(|change| change.mremap(request))
    }
}

fn check_arguments(request: Request, task_size: usize) -> Result<(), Errno> {
    let Request { addr, old_len, new_len, flags, new_addr } = request;
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

impl<B: Backing, P: Platform> Change<'_, B, P> {
    fn mremap(&mut self, request: Request) -> Result<usize, Errno> {
        // Whatever is there, and once only, however many mappings are moved.
        let most = self.config.max_map_count.saturating_sub(3);
        if request.goes_elsewhere() && self.map_count() + 2 >= most {
            return Err(Errno::ENOMEM);
        }
        if request.has(MREMAP_FIXED) && request.old_len == request.new_len {
            return self.move_all(request);
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
        if vma.flags.has(VmFlags::LOCKED) && request.new_len > request.old_len {
            let end = to + request.new_len;
            self.populate_what_can_be(to + request.old_len..end);
        }
        Ok(to)
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

    /// Makes it longer where it is, or else moves it.
    #[doc(alias = "expand_vma")]
    fn expand(&mut self, request: Request) -> Result<usize, Errno> {
        let (whole, vma) = self.source(request)?;
        let delta = request.delta();
        let at_end = whole.end - request.addr == request.old_len;
        let end = whole.end.checked_add(delta).filter(|end| *end <= self.config.layout.task_size);
        let extension =
            end.map(|end| whole.end..end).filter(|range| at_end && self.first_in(range).is_none());
        if let Some(extension) = extension {
            if vma.flags.has(VmFlags::ACCOUNT) {
                self.may_commit(pages(delta))?;
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
        let (whole, vma) = self.source(request)?;
        let fixed = if request.has(MREMAP_FIXED) { MAP_FIXED } else { 0 };
        self.choose(Wanted {
            hint,
            len: request.new_len,
            flags: fixed,
            source: &vma.source,
            page_offset: vma.page_after(request.addr - whole.start),
        })
    }

    /// Moves a part of one VMA to an address at which nothing is.
    #[doc(alias = "move_vma")]
    fn move_one(&mut self, request: Request, delta: usize) -> Result<usize, Errno> {
        if self.map_count() >= self.config.max_map_count.saturating_sub(3) {
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
        if let Some(backing) = self.backing {
            backing.relocate(source.clone(), request.new_addr);
        }
        if stays {
            self.leave_empty(&source, &new)?;
        } else if !source.is_empty() {
            let removal = self.check_removal(&source)?;
            self.remove(source, removal)?;
        }
        Ok(request.new_addr)
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
