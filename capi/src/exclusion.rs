//! Exclusions and reservations: what is kept between two edits, with no lock held.
#![expect(unsafe_code, reason = "exports functions, and keeps what borrows a space")]

use std::cell::RefCell;
use std::ffi::c_void;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use address_space::{Exclusion, RemovedVmas, Reservation};

use crate::boundary::{Out, waiting_call};
use crate::handles::{Kind, Object, get, make, take};
use crate::payload::{Change, OnRemoved, Word, tell};
use crate::space::{Space, SpaceData, deadline, no_callback, refused};
use crate::status::{Status, fail, failed};
use crate::thread::{self, Host};

/// The VMAs that touched a range when it was made: they take no new reader, and nobody else changes
/// them. It holds no lock. Belongs to the thread that made it.
#[derive(Debug)]
pub struct ExclusionHandle(());

/// A range that is taken, with nothing mapped yet. It holds no lock. Any thread may use it.
#[derive(Debug)]
pub struct ReservationHandle(());

pub(crate) struct ExclusionData {
    exclusion: RefCell<Option<Exclusion<'static, Word, Host>>>,
    space: &'static SpaceData,
    thread: usize,
}

pub(crate) struct ReservationData {
    reservation: Mutex<Reservation<'static, Word, Host>>,
    space: &'static SpaceData,
}

/// Any thread may end a reservation.
const _: fn() = || {
    fn check<T: Send>() {}
    check::<Reservation<'static, Word, Host>>();
};

impl Object for ExclusionData {
    const KIND: Kind = Kind::Exclusion;
    type Handle = ExclusionHandle;
}

impl Object for ReservationData {
    const KIND: Kind = Kind::Reservation;
    type Handle = ReservationHandle;
}

/// Keeps new readers out of every VMA that touches a range. Waits for exclusions of the same VMAs
/// by others, not for readers.
///
/// @param out  receives the exclusion; ended by pervma_exclusion_remove, _update, _relocate or
///             _abandon, on this thread
/// @return PERVMA_OK; PERVMA_ENOT_MAPPED, _ERESERVED, _EUNALIGNED, _EEMPTY, _EOVERFLOW; of an edit,
///         guard or exclusion of this thread PERVMA_EBUSY_OWN, _EGUARD; PERVMA_ENO_MEMORY,
///         _EFORKED, _EIN_HANDLER, _EHANDLE, _EINVALID
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pervma_exclude(
    space: *mut Space,
    start: usize,
    end: usize,
    out: *mut *mut ExclusionHandle,
) -> Status {
    waiting_call(|| {
        // SAFETY: the caller's pointer.
        let out = unsafe { Out::new(out) }?;
        // SAFETY: the caller's handle.
        let data = unsafe { get::<SpaceData>(space) }?;
        let exclusion = data.kept().exclude(start..end).map_err(failed)?;
        data.count_dependent();
        let exclusion = RefCell::new(Some(exclusion));
        out.set(make(ExclusionData { exclusion, space: data, thread: thread::name() }));
        Ok(())
    })
}

/// Waits until the readers have released the VMAs.
///
/// @param timeout_ns  at most so long; UINT64_MAX: as long as it takes
/// @return PERVMA_OK; PERVMA_ETIMED_OUT; PERVMA_ETHREAD, _EIN_HANDLER, _EHANDLE, _EINVALID
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pervma_exclusion_wait(
    exclusion: *mut ExclusionHandle,
    timeout_ns: u64,
) -> Status {
    waiting_call(|| {
        // SAFETY: the caller's handle.
        let data = unsafe { mine(exclusion) }?;
        let exclusion = data.exclusion.borrow();
        let exclusion = exclusion.as_ref().ok_or_else(used)?;
        match deadline(timeout_ns) {
            None => exclusion.wait(),
            Some(deadline) if exclusion.wait_until(deadline) => {}
            Some(_) => return Err(Status::TimedOut),
        }
        Ok(())
    })
}

fn used() -> Status {
    fail(Status::Handle, &"the exclusion is being ended")
}

/// The exclusion of a handle, of this thread.
///
/// # Safety
///
/// As for [`get`].
unsafe fn mine(exclusion: *const ExclusionHandle) -> Result<&'static ExclusionData, Status> {
    // SAFETY: as the caller says.
    let data = unsafe { get::<ExclusionData>(exclusion) }?;
    if data.thread == thread::name() {
        Ok(data)
    } else {
        Err(fail(Status::Thread, &"the exclusion is another thread's"))
    }
}

/// Ends an exclusion by `end`, which is given what it was.
///
/// # Safety
///
/// As for [`take`].
unsafe fn end<R>(
    handle: *mut ExclusionHandle,
    end: impl FnOnce(Exclusion<'static, Word, Host>) -> R,
) -> Result<R, Status> {
    // SAFETY: as the caller says.
    let data = unsafe { mine(handle) }?;
    let about = "called in a handler, inside a call on the exclusion";
    let mut place = data.exclusion.try_borrow_mut().map_err(|_| fail(Status::BusyOwn, &about))?;
    let exclusion = place.take().ok_or_else(used)?;
    drop(place);
    let (space, ended) = (data.space, end(exclusion));
    // SAFETY: this thread has it, and its other uses found nothing in it.
    drop(unsafe { take::<ExclusionData>(handle) });
    space.forget_dependent();
    Ok(ended)
}

/// Ends an exclusion by a change, and tells of what that has removed.
///
/// # Safety
///
/// As for [`end`].
unsafe fn end_by(
    handle: *mut ExclusionHandle,
    change: impl FnOnce(
        Exclusion<'static, Word, Host>,
    ) -> Result<RemovedVmas<Word>, address_space::ChangeError>,
    on_removed: OnRemoved,
    context: *mut c_void,
) -> Result<(), Status> {
    // SAFETY: as the caller says.
    let removed = unsafe { end(handle, change) }?.map_err(failed)?;
    tell(removed, on_removed, context);
    Ok(())
}

/// Waits for the readers, and unmaps what of the range the VMAs cover. The exclusion is over, also
/// if that fails, but for PERVMA_ETHREAD, _EIN_HANDLER, _EHANDLE and _EINVALID.
///
/// @return as pervma_remove; PERVMA_ETHREAD
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pervma_exclusion_remove(
    exclusion: *mut ExclusionHandle,
    on_removed: OnRemoved,
    context: *mut c_void,
) -> Status {
    waiting_call(|| {
        // SAFETY: the caller's handle.
        unsafe { end_by(exclusion, Exclusion::remove, on_removed, context) }
    })
}

/// Waits for the readers, and changes the payload of every part of the range, all of which must be
/// mapped. The exclusion is over, as by pervma_exclusion_remove.
///
/// @return as pervma_update; PERVMA_ETHREAD
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pervma_exclusion_update(
    exclusion: *mut ExclusionHandle,
    change: Change,
    on_removed: OnRemoved,
    context: *mut c_void,
) -> Status {
    waiting_call(|| {
        if change.is_none() {
            return Err(no_callback());
        }
        let changed = |part: Range<usize>, word: &Word| word.changed(change, context, &part).0;
        // SAFETY: the caller's handle.
        unsafe { end_by(exclusion, |it| it.update(changed), on_removed, context) }
    })
}

/// Waits for the readers, and moves everything in the range so that it starts at `to`. The
/// exclusion is over, as by pervma_exclusion_remove.
///
/// @return as pervma_relocate; PERVMA_ETHREAD
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pervma_exclusion_relocate(
    exclusion: *mut ExclusionHandle,
    to: usize,
    change: Change,
    on_removed: OnRemoved,
    context: *mut c_void,
) -> Status {
    waiting_call(|| {
        let there = |part: Range<usize>, word: &Word| word.changed(change, context, &part).0;
        // SAFETY: the caller's handle.
        unsafe { end_by(exclusion, |it| it.relocate(to, there), on_removed, context) }
    })
}

/// Ends an exclusion, with nothing changed: readers are admitted again. Waits for no reader.
///
/// @return PERVMA_OK; PERVMA_ETHREAD, _EBUSY_OWN, _EIN_HANDLER, _EHANDLE, _EINVALID
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pervma_exclusion_abandon(exclusion: *mut ExclusionHandle) -> Status {
    waiting_call(|| {
        // SAFETY: the caller's handle.
        unsafe { end(exclusion, drop) }
    })
}

/// Takes a range in which nothing is mapped, for example until mmap(2) has returned: it is no gap
/// any more, and nothing can be inserted there. In an edit of this thread, in that: the reservation
/// stays when the edit ends.
///
/// @param out  receives the reservation; ended by pervma_commit or pervma_abort
/// @return as pervma_insert
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pervma_reserve(
    space: *mut Space,
    start: usize,
    end: usize,
    out: *mut *mut ReservationHandle,
) -> Status {
    waiting_call(|| {
        // SAFETY: the caller's pointer.
        let out = unsafe { Out::new(out) }?;
        // SAFETY: the caller's handle.
        let data = unsafe { get::<SpaceData>(space) }?;
        let reserved =
            data.with_edit(|edit| edit.reserve(start..end), |space| space.reserve(start..end))?;
        let reservation = Mutex::new(reserved.map_err(failed)?);
        data.count_dependent();
        out.set(make(ReservationData { reservation, space: data }));
        Ok(())
    })
}

/// # Safety
///
/// As for [`take`].
unsafe fn end_reservation(handle: *mut ReservationHandle) -> Result<(), Status> {
    // SAFETY: as the caller says.
    let data = unsafe { take::<ReservationData>(handle) }?;
    let space = data.space;
    drop(data);
    space.forget_dependent();
    Ok(())
}

/// Maps a reserved range, and ends the reservation. Merges nothing. In an edit of this thread, in
/// that.
///
/// @param payload  the space's from now on; the caller's if the call fails, and then the
///                 reservation is what it was
/// @return PERVMA_OK; PERVMA_EGUARD, _EFORKED, _EIN_HANDLER, _EHANDLE, _EINVALID
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pervma_commit(
    reservation: *mut ReservationHandle,
    payload: u64,
) -> Status {
    waiting_call(|| {
        // SAFETY: the caller's handle.
        let data = unsafe { get::<ReservationData>(reservation) }?;
        let word = data.space.word(payload);
        let mut reserved = data.reservation.lock().unwrap_or_else(PoisonError::into_inner);
        reserved.commit(word).map_err(refused)?;
        drop(reserved);
        // SAFETY: the caller's handle.
        unsafe { end_reservation(reservation) }
    })
}

/// Gives a reserved range back. Waits for no edit: if another thread edits the space, the range is
/// free when its edit has ended.
///
/// @return PERVMA_OK; PERVMA_EBUSY_OWN, _EIN_HANDLER, _EHANDLE, _EINVALID
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pervma_abort(reservation: *mut ReservationHandle) -> Status {
    waiting_call(|| {
        // SAFETY: the caller's handle.
        unsafe { end_reservation(reservation) }
    })
}
