//! Handles: pointers whose memory is never given back, so that a stale one is seen.
//!
//! An object lives in a slot. A slot is made once and never freed; a state in it says whether
//! something lives there. The slots of destroyed objects are used again in turn, after
//! [`QUARANTINE`] others.
#![expect(unsafe_code, reason = "objects come and go in memory that stays")]
#![expect(clippy::disallowed_types, reason = "whether a slot is in use")]

use std::any::Any;
use std::cell::UnsafeCell;
use std::collections::VecDeque;
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::space::{SpaceData, Words};
use crate::status::{Status, fail};

/// So many slots of a kind are free before one is used again.
const QUARANTINE: usize = 64;

/// What a handle can be of.
pub(crate) trait Object: Sized + 'static {
    /// Which list of [`Registry::free`] is that of its slots.
    const KIND: Kind;
    /// What C has a pointer to.
    type Handle;
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    Space,
    Slab,
    Reader,
    Exclusion,
    Reservation,
    Region,
    Bound,
    Pin,
}

const KINDS: usize = Kind::Pin as usize + 1;

/// The memory of an object. The state comes first, whatever the object is, so that a pointer to a
/// slot of another kind is told by it.
#[repr(C)]
pub(crate) struct Slot<O> {
    state: AtomicU64,
    object: UnsafeCell<MaybeUninit<O>>,
}

/// Free, or something that is changing. No kind's state.
const FREE: u64 = 0x7065_7276_6d61_0000;

impl<O: Object> Slot<O> {
    /// The state of a slot in which an object lives.
    const LIVE: u64 = FREE + 1 + O::KIND as u64;
}

// SAFETY: the object is reached by `get`, whose caller answers for it, and by the thread that made
// the slot free.
unsafe impl<O> Sync for Slot<O> {}
// SAFETY: as for `Sync`.
unsafe impl<O> Send for Slot<O> {}

/// The slots of all kinds. One lock for all, so that a fork holds up one.
pub(crate) struct Registry {
    /// Free slots by kind, those that were freed first in front.
    free: [VecDeque<&'static (dyn Any + Send + Sync)>; KINDS],
    /// The spaces that there are.
    pub(crate) spaces: Vec<&'static Slot<SpaceData>>,
}

static REGISTRY: Mutex<Registry> =
    Mutex::new(Registry { free: [const { VecDeque::new() }; KINDS], spaces: Vec::new() });

/// Locks the registry. No callback runs meanwhile, and nothing is waited for.
pub(crate) fn registry() -> MutexGuard<'static, Registry> {
    REGISTRY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes an object, and returns its handle.
pub(crate) fn make<O: Object>(object: O) -> *mut O::Handle {
    std::ptr::from_ref(make_in_slot(object)).cast_mut().cast()
}

/// Makes an object.
pub(crate) fn make_in_slot<O: Object>(object: O) -> &'static Slot<O> {
    let free = {
        let list = &mut registry().free[O::KIND as usize];
        if list.len() > QUARANTINE { list.pop_front() } else { None }
    };
    let slot = free.and_then(|slot| slot.downcast_ref::<Slot<O>>()).unwrap_or_else(|| {
        let object = UnsafeCell::new(MaybeUninit::uninit());
        Box::leak(Box::new(Slot { state: AtomicU64::new(FREE), object }))
    });
    // SAFETY: the slot is free, and taken from the list, so this thread alone has it.
    unsafe { (*slot.object.get()).write(object) };
    // RELAXED: a handle goes to other threads by something that orders, as every pointer does. A
    // stale one is told by the state alone, until another object lives in its slot.
    slot.state.store(Slot::<O>::LIVE, Relaxed);
    slot
}

/// The space in a slot of the registry's list, which is locked: one that is there is live.
pub(crate) fn get_in(slot: &Slot<SpaceData>) -> Arc<Words> {
    // SAFETY: it is taken from the list before it is taken from its slot.
    let data = unsafe { &*slot.object.get() };
    // SAFETY: it was written before it was put on the list.
    Arc::clone(unsafe { &data.assume_init_ref().space })
}

fn stale() -> Status {
    fail(Status::Handle, &"a handle is not a live one of its kind")
}

/// The object of a handle.
///
/// # Safety
///
/// Unless it is null or unaligned, `handle` was returned by [`make`], for whatever kind of object.
/// The object is not [taken](take) while the result is used.
#[inline]
pub(crate) unsafe fn get<O: Object>(handle: *const O::Handle) -> Result<&'static O, Status> {
    // SAFETY: slots stay, and begin with their state whatever they are of.
    let slot = unsafe { slot(handle) }?;
    // RELAXED: as in `make_in_slot`.
    if slot.state.load(Relaxed) != Slot::<O>::LIVE {
        return Err(stale());
    }
    // SAFETY: the object is live, and not taken meanwhile.
    let object = unsafe { &*slot.object.get() };
    // SAFETY: it was written before the state said so.
    Ok(unsafe { object.assume_init_ref() })
}

/// Takes the object of a handle, which ends the handle.
///
/// # Safety
///
/// As for [`get`]; no result of it is used any more.
pub(crate) unsafe fn take<O: Object>(handle: *const O::Handle) -> Result<O, Status> {
    // SAFETY: as for `get`.
    let slot = unsafe { slot(handle) }?;
    // Of two threads one ends it.
    // RELAXED: as in `make_in_slot`; the lock of the registry orders what comes next in the slot.
    if slot.state.compare_exchange(Slot::<O>::LIVE, FREE, Relaxed, Relaxed).is_err() {
        return Err(stale());
    }
    // SAFETY: the object was live, and this thread has ended that.
    let object = unsafe { &*slot.object.get() };
    // SAFETY: it was written, and nobody reads it again.
    let object = unsafe { object.assume_init_read() };
    registry().free[O::KIND as usize].push_back(slot);
    Ok(object)
}

/// # Safety
///
/// As for [`get`]. Only the state of the result may be used before it is known to be of the kind.
pub(crate) unsafe fn slot<O: Object>(handle: *const O::Handle) -> Result<&'static Slot<O>, Status> {
    let handle = handle.cast::<Slot<O>>();
    if handle.is_null() {
        return Err(fail(Status::Invalid, &"a handle is NULL"));
    }
    if !handle.is_aligned() {
        return Err(stale());
    }
    // SAFETY: slots are never given back.
    Ok(unsafe { &*handle })
}
