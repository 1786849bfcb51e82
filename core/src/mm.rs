//! The state of a space that its editors and readers share: identity, sequence, mmap lock.
//!
//! A section is the mmap lock held. [`WriteSection`] is an edit: its sequence number is odd from
//! the moment the section exists until it is dropped, and the number goes even before the lock is
//! released. Whoever holds a section may rely on lock invariant L4.

use crate::facade::{
    AtomicUsize, MmapLock, MmapReadGuard, MmapWriteGuard, Relaxed, const_unless_model, signal_fence,
};
use crate::lock::{EditSeq, SpaceSeq};
use crate::platform::Platform;
use crate::thread::HandlerScope;

/// Names a space among all that ever use one slab; never given twice.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SpaceId(pub u64);

/// A value with its cache lines to itself: readers poll the sequence, editors write the rest.
#[repr(align(128))]
struct Line<V>(V);

/// The shared state of one space.
pub struct Mm<T: Platform> {
    seq: Line<SpaceSeq>,
    editors: Line<Editors<T>>,
    /// Read in every lookup, so on no line that an edit writes.
    id: SpaceId,
}

/// What editors share, and readers do not touch.
struct Editors<T: Platform> {
    lock: MmapLock<T>,
    /// The thread that holds the mmap lock for writing, 0 for none. Only ever compared with the
    /// asker's own identity, which only the asker itself can have stored.
    current: AtomicUsize,
}

impl<T: Platform> Mm<T> {
    const_unless_model! {
        pub fn new(id: SpaceId) -> Self {
            Self {
                seq: Line(SpaceSeq::new()),
                editors: Line(Editors { lock: MmapLock::new(), current: AtomicUsize::new(0) }),
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
        &self.seq.0
    }

    /// Whether the running thread is the one that edits.
    pub fn edited_by_me(&self) -> bool {
        let editor = self.editors.0.current.load(Relaxed("equal to me only if I stored it"));
        T::with_thread(|thread| thread.id() == editor).unwrap_or(false)
    }

    /// Waits for the mmap lock for reading.
    pub fn read(&self) -> ReadSection<'_, T> {
        HandlerScope::<T>::assert_may_wait();
        ReadSection { _lock: self.editors.0.lock.read() }
    }

    /// Waits for the mmap lock for writing and begins an edit.
    pub fn write(&self) -> WriteSection<'_, T> {
        HandlerScope::<T>::assert_may_wait();
        let lock = self.editors.0.lock.write();
        if let Some(me) = T::with_thread(|thread| thread.id()) {
            self.editors.0.current.store(me, Relaxed("read back only by this thread"));
        }
        signal_fence(); // as at the end
        WriteSection { mm: self, edit: self.seq().begin(), _lock: lock }
    }
}

/// The mmap lock held for reading: nothing is attached, detached or write-locked meanwhile.
pub struct ReadSection<'m, T: Platform> {
    _lock: MmapReadGuard<'m, T>,
}

/// The mmap lock held for writing: one edit.
pub struct WriteSection<'m, T: Platform> {
    mm: &'m Mm<T>,
    edit: EditSeq,
    /// Fields are dropped after `drop` has run: the sequence goes even before the lock is released.
    _lock: MmapWriteGuard<'m, T>,
}

impl<T: Platform> WriteSection<'_, T> {
    /// The number that names this edit.
    pub fn edit(&self) -> EditSeq {
        self.edit
    }

    /// The space under edit.
    pub fn space_id(&self) -> SpaceId {
        self.mm.id
    }
}

impl<T: Platform> Drop for WriteSection<'_, T> {
    fn drop(&mut self) {
        self.mm.seq().end(self.edit);
        // A handler of this thread that is told *locked* must find itself to be the editor.
        signal_fence();
        self.mm.editors.0.current.store(0, Relaxed("read back only by this thread"));
    }
}
