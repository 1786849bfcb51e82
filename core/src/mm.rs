//! The state of a space that its editors and readers share: identity, sequence, mmap lock.
//!
//! A section is the mmap lock held. [`WriteLock`] is an edit: the sequence number is odd from the
//! moment it exists until it is dropped, and goes even before the lock is released. Whoever holds a
//! section may rely on lock invariant L4.

use core::marker::PhantomData;
use core::ops::Deref;

use crate::facade::{
    AtomicU32, AtomicUsize, MmapLock, MmapReadGuard, MmapWriteGuard, Relaxed, const_unless_model,
    keep, signal_fence,
};
use crate::ledger::Step;
use crate::lock::{EditSeq, Line, SpaceSeq};
use crate::platform::Platform;
use crate::thread::HandlerScope;

/// Names a space among all that ever use one slab; never given twice.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SpaceId(pub u64);

/// The bit in a slot's owner that makes it a reservation. No space has it in its identity.
const RESERVED: u64 = 1 << 63;

impl SpaceId {
    /// The owner of a reservation in this space.
    pub fn reserved(self) -> Self {
        Self(self.0 | RESERVED)
    }

    /// Whether this is the owner of a reservation.
    pub fn is_reserved(self) -> bool {
        self.0 & RESERVED != 0
    }
}

/// The shared state of one space.
pub struct Mm<P: Platform> {
    seq: SpaceSeq,
    editors: Line<Editors<P>>,
    /// Read in every lookup, so on no line that an edit writes.
    id: SpaceId,
}

/// What editors share, and readers do not touch.
struct Editors<P: Platform> {
    lock: MmapLock<P>,
    /// The thread that holds the mmap lock for writing, 0 for none. Only ever compared with the
    /// asker's own identity, which only the asker itself can have stored.
    current: AtomicUsize,
    /// See [`Mm::left_behind`].
    left_behind: AtomicU32,
}

impl<P: Platform> Mm<P> {
    const_unless_model! {
        pub fn new(id: SpaceId) -> Self {
            Self {
                seq: SpaceSeq::new(),
                editors: Line(Editors {
                    lock: MmapLock::new(),
                    current: AtomicUsize::new(0),
                    left_behind: AtomicU32::new(0),
                }),
                id,
            }
        }
    }

    #[inline(always)]
    pub fn id(&self) -> SpaceId {
        self.id
    }

    #[inline(always)]
    pub fn seq(&self) -> &SpaceSeq {
        &self.seq
    }

    /// Whether the running thread is the one that edits.
    pub fn edited_by_me(&self) -> bool {
        let editor = self.editors.0.current.load(Relaxed("equal to me only if I stored it"));
        P::with_thread(|thread| thread.id() == editor).unwrap_or(false)
    }

    /// Waits for the mmap lock for reading.
    pub fn read(&self) -> ReadSection<'_, P> {
        HandlerScope::<P>::assert_may_wait();
        ReadSection { _lock: self.editors.0.lock.read(), _thread: PhantomData }
    }

    /// Waits for the mmap lock for writing and begins an edit.
    pub fn write(&self) -> WriteLock<'_, P> {
        HandlerScope::<P>::assert_may_wait();
        self.begin(self.editors.0.lock.write())
    }

    /// Begins an edit if nobody has the mmap lock.
    pub fn try_write(&self) -> Option<WriteLock<'_, P>> {
        Some(self.begin(self.editors.0.lock.try_write()?))
    }

    fn begin<'m>(&'m self, lock: MmapWriteGuard<'m, P>) -> WriteLock<'m, P> {
        if let Some(me) = P::with_thread(|thread| thread.id()) {
            self.editors.0.current.store(me, Relaxed("read back only by this thread"));
        }
        signal_fence(); // as at the end
        let section = WriteSection::new(self, self.seq().begin());
        WriteLock { ending: Ending(section), _lock: lock }
    }

    /// Runs `f` in the edit that the running thread has open.
    ///
    /// For an operation on a VMA of which the caller owns the only handle, a reservation: the edit
    /// may be in the middle of something.
    pub fn in_own_edit<R>(&self, f: impl FnOnce(&WriteSection<'_, P>) -> R) -> R {
        assert!(self.edited_by_me(), "the thread has an edit open");
        f(&WriteSection::new(self, self.seq().running()))
    }

    /// Reservations that were dropped while somebody had the mmap lock: a list through their slots.
    pub fn left_behind(&self) -> &AtomicU32 {
        &self.editors.0.left_behind
    }
}

/// The mmap lock held, either way: nothing is attached, detached or write-locked by others, and
/// nobody begins to exclude.
///
/// A section belongs to the thread that took the lock, and so does whatever borrows it: the thread
/// goes on changing the space in ways that take no further lock (a reservation that it commits or
/// drops), so another thread may not look through the same section meanwhile.
pub trait Section {}

/// Neither `Send` nor `Sync`.
type BelongsToThread = PhantomData<*const ()>;

/// The mmap lock held for reading.
pub struct ReadSection<'m, P: Platform> {
    _lock: MmapReadGuard<'m, P>,
    _thread: BelongsToThread,
}

impl<P: Platform> Section for ReadSection<'_, P> {}

/// The mmap lock held for writing: within an edit.
pub struct WriteSection<'m, P: Platform> {
    mm: &'m Mm<P>,
    edit: EditSeq,
    _thread: BelongsToThread,
}

impl<P: Platform> Section for WriteSection<'_, P> {}

impl<'m, P: Platform> WriteSection<'m, P> {
    fn new(mm: &'m Mm<P>, edit: EditSeq) -> Self {
        Self { mm, edit, _thread: PhantomData }
    }

    /// The number that names this edit.
    pub fn edit(&self) -> EditSeq {
        self.edit
    }

    /// The space under edit.
    pub fn space_id(&self) -> SpaceId {
        self.mm.id
    }
}

/// An edit, from its begin to its end.
pub struct WriteLock<'m, P: Platform> {
    // Fields are dropped in order: the sequence goes even before the lock is released.
    ending: Ending<'m, P>,
    _lock: MmapWriteGuard<'m, P>,
}

impl<P: Platform> Section for WriteLock<'_, P> {}

impl<'m, P: Platform> WriteLock<'m, P> {
    /// Ends the edit and goes on reading, with no other edit in between.
    #[doc(alias = "mmap_write_downgrade")]
    pub fn downgrade(self) -> ReadSection<'m, P> {
        let Self { ending, _lock } = self;
        let mm = ending.0.mm;
        drop(ending);
        if !keep(Step::DowngradeAtOnce) {
            drop(_lock);
            return mm.read();
        }
        ReadSection { _lock: MmapLock::<P>::downgrade(_lock), _thread: PhantomData }
    }
}

impl<'m, P: Platform> Deref for WriteLock<'m, P> {
    type Target = WriteSection<'m, P>;

    fn deref(&self) -> &WriteSection<'m, P> {
        &self.ending.0
    }
}

/// Ends the edit when it is dropped.
struct Ending<'m, P: Platform>(WriteSection<'m, P>);

impl<P: Platform> Drop for Ending<'_, P> {
    fn drop(&mut self) {
        let mm = self.0.mm;
        mm.seq().end(self.0.edit);
        // A handler of this thread that is told *locked* must find itself to be the editor.
        signal_fence();
        mm.editors.0.current.store(0, Relaxed("read back only by this thread"));
    }
}
