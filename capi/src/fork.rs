//! Spaces across fork(2): all of them at once, by handlers of `pthread_atfork(3)`.
#![expect(unsafe_code, reason = "exports functions, and is called in children of fork")]
#![expect(clippy::disallowed_types, reason = "how many forks there were")]

use std::cell::RefCell;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, MutexGuard};

use address_space::PreparedFork;

use crate::boundary::call;
use crate::handles::{Registry, get_in, registry};
use crate::payload::Word;
use crate::space::Words;
use crate::thread::{self, Host};

/// How many forks lie between this process and the first that loaded the library.
static FORKS: AtomicUsize = AtomicUsize::new(0);

#[inline]
pub(crate) fn forks() -> usize {
    // RELAXED: it changes only in a child of fork, which has one thread.
    FORKS.load(Relaxed)
}

/// What a thread that forks has prepared. Fields are dropped in order.
struct Prepared {
    spaces: Vec<PreparedSpace>,
    /// No handle is made or ended while this is locked, so that the child finds the lists whole.
    registry: MutexGuard<'static, Registry>,
}

struct PreparedSpace {
    /// Borrows the space, which the next field keeps.
    prepared: Option<PreparedFork<'static, Word, Host>>,
    space: Arc<Words>,
}

thread_local! {
    static PREPARED: RefCell<Option<Prepared>> = const { RefCell::new(None) };
}

/// Prepares all spaces for fork(2), which this thread is going to call: waits for edits and
/// exclusions of other threads, and lets none begin. Readers go on. For pthread_atfork(3):
///
///   pthread_atfork(pervma_fork_prepare, pervma_fork_parent, pervma_fork_child);
///
/// Until then this thread must call nothing that may wait: PERVMA_EBUSY_OWN.
///
/// A space that cannot be prepared, since this thread edits it, excludes a part of it or holds a
/// guard in it, is abandoned in the child: calls on it say PERVMA_EFORKED. So is one that another
/// thread makes meanwhile. Where no handler of fork calls this, a child must not use the library.
#[unsafe(no_mangle)]
pub extern "C" fn pervma_fork_prepare() {
    call(|| {
        if PREPARED.with(|place| place.borrow().is_some()) {
            return Ok(()); // by an earlier call
        }
        let spaces: Vec<_> = registry().spaces.iter().map(|slot| get_in(slot)).collect();
        let spaces = spaces.into_iter().map(|space| {
            // SAFETY: the space is kept beside what borrows it, which is dropped first.
            let kept: &'static Words = unsafe { &*Arc::as_ptr(&space) };
            PreparedSpace { prepared: kept.prepare_fork().ok(), space }
        });
        let spaces = spaces.collect();
        PREPARED
            .with(|place| *place.borrow_mut() = Some(Prepared { spaces, registry: registry() }));
        thread::with(|thread| thread.forks.set(1));
        Ok(())
    });
}

/// Goes on in the parent: the spaces can be changed again. Without pervma_fork_prepare it does
/// nothing, and neither does pervma_fork_child.
#[unsafe(no_mangle)]
pub extern "C" fn pervma_fork_parent() {
    call(|| {
        drop(take_prepared());
        Ok(())
    });
}

fn take_prepared() -> Option<Prepared> {
    thread::with(|thread| thread.forks.set(0));
    PREPARED.with(|place| place.borrow_mut().take())
}

/// Goes on in the child: prepared spaces are whole, and this thread may use them as it likes, also
/// between fork and exec. Guards that were begun before the fork are over: pervma_read_end of them
/// does nothing but say PERVMA_EFORKED. What other threads had reserved stays reserved, and a space
/// in which they had reservations or registered readers cannot be destroyed (PERVMA_EIN_USE).
/// Regions are the parent's: nothing of them is there, destroying one ends its handle alone, and a
/// child of a process that has some must map none.
#[unsafe(no_mangle)]
pub extern "C" fn pervma_fork_child() {
    call(|| {
        let Some(Prepared { spaces, registry }) = take_prepared() else { return Ok(()) };
        // RELAXED: there is one thread.
        FORKS.fetch_add(1, Relaxed);
        for space in registry.spaces.iter().map(|slot| get_in(slot)) {
            if !spaces.iter().any(|prepared| Arc::ptr_eq(&prepared.space, &space)) {
                space.abandon_after_fork();
            }
        }
        for PreparedSpace { prepared, space } in spaces {
            match prepared {
                // SAFETY: this is the child; guards from before say that they are over.
                Some(prepared) => unsafe { prepared.child() },
                None => space.abandon_after_fork(),
            }
        }
        Ok(())
    });
}
