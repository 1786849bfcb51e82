//! The state of a space that its editors and readers share: identity, sequence, mmap lock.
//!
//! [`EditGuard`] is an edit: the sequence number is odd from the moment it exists until it is
//! dropped, and becomes even before the lock is released. Its holder, and the holder of the lock
//! for reading ([`MmapRead`]), may rely on lock invariant L4.
//!
//! Both belong to the thread that took the lock, and so does all that borrows them: that thread
//! goes on changing the space in ways that take no further lock (a reservation that it commits or
//! drops), so no other thread may look through the same section meanwhile.
#![expect(unsafe_code, reason = "locks are renewed after a fork")]

use core::marker::PhantomData;
use core::ops::Deref;

use crate::deferred::DeferredReleases;
use crate::held::{Exclusions, Guards, HandlerScope, Held};
use crate::identity::{Identity, SpaceId};
use crate::lock::{EditSeq, SpaceSeq};
use crate::mmap_lock::{MmapLock, RawReadGuard, RawWriteGuard};
use crate::platform::Platform;
use crate::range::Span;
use crate::step::Step;
use crate::sync::{AtomicU64, AtomicUsize, Relaxed, const_unless_model, keep, signal_fence};

/// The shared state of one space.
pub(crate) struct SpaceState<P: Platform> {
    seq: SpaceSeq<Editors<P>, Identity>,
}

/// The state that editors share, and lookups do not touch.
pub(crate) struct Editors<P: Platform> {
    lock: MmapLock<P>,
    /// The thread that holds the mmap lock for writing, 0 for none. Only ever compared with the
    /// asker's own identity, which only the asker itself can have stored.
    current: AtomicU64,
    deferred: DeferredReleases,
    waiting: WaitingEdit<P>,
    /// How many VMAs the space has. Models have no steps to spare for it.
    vmas: AtomicUsize,
}

/// The edit that waits for exclusions, if there is one. New exclusions in its range let it go
/// first: else they could follow each other without end, each in another part of it.
struct WaitingEdit<P: Platform> {
    /// Held for writing by the thread whose edit waits. New exclusions acquire it for reading, to
    /// wait for that thread.
    turn: MmapLock<P>,
    /// The range; empty unless `turn` is held for writing.
    start: AtomicUsize,
    end: AtomicUsize,
}

const GUARDED: Relaxed = Relaxed("written and read under the mmap lock, which is held");

const TURN: Relaxed = Relaxed("who sees what was before acquires the turn, and looks again");

impl<P: Platform> SpaceState<P> {
    const_unless_model! {
        pub(crate) fn new() -> Self {
            Self {
                seq: SpaceSeq::new(
                    Editors {
                        lock: MmapLock::new(),
                        current: AtomicU64::new(0),
                        deferred: DeferredReleases::new(),
                        waiting: WaitingEdit {
                            turn: MmapLock::new(),
                            start: AtomicUsize::new(0),
                            end: AtomicUsize::new(0),
                        },
                        vmas: AtomicUsize::new(0),
                    },
                    Identity::unassigned(),
                ),
            }
        }
    }

    #[inline(always)]
    fn editors(&self) -> &Editors<P> {
        self.seq.on_edit_line()
    }

    #[inline(always)]
    fn identity(&self) -> &Identity {
        self.seq.on_lookup_line()
    }

    /// The space's identity, if it ever was edited or held.
    #[inline(always)]
    pub(crate) fn id(&self) -> SpaceId {
        SpaceId::of(self.identity())
    }

    /// The space's identity.
    #[inline]
    pub(crate) fn assigned_id(&self) -> SpaceId {
        SpaceId::assigned(self.identity())
    }

    /// Takes another identity: no VMA is this space's any more.
    pub(crate) fn replace_identity(&self) {
        self.identity().replace();
    }

    #[inline(always)]
    pub(crate) fn seq(&self) -> &SpaceSeq<Editors<P>, Identity> {
        &self.seq
    }

    /// Whether the running thread is the one that edits.
    #[inline]
    pub(crate) fn edited_by_me(&self) -> bool {
        let editor = self.editors().current.load(Relaxed("equal to me only if I stored it"));
        editor != 0 && P::with_thread(|thread| thread.id() == editor).unwrap_or(false)
    }

    /// Whether the running thread has a guard of this space on record.
    #[inline]
    pub(crate) fn holds_guard(&self) -> bool {
        Held::<Guards, P>::any(self.id())
    }

    /// Whether the running thread has an exclusion in this space on record.
    pub(crate) fn holds_exclusion(&self) -> bool {
        Held::<Exclusions, P>::any(self.id())
    }

    /// How many VMAs the space has, those of an edit that is under way included.
    pub(crate) fn vmas(&self) -> usize {
        self.editors().vmas.load(Relaxed("a number, of which nothing follows"))
    }

    /// Waits for the mmap lock for reading.
    pub(crate) fn read(&self) -> MmapRead<'_, P> {
        HandlerScope::<P>::assert_may_wait();
        MmapRead { _lock: self.editors().lock.read(), _thread: PhantomData }
    }

    /// Waits for the mmap lock for writing and begins an edit.
    #[inline]
    pub(crate) fn write(&self) -> EditGuard<'_, P> {
        HandlerScope::<P>::assert_may_wait();
        self.begin(self.editors().lock.write())
    }

    /// Begins an edit if no thread holds the mmap lock.
    pub(crate) fn try_write(&self) -> Option<EditGuard<'_, P>> {
        Some(self.begin(self.editors().lock.try_write()?))
    }

    /// As [`write`](Self::write), at most until `deadline`.
    pub(crate) fn write_until(&self, deadline: P::Deadline) -> Option<EditGuard<'_, P>> {
        HandlerScope::<P>::assert_may_wait();
        Some(self.begin(self.editors().lock.write_until(deadline)?))
    }

    /// Makes an edit, that of the caller, the one that waits for exclusions, unless there is one.
    pub(crate) fn try_turn(&self) -> Option<Turn<'_, P>> {
        self.editors().waiting.turn.try_write().map(Turn)
    }

    /// Lets exclusions go on that wait for the edit whose turn it is. The mmap lock need not be
    /// held: whoever reads the range that was waits for the turn, and reads again.
    pub(crate) fn end_turn(&self, turn: Turn<'_, P>) {
        if keep(Step::ClearRange) {
            self.editors().waiting.end.store(0, TURN);
        }
        drop(turn);
    }

    /// Waits until the edit that waits for exclusions has begun, or given up. Not to be called with
    /// the mmap lock held.
    pub(crate) fn let_waiting_edit_go_first(&self) {
        drop(self.editors().waiting.turn.read());
    }

    #[inline]
    fn begin<'m>(&'m self, lock: RawWriteGuard<'m, P>) -> EditGuard<'m, P> {
        if let Some(me) = P::with_thread(|thread| thread.id()) {
            self.editors().current.store(me, Relaxed("read back only by this thread"));
        }
        signal_fence(); // as at the end
        let section = EditSection::new(self, self.seq.begin());
        EditGuard { ending: Ending(section), _lock: lock }
    }

    /// Runs `f` in the edit that the running thread has open.
    ///
    /// For an operation on a VMA of which the caller owns the only handle, a reservation: the edit
    /// may be in the middle of something.
    pub(crate) fn in_own_edit<R>(&self, f: impl FnOnce(&EditSection<'_, P>) -> R) -> R {
        assert!(self.edited_by_me(), "the thread has an edit open");
        f(&EditSection::new(self, self.seq.running()))
    }

    /// Goes on after a fork, in the child: ends the edit that was open, of the calling thread.
    ///
    /// # Safety
    ///
    /// The caller is the only thread of its process, and forked while it had `edit` of this space.
    pub(crate) unsafe fn end_in_child(&self, edit: EditGuard<'_, P>) {
        let EditGuard { ending, _lock: lock } = edit;
        let waiting = &self.editors().waiting;
        waiting.end.store(0, GUARDED);
        drop(ending);
        core::mem::forget(lock);
        for lock in [&self.editors().lock, &waiting.turn] {
            // SAFETY: as the caller says; the guard was forgotten, and no turn outlives the begin
            // of its edit.
            unsafe { lock.renew() };
        }
    }

    /// Reservations that were dropped while another thread had the mmap lock.
    #[inline]
    pub(crate) fn deferred(&self) -> &DeferredReleases {
        &self.editors().deferred
    }
}

/// The right of an edit to be the one that waits for exclusions.
pub(crate) struct Turn<'m, P: Platform>(
    #[expect(dead_code, reason = "held until it is dropped")] RawWriteGuard<'m, P>,
);

/// A marker of types that are neither `Send` nor `Sync`.
type BelongsToThread = PhantomData<*const ()>;

/// The mmap lock held for reading.
pub(crate) struct MmapRead<'m, P: Platform> {
    _lock: RawReadGuard<'m, P>,
    _thread: BelongsToThread,
}

/// The mmap lock held for writing, within an edit.
pub(crate) struct EditSection<'m, P: Platform> {
    state: &'m SpaceState<P>,
    edit: EditSeq,
    space: SpaceId,
    _thread: BelongsToThread,
}

impl<'m, P: Platform> EditSection<'m, P> {
    #[inline]
    fn new(state: &'m SpaceState<P>, edit: EditSeq) -> Self {
        Self { state, edit, space: state.assigned_id(), _thread: PhantomData }
    }

    /// A copy of this section, which borrows it.
    #[inline]
    pub(crate) fn again(&self) -> EditSection<'_, P> {
        EditSection { state: self.state, edit: self.edit, space: self.space, _thread: PhantomData }
    }

    /// The number that names this edit.
    #[inline]
    pub(crate) fn edit(&self) -> EditSeq {
        self.edit
    }

    /// Whether an edit waits for exclusions in a range that touches `span`.
    #[inline]
    pub(crate) fn has_waiting(&self, span: Span) -> bool {
        let waiting = &self.state.editors().waiting;
        span.start < waiting.end.load(GUARDED) && waiting.start.load(GUARDED) < span.end
    }

    /// New exclusions in `span` wait from now on, until
    /// [`end_turn`](SpaceState::end_turn).
    pub(crate) fn wait_in_turn(&self, _: &Turn<'_, P>, span: Span) {
        let waiting = &self.state.editors().waiting;
        waiting.start.store(span.start, GUARDED);
        waiting.end.store(span.end, GUARDED);
    }

    /// Counts VMAs that the edit has detached and attached.
    #[inline]
    pub(crate) fn count_vmas(&self, detached: usize, attached: usize) {
        if !cfg!(pervma_model) {
            let vmas = &self.state.editors().vmas;
            vmas.store(vmas.load(GUARDED) + attached - detached, GUARDED);
        }
    }

    /// The identity of the space that is edited.
    #[inline]
    pub(crate) fn space(&self) -> SpaceId {
        self.space
    }
}

/// An edit, from its begin to its end.
pub(crate) struct EditGuard<'m, P: Platform> {
    // Fields are dropped in order: the sequence becomes even before the lock is released.
    ending: Ending<'m, P>,
    _lock: RawWriteGuard<'m, P>,
}

impl<'m, P: Platform> EditGuard<'m, P> {
    /// Ends the edit and goes on reading, with no other edit in between.
    #[doc(alias = "mmap_write_downgrade")]
    pub(crate) fn downgrade(self) -> MmapRead<'m, P> {
        let Self { ending, _lock } = self;
        let state = ending.0.state;
        drop(ending);
        if !keep(Step::DowngradeAtOnce) {
            drop(_lock);
            return state.read();
        }
        MmapRead { _lock: MmapLock::<P>::downgrade(_lock), _thread: PhantomData }
    }
}

impl<'m, P: Platform> Deref for EditGuard<'m, P> {
    type Target = EditSection<'m, P>;

    #[inline]
    fn deref(&self) -> &EditSection<'m, P> {
        &self.ending.0
    }
}

/// Ends the edit when it is dropped.
struct Ending<'m, P: Platform>(EditSection<'m, P>);

impl<P: Platform> Drop for Ending<'_, P> {
    #[inline]
    fn drop(&mut self) {
        let state = self.0.state;
        state.seq.end(self.0.edit);
        // A handler of this thread that finds a VMA locked must find itself to be the editor.
        signal_fence();
        state.editors().current.store(0, Relaxed("read back only by this thread"));
    }
}
