//! The address space, and the code that its calls share.

use alloc::boxed::Box;
use alloc::vec::{self, Vec};
use core::fmt;
use core::ops::Range;

use lock_api::{RwLock, RwLockWriteGuard};
use pervma::{AddressSpace, ChangeError, Edit, Platform, RangeLocks};

use crate::abi::{PAGE, pages};
use crate::asked::Asked;
use crate::backing::{Backing, Refusal};
use crate::config::{Config, Limits};
use crate::counts::Counts;
use crate::errno::Errno;
use crate::flags::VmFlags;
use crate::merge::{self, Merge, Proposed};
use crate::not_now::NotNow;
use crate::state::{Shown, State};
use crate::vma::Vma;

/// An address space on which Linux's mapping calls are made, with Linux's results.
///
/// The calls take what the system calls take, whatever it is, and return what they return. All of
/// them may be made from several threads at once, and [`fault`](Self::fault) normally locks nothing
/// but the VMA that it is about.
///
/// # Calls of several threads
///
/// In Linux mapping calls of a process take turns, with all the work that the system has with
/// pages. Here only the changes of the map do, each of which is short: while the [`Backing`] works
/// for one call, calls on other addresses go on, in the same VMA too. Those on the same addresses
/// wait, and so do faults, where pages are unmapped, moved or protected. So does
///
/// - a call that would choose an address which an unfinished `mremap` has chosen;
/// - [`fork`](Self::fork), [`mlockall`](Self::mlockall), [`munlockall`](Self::munlockall),
///   [`adopt_counts`](Self::adopt_counts), `PROT_GROWSDOWN`, `mremap` with `MREMAP_FIXED` and
///   `MREMAP_DONTUNMAP`, and every call in [strict mode](Config::strict), for all others and for
///   faults that are being served anywhere, and others for them;
/// - a call that comes near a limit, with all that unfinished calls may still add: it is decided
///   when they have ended;
/// - the 65th call for which the backing has something to do, if 64 are unfinished.
///
/// A change of a mapping, or next to it, waits for faults in it that are being served, and others
/// go on meanwhile. If there are new ones each time that it looks, three times, it waits for the
/// next ones with the map locked: then other calls wait, too.
///
/// The results are those of some order of the calls, made one by one, in which a call that had
/// ended comes before those that began later. Pages that a call makes present are touches after it,
/// as in Linux; nobody else changes their mapping meanwhile. A look at the map (`maps`, `lookup`,
/// counts) shows what the edits so far have left: what an unfinished call is going to unmap or move
/// is there until its end, and what a strict call makes is there until it is undone. `mincore`
/// looks at a mapping at a time, as in Linux.
///
/// There is one case in which no order gives the same: the address to which `mremap` moves a
/// mapping is chosen among what was free when it began, and may not be what is chosen when it ends.
///
/// # In signal handlers
///
/// A handler may have interrupted any of these methods half-way, so it can call none that waits. It
/// may call [`try_lookup`](Self::try_lookup), [`try_lookup_from`](Self::try_lookup_from),
/// [`try_fault`](Self::try_fault) and [`backing`](Self::backing), and no others: they take no lock,
/// allocate nothing, run no destructor and end after a bounded number of steps. What is mapped all
/// the time is never a hole for them; while it is being changed their answer is
/// [`NotNow`](crate::NotNow). Inside of a [`HandlerScope`](crate::HandlerScope) a method that would
/// wait panics instead.
///
/// # From inside of the backing
///
/// A method of the [`Backing`] may call the same `Mm`, for addresses that no call has. Where it
/// would have to wait, for its own call or another, nothing hangs, as far as the platform can tell
/// threads apart: a call fails with `EAGAIN`, [`fault`](Self::fault) with
/// [`Signal::OwnCall`](crate::Signal::OwnCall). From inside of [`Backing::fault`] the VMA is locked
/// for reading, and all calls fail so; a question that would have to wait fails with
/// [`NotNow::OwnCall`](crate::NotNow::OwnCall).
///
/// ```
/// use pervma_linux::{Config, Errno, Mm, NoBacking, abi::*};
///
/// let mm = Mm::new(NoBacking, Config::default());
/// let anonymous = MAP_PRIVATE | MAP_ANONYMOUS;
/// let addr = mm.mmap(0, 3 * 4096, PROT_READ | PROT_WRITE, anonymous, None, 0)?;
/// mm.mprotect(addr + 4096, 4096, PROT_READ)?;
/// mm.munmap(addr + 8192, 4096)?;
/// assert_eq!(mm.mprotect(addr, 3 * 4096, PROT_NONE), Err(Errno::ENOMEM));
/// // As in Linux, the call has changed what comes before the hole.
/// assert_eq!(mm.maps()?.lines().count(), 1);
/// # Ok::<(), Errno>(())
/// ```
#[doc(alias = "mm_struct")]
pub struct Mm<B, P: Platform> {
    pub(crate) core: Core<P>,
    pub(crate) backing: B,
    /// The addresses that calls are about which need more than one edit.
    pub(crate) ranges: RangeLocks<P>,
    /// The end of the address space, which never changes: signal handlers look at it.
    pub(crate) task_size: usize,
}

/// The map and what is counted beside it.
pub(crate) struct Core<P: Platform> {
    /// What edits work on, each in its turn.
    state: RwLock<P::Lock, State>,
    pub(crate) shown: Shown<P>,
    pub(crate) space: AddressSpace<Vma, P>,
    /// How many VMAs there are beside those in `space`, which is a copy of some.
    pub(crate) others: usize,
}

#[cfg(feature = "std")]
impl<B: Backing> Mm<B, pervma::StdPlatform> {
    /// Makes an empty address space.
    ///
    /// ```
    /// use pervma_linux::{Config, Mm, NoBacking};
    /// assert_eq!(Mm::new(NoBacking, Config::default()).maps().as_deref(), Ok(""));
    /// ```
    pub fn new(backing: B, config: Config) -> Self {
        Self::with_platform(backing, config)
    }
}

impl<B: Backing, P: Platform> Mm<B, P> {
    /// Makes an empty address space on the platform `P`.
    ///
    /// ```
    /// use pervma_linux::{Config, Mm, NoBacking};
    /// let mm = Mm::<_, pervma::StdPlatform>::with_platform(NoBacking, Config::default());
    /// assert_eq!(mm.counts().total, 0);
    /// ```
    pub fn with_platform(backing: B, config: Config) -> Self {
        let core = Core::new(AddressSpace::with_platform(PAGE), State::new(config), 0);
        Self::of(core, backing, config.layout.task_size)
    }

    /// Returns the memory behind the map.
    ///
    /// ```
    /// use pervma_linux::{Config, Mm, NoBacking};
    /// let NoBacking = Mm::new(NoBacking, Config::default()).backing();
    /// ```
    pub fn backing(&self) -> &B {
        &self.backing
    }

    /// Returns the machine and the process that calls are made on, as they are now: the layout has
    /// the present end of the heap.
    ///
    /// ```
    /// use pervma_linux::{Config, Mm, NoBacking};
    /// assert!(!Mm::new(NoBacking, Config::default()).config().strict);
    /// ```
    pub fn config(&self) -> Config {
        self.core.shown.config()
    }

    /// Changes the machine and the process that calls are made on: capabilities are dropped
    /// (`capset`), limits are set (`setrlimit`), the machine has other settings (`sysctl`). What is
    /// mapped stays as it is, as in Linux: what was locked stays locked, and more mappings than may
    /// be stay mapped.
    ///
    /// The next call goes by it. One that is under way does not notice, nor a fork's child. The
    /// configuration is locked while `change` runs, so that must not use the same `Mm`: it would
    /// wait for itself.
    ///
    /// ```
    /// use pervma_linux::{Config, Errno, Mm, NoBacking, abi::*};
    ///
    /// let mm = Mm::new(NoBacking, Config { may_map_low: true, ..Config::default() });
    /// let fixed = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;
    /// assert_eq!(mm.mmap(0, 4096, PROT_READ, fixed, None, 0), Ok(0));
    /// mm.configure(|config| config.may_map_low = false)?;
    /// assert_eq!(mm.mmap(0, 4096, PROT_READ, fixed, None, 0), Err(Errno::EPERM));
    /// assert_eq!(mm.munmap(0, 4096), Ok(()));
    /// # Ok::<(), Errno>(())
    /// ```
    ///
    /// # Errors
    ///
    /// `EINVAL`, with nothing changed, if [`layout`](Config::layout) or [`future`](Config::future)
    /// is another one then. They are as a process has begun, and as calls have left them:
    /// [`brk`](Self::brk), [`set_addresses`](Self::set_addresses), [`mlockall`](Self::mlockall).
    #[doc(alias("capset", "sysctl"))]
    pub fn configure(&self, change: impl FnOnce(&mut Config)) -> Result<(), Errno> {
        self.core.shown.configure(change)
    }

    /// Returns the counts, as they were when the last call ended.
    ///
    /// ```
    /// use pervma_linux::{Config, Mm, NoBacking};
    /// assert_eq!(Mm::new(NoBacking, Config::default()).counts().locked, 0);
    /// ```
    pub fn counts(&self) -> Counts {
        self.core.shown.counts()
    }

    /// Returns the limits.
    ///
    /// ```
    /// use pervma_linux::{Config, Mm, NoBacking};
    /// assert_eq!(Mm::new(NoBacking, Config::default()).limits().locked, 8 << 20);
    /// ```
    pub fn limits(&self) -> Limits {
        self.core.shown.config().limits
    }

    /// Sets the limits (`setrlimit`).
    ///
    /// ```
    /// use pervma_linux::{Config, Errno, Limits, Mm, NoBacking, abi};
    /// let mm = Mm::new(NoBacking, Config::default());
    /// mm.set_limits(Limits { address_space: 4096, ..mm.limits() });
    /// let flags = abi::MAP_PRIVATE | abi::MAP_ANONYMOUS;
    /// assert_eq!(mm.mmap(0, 8192, 0, flags, None, 0), Err(Errno::ENOMEM));
    /// ```
    pub fn set_limits(&self, limits: Limits) {
        let _ = self.configure(|config| config.limits = limits);
    }

    pub(crate) fn of(core: Core<P>, backing: B, task_size: usize) -> Self {
        Self { core, backing, ranges: RangeLocks::with_platform(), task_size }
    }
}

impl<P: Platform> Core<P> {
    pub(crate) fn new(space: AddressSpace<Vma, P>, state: State, others: usize) -> Self {
        Self { state: RwLock::new(state), shown: Shown::new(&state), space, others }
    }

    /// Begins an edit.
    pub(crate) fn change(&self) -> Result<Change<'_, P>, NotNow> {
        let edit = self.space.edit().map_err(|_| NotNow::OwnCall)?;
        // Nobody waits for it: only edits lock it.
        let mut state = self.state.write();
        self.shown.take_config(&mut state);
        let (is_quiet, answers) = (false, Vec::new().into_iter());
        Ok(Change { core: self, state, edit, is_quiet, trial: None, answers })
    }
}

/// An edit, in which a call is made or prepared.
pub(crate) struct Change<'m, P: Platform> {
    pub(crate) core: &'m Core<P>,
    // Dropped before the edit ends.
    pub(crate) state: RwLockWriteGuard<'m, P::Lock, State>,
    pub(crate) edit: Edit<'m, Vma, P>,
    /// Whether all VMAs of its call are known to be write-locked.
    pub(crate) is_quiet: bool,
    /// What the backing would be asked for, where the call is only tried.
    pub(crate) trial: Option<Box<Asked>>,
    /// What became of the pages that it was asked for.
    pub(crate) answers: vec::IntoIter<Result<(), Refusal>>,
}

impl<P: Platform> Drop for Change<'_, P> {
    fn drop(&mut self) {
        self.core.shown.show(&mut self.state);
    }
}

impl<P: Platform> Change<'_, P> {
    /// The VMA that holds `addr`.
    pub(crate) fn holding(&self, addr: usize) -> Option<(Range<usize>, &Vma)> {
        self.edit.get(addr)
    }

    /// The first VMA that ends above `addr`.
    #[doc(alias = "find_vma")]
    pub(crate) fn first_from(&self, addr: usize) -> Option<(Range<usize>, &Vma)> {
        self.edit.overlapping(addr..usize::MAX).next()
    }

    /// The first VMA that touches `range`; none if the range is empty.
    #[doc(alias = "find_vma_intersection")]
    pub(crate) fn first_in(&self, range: &Range<usize>) -> Option<(Range<usize>, &Vma)> {
        self.edit.overlapping(range.clone()).next()
    }

    /// The last VMA that touches `range`.
    pub(crate) fn last_in(&self, range: &Range<usize>) -> Option<(Range<usize>, &Vma)> {
        self.edit.overlapping(range.clone()).next_back()
    }

    /// The VMA that ends where `addr` is.
    pub(crate) fn ending_at(&self, addr: usize) -> Option<(Range<usize>, &Vma)> {
        self.edit.get(addr.checked_sub(1)?).filter(|(range, _)| range.end == addr)
    }

    /// The VMA that starts where `addr` is.
    pub(crate) fn starting_at(&self, addr: usize) -> Option<(Range<usize>, &Vma)> {
        self.edit.get(addr).filter(|(range, _)| range.start == addr)
    }

    /// How many VMAs there are.
    pub(crate) fn map_count(&self) -> usize {
        self.core.space.slab().vmas().in_use + self.core.others
    }

    /// Maps `range`, which is free, and merges it with neighbours. Returns the whole VMA that it is
    /// in now.
    pub(crate) fn map(
        &mut self,
        range: Range<usize>,
        vma: Vma,
        merge_with: MergeWith,
    ) -> Result<Range<usize>, Errno> {
        let hands_on = merge_with == MergeWith::Swallowing;
        let proposed = Proposed { range: range.clone(), vma: &vma, hands_on };
        let (to_left, to_right) = match merge_with {
            MergeWith::Both | MergeWith::Swallowing => (true, true),
            MergeWith::LeftOnly => (true, false),
            MergeWith::Neither => (false, false),
        };
        let prev = self.ending_at(range.start).filter(|_| to_left);
        let next = self.starting_at(range.end).filter(|_| to_right);
        let merge = merge::decide(as_pair(&prev), &proposed, as_pair(&next));
        match merged_vma(prev, &proposed, next, merge) {
            Some((merged, vma)) => self.replace(merged, vma),
            None => {
                let inserted = self.edit.insert(range.clone(), vma);
                inserted.map(|()| range).map_err(|error| no_memory(error.kind))
            }
        }
    }

    pub(crate) fn replace(&mut self, range: Range<usize>, vma: Vma) -> Result<Range<usize>, Errno> {
        // In its place, where one VMA has these addresses.
        if let Ok(mut whole) = self.edit.write(range.start)
            && whole.range() == range
        {
            *whole = vma;
            return Ok(range);
        }
        let replaced = self.edit.replace(range.clone(), vma);
        replaced.map(|_| range).map_err(|error| no_memory(error.kind))
    }

    /// Changes `range`, which lies in one VMA, to be as `vma`: merges it with its neighbours, or
    /// else splits it off, first at its start, then at its end. Returns the whole VMA that it is in
    /// now.
    #[doc(alias = "vma_modify")]
    pub(crate) fn modify(&mut self, range: Range<usize>, vma: Vma) -> Result<Range<usize>, Errno> {
        let (whole, _) = self.holding(range.start).ok_or(Errno::ENOMEM)?;
        let proposed = Proposed { range: range.clone(), vma: &vma, hands_on: false };
        // Where the range ends inside its VMA, it has no neighbour to merge with.
        let prev = self.ending_at(range.start).filter(|_| whole.start == range.start);
        let next = self.starting_at(range.end).filter(|_| whole.end == range.end);
        let merge = merge::decide(as_pair(&prev), &proposed, as_pair(&next));
        if let Some((merged, vma)) = merged_vma(prev, &proposed, next, merge) {
            return self.replace(merged, vma);
        }
        for (at, end) in [(range.start, whole.start), (range.end, whole.end)] {
            if at != end {
                self.split(at)?;
            }
        }
        self.replace(range, vma)
    }

    /// Splits the VMA that holds `addr` there, if there may be one VMA more.
    #[doc(alias = "split_vma")]
    fn split(&mut self, addr: usize) -> Result<(), Errno> {
        if self.map_count() >= self.state.config.max_map_count {
            return Err(Errno::ENOMEM);
        }
        self.split_unlimited(addr)
    }

    /// Splits the VMA that holds `addr` there, however many VMAs there are. Does nothing at the
    /// start of a VMA or outside of one.
    pub(crate) fn split_unlimited(&mut self, addr: usize) -> Result<(), Errno> {
        let Some((range, vma)) = self.holding(addr).filter(|(range, _)| range.start != addr) else {
            return Ok(());
        };
        if vma.is_whole() {
            return Err(Errno::EINVAL);
        }
        let split = self.edit.update(addr..range.end, |_, vma| vma.clone());
        split.map(drop).map_err(no_memory)
    }

    /// Whether `count` more pages may be committed (`vm.overcommit_memory`).
    #[doc(alias = "security_vm_enough_memory_mm")]
    pub(crate) fn may_commit(&self, count: usize) -> Result<(), Errno> {
        if count > self.state.config.commit_limit { Err(Errno::ENOMEM) } else { Ok(()) }
    }

    pub(crate) fn may_expand(&self, flags: VmFlags, pages: usize) -> bool {
        self.state.counts.may_expand(&self.state.config.limits, flags, pages)
    }

    pub(crate) fn may_lock(&self, flags: VmFlags, bytes: usize) -> bool {
        self.state.counts.may_lock(&self.state.config, flags, bytes)
    }

    /// Whether the process may lock anything at all.
    #[doc(alias = "can_do_mlock")]
    pub(crate) fn can_lock(&self) -> bool {
        self.state.config.limits.locked != 0 || self.state.config.may_lock
    }

    /// Counts a new mapping of so many bytes.
    pub(crate) fn count_new(&mut self, flags: VmFlags, bytes: usize) {
        let counts = &mut self.state.counts;
        counts.add(flags, pages(bytes));
        if flags.has(VmFlags::LOCKED) {
            counts.locked = counts.locked.wrapping_add(pages(bytes));
        }
    }
}

/// The neighbours that a new mapping may merge with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MergeWith {
    /// Both neighbours.
    Both,
    /// The one below, as the heap.
    LeftOnly,
    /// None, as the first page of the heap.
    Neither,
    /// Both, where the mapping makes a VMA longer: fewer things keep that from merging with the
    /// next.
    Swallowing,
}

/// The VMA that a proposed range and those it merges with become.
fn merged_vma(
    prev: Option<(Range<usize>, &Vma)>,
    proposed: &Proposed<'_>,
    next: Option<(Range<usize>, &Vma)>,
    merge: Merge,
) -> Option<(Range<usize>, Vma)> {
    let prev = prev.filter(|_| merge.left);
    let next = next.filter(|_| merge.right);
    if prev.is_none() && next.is_none() {
        return None;
    }
    let Proposed { range, vma, .. } = proposed;
    let (mut whole, mut merged) = (range.clone(), (*vma).clone());
    if let Some((at, prev)) = prev {
        (whole.start, merged.page_offset) = (at.start, prev.page_offset);
        merged.anon = prev.anon.or(merged.anon);
        merged.flags |= prev.flags;
    }
    if let Some((at, next)) = next {
        whole.end = at.end;
        merged.anon = merged.anon.or(next.anon);
        merged.flags |= next.flags;
    }
    Some((whole, merged))
}

fn as_pair<'a>(vma: &'a Option<(Range<usize>, &'a Vma)>) -> Option<(&'a Range<usize>, &'a Vma)> {
    vma.as_ref().map(|(range, vma)| (range, *vma))
}

/// The error of a change: nothing but memory can be missing for ranges that were checked.
pub(crate) fn no_memory(_: ChangeError) -> Errno {
    Errno::ENOMEM
}

impl<B: fmt::Debug, P: Platform> fmt::Debug for Mm<B, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mm").field("backing", &self.backing).finish_non_exhaustive()
    }
}
