//! A checker's atomics and locks, and the two things a model may change while it runs: an edge's
//! ordering and whether a step of the protocol is taken. The one piece of logic is the stand-in for
//! the futex (compare, enqueue, wake), which the litmus model `futex` checks by itself.
//!
//! The checker is loom, which tries every schedule and every outcome that the memory model allows;
//! or shuttle, which tries random schedules of larger programs and knows no memory model.
#![expect(
    clippy::unwrap_used,
    clippy::missing_panics_doc,
    reason = "a model that panics has failed"
)]

use core::sync::atomic::Ordering;

use alloc::sync::Arc;

use checker::sync::{Condvar, Mutex};

use crate::step::Step;

pub use checker::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, AtomicUsize};

#[cfg(pervma_shuttle)]
pub use {
    super::plain::{Cell, ConstPtr},
    shuttle as checker,
};
#[cfg(not(pervma_shuttle))]
pub use {
    cells::{Cell, ConstPtr},
    loom as checker,
};

/// The change that a run of a model makes to the shipped protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    /// The edge of this name gets this ordering.
    Weaken(&'static str, Ordering),
    /// This step is left out.
    Drop(Step),
}

std::thread_local! {
    static MUTATION: core::cell::Cell<Option<Mutation>> = const { core::cell::Cell::new(None) };
}

/// Applies `mutation` to every model that this thread runs from now on. A model's own threads are
/// coroutines of the thread that runs it.
pub fn mutate(mutation: Mutation) {
    MUTATION.set(Some(mutation));
}

/// An identity that was never given before; not 0.
pub fn new_identity() -> u64 {
    std::thread_local! {
        static LAST: core::cell::Cell<u64> = const { core::cell::Cell::new(0) };
    }
    LAST.set(LAST.get() + 1);
    LAST.get()
}

/// The ordering that an edge has in this model.
pub fn resolve(name: &'static str, stated: Ordering) -> Ordering {
    match MUTATION.get() {
        Some(Mutation::Weaken(weak, order)) if weak == name => order,
        _ => stated,
    }
}

/// Whether a step of the protocol is taken in this model.
pub fn keep(step: Step) -> bool {
    MUTATION.get() != Some(Mutation::Drop(step))
}

std::thread_local! {
    static UNVALIDATED: core::cell::Cell<bool> = const { core::cell::Cell::new(false) };
}

/// Makes lookups of the models that this thread runs begin with a walk that is not validated, as
/// the shipped ones do.
pub fn walk_unvalidated() {
    UNVALIDATED.set(true);
}

/// Whether a lookup begins with such a walk.
pub fn walks_unvalidated() -> bool {
    UNVALIDATED.get()
}

pub(super) fn fence(order: Ordering) {
    // A fence weakened all the way is no fence; the language has no relaxed one.
    if order != Ordering::Relaxed {
        checker::sync::atomic::fence(order);
    }
}

/// No checker has signals. But here a reader that relies on [`Barrier`] can come to one.
pub(super) fn signal_fence() {
    barrier_point();
}

pub(super) fn barrier_point() {
    if let Some(barrier) = barrier() {
        barrier.pass();
    }
}

checker::thread_local! {
    static BARRIER: core::cell::RefCell<Option<Arc<Barrier>>> = core::cell::RefCell::new(None);
}

fn barrier() -> Option<Arc<Barrier>> {
    BARRIER.with(|barrier| barrier.borrow().clone())
}

/// A stand-in for `membarrier(2)` between one thread that asks for barriers and one that passes
/// them.
///
/// The system call returns when the other thread has passed a full barrier, at an unknown place of
/// its program: what it did before is visible, what it does after sees what was done before the
/// call. Here it passes at the first of its fences for signal handlers, its barrier points or those
/// of the model, after the barrier was asked for, or when it ends.
pub struct Barrier {
    /// Whether one is wanted, for those that pass: while none is, they have no lock in common,
    /// which would order them.
    asked: AtomicU32,
    state: Mutex<Barriers>,
    passed: Condvar,
}

struct Barriers {
    wanted: bool,
    over: bool,
}

impl Barrier {
    /// A barrier for two threads, each of which must [`enroll`](Self::enroll).
    pub fn new() -> Arc<Self> {
        let state = Mutex::new(Barriers { wanted: false, over: false });
        Arc::new(Self { asked: AtomicU32::new(0), state, passed: Condvar::new() })
    }

    /// From now on the running thread registers its readers for barriers, asks for them, and passes
    /// them.
    pub fn enroll(self: &Arc<Self>) {
        BARRIER.with(|barrier| *barrier.borrow_mut() = Some(Arc::clone(self)));
    }

    /// Passes the barrier, if one is wanted.
    pub fn pass(&self) {
        if self.asked.fetch_add(0, Ordering::Relaxed) == 0 {
            return;
        }
        let mut state = self.state.lock().unwrap();
        if state.wanted {
            state.wanted = false;
            self.asked.swap(0, Ordering::Relaxed);
            self.passed.notify_all();
        }
    }

    /// The thread that passes barriers has nothing more to do.
    pub fn end(&self) {
        let mut state = self.state.lock().unwrap();
        (state.wanted, state.over) = (false, true);
        self.passed.notify_all();
    }

    fn ask(&self) {
        let mut state = self.state.lock().unwrap();
        state.wanted = !state.over;
        self.asked.swap(u32::from(state.wanted), Ordering::Relaxed);
        while state.wanted {
            state = self.passed.wait(state).unwrap();
        }
    }
}

/// Whether there is one for the running thread.
pub fn has_barrier() -> bool {
    barrier().is_some()
}

/// Asks for a barrier.
pub fn ask_for_barrier() {
    if let Some(barrier) = barrier() {
        barrier.ask();
    }
}

/// A scheduling hint: a place that two threads pass, whose order loom is to try both ways.
///
/// To find out which steps of others it must try before one, loom looks at the last access of a
/// word only. A writer that looks at the words of the tree before it stores hides that a walker has
/// looked too: without a hint before the walk, no edit would be tried in the middle of one.
pub struct ScheduleHint(AtomicU32);

impl ScheduleHint {
    /// A place that no thread has passed.
    pub fn new() -> Self {
        Self(AtomicU32::new(0))
    }

    /// Passes the place. That orders nothing.
    pub fn hint(&self) {
        self.0.fetch_add(0, Ordering::Relaxed);
    }
}

/// Cells whose accesses loom checks.
#[cfg(not(pervma_shuttle))]
mod cells {
    /// A plain field whose accesses loom checks.
    pub struct Cell<T>(loom::cell::UnsafeCell<T>);

    /// A pointer into a [`Cell`] that stays open for reading while it lives.
    pub struct ConstPtr<T>(loom::cell::ConstPtr<T>);

    impl<T> Cell<T> {
        /// A cell that holds `value`.
        pub fn new(value: T) -> Self {
            Self(loom::cell::UnsafeCell::new(value))
        }

        /// Opens the cell for reading.
        pub fn with<R>(&self, f: impl FnOnce(*const T) -> R) -> R {
            self.0.with(f)
        }

        /// Opens the cell for writing.
        pub fn with_mut<R>(&self, f: impl FnOnce(*mut T) -> R) -> R {
            self.0.with_mut(f)
        }

        /// Opens the cell for reading until the pointer is dropped.
        pub fn get(&self) -> ConstPtr<T> {
            ConstPtr(self.0.get())
        }
    }

    impl<T> ConstPtr<T> {
        /// The address of the value.
        pub fn as_ptr(&self) -> *const T {
            self.0.with(|p| p)
        }
    }
}
